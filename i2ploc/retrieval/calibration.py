# SPDX-License-Identifier: Apache-2.0
"""How sure an untrained descriptor may be: a map asked against itself.

A published encoder gives similarities and no probabilities. A map whose
positions are known can tell what its similarities are worth: every reading asks
all the others, and a logistic regression says how often the first answer was
right, from its similarity and from its margin to the most similar place
elsewhere. A place that nobody else of the map shows is answered wrongly, as a
query from outside the map would be.

What it assumes: queries are like the map's own readings. Those of another
season or camera are less similar, and with them confidences fall, but the curve
was never fitted there; a map of one drive knows nothing of another day.
On Nordland (`benchmarks.sequences`: a map of summer, asked within 5 frames) the
error on held-out halves of the map is 2 to 3 %, and winter is underrated: 8 %
sure on average where 52 % are right, all of the few that are said to be.

Readings next to each other in one drive are the same moment twice, and would
make any descriptor look good. Where readings are in an order, those of the same
run nearer than half the radius do not answer; see `neighbours`. Readings that
are copies of one another (descriptors that agree to rounding) do not either.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np
from scipy import optimize
from scipy import special

from i2ploc.errors import InputError
from i2ploc.retrieval import index as index_lib
from i2ploc.retrieval import sequences

# More readings than this say nothing new about two slopes; evenly spread.
MAX_READINGS = 2000
# Fewer right or wrong answers than this determine no curve.
MIN_EACH = 5
MIN_READINGS = 20
# Slopes are per deviation of their feature, with a normal prior of this width.
SLOPE_WIDTH = 3.0
# Descriptors whose cosine is this near to 1 are copies.
COPY = 1e-6
BINS = 10
# Similarities of one block of readings.
_ENTRIES = 1 << 21


class Calibration(NamedTuple):
  """Probability that a first answer is right; or why nobody knows.

  `confidence = expit(offset + slopes . (similarity, margin))`.

  Attributes:
    offset: of the logistic curve; NaN if there is none.
    slopes: of similarity and margin, neither negative; NaN if there is none.
    radius: within which an answer was right, in the unit of the map.
    count: readings that asked.
    right: share of them whose first answer was right.
    error: expected calibration error on halves that were not fitted: the mean
      gap between confidence and share of right answers, over tenths of the
      readings; NaN if a half had no curve.
    reason: why there are no confidences; '' if there are.
    unit: of the radius, see `index.Index.unit`.
  """

  offset: float
  slopes: tuple[float, float]
  radius: float
  count: int
  right: float
  error: float
  reason: str
  unit: str = index_lib.METRES

  def to_dict(self) -> dict[str, Any]:
    """Numbers and texts for JSON; None for what is not known."""
    return {
      name: None if isinstance(value, float) and np.isnan(value) else value
      for name, value in self._asdict().items()
      if name != 'slopes'
    } | {'slopes': None if self.reason else list(self.slopes)}

  def describe(self) -> str:
    """One line for people."""
    if self.reason:
      return f'no confidences: {self.reason}'
    error = 'not known' if np.isnan(self.error) else f'{100 * self.error:.1f} %'
    return (
      f'confidences fitted on {self.count} readings of the map asked against'
      f' itself ({100 * self.right:.1f} % right within'
      f' {self.radius:g} {self.unit});'
      f' calibration error on held-out halves {error}'
    )


def unknown(reason: str, radius: float) -> Calibration:
  """No confidences, and why."""
  nan = float('nan')
  return Calibration(nan, (nan, nan), radius, 0, nan, nan, reason)


def from_dict(saved: Mapping[str, Any]) -> Calibration:
  """A calibration that `Calibration.to_dict` made, also after JSON.

  Raises:
    InputError: other fields.
  """
  if set(saved) != set(Calibration._fields):
    raise InputError(
      f'A calibration has {sorted(saved)}; expected'
      f' {sorted(Calibration._fields)}: build the index again.'
    )
  curve = (saved['offset'], *(saved['slopes'] or (None, None)))
  offset, along, apart, right, error = (
    float('nan') if value is None else float(value)
    for value in (*curve, saved['right'], saved['error'])
  )
  return Calibration(
    offset,
    (along, apart),
    float(saved['radius']),
    int(saved['count']),
    right,
    error,
    str(saved['reason']),
    str(saved['unit']),
  )


def confidence(
  calibration: Calibration, similarity: np.ndarray, margin: np.ndarray
) -> np.ndarray:
  """Probability that answers are right; NaN where the map could not tell.

  Args:
    calibration: of the map.
    similarity: [...] of the answers.
    margin: [...], see `margins`; inf counts as no rival at all, like the
      largest similarity.

  Returns:
    float64 [...].
  """
  similarity = np.asarray(similarity, np.float64)
  # A rival that does not exist is as unlike as can be.
  margin = np.minimum(np.asarray(margin, np.float64), 1 + np.abs(similarity))
  along, apart = calibration.slopes
  return special.expit(calibration.offset + along * similarity + apart * margin)


def first_answers(
  calibration: Calibration,
  similarities: np.ndarray,
  candidates: np.ndarray,
  positions: np.ndarray,
) -> np.ndarray:
  """Probability that the most similar candidate of each query is right.

  Args:
    calibration: of the map.
    similarities: [Q, M].
    candidates: bool [Q, M].
    positions: [M, 2] metres; a place of unknown position is near to itself
      alone.

  Returns:
    float64 [Q]; NaN for a query without candidates, and where the map could
    not tell.
  """
  allowed = np.where(candidates, similarities, -np.inf).astype(np.float64)
  first = allowed.argmax(1)
  rows = np.arange(len(allowed))
  step = positions[first][:, None] - positions
  near = np.hypot(step[..., 0], step[..., 1]) <= calibration.radius
  near[rows, first] = True
  best = allowed[rows, first]
  answered = np.isfinite(best)
  rival = np.where(near, -np.inf, allowed).max(1)
  margin = np.where(answered, best - rival, 0.0)
  found = confidence(calibration, np.where(answered, best, 0.0), margin)
  return np.where(answered, found, np.nan)


def margins(
  index: index_lib.Index,
  query: np.ndarray,
  rows: np.ndarray,
  similarities: np.ndarray,
  radius: float,
  within: np.ndarray | None = None,
) -> np.ndarray:
  """Similarity of each answer less that of the best place beyond a radius.

  Args:
    index: the map.
    query: [D], or [V, D] of V views of it.
    rows: int [k], of the index, that answer.
    similarities: [k], of the answers.
    radius: metres. Other towns, and places that nobody knows the way to, are
      beyond it.
    within: bool [K], the places that may answer; None for all.

  Returns:
    float64 [k]; negative for an answer with a better one elsewhere, inf where
    the map has nothing elsewhere.
  """
  every = index.similarities_to_all(query).astype(np.float64)
  found = []
  for row, similarity in zip(rows, similarities, strict=True):
    far = np.ones(index.num_places, bool) if within is None else within.copy()
    far[index.near(row, radius)] = False
    best = every[far].max() if far.any() else -np.inf
    found.append(float(similarity) - best)
  return np.array(found)


def fit(index: index_lib.Index, radius: float) -> Calibration:
  """Calibrates a map against itself.

  Args:
    index: of one view or more per place; the first view asks.
    radius: within which an answer is right, in the unit of the index.

  Returns:
    The calibration; without a curve and with a reason where the map cannot
    tell.
  """
  _, first, key = np.unique(
    np.asarray(index.keys), return_index=True, return_inverse=True
  )
  rows = np.sort(first)  # places in the order of the map
  found = fit_arrays(
    np.asarray(index.descriptors),
    np.asarray(index.poses, np.float64)[rows, :2, 3],
    np.asarray(index.towns)[rows],
    radius,
    frames=np.asarray(index.frames)[rows],
    places=np.searchsorted(rows, first)[key],
  )
  return found._replace(unit=index.unit)


def fit_arrays(
  descriptors: np.ndarray,
  positions: np.ndarray,
  towns: np.ndarray,
  radius: float,
  *,
  frames: np.ndarray | None = None,
  places: np.ndarray | None = None,
) -> Calibration:
  """As `fit`, on arrays.

  Args:
    descriptors: [M, D], one or more rows per place.
    positions: [P, 2] metres, in the order of travel if there is one; NaN where
      unknown.
    towns: [P]; places of different towns are far apart.
    radius: metres.
    frames: int [P], numbers of the readings; None where they are in no order,
      as photos of a folder, so that only a reading itself is left out.
    places: int [M], the place of each row; None: row i is place i.

  Raises:
    InputError: a radius that is not positive, or shapes that disagree.
  """
  if not 0 < radius < np.inf:
    raise InputError(f'radius={radius}; expected metres above 0.')
  descriptors = np.asarray(descriptors, np.float32)
  positions = np.asarray(positions, np.float64)
  towns = np.unique(np.asarray(towns), return_inverse=True)[1]
  places = np.arange(len(descriptors)) if places is None else places
  if len(places) != len(descriptors) or len(positions) != len(towns):
    raise InputError(
      f'{len(descriptors)} descriptors of {len(places)} places,'
      f' {len(positions)} positions and {len(towns)} towns; expected as many.'
    )
  similarity, margin, right = _ask_itself(
    descriptors, positions, towns, radius, frames, places
  )
  count = len(right)
  share = float(right.mean()) if count else float('nan')
  known = int(np.isfinite(positions).all(1).sum())
  reason = _reason(right, known)
  if reason:
    return unknown(reason, radius)._replace(count=count, right=share)
  features = np.stack([similarity, margin], 1)
  offset, slopes = _logistic(features, right)
  return Calibration(
    offset,
    slopes,
    radius,
    count,
    share,
    _held_out_error(features, right),
    '',
  )


def _reason(right: np.ndarray, known: int) -> str:
  count, hits = len(right), int(right.sum())
  if not known:
    return 'no reading of the map has a position'
  if count < MIN_READINGS:
    return (
      f'{count} readings of the map could ask ({known} have positions);'
      f' {MIN_READINGS} are needed'
    )
  if hits < MIN_EACH:
    return (
      f'asked against itself, the map answers {hits} of {count} readings right,'
      f' too few to learn from: it shows most places once, or the descriptors'
      ' do not tell places apart'
    )
  if count - hits < MIN_EACH:
    return (
      f'asked against itself, the map answers {hits} of {count} readings right:'
      ' too few errors to learn from'
    )
  return ''


def neighbours(
  runs: np.ndarray, positions: np.ndarray, radius: float
) -> np.ndarray:
  """How many rows before and after each are the same moment.

  Args:
    runs: [P], see `sequences.consecutive_runs`.
    positions: [P, 2] metres, in the order of travel.
    radius: metres.

  Returns:
    int64 [P, 2]: rows of the same run before and after in a row that lie
    nearer than half the radius.
  """
  count = len(runs)
  found = np.zeros((count, 2), np.int64)
  for column, way in enumerate((-1, 1)):
    still = np.ones(count, bool)
    reach = 1
    while True:
      other = np.arange(count) + way * reach
      inside = (other >= 0) & (other < count)
      other = np.clip(other, 0, count - 1)
      apart = np.linalg.norm(positions - positions[other], axis=1)
      still &= inside & (runs == runs[other]) & (apart < radius / 2)
      if not still.any():
        break
      found[still, column] = reach
      reach += 1
  return found


def _ask_itself(descriptors, positions, towns, radius, frames, places):
  """Similarity, margin and rightness of the first answers, of known position.

  Readings without position neither ask nor answer. A reading without a rival
  beyond the radius of its answer has no margin, and does not ask.
  """
  known = np.isfinite(positions).all(1)
  near = np.zeros((len(positions), 2), np.int64)
  if frames is not None and len(positions):
    runs = sequences.consecutive_runs(towns, positions, frames)
    near = neighbours(runs, positions, radius)
  first = np.full(len(positions), -1)
  first[places[::-1]] = np.arange(len(places))[::-1]
  asking = np.flatnonzero(known & (first >= 0))
  if len(asking) > MAX_READINGS:
    spread = np.linspace(0, len(asking) - 1, MAX_READINGS)
    asking = asking[np.rint(spread).astype(int)]
  order = np.argsort(places, kind='stable')
  starts = np.searchsorted(places[order], np.arange(len(positions)))
  parts = []
  row = np.arange(len(positions))
  lengths = np.sqrt(np.einsum('ij,ij->i', descriptors, descriptors))
  size = max(1, _ENTRIES // max(len(descriptors), 1))
  for top in range(0, len(asking), size):
    block = asking[top : top + size]
    seen = descriptors[first[block]] @ descriptors.T
    copies = seen >= (1 - COPY) * lengths[first[block], None] * lengths
    # Of several views the most similar counts.
    best = np.maximum.reduceat(seen[:, order], starts, axis=1)
    copied = np.logical_or.reduceat(copies[:, order], starts, axis=1)
    offset = row - block[:, None]
    moment = (offset >= -near[block, :1]) & (offset <= near[block, 1:])
    out = moment | copied | ~known
    best = np.where(out, -np.inf, best.astype(np.float64))
    answer = best.argmax(1)
    similarity = best.max(1)
    far = (towns != towns[answer, None]) | ~(
      np.linalg.norm(positions - positions[answer, None], axis=2) <= radius
    )
    rival = np.where(far, best, -np.inf).max(1)
    right = towns[block] == towns[answer]
    step = np.linalg.norm(positions[block] - positions[answer], axis=1)
    right &= step <= radius
    usable = np.isfinite(rival) & np.isfinite(similarity)
    parts.append(
      np.stack([similarity, similarity - np.where(usable, rival, 0), right], 1)[
        usable
      ]
    )
  table = np.concatenate(parts) if parts else np.zeros((0, 3))
  return table[:, 0], table[:, 1], table[:, 2].astype(bool)


def _logistic(
  features: np.ndarray, right: np.ndarray
) -> tuple[float, tuple[float, float]]:
  """Offset and slopes, of the features as they are.

  The most probable slopes under a normal prior, none below 0: more similar is
  never less sure.
  """
  middle, width = features.mean(0), features.std(0)
  width = np.where(width > 0, width, 1.0)
  x = (features - middle) / width
  sign = np.where(right, 1.0, -1.0)

  def cost(parameters):
    score = sign * (parameters[0] + x @ parameters[1:])
    pull = parameters[1:] / SLOPE_WIDTH
    weight = -sign * special.expit(-score)
    value = np.logaddexp(0, -score).sum() + 0.5 * (pull**2).sum()
    slope = np.concatenate([[weight.sum()], x.T @ weight])
    slope[1:] += pull / SLOPE_WIDTH
    return value, slope

  share = np.clip(right.mean(), 0.01, 0.99)
  found = optimize.minimize(
    cost,
    [special.logit(share), 1.0, 1.0],
    jac=True,
    method='L-BFGS-B',
    bounds=[(None, None), (0, None), (0, None)],
  ).x
  slopes = found[1:] / width
  return float(found[0] - slopes @ middle), (float(slopes[0]), float(slopes[1]))


def _held_out_error(features: np.ndarray, right: np.ndarray) -> float:
  """Calibration error of either half of the map by the other.

  Halves are the first and the second one in the map's own order: readings
  that are next to each other would know each other's answers.
  """
  first = np.arange(len(right)) < len(right) // 2
  predicted = np.empty(len(right))
  for half in (first, ~first):
    if right[~half].all() or not right[~half].any():
      return float('nan')
    offset, slopes = _logistic(features[~half], right[~half])
    predicted[half] = special.expit(offset + features[half] @ slopes)
  return expected_error(predicted, right)


def expected_error(predicted: np.ndarray, right: np.ndarray) -> float:
  """Expected calibration error over tenths of equal size.

  >>> expected_error(np.array([0.75] * 4), np.array([1, 1, 1, 0], bool))
  0.0

  Args:
    predicted: [N] probabilities.
    right: bool [N].

  Returns:
    Mean over readings of the gap between mean probability and share of right
    answers in their tenth; equal probabilities share one.
  """
  order = np.argsort(predicted, kind='stable')
  tenth = np.arange(len(order)) * BINS // len(order)
  # Equal probabilities go where the first of them goes.
  values = predicted[order]
  tenth = tenth[np.searchsorted(values, values)]
  total = 0.0
  for one in np.unique(tenth):
    inside = order[tenth == one]
    total += abs(predicted[inside].sum() - right[inside].sum())
  return float(total / len(order))
