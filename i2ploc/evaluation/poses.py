# SPDX-License-Identifier: Apache-2.0
"""How often, how closely and how soon object-based poses are right.

All queries are in the denominator: one that nobody can localize is a failure.
Neighbouring frames fail together, so intervals come from whole blocks of them.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.evaluation import metrics
from i2ploc.geometry import rigid

# Metres: 0.5, 1 and 2 m are what others publish; 0.1 and 0.2 m tell apart what
# is accurate. Degrees.
DISTANCES = (0.1, 0.2, 0.5, 1.0, 2.0)
ANGLES = (5.0, 10.0)


class Errors(NamedTuple):
  """How far the poses of Q queries are off; infinite where there is none.

  Attributes:
    distance: [Q] of the camera from its true position, metres.
    angle: [Q] between the rotations, degrees.
  """

  distance: np.ndarray
  angle: np.ndarray


class Rate(NamedTuple):
  """A share of queries in [0, 1] and its 95 % interval."""

  value: float
  low: float
  high: float


def pose_error(
  found: rigid.Rigid | None, true: rigid.Rigid
) -> tuple[float, float]:
  """Metres and degrees between two camera_from_map; infinite for None."""
  if found is None:
    return np.inf, np.inf
  centers = [
    -motion.rotation.T @ motion.translation for motion in (found, true)
  ]
  turn = found.rotation @ true.rotation.T
  # Of small angles the sine keeps the digits that the trace loses.
  axis = [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0]]
  sine = np.linalg.norm([*axis, turn[1, 0] - turn[0, 1]])
  angle = np.degrees(np.arctan2(sine, np.trace(turn) - 1))
  return float(np.linalg.norm(centers[0] - centers[1])), float(angle)


def pose_errors(
  found: Sequence[rigid.Rigid | None], true: Sequence[rigid.Rigid]
) -> Errors:
  """Metres and degrees between found and true poses, query by query.

  Args:
    found: Q camera_from_map; None where there is no pose.
    true: Q camera_from_map.
  """
  pairs = [pose_error(*pair) for pair in zip(found, true, strict=True)]
  return Errors(*np.asarray(pairs, np.float64).reshape(-1, 2).T)


def success_rates(errors: Errors, blocks: np.ndarray) -> dict[str, Rate]:
  """Shares of queries within a distance, and within 0.5 m and an angle.

  Args:
    errors: of Q poses.
    blocks: int [Q], queries that fail together; see
      `metrics.blocks_from_runs`.

  Returns:
    By name, such as '0.1m' and '0.5m_5deg'.
  """
  near = errors.distance < 0.5
  hits = {f'{limit:g}m': errors.distance < limit for limit in DISTANCES}
  hits |= {
    f'0.5m_{limit:g}deg': near & (errors.angle < limit) for limit in ANGLES
  }
  table = np.stack(list(hits.values()), axis=-1)
  low, high = metrics.bootstrap_interval(
    table, np.ones_like(table), np.asarray(blocks)
  )
  return {
    name: Rate(float(table[:, i].mean()), float(low[i]), float(high[i]))
    for i, name in enumerate(hits)
  }


def budget_for(
  budgets: Sequence[int], success: np.ndarray, share: float
) -> float:
  """Draws with which a share of the queries succeeds; infinite if none do.

  Between two budgets it is interpolated in the logarithm of draws.

  Args:
    budgets: [B] draws, ascending.
    success: bool [B, Q].
    share: of the queries.
  """
  rates = np.asarray(success, np.float64).mean(1)
  reached = np.flatnonzero(rates >= share)
  if not len(reached):
    return float('inf')
  last = reached[0]
  if last == 0:
    return float(budgets[0])
  low, high = np.log(budgets[last - 1]), np.log(budgets[last])
  part = (share - rates[last - 1]) / (rates[last] - rates[last - 1])
  return float(np.exp(low + part * (high - low)))


def calibration_error(
  confidence: np.ndarray, correct: np.ndarray, num_bins: int = 10
) -> float:
  """Expected difference of confidence and share of right answers, in bins.

  Bins hold equally many queries: where all are sure, equal widths are empty.

  Args:
    confidence: [Q] in [0, 1].
    correct: bool [Q].
    num_bins: at most.
  """
  order = np.argsort(confidence, kind='stable')
  bins = [rows for rows in np.array_split(order, num_bins) if len(rows)]
  gaps = [
    len(rows) * abs(np.mean(confidence[rows]) - np.mean(correct[rows]))
    for rows in bins
  ]
  return float(np.sum(gaps) / max(len(order), 1))


def ranking_quality(confidence: np.ndarray, correct: np.ndarray) -> float:
  """Probability that a right answer is more confident than a wrong one.

  Ties count half; NaN if there are none of either kind.
  """
  confidence, correct = np.asarray(confidence), np.asarray(correct, bool)
  right, wrong = confidence[correct], confidence[~correct]
  if not len(right) or not len(wrong):
    return float('nan')
  above = right[:, None] - wrong
  return float(np.mean((above > 0) + 0.5 * (above == 0)))


def record(rates: Mapping[str, Rate]) -> dict[str, dict[str, float]]:
  """Rates as plain dicts, for JSON."""
  return {name: rate._asdict() for name, rate in rates.items()}


def summary(
  records: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
  """Numbers by 'test/PLACE/MEASURE', and 'test/all/MEASURE' of several places.

  Args:
    records: of queries by place, each with block, metres and degrees (None
      where there is no pose), confidence, milliseconds, draws and landmarks.

  Returns:
    Percent, and medians.
  """
  groups = {
    name: [(name, one) for one in part] for name, part in records.items()
  }
  if len(groups) > 1:
    groups = {'all': [pair for group in groups.values() for pair in group]} | (
      groups
    )
  return {
    f'test/{place}/{name}': value
    for place, group in groups.items()
    for name, value in _measures(group).items()
  }


def _measures(group) -> dict[str, float]:
  queries = [one for _, one in group]
  errors = Errors(
    *(
      np.array([np.inf if q[name] is None else q[name] for q in queries])
      for name in ('metres', 'degrees')
    )
  )
  keys = [f'{place}/{one["block"]}' for place, one in group]
  blocks = np.unique(keys, return_inverse=True)[1]
  measures = {'queries': float(len(queries))}
  for limit, rate in success_rates(errors, blocks).items():
    measures |= {
      f'success@{limit}': 100 * rate.value,
      f'success@{limit}_low': 100 * rate.low,
      f'success@{limit}_high': 100 * rate.high,
    }
  found = np.isfinite(errors.distance)
  measures['localizable'] = 100 * float(found.mean())
  if found.any():
    measures['median_metres'] = float(np.median(errors.distance[found]))
    measures['median_degrees'] = float(np.median(errors.angle[found]))
  for name in ('milliseconds', 'draws', 'landmarks'):
    measures[f'median_{name}'] = float(np.median([q[name] for q in queries]))
  return measures


def table(results: Mapping[str, float]) -> Iterator[str]:
  """The numbers of `summary` as lines of text."""
  limits = [f'{limit:g}m' for limit in DISTANCES]
  yield (
    f'{"success within, %":20}'
    + ''.join(f'{limit:>7}' for limit in limits)
    + f'{"median m":>10}{"degrees":>9}{"ms":>7}{"queries":>9}'
  )
  for place in dict.fromkeys(name.split('/')[1] for name in results):

    def value(name, place=place):
      return results.get(f'test/{place}/{name}', float('nan'))

    yield (
      f'{place:20}'
      + ''.join(f'{value(f"success@{limit}"):7.1f}' for limit in limits)
      + f'{value("median_metres"):10.3f}{value("median_degrees"):9.2f}'
      + f'{value("median_milliseconds"):7.1f}{value("queries"):9.0f}'
    )
