# SPDX-License-Identifier: Apache-2.0
"""An object map of a place, with texts, descriptors and a calibration.

`construction` makes the ellipsoids from boxes. Here they get texts, from an
open-vocabulary detector or a person, descriptors of these texts, and the
calibrated probability that the k-th nearest text is the right one, which is
measured on the map's own images: their poses say which landmark a box shows.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.objects import association
from i2ploc.objects import detections as detections_lib
from i2ploc.objects.map import construction
from i2ploc.objects.map import landmarks
from i2ploc.objects.map import posed_boxes

# Overlap with which a box shows a landmark.
_SAME = 0.3


class Sighting(NamedTuple):
  """What is seen in one image.

  Attributes:
    detections: boxes of a pinhole.
    texts: of each detection; None if the detector gives numbers only.
    position: [3] of the camera, metres.
  """

  detections: detections_lib.Detections
  texts: tuple[str, ...] | None
  position: np.ndarray


def build(
  sightings: Sequence[Sighting],
  poses: np.ndarray,
  intrinsics: np.ndarray,
  image_size: tuple[int, int],
  *,
  categories: Sequence[str] = (),
  settings: construction.Settings = construction.DEFAULT,
) -> landmarks.ObjectMap:
  """The map of what is seen; boxes of different texts are different objects.

  Args:
    sightings: F of them.
    poses: [F, 4, 4] world_from_camera.
    intrinsics: [3, 3] of the pinhole.
    image_size: (height, width).
    categories: names of the detector's numbers; the labels of a map without
      texts.
    settings: what makes a landmark.

  Raises:
    InputError: see `construction.build_map`.
  """
  frames = [one.detections for one in sightings]
  if any(one.texts is None for one in sightings):
    names = dict(enumerate(categories))
    return construction.build_map(
      frames, poses, intrinsics, image_size, names=names, settings=settings
    )
  kinds, category = {}, []
  texts = [one.texts or () for one in sightings]
  for one, names in zip(sightings, texts, strict=True):
    for text, number in zip(names, one.detections.category, strict=True):
      if text not in kinds:
        kinds[text] = len(kinds)
        category.append(int(number))
  frames = [
    one.detections._replace(
      category=np.array([kinds[text] for text in names], np.int64)
    )
    for one, names in zip(sightings, texts, strict=True)
  ]
  built = construction.build_map(
    frames,
    poses,
    intrinsics,
    image_size,
    names={number: text for text, number in kinds.items()},
    settings=settings,
  )
  return built._replace(category=np.asarray(category, np.int64)[built.category])


def from_labels(labels: Any) -> landmarks.ObjectMap:
  """The map that the labels of a dataset give.

  Args:
    labels: with center, semi_axes, rotation, category (the detector's number)
      and text of L landmarks.
  """
  return landmarks.make_map(
    labels.center,
    labels.semi_axes,
    labels.rotation,
    labels.category,
    labels=[(str(text),) for text in labels.text],
    num_views=labels.num_views,
  )


def describe(
  objects: landmarks.ObjectMap,
  encode: Callable[[Sequence[str]], np.ndarray],
  prompt: str = '{}',
) -> landmarks.ObjectMap:
  """The map with a descriptor of each landmark: the mean of those of its texts.

  Args:
    objects: of which every landmark has a label.
    encode: texts to unit descriptors [N, D].
    prompt: the text that is encoded, with the label in place of {}.

  Raises:
    InputError: a landmark without a label.
  """
  if bare := [i for i, texts in enumerate(objects.labels) if not texts]:
    ids = objects.ids[bare].tolist()
    raise InputError(
      f'landmarks {ids[:5]} have no label for a CLIP to read: name the'
      " detector's categories, or write labels into the map's file."
    )
  every = [prompt.format(text) for texts in objects.labels for text in texts]
  owner = np.repeat(
    np.arange(objects.num_landmarks), [len(texts) for texts in objects.labels]
  )
  descriptors = np.asarray(encode(every), np.float64)
  total = np.zeros((objects.num_landmarks, descriptors.shape[-1]))
  np.add.at(total, owner, descriptors)
  length = np.linalg.norm(total, axis=-1, keepdims=True)
  return objects._replace(
    embedding=(total / np.maximum(length, 1e-12)).astype(np.float32)
  )


def near(
  objects: landmarks.ObjectMap, position: np.ndarray, radius: float
) -> landmarks.ObjectMap:
  """The landmarks within `radius` metres of a position [3]; all if it is 0."""
  if not radius:
    return objects
  away = np.linalg.norm(objects.center - position, axis=-1)
  return objects.take(np.flatnonzero(away <= radius))


def calibrate(
  objects: landmarks.ObjectMap,
  sightings: Sequence[Sighting],
  poses: np.ndarray,
  intrinsics: np.ndarray,
  image_size: tuple[int, int],
  *,
  k: int,
  radius: float,
) -> association.Calibration:
  """The probability that a text of some rank and similarity is the right one.

  Measured on images of known pose.

  Args:
    objects: with descriptors.
    sightings: of F images, with descriptors of the same encoder.
    poses: [F, 4, 4] world_from_camera.
    intrinsics: [3, 3] of the pinhole.
    image_size: (height, width).
    k: texts per detection.
    radius: metres within which landmarks may answer; 0 for all.

  Returns:
    The calibration; `association.UNCALIBRATED` where no box shows a landmark.
  """
  frames = [one.detections for one in sightings]
  poses, origin = posed_boxes.around_origin(poses)
  boxes = posed_boxes.lay_out(frames, poses, intrinsics, image_size)
  shapes = objects.moved(-origin).ellipsoid
  overlap = boxes.overlaps(shapes, objects.category)
  start = np.searchsorted(boxes.frame, np.arange(len(frames) + 1))
  judged = []
  for i, one in enumerate(sightings):
    own = overlap[:, start[i] : start[i + 1]]
    some = near(objects._replace(ids=np.arange(len(own))), one.position, radius)
    seen, known = one.detections.embedding, some.embedding
    if not own.size or not some.num_landmarks or seen is None or known is None:
      continue
    similarity = association.cosines(seen, known)
    found = association.nearest(similarity, k)
    right = own.argmax(0)[found.observation] == some.ids[found.landmark]
    shown = own.max(0)[found.observation] >= _SAME
    judged.append((found.rank, found.similarity, right, shown))
  if not judged:
    return association.UNCALIBRATED
  rank, similarity, right, shown = map(
    np.concatenate, zip(*judged, strict=True)
  )
  if not shown.any():
    return association.UNCALIBRATED
  return association.fit_calibration(
    rank[shown], similarity[shown], right[shown], k
  )
