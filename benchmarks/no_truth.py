# SPDX-License-Identifier: Apache-2.0
"""Whether `valid` means what it says: problems without truth, and at its edge.

truth   planted problems at the edge: 8 to 15 of 100 to 300 data agree, up to a
        pixel or centimetre of noise: share whose model is right, and share that
        is right and valid, and of those that are valid the share that is wrong
none    random data, 100 to 300 of them: share that is called valid
repeat  three to five random data, ten times each with noise of a tenth of a
        pixel or centimetre: share that is called valid

Every function of a problem is called as users call it, threshold 3 pixels or
centimetres. Success is that of `planted_problems`.

python benchmarks/no_truth.py --json=no_truth.json
"""

import json
import pathlib
import sys
import time

from absl import app
from absl import flags
import jax
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from i2ploc.evaluation import planted_problems
from i2ploc.geometry import lens as lens_lib
from i2ploc.robust import absolute_pose
from i2ploc.robust import alignment
from i2ploc.robust import fundamental
from i2ploc.robust import homography
from i2ploc.robust import lines
from i2ploc.robust import planes
from i2ploc.robust import relative_pose

PARTS = ('none', 'repeat', 'truth')
PROBLEMS = (
  'absolute_pose',
  'homography',
  'relative_pose',
  'fundamental',
  'alignment',
  'similarity',
  'plane',
  'line',
)
PART = flags.DEFINE_multi_enum('part', PARTS, PARTS, 'Which parts.')
PROBLEM = flags.DEFINE_multi_enum('problem', PROBLEMS, PROBLEMS, 'Which.')
TRIALS = flags.DEFINE_integer('trials', 1000, 'Per part, of all problems.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the data.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')

FOCAL, CENTER = planted_problems.FOCAL, np.array([320.0, 240.0])
INTRINSICS = np.array(
  [[FOCAL, 0, CENTER[0]], [0, FOCAL, CENTER[1]], [0, 0, 1.0]]
)
LENS = lens_lib.Lens('pinhole', INTRINSICS)
PIXELS, METRES = 3.0, 0.03
SIZES = (100, 150, 200, 300)
NOISE = 1.0


def _planted(name, num_data, num_inliers, noise, seed):
  """Data [N], the true model, which data are inliers, and the kind."""
  known = name in planted_problems.KINDS
  # The same pairs of pixels have a fundamental matrix.
  kind = planted_problems.KINDS[name if known else 'relative_pose']
  planted = planted_problems.plant(
    kind, num_data, 1 - num_inliers / num_data, noise, 1, seed
  )
  one = jax.tree.map(lambda leaf: np.float64(leaf[0]), planted[:2])
  return *one, planted.inliers[0], kind if known else None


def _pixels(x, y):
  return FOCAL * np.stack([x, y], axis=-1) + CENTER


def _solved(name, data):
  """The answer of the function that users call."""
  if name == 'absolute_pose':
    points = np.stack(data[:3], axis=-1)
    return absolute_pose.absolute_pose(points, _pixels(*data[3:]), LENS, PIXELS)
  if name in ('alignment', 'similarity'):
    return alignment.alignment(
      np.stack(data[:3], axis=-1),
      np.stack(data[3:], axis=-1),
      METRES,
      with_scale=name == 'similarity',
    )
  if name in ('plane', 'line'):
    solve = planes.plane if name == 'plane' else lines.line
    return solve(np.stack(data, axis=-1), METRES)
  if len(data) == 6:  # rays
    data = (*data[:2], *data[3:5])
  pairs = _pixels(*data[:2]), _pixels(*data[2:])
  if name == 'relative_pose':
    return relative_pose.relative_pose(*pairs, LENS, LENS, PIXELS)
  solve = homography.homography
  if name == 'fundamental':
    solve = fundamental.fundamental
  return solve(*pairs, PIXELS)


def _right(name, found, truth, kind):
  """Whether a model is a success; None where that is not known."""
  if found.model is None or kind is None:
    return False
  model = found.model
  if name == 'homography':
    model = np.linalg.inv(INTRINSICS) @ model @ INTRINSICS
  if name == 'fundamental':
    model = INTRINSICS.T @ model @ INTRINSICS
  if name == 'alignment':
    model = type(truth)(model.rotation, model.translation)
  one, true = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (model, truth))
  right, _ = planted_problems.success(kind, one, true, np.ones(1, bool))
  return bool(right[0])


def _trial(part, name, seed):
  """Whether the answer to a problem is right and valid; its seconds."""
  rng = np.random.default_rng([SEED.value, seed])
  size, agree = int(rng.choice(SIZES)), 0
  if part == 'truth':
    agree = int(rng.integers(8, 16))
  if part == 'repeat':
    size = int(rng.integers(3, 6))
  noise = NOISE * rng.uniform(0.2, 1.0)
  data, truth, _, kind = _planted(name, size, agree, noise, 1_000 + seed)
  if part == 'repeat':
    unit = 0.1 * (kind.unit if kind else 1 / FOCAL)
    data = jax.tree.map(
      lambda leaf: np.repeat(leaf, 10) + unit * rng.normal(size=10 * size), data
    )
  started = time.process_time()
  found = _solved(name, data)
  seconds = time.process_time() - started
  right = part == 'truth' and _right(name, found, truth, kind)
  return right, found.valid, seconds, found.num_inliers


def _row(part, name, trials):
  _trial(part, name, trials)  # compiles
  told = [_trial(part, name, seed) for seed in range(trials)]
  right, valid, seconds, inliers = map(np.array, zip(*told, strict=True))
  row = {
    'part': part,
    'problem': name,
    'trials': trials,
    'valid': float(valid.mean()),
    'milliseconds': 1e3 * float(np.median(seconds)),
    'most_inliers': int(inliers.max()),
  }
  if part == 'truth':
    row['success'] = float(right.mean())
    row['success_and_valid'] = float((right & valid).mean())
    row['wrong_of_valid'] = float((valid & ~right).sum() / max(valid.sum(), 1))
  return row


def main(argv):
  """Prints a row per part and problem, and the means."""
  del argv
  rows = []
  for part in PART.value:
    for name in PROBLEM.value:
      row = _row(part, name, max(TRIALS.value // len(PROBLEM.value), 1))
      rows.append(row)
      print(
        ', '.join(
          f'{k} {v:.3g}' if isinstance(v, float) else f'{k} {v}'
          for k, v in row.items()
        ),
        flush=True,
      )
    some = [row for row in rows if row['part'] == part]
    for key in ('valid', 'success', 'success_and_valid', 'wrong_of_valid'):
      if key in some[0]:
        print(f'{part}: {key} {np.mean([row[key] for row in some]):.4f}')
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(rows, indent=2))


if __name__ == '__main__':
  app.run(main)
