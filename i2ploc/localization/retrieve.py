# SPDX-License-Identifier: Apache-2.0
"""The stage that retrieves: the readings of a map most similar to a query.

An answer is the pose of a map reading, so it is right up to the distance to
the nearest one. A query that knows roughly where it is (`Prior.position`) is
answered by places around there alone.

The confidence is what the model's own temperature says: the similarities of all
places that may answer, times the learned scale, through a softmax are the
probabilities that training fitted (InfoNCE is cross-entropy over places); the
confidence of an answer is the mass of all places within a radius of it, since
neighbouring readings of one street share it. It assumes that the query lies
somewhere in the map, and it is only as calibrated as the model. A model without
a temperature is calibrated on the map itself, see `retrieval.calibration`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
import os
import pathlib
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import resizing
from i2ploc.localization import answer as answer_lib
from i2ploc.retrieval import calibration as calibration_lib
from i2ploc.retrieval import index as index_lib

Answer = answer_lib.Answer
Batch = Mapping[str, np.ndarray]


class Frames(NamedTuple):
  """Images that a model describes together: that of the query and earlier ones.

  Attributes:
    count: T.
    stride: images from one to the next.
  """

  count: int = 1
  stride: int = 1

  @property
  def span(self) -> int:
    """Images that a query needs for all of them."""
    return (self.count - 1) * self.stride + 1

  def known(self, query: answer_lib.Query) -> list[np.ndarray]:
    """Those that the query has, T at most, the oldest first."""
    images = [one.image for one in (*query.previous, query)]
    return images[:: -self.stride][: self.count][::-1]


ONE_FRAME = Frames()


def make_stage(
  index: index_lib.Index,
  embed: Callable[[Batch], np.ndarray],
  image_size: tuple[int, int],
  *,
  scale: float | None,
  radius: float,
  k: int,
  folder: str | os.PathLike = '',
  calibration: calibration_lib.Calibration | None = None,
  resize: str = resizing.STRETCH,
  frames: Frames = ONE_FRAME,
) -> answer_lib.Stage:
  """The stage `retrieve`; it needs no answers to start from.

  Args:
    index: the map.
    embed: descriptors [1, D] of a batch of one: image uint8 [1, H, W, 3] and,
      where the query has a lens, intrinsics float32 [1, 3, 3]. For a policy of
      V pictures [1, V, D] of [1, V, H, W, 3]. Of sequences image is
      [1, T, H, W, 3] or [1, V, T, H, W, 3].
    image_size: (H, W) of the model's images.
    scale: inverse temperature or None, see `localize`.
    radius: metres that count as one place in a confidence.
    k: answers per query.
    folder: of the map's data; evidence names the files in it that answer, as
      `image`.
    calibration: see `localize`.
    resize: how images become `image_size`, see `resizing`.
    frames: that `embed` wants; more than one add to the evidence `frames`, how
      many of them the query had.
  """

  def retrieve(query: answer_lib.Query, answers: list[Answer]) -> list[Answer]:
    del answers
    descriptors = describe(query, embed, image_size, resize, frames)[None]
    within = None
    if query.prior.position is not None:
      within = index.around(query.prior.position, query.prior.radius)
    found = localize(
      descriptors,
      index,
      scale=scale,
      radius=radius,
      k=k,
      calibration=calibration,
      within=within,
    )[0]
    if frames.count > 1:
      known = len(frames.known(query))
      found = [
        one._replace(evidence={**one.evidence, 'frames': known})
        for one in found
      ]
    return [with_image(one, folder) for one in found]

  return retrieve


def describe(
  query: answer_lib.Query,
  embed: Callable[[Batch], np.ndarray],
  image_size: tuple[int, int],
  resize: str = resizing.STRETCH,
  frames: Frames = ONE_FRAME,
) -> np.ndarray:
  """The descriptor [D] of a query's image, or [V, D] of its V crops.

  Args:
    query: its images and lens count. At the beginning of a drive the oldest
      image stands for those that are missing, as it does in a map.
    embed: see `make_stage`.
    image_size: see `make_stage`.
    resize: see `make_stage`.
    frames: see `make_stage`.
  """
  images = [
    resizing.resize_image(one, image_size, resize)
    for one in frames.known(query)
  ]
  image = images[-1]
  if frames.count > 1:
    images = images[:1] * (frames.count - len(images)) + images
    image = np.stack(images, axis=-4)
  batch = {'image': image[None]}
  if query.lens is not None:
    matrix = resizing.resize_intrinsics(
      query.lens.intrinsics, query.image.shape[:2], image_size, resize
    )
    batch['intrinsics'] = np.asarray(matrix, np.float32)[None]
  return np.asarray(embed(batch))[0]


def with_image(answer: Answer, folder: str | os.PathLike) -> Answer:
  """An answer whose evidence names its file in a folder, None if not there."""
  path = pathlib.Path(folder) / answer.evidence['name']
  image = str(path) if path.is_file() else None
  return answer._replace(evidence={**answer.evidence, 'image': image})


def localize(
  queries: np.ndarray,
  index: index_lib.Index,
  *,
  scale: float | None,
  radius: float = 10.0,
  k: int = 5,
  calibration: calibration_lib.Calibration | None = None,
  within: np.ndarray | None = None,
) -> list[list[Answer]]:
  """The k most similar places of each query.

  1. Find the k places whose best view is the most similar, of those that may
     answer.
  2. posterior = softmax(scale * similarity) over all places that may answer.
  3. The confidence of an answer is the posterior mass of the places of its
     town within `radius` of it, horizontally, itself included.

  Args:
    queries: [Q, D] or [Q, V, D], of the model that made the index.
    index: the map.
    scale: the model's inverse temperature, exp(log_scale); None if it has
      learned none: then the map's `calibration` says how sure an answer is, or
      nobody.
    radius: metres.
    k: answers per query; a map of fewer places gives all of them.
    calibration: of this map and model, with a radius of its own; one without a
      curve gives no confidences.
    within: bool [Q, K], the places that may answer, see `Index.around`; None
      for all.

  Returns:
    Q lists of min(k, places that may answer) answers, best first. Evidence:
    key, frame, view and name of the reading (see `Index`), position of its body
    (the height may be NaN) and heading, and distance_from_best: horizontal
    metres to the answer of rank 1, infinite in another town. A map whose
    positions are no metres has neither position nor distance.

  Raises:
    InputError: no query, descriptors that are not finite, not of unit norm or
      of another width than the map's, or a scale, radius or k out of range.
  """
  for name, value in (('scale', scale), ('radius', radius)):
    if value is not None and not (math.isfinite(value) and value > 0):
      raise InputError(f'{name}={value}; expected a positive number.')
  if k < 1:
    raise InputError(f'k={k} answers were asked for; ask for at least 1.')
  found = index.search(queries, k, 1.0 if scale is None else scale, within)
  may_answer = [None] * len(queries) if within is None else within
  answers = []
  for query, allowed, similarities, rows, log_sum in zip(
    queries, may_answer, *found, strict=True
  ):
    similarities, rows = similarities[rows >= 0], rows[rows >= 0]
    if not len(rows):
      answers.append([])
      continue
    confidence = [None] * len(rows)
    if scale is None and calibration is not None and not calibration.reason:
      margins = calibration_lib.margins(
        index, query, rows, similarities, calibration.radius, allowed
      )
      confidence = calibration_lib.confidence(
        calibration, similarities, margins
      ).tolist()
    if scale is not None:
      confidence = [
        _mass(index, query, row, logit, scale, radius, allowed)
        for row, logit in zip(
          rows, scale * (similarities - similarities[0]) - log_sum, strict=True
        )
      ]
    if index.similarity == 'cosine':
      similarities = np.clip(similarities, -1, 1)
    answers.append(
      answers_from_rows(
        index,
        rows,
        similarities,
        confidence,
        calibration.reason if calibration is not None else '',
      )
    )
  return answers


def _mass(index, query, row, logit, scale, radius, allowed) -> float:
  """Posterior of the places that may answer around the place of a row.

  `logit` is the logarithm of the row's own posterior. Its neighbours are
  compared with it on the host, where rounding differs from the device's.
  """
  places = index.near(row, radius)
  if allowed is not None:
    places = places[allowed[places]]
  similar = index.similarities_to(query, places)
  similar = similar.astype(np.float64)
  views = np.atleast_2d(query)
  own = (np.asarray(index.descriptors[row], np.float32) @ views.T).max()
  return float(min(np.exp(scale * (similar - own) + logit).sum(), 1.0))


def answers_from_rows(
  index: index_lib.Index,
  rows: np.ndarray,
  similarities: np.ndarray,
  confidences: Sequence[float | None],
  unsure: str = '',
) -> list[Answer]:
  """The answers of one query that rows of a map are, see `localize`.

  Args:
    index: the map.
    rows: int [k], best first.
    similarities: [k].
    confidences: [k].
    unsure: why there are none; '' where there are.
  """
  world_from_view = index.world_from_view(rows)
  camera_from_body = np.asarray(index.rig.camera_from_body, np.float64)
  world_from_camera = world_from_view @ np.linalg.inv(camera_from_body)
  headings = np.arctan2(world_from_view[:, 1, 0], world_from_view[:, 0, 0])
  distances = index.distances(rows[0], rows).tolist()
  positions = index.poses[rows, :3, 3]
  if index.unit != index_lib.METRES:
    positions = np.full_like(positions, np.nan)
    distances = [None] * len(rows)
  poses = [_known(pose) for pose in world_from_camera]
  return [
    Answer(
      rank=i + 1,
      place=str(index.towns[row]),
      world_from_camera=poses[i],
      covariance=None,
      similarity=float(similarities[i]),
      confidence=confidences[i],
      reason=_reason(poses[i], unsure),
      evidence={
        'stage': 'retrieve',
        'position': _position(positions[i]),
        'heading': float(headings[i]) if np.isfinite(headings[i]) else None,
        'key': int(index.keys[row]),
        'frame': int(index.frames[row]),
        'view': float(index.views[row]),
        'name': str(index.names[row]),
        'distance_from_best': distances[i],
      },
    )
    for i, row in enumerate(rows)
  ]


def _reason(pose: np.ndarray | None, unsure: str) -> str:
  missing = []
  if pose is None:
    missing.append('no orientation is known there')
  if unsure:
    missing.append(f'no confidence: {unsure}')
  return '; '.join(missing)


def _position(position: np.ndarray) -> np.ndarray | None:
  """None where it is unknown; the height alone may be NaN."""
  return position if np.isfinite(position[:2]).all() else None


def _known(numbers: np.ndarray) -> np.ndarray | None:
  """None for numbers that are not all finite."""
  return numbers if np.isfinite(numbers).all() else None
