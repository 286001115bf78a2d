# SPDX-License-Identifier: Apache-2.0
"""Which landmark of a map a detection may show.

A detection has no descriptor that tells one mug from another: what it may be
is a set of candidates. Language gives the k texts nearest to its crop,
ordered; the detector's class gives everything of the same category, unordered.
Both fail, on other detections: poses are proposed from the first and judged by
the union of both (Matsuzaki et al., CLIP-Loc, ICRA 2024).

All on the host; a frame has tens of candidates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from i2ploc.errors import InputError

# Newton's method on a convex cost of few parameters.
_NUM_STEPS = 50
# Of the logistic fit: keeps a rank that was always right at a finite number.
_RIDGE = 1e-2


class Candidates(NamedTuple):
  """N pairs of a detection and a landmark that it may show, none twice.

  Attributes:
    observation: int [N], row of the detection.
    landmark: int [N], row of the map.
    rank: int [N], which candidate of its detection it is, from 0; equal ranks
      where nothing tells which is better.
    similarity: [N], larger is better; 0 where nothing was compared.
    probability: [N], that the pair is right.
  """

  observation: np.ndarray
  landmark: np.ndarray
  rank: np.ndarray
  similarity: np.ndarray
  probability: np.ndarray

  def take(self, rows: np.ndarray) -> 'Candidates':
    """The pairs of these rows."""
    return Candidates(*(column[rows] for column in self))


class Calibration(NamedTuple):
  """P(correct | rank, similarity) = sigmoid(offsets[rank] + slope similarity).

  Plain numbers: a calibration is written into a configuration.

  Attributes:
    offsets: of rank 0, 1, ...; the last one holds for all further ranks.
    slope: of the similarity.
  """

  offsets: tuple[float, ...]
  slope: float

  def probability(self, rank: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """[N] in (0, 1)."""
    last = len(self.offsets) - 1
    offset = np.asarray(self.offsets)[np.minimum(rank, last)]
    return special.expit(offset + self.slope * np.asarray(similarity))


# Where nothing was fitted: the first text is right every other time, and a
# text further down less often. Similarities of unknown spread say nothing.
UNCALIBRATED = Calibration((0.0, -1.0, -1.5, -2.0), 0.0)


def fit_calibration(
  rank: np.ndarray, similarity: np.ndarray, correct: np.ndarray, k: int
) -> Calibration:
  """Maximum likelihood of a logistic model, by Newton's method.

  Args:
    rank: int [N] of candidates with a known answer.
    similarity: [N], finite.
    correct: bool [N].
    k: ranks that get an offset of their own.

  Returns:
    The calibration.

  Raises:
    InputError: no data, or similarities that are not finite.
  """
  rank, correct = np.asarray(rank), np.asarray(correct, np.float64)
  similarity = np.asarray(similarity, np.float64)
  if not len(rank) or not np.isfinite(similarity).all():
    raise InputError(
      f'{len(rank)} candidates, {np.sum(~np.isfinite(similarity))} of them of'
      ' no finite similarity: give judged candidates of at least one frame.'
    )
  # Centred and scaled: offsets and slope do not depend on each other much.
  center, scale = similarity.mean(), max(similarity.std(), 1e-9)
  design = np.zeros((len(rank), k + 1))
  design[np.arange(len(rank)), np.minimum(rank, k - 1)] = 1
  design[:, -1] = (similarity - center) / scale
  weights = np.zeros(k + 1)
  for _ in range(_NUM_STEPS):
    expected = special.expit(design @ weights)
    gradient = design.T @ (expected - correct) + _RIDGE * weights
    spread = np.maximum(expected * (1 - expected), 1e-6)
    hessian = design.T @ (spread[:, None] * design) + _RIDGE * np.eye(k + 1)
    weights -= np.clip(np.linalg.solve(hessian, gradient), -2, 2)
  slope = weights[-1] / scale
  offsets = weights[:-1] - slope * center
  return Calibration(tuple(float(x) for x in offsets), float(slope))


def cosines(detections: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
  """Cosine similarities.

  Args:
    detections: [M, D] embeddings of crops, of any length.
    landmarks: [L, D] embeddings of texts.

  Returns:
    [M, L] in [-1, 1]; 0 for an embedding without a length.

  Raises:
    InputError: different widths, or embeddings that are not finite.
  """
  sides = [np.asarray(x, np.float64) for x in (detections, landmarks)]
  if sides[0].shape[-1] != sides[1].shape[-1]:
    raise InputError(
      f'crops have embeddings of width {sides[0].shape[-1]}, texts of'
      f' {sides[1].shape[-1]}: they come from different models.'
    )
  for name, side in zip(('crops', 'texts'), sides, strict=True):
    broken = np.flatnonzero(~np.isfinite(side).all(-1))
    if len(broken):
      raise InputError(f'embeddings of {name} {broken[:5]} are not finite.')
  unit = [
    x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    for x in sides
  ]
  return unit[0] @ unit[1].T


def nearest(
  similarity: np.ndarray, k: int, calibration: Calibration = UNCALIBRATED
) -> Candidates:
  """The k most similar landmarks of every detection.

  Args:
    similarity: [M, L].
    k: candidates per detection; a smaller map gives all of it.
    calibration: what a rank and a similarity are worth.

  Raises:
    InputError: k below 1, or similarities that are not finite.
  """
  similarity = np.asarray(similarity, np.float64)
  if k < 1:
    raise InputError(f'k={k} candidates were asked for; ask for at least 1.')
  if not np.isfinite(similarity).all():
    raise InputError('similarities of detections and landmarks must be finite.')
  k = min(k, similarity.shape[1])
  order = np.argsort(-similarity, axis=1, kind='stable')[:, :k]
  observation = np.repeat(np.arange(len(similarity)), k)
  landmark = order.ravel()
  rank = np.tile(np.arange(k), len(similarity))
  value = similarity[observation, landmark]
  return Candidates(
    observation, landmark, rank, value, calibration.probability(rank, value)
  )


def from_mask(mask: np.ndarray) -> Candidates:
  """All pairs of a mask bool [M, L], those of a detection equally probable."""
  observation, landmark = np.nonzero(mask)
  count = np.asarray(mask).sum(1)[observation]
  zero = np.zeros(len(observation))
  return Candidates(
    observation, landmark, zero.astype(np.int64), zero, 1 / np.maximum(count, 1)
  )


def same_category(
  detections: Sequence | np.ndarray, landmarks: Sequence | np.ndarray
) -> Candidates:
  """Every landmark of a detection's category [M] among those of a map [L]."""
  left, right = np.asarray(detections), np.asarray(landmarks)
  if not left.size or not right.size:
    return from_mask(np.zeros((left.size, right.size), bool))
  return from_mask(left[:, None] == right)


def all_pairs(num_detections: int, num_landmarks: int) -> Candidates:
  """Every detection with every landmark, where nothing else is known."""
  return from_mask(np.ones((num_detections, num_landmarks), bool))


def union(first: Candidates, second: Candidates) -> Candidates:
  """All candidates of the first, then those of the second it does not have."""
  known = set(zip(first.observation, first.landmark, strict=True))
  pairs = zip(second.observation, second.landmark, strict=True)
  new = np.asarray([pair not in known for pair in pairs], bool)
  second = second.take(np.flatnonzero(new))
  return Candidates(
    *(np.concatenate([a, b]) for a, b in zip(first, second, strict=True))
  )
