# SPDX-License-Identifier: Apache-2.0
"""How often the stated covariance of a robust estimate holds the truth.

Problems of every kind with N inliers and a share of outliers are solved by a
whole search; of the models that are valid and right this prints how many have
the truth within the ellipsoid of 95 %, and the median of their error beside
that of least squares on the true inliers, each in its own deviations. Wanted:
90 to 98 %, and 1.05 at most. All data are distinct.

python benchmarks/covariance.py --json=covariance.json
"""

import json
import pathlib
import statistics
import sys

from absl import app
from absl import flags
import jax
import numpy as np
from scipy import special

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from i2ploc.evaluation import planted_problems
from i2ploc.robust import search

KIND = flags.DEFINE_multi_enum(
  'kind',
  sorted(planted_problems.KINDS),
  sorted(planted_problems.KINDS),
  'Which problems.',
)
SIZES = flags.DEFINE_multi_integer(
  'size', [6, 8, 10, 15, 30, 100, 300, 1000], 'Inliers.'
)
OUTLIERS = flags.DEFINE_multi_float('outliers', [0.0, 0.5], 'Shares.')
TRIALS = flags.DEFINE_integer('trials', 100, 'Problems of each.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')

NOISE, THRESHOLD = 0.7, 3.0
_LEVEL = 0.95
_STEPS, _SMALL = 8, 1e-6
# Kinds whose models are matrices up to scale.
_SCALED = ('homography', 'fundamental')


def _normalized(name, model):
  """A matrix of norm 1 whose largest entry is positive; all else as it is."""
  if name not in _SCALED:
    return model
  matrix = np.asarray(model) / np.linalg.norm(model)
  return matrix * np.sign(matrix.flat[np.abs(matrix).argmax()])


def _as(name, truth, model):
  """The truth with the sign that a model happens to have."""
  if name in ('plane', 'line') and truth[0] @ model[0] < 0:
    return type(truth)(*(-leaf for leaf in truth))
  return _normalized(name, truth)


def _flat(name, model):
  leaves = jax.tree.leaves(_normalized(name, model))
  return np.concatenate([np.ravel(leaf) for leaf in leaves])


def step_between(name, problem, model, truth) -> np.ndarray:
  """The step [dof] of `retract` that leads from a model to the truth."""
  step, there = np.zeros(problem.dof), _flat(name, truth)
  for _ in range(4):
    here = _flat(name, problem.retract(model, step))
    derivative = []
    for axis in _SMALL * np.eye(problem.dof):
      ends = [
        _flat(name, problem.retract(model, step + sign * axis))
        for sign in (1, -1)
      ]
      derivative.append((ends[0] - ends[1]) / (2 * _SMALL))
    found = np.linalg.lstsq(np.transpose(derivative), there - here, rcond=None)
    step = step + found[0]
  return step


def least_squares(problem, model, data):
  """The best model of data without outliers, and J^T J [dof, dof] there."""
  for _ in range(_STEPS):
    errors, jacobian = problem.linearize(model, data)
    rows = jacobian.reshape(problem.dof, -1)
    step = np.linalg.lstsq(rows.T, -errors.ravel(), rcond=None)[0]
    model = problem.retract(model, step)
  return model, rows @ rows.T


def measure(name: str, inliers: int, outliers: float) -> dict | None:
  """Coverage and accuracy of one row; None if no answer is right."""
  kind = planted_problems.kind_of(name)
  problem, number = kind.problem, TRIALS.value
  total = round(inliers / (1 - outliers))
  planted = planted_problems.plant(kind, total, outliers, NOISE, number)
  inside, errors, best, valid = [], [], [], 0
  for i in range(number):
    data, truth = jax.tree.map(
      lambda leaf, i=i: np.asarray(leaf[i], np.float64),
      (planted.data, planted.truth),
    )
    found = search.DEFAULT.find(problem, data, THRESHOLD * kind.unit)
    if not found.valid or not np.isfinite(found.covariance).all():
      continue
    valid += 1
    truth = _as(name, truth, found.model)
    clean = type(data)(*(leaf[planted.inliers[i]] for leaf in data))
    least, information = least_squares(problem, truth, clean)
    step = step_between(name, problem, found.model, truth)
    error = step @ information @ step / (NOISE * kind.unit) ** 2
    if error > 100 * problem.dof:
      continue  # another model than the planted one
    within = step @ np.linalg.solve(found.covariance, step)
    inside.append(within < special.chdtri(problem.dof, 1 - _LEVEL))
    errors.append(error)
    step = step_between(name, problem, least, truth)
    best.append(step @ information @ step / (NOISE * kind.unit) ** 2)
  if not inside:
    return None
  return {
    'inside': float(np.mean(inside)),
    'ratio': (statistics.median(errors) / statistics.median(best)) ** 0.5,
    'valid': valid / number,
    'right': len(inside) / number,
  }


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  numbers = {}
  for name in KIND.value:
    for outliers in OUTLIERS.value:
      for size in SIZES.value:
        if size <= planted_problems.kind_of(name).problem.sample_size:
          continue
        row = measure(name, size, outliers)
        numbers[f'{name}/{outliers:g}/{size}'] = row
        text = 'no valid answer'
        if row:
          text = (
            f'within 95 % {row["inside"]:.3f}  error / least squares '
            f'{row["ratio"]:.3f}  valid {row["valid"]:.2f}  right '
            f'{row["right"]:.2f}'
          )
        print(
          f'{name:14} outliers {outliers:4.0%} N {size:4d}  {text}', flush=True
        )
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
  app.run(main)
