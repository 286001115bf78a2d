# SPDX-License-Identifier: Apache-2.0
"""Robust estimation from matches of real photographs, beside its peers.

relative     poses of two cameras; error: the larger of rotation and direction
fundamental  the same without the camera matrices, which then make the pose
absolute     poses in a map that two other photographs give; error: position
homography   photographs warped by known homographies; error: the corners
strangers    pairs of photographs that show nothing in common

Keypoints of real images have noise with heavy tails and a scale of its own,
which planted problems have not. Rows are by the number of true matches, for
each set of data. AUC is the area below the share of problems whose error is
less than some limit, up to that limit, and divided by it. Times are medians of
the CPU's time, one thread; the methods take turns on every problem. Ours solve
every problem once before, so that no compilation counts.

Peers that are not installed and data that are absent are left out and said to
be. Peers: pip install -r requirements-peers.txt
python benchmarks/real_pairs.py --part=relative --json=real_pairs.json
"""

from collections.abc import Callable
from collections.abc import Sequence
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

from absl import app
from absl import flags
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import real_data
from benchmarks import real_peers
from benchmarks import real_problems
from i2ploc.geometry import rigid

PARTS = ('relative', 'fundamental', 'absolute', 'homography', 'strangers')
PART = flags.DEFINE_multi_enum('part', PARTS, PARTS, 'Which parts.')
SET = flags.DEFINE_multi_enum(
  'set', real_data.SETS, real_data.SETS, 'Which data.'
)
METHOD = flags.DEFINE_multi_string('method', [], 'Which methods; all if none.')
DATA = flags.DEFINE_string(
  'data',
  str(pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'),
  'Folder of the data.',
)
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')

_RELATIVE_PX, _ABSOLUTE_PX, _HOMOGRAPHY_PX = 1.0, 2.0, 3.0
# Matches without which some peers fail instead of saying so.
_FEWEST = 8
# True matches, at least and less than.
_ROWS = {'>= 50': (50, np.inf), '15 to 49': (15, 50), '< 8': (0, 8)}
_DEGREES, _METRES, _CORNER_PX = (1, 5, 10), (0.02, 0.05, 0.2), (3, 5, 10)
# An answer of peers for strangers counts as trusted with so many inliers.
_TRUSTED = 15


def auc(errors: Sequence[float], limit: float) -> float:
  """The area below the share of errors less than x, for x up to a limit."""
  clipped = np.minimum(np.asarray(errors, float), limit)
  return float(np.mean(1 - clipped / limit))


def pose_error(found: Any, motion: Any) -> float:
  """Degrees, the larger of rotation and direction; inf without a pose."""
  if found is None or not np.linalg.norm(found.translation):
    return np.inf
  cosine = (np.trace(found.rotation @ motion.rotation.T) - 1) / 2
  along = found.translation @ motion.translation
  along /= np.linalg.norm(found.translation)
  along /= np.linalg.norm(motion.translation)
  worst = np.clip(min(cosine, along), -1, 1)
  # Of small angles the sine is more exact, but these are none.
  return float(np.degrees(np.arccos(worst)))


def run(
  table: dict[str, real_peers.Method],
  problems: Sequence[Any],
  threshold: float,
  error: Callable[[Any, Any], float],
) -> dict[str, list[dict]]:
  """Of every method a dict per problem: error, ms, inliers, valid."""
  for name in set(table) & set(real_peers.OURS):
    for problem in problems:
      table[name](problem, threshold)
  rows = {name: [] for name in table}
  names = list(table)
  for i, problem in enumerate(problems):
    turn = i % len(names)
    for name in names[turn:] + names[:turn]:
      start = time.process_time()
      found = table[name](problem, threshold)
      seconds = time.process_time() - start
      rows[name].append(
        {
          'error': np.inf if found is None else error(found.model, problem),
          'ms': 1e3 * seconds,
          'inliers': 0 if found is None else found.num_inliers,
          'valid': found is not None and found.valid,
        }
      )
  return rows


def summary(rows: list[dict], limits: Sequence[float]) -> dict:
  """AUC at the limits, the median of errors, the times and the share valid."""
  errors = [row['error'] for row in rows]
  times = [row['ms'] for row in rows]
  valid = [row for row in rows if row['valid']]
  wrong = [row for row in valid if row['error'] > max(limits)]
  return {
    **{f'auc{limit:g}': auc(errors, limit) for limit in limits},
    'median': statistics.median(errors),
    'ms': statistics.median(times),
    'ms_p90': float(np.quantile(times, 0.9)),
    'valid': len(valid) / len(rows),
    'valid_wrong': len(wrong) / len(rows),
  }


def _show(title, problems, rows, limits):
  """Prints one table and returns its numbers."""
  print(f'{title}: {len(problems)}', flush=True)
  found = {name: summary(one, limits) for name, one in rows.items()}
  for name, row in found.items():
    areas = ' / '.join(f'{row[f"auc{limit:g}"]:.3f}' for limit in limits)
    print(
      f'  {name:18} {areas}  median {row["median"]:7.3f}  '
      f'{row["ms"]:8.2f} ms (p90 {row["ms_p90"]:8.2f})  '
      f'valid {row["valid"]:.2f}, wrong {row["valid_wrong"]:.2f}',
      flush=True,
    )
  return found


def _by_rows(title, problems, table, threshold, error, limits):
  """Tables of the problems, by their number of true matches."""
  numbers = {}
  for label, (least, most) in _ROWS.items():
    some = [
      one
      for one in problems
      if least <= one.num_true < most and len(one.scores) >= _FEWEST
    ]
    if some:
      rows = run(table, some, threshold, error)
      numbers[label] = _show(f'{title}, {label} true', some, rows, limits)
  return numbers


def _chosen(problem):
  table = real_peers.methods(problem)
  wanted = METHOD.value
  return {k: v for k, v in table.items() if not wanted or k in wanted}


def show_relative() -> dict:
  """Relative poses of every set."""
  numbers = {}
  for name in SET.value:
    pairs = real_data.pairs(pathlib.Path(DATA.value), name)
    numbers[name] = _by_rows(
      f'relative, {name}',
      pairs,
      _chosen('relative'),
      _RELATIVE_PX,
      lambda model, pair: pose_error(model, pair.motion),
      _DEGREES,
    )
  return numbers


def _pose_of_matrix(matrix, pair):
  """The pose of a fundamental matrix with the true lenses."""
  if not np.isfinite(matrix).all():
    return None
  lenses = pair.lens0.intrinsics, pair.lens1.intrinsics
  u, _, v = np.linalg.svd(lenses[1].T @ matrix @ lenses[0])
  turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
  rays0, rays1 = (
    real_data.rays(*one)
    for one in ((pair.lens0, pair.pixels0), (pair.lens1, pair.pixels1))
  )
  best = None
  for middle in (turn, turn.T):
    rotation = u @ middle @ v
    rotation = rotation * np.linalg.det(rotation)
    for sign in (-1, 1):
      pose = rigid.Rigid(rotation, sign * u[:, 2])
      _, depths = real_data.triangulated(pose, rays0, rays1)
      count = int((depths > 0).all(axis=1).sum())
      if best is None or count > best[0]:
        best = count, pose
  return best[1]


def show_fundamental() -> dict:
  """Fundamental matrices of every set, judged by the poses that they give."""
  numbers = {}
  for name in SET.value:
    pairs = real_data.pairs(pathlib.Path(DATA.value), name)
    numbers[name] = _by_rows(
      f'fundamental, {name}',
      pairs,
      _chosen('fundamental'),
      _RELATIVE_PX,
      lambda model, pair: pose_error(_pose_of_matrix(model, pair), pair.motion),
      _DEGREES,
    )
  return numbers


def _position_error(found, view):
  """Metres between the cameras' positions."""
  places = [-pose.rotation.T @ pose.translation for pose in (found, view.pose)]
  return float(np.linalg.norm(places[0] - places[1]))


def show_absolute() -> dict:
  """Absolute poses in maps of other photographs."""
  numbers = {}
  for name, read in real_problems.VIEWS.items():
    if name not in SET.value:
      continue
    try:
      views = list(read(pathlib.Path(DATA.value)))
    except FileNotFoundError as error:
      print(f'{name} is left out: {error.filename} is not there')
      continue
    numbers[name] = _by_rows(
      f'absolute, {name}',
      views,
      _chosen('absolute'),
      _ABSOLUTE_PX,
      _position_error,
      _METRES,
    )
  return numbers


def _corner_error(matrix, warp):
  """Pixels, mean over the corners of the photograph."""
  places = real_problems.corners(warp.sizes[0])
  away = real_problems.mapped(matrix, places) - real_problems.mapped(
    warp.matrix, places
  )
  distance = np.linalg.norm(away, axis=1).mean()
  return float(np.nan_to_num(distance, nan=np.inf, posinf=np.inf))


def show_homography() -> dict:
  """Homographies of photographs that were warped."""
  warps = real_problems.warps(pathlib.Path(DATA.value))
  return _by_rows(
    'homography, lund',
    warps,
    _chosen('homography'),
    _HOMOGRAPHY_PX,
    _corner_error,
    _CORNER_PX,
  )


def show_strangers() -> dict:
  """Who trusts a model of photographs that have nothing in common."""
  pairs = real_problems.strangers(pathlib.Path(DATA.value))
  numbers = {}
  for problem, threshold in (
    ('relative', _RELATIVE_PX),
    ('fundamental', _RELATIVE_PX),
    ('homography', _HOMOGRAPHY_PX),
  ):
    rows = run(_chosen(problem), pairs, threshold, lambda *_: np.inf)
    print(f'strangers, {problem}: {len(pairs)}', flush=True)
    numbers[problem] = {}
    for name, some in rows.items():
      inliers = [one['inliers'] for one in some]
      trusted = [
        one['valid'] and (name in real_peers.OURS or one['inliers'] >= _TRUSTED)
        for one in some
      ]
      row = numbers[problem][name] = {
        'trusted': float(np.mean(trusted)),
        'inliers': float(np.median(inliers)),
        'most': int(max(inliers)),
        'ms': statistics.median(one['ms'] for one in some),
      }
      print(
        f'  {name:18} trusted {row["trusted"]:.3f}  inliers, median and most, '
        f'{row["inliers"]:5.1f} {row["most"]:4d}  {row["ms"]:8.2f} ms',
        flush=True,
      )
  return numbers


SHOW = {
  'relative': show_relative,
  'fundamental': show_fundamental,
  'absolute': show_absolute,
  'homography': show_homography,
  'strangers': show_strangers,
}


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  if hasattr(os, 'sched_setaffinity'):  # one core for everybody
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  numbers = {part: SHOW[part]() for part in PART.value}
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
  app.run(main)
