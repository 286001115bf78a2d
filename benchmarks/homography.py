# SPDX-License-Identifier: Apache-2.0
"""Homographies from pairs of points: ours beside PoseLib and OpenCV.

20 cells: N in {100, 300, 1000, 5000} x outliers in {30, 50, 70, 80, 90 %}.
640 x 480 images; every corner of one moves by up to a quarter of a side in the
other; noise of 0.7 px in both; outliers are random pixels. Every pair has a
score, inliers N(1, 1), outliers N(0, 1), which only PROSAC reads. All methods
solve the same problems in rotated order on one core, threshold 3 px, confidence
0.9999, at most 10,000 samples, of ours 40,000 (its default: they cost less);
success: the corners are below 10 px off on average. Times are of the CPU,
which other processes disturb least; on an accelerator of the clock. Ours
include the test whether random pairs agree as often. Compilation is excluded.

cells    success and time of every method, and the error of the successes
         beside that of the oracle, least squares on the true inliers
batch    256 problems in one call, and alone
solver   four points in float32: share that is wrong, samples per second

Peers that are not installed are left out and said to be.
python benchmarks/homography.py --json=homography.json
"""

from collections.abc import Callable
import functools
import importlib
import json
import os
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from i2ploc.geometry import homography as homography_lib
from i2ploc.robust import homography
from i2ploc.robust import refine
from i2ploc.robust import two_views

PARTS = ('cells', 'batch', 'solver')
PART = flags.DEFINE_multi_enum('part', PARTS, PARTS, 'Which parts.')
TRIALS = flags.DEFINE_integer('trials', 20, 'Problems per cell.')
SIZES = flags.DEFINE_multi_integer('size', [100, 300, 1000, 5000], 'N.')
OUTLIERS = flags.DEFINE_multi_float(
  'outliers', [0.3, 0.5, 0.7, 0.8, 0.9], 'Shares of outliers.'
)
BATCH = flags.DEFINE_integer('batch', 256, 'Problems of the batch.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')

SIZE = np.array([640.0, 480.0])
CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * SIZE
NOISE, THRESHOLD, SUCCESS = 0.7, 3.0, 10.0
MAX_DRAWS, CONFIDENCE = 10_000, 0.9999
OURS, BASE, BASE_PROSAC = ('ours', 'ours_prosac'), 'poselib', 'poselib_prosac'


class Scene(NamedTuple):
  """Pairs of pixels, best scores first, and the truth."""

  points0: np.ndarray
  points1: np.ndarray
  scores: np.ndarray
  matrix: np.ndarray
  inliers: np.ndarray


def _mapped(matrix, points):
  seen = points @ matrix[:, :2].T + matrix[:, 2]
  return seen[:, :2] / seen[:, 2:]


def make_scene(
  rng: np.random.Generator, num_data: int, outliers: float
) -> Scene:
  """A problem of the protocol above."""
  there = CORNERS + rng.uniform(-0.25, 0.25, (4, 2)) * SIZE
  found, _ = homography_lib.from_four(
    jnp.float32(CORNERS / SIZE), jnp.float32(there / SIZE)
  )
  matrix = np.diag([*SIZE, 1]) @ np.float64(found) @ np.diag([*1 / SIZE, 1])
  points0 = rng.uniform(0, 1, (num_data, 2)) * SIZE
  points1 = _mapped(matrix, points0) + NOISE * rng.normal(size=points0.shape)
  points0 = points0 + NOISE * rng.normal(size=points0.shape)
  inliers = rng.permutation(num_data) >= round(outliers * num_data)
  wrong = rng.uniform(0, 1, points1.shape) * SIZE
  points1 = np.where(inliers[:, None], points1, wrong)
  scores = inliers + rng.normal(size=num_data)
  order = np.argsort(-scores)
  return Scene(
    points0[order], points1[order], scores[order], matrix, inliers[order]
  )


def error(matrix: np.ndarray | None, scene: Scene) -> float:
  """Pixels, mean over the corners; infinite without a homography."""
  if matrix is None or not np.isfinite(matrix).all():
    return np.inf
  with np.errstate(all='ignore'):
    away = _mapped(matrix, CORNERS) - _mapped(scene.matrix, CORNERS)
  return float(np.nan_to_num(np.linalg.norm(away, axis=1).mean(), nan=np.inf))


@jax.jit
def _refined(matrix, data):
  return refine.refine(homography.PROBLEM, matrix, data, len(data.x0), 1e3)[0]


def oracle(scene: Scene) -> np.ndarray:
  """Least squares on the true inliers, from the true homography."""
  points0, points1 = scene.points0[scene.inliers], scene.points1[scene.inliers]
  frames = two_views.pairs(points0, points1).frames
  before, after = frames.matrices()
  start = after @ scene.matrix @ np.linalg.inv(before)
  with jax.enable_x64(True):
    found = _refined(
      start / np.linalg.norm(start), frames.matches(points0, points1)
    )
  return np.linalg.inv(after) @ np.asarray(found) @ before


def _ours(scene, has_scores):
  return homography.homography(
    scene.points0,
    scene.points1,
    THRESHOLD,
    scores=scene.scores if has_scores else None,
  ).image1_from_image0


def _poselib(poselib, scene, **options):
  settings = {
    'max_reproj_error': THRESHOLD,
    'max_iterations': MAX_DRAWS,
    'min_iterations': 100,
    'success_prob': CONFIDENCE,
    **options,
  }
  return poselib.estimate_homography(
    scene.points0, scene.points1, settings, {}
  )[0]


def _opencv(cv2, scene, method):
  return cv2.findHomography(
    scene.points0, scene.points1, method, THRESHOLD, None, MAX_DRAWS, CONFIDENCE
  )[0]


def _peer(name):
  try:
    return importlib.import_module(name)
  except ImportError:
    print(f'{name} is not installed: its rows are left out')
    return None


@functools.cache
def methods() -> dict[str, Callable[[Scene], np.ndarray | None]]:
  """The methods to compare, by name."""
  table = {
    'ours': functools.partial(_ours, has_scores=False),
    'ours_prosac': functools.partial(_ours, has_scores=True),
  }
  if poselib := _peer('poselib'):
    solve = functools.partial(_poselib, poselib)
    table[BASE] = solve
    table[BASE_PROSAC] = functools.partial(solve, progressive_sampling=True)
  if cv2 := _peer('cv2'):
    cv2.setNumThreads(1)
    for name in ('RANSAC', 'USAC_MAGSAC', 'USAC_PROSAC'):
      table[f'opencv_{name.lower()}'] = functools.partial(
        _opencv, cv2, method=getattr(cv2, name)
      )
  return table


def _now():
  on_cpu = jax.default_backend() == 'cpu'
  return time.process_time() if on_cpu else time.perf_counter()


def _seconds(solve, *args):
  start = _now()
  found = solve(*args)
  return found, _now() - start


def measure_cell(num_data: int, outliers: float) -> dict[str, dict]:
  """Success, median seconds and error of each method on the same problems."""
  table = methods()
  rng = np.random.default_rng([num_data, round(100 * outliers)])
  scenes = [make_scene(rng, num_data, outliers) for _ in range(TRIALS.value)]
  runs = {name: [] for name in table}
  names = list(table)
  for i, scene in enumerate(scenes):
    turn = i % len(names)
    for name in names[turn:] + names[:turn]:
      found, seconds = _seconds(table[name], scene)
      runs[name].append((seconds, error(found, scene)))
  best = [error(oracle(scene), scene) for scene in scenes]
  return {name: _summary(rows, best) for name, rows in runs.items()}


def _summary(rows, best):
  """A method in a cell; errors are pixels, medians over its successes."""
  right = [i for i, row in enumerate(rows) if row[1] < SUCCESS]
  summary = {
    'success': len(right) / len(rows),
    'ms': 1e3 * statistics.median(row[0] for row in rows),
  }
  if right:
    summary['error'] = statistics.median(rows[i][1] for i in right)
    summary['oracle'] = statistics.median(best[i] for i in right)
  return summary


def show_cells() -> dict:
  """All cells, then the means."""
  table, cells = methods(), {}
  start = _now()
  for size in SIZES.value:
    for name in OURS:
      table[name](make_scene(np.random.default_rng(0), size, 0.3))
  print(f'compilation: {_now() - start:.1f} s in all, not counted')
  for size in SIZES.value:
    for share in OUTLIERS.value:
      cell = cells[f'{size}/{share:g}'] = measure_cell(size, share)
      print(f'N {size:5d}  outliers {share:4.0%}', flush=True)
      for name, row in cell.items():
        off = row.get('error', np.nan)
        print(
          f'  {name:20} success {row["success"]:.2f}  {row["ms"]:8.2f} ms  '
          f'error {off:5.2f} px, {off / row.get("oracle", np.nan):.2f} of the '
          'oracle'
        )
  means = {name: _means(cells, name) for name in table}
  for name, row in means.items():
    print(' '.join(f'{k} {v:.3f}' for k, v in row.items()), '', name)
  return {'cells': cells, 'means': means}


def _means(cells, name):
  """Mean success, mean time beside PoseLib's, mean error beside the oracle."""

  def relative(base):
    ratios = [
      c[name]['ms'] / c[base]['ms'] for c in cells.values() if base in c
    ]
    return statistics.geometric_mean(ratios) if ratios else np.nan

  sure = [c[name] for c in cells.values() if c[name]['success'] >= 0.9]
  ratios = [row['error'] / row['oracle'] for row in sure]
  return {
    'success': statistics.mean(c[name]['success'] for c in cells.values()),
    'time/poselib': relative(BASE),
    'time/poselib_prosac': relative(BASE_PROSAC),
    'error/oracle': statistics.geometric_mean(ratios) if ratios else np.nan,
  }


def show_batch() -> dict:
  """Many problems of a cell in one call, beside one by one."""
  cells, table = {}, methods()
  for size in SIZES.value:
    for share in OUTLIERS.value:
      rng = np.random.default_rng(size)
      scenes = [make_scene(rng, size, share) for _ in range(BATCH.value)]
      solve = functools.partial(
        homography.homographies,
        [scene.points0 for scene in scenes],
        [scene.points1 for scene in scenes],
        THRESHOLD,
      )
      solve()
      found, seconds = _seconds(solve)
      off = [
        error(one.image1_from_image0, scene)
        for one, scene in zip(found, scenes, strict=True)
      ]
      row = {
        'ms': 1e3 * seconds / len(scenes),
        'success': float(np.mean(np.less(off, SUCCESS))),
      }
      for name in {'ours', BASE} & set(table):
        table[name](scenes[0])
        some = scenes[: TRIALS.value]
        alone = statistics.median(_seconds(table[name], s)[1] for s in some)
        row[f'time/{name}'] = row['ms'] / (1e3 * alone)
      cells[f'{size}/{share:g}'] = row
      print(
        f'batch {BATCH.value}  N {size:5d}  outliers {share:4.0%}  '
        + '  '.join(f'{k} {v:.3f}' for k, v in row.items()),
        flush=True,
      )
  return cells


def show_solver() -> dict:
  """Four points alone: accuracy on 100,000 problems, speed of 1,024."""
  rng = np.random.default_rng(0)
  points0, points1 = rng.uniform(-1, 1, (2, 100_000, 4, 2)).astype(np.float32)
  solve = jax.jit(jax.vmap(homography_lib.from_four))
  found, valid = jax.device_get(solve(points0, points1))
  seen = np.einsum('sij,snj->sni', np.float64(found[..., :2]), points0)
  seen = seen + found[:, None, :, 2]
  away = np.abs(seen[..., :2] / seen[..., 2:] - points1).max(axis=(1, 2))
  some = points0[:1024], points1[:1024]
  jax.block_until_ready(solve(*some))
  times = [_seconds(lambda: jax.block_until_ready(solve(*some)))[1]
           for _ in range(50)]  # fmt: skip
  row = {
    'share valid': float(valid.mean()),
    'of these beyond 1e-3': float((away[valid] > 1e-3).mean()),
    'samples/s': 1024 / statistics.median(times),
  }
  print('four points  ' + '  '.join(f'{k} {v:.3g}' for k, v in row.items()))
  return row


SHOW = {'cells': show_cells, 'batch': show_batch, 'solver': show_solver}


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  if hasattr(os, 'sched_setaffinity'):  # one core for everybody
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  print(f'device: {jax.devices()[0].device_kind}')
  numbers = {part: SHOW[part]() for part in PART.value}
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
  app.run(main)
