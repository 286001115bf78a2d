# SPDX-License-Identifier: Apache-2.0
"""What an object detector reports, taken from labels instead.

Of a labelled dataset that lists the objects of a frame (`synthetic_city`):
boxes and categories of what an image shows, as sharp or as noisy as wanted, and
the landmarks that a town has. A landmark's text says what it is; what a caption
adds of the moment and of the observer ('parked', 'covered with snow', 'on the
left') is left out, because a map does not know it.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import schema
from input_pipeline.synthetic_city import vehicles

# In the order in which a caption appends them, see `synthetic_city.objects`.
_OF_THE_MOMENT = re.compile(
  '( covered with snow| with yellow leaves)?( walking| driving| parked)?'
  '( ahead| behind|( behind)? on the (left|right))$'
)
# Every category of synthetic_city; its place is its number.
CATEGORIES = (
  'bench',
  'bin',
  'bollard',
  'building',
  'bus',
  'bus stop',
  'cabinet',
  'car',
  'fence',
  'hedge',
  'lamp',
  'pedestrian',
  'shed',
  'sign',
  'traffic light',
  'tree',
  'van',
)


class Detections(NamedTuple):
  """M objects that an image shows, by their number.

  Attributes:
    box: [M, 4] float32, (left, top, right, bottom) pixels around what can be
      seen, the centre of the top-left pixel at (0.5, 0.5).
    category: [M] int64, places in CATEGORIES.
    text: [M] str, what it is: 'a tall red brick house with a gabled roof'.
    instance: [M] int64, the object's number in its drive; the town's own
      things have the same in every drive.
    pixels: [M] int64, how many of the image show it.
    share: [M] float32, of the pixels of the box.
    cut: [M] bool, whether the box touches the image's border.
    movable: [M] bool, whether it can drive or walk away.
  """

  box: np.ndarray
  category: np.ndarray
  text: np.ndarray
  instance: np.ndarray
  pixels: np.ndarray
  share: np.ndarray
  cut: np.ndarray
  movable: np.ndarray

  def take(self, rows: np.ndarray) -> 'Detections':
    """Those of these rows, or of this mask."""
    return Detections(*(column[rows] for column in self))


class Landmarks(NamedTuple):
  """L things of a town, by their number: ellipsoids with texts.

  Attributes:
    instance: [L] int64, as in `Detections`.
    category: [L] int64, as in `Detections`.
    text: [L] str, see `Detections`.
    center: [L, 3] float64, world frame, metres.
    semi_axes: [L, 3] float64, metres.
    rotation: [L, 3, 3] float64, world_from_landmark.
    num_views: [L] int64, frames in which the camera sees it.
  """

  instance: np.ndarray
  category: np.ndarray
  text: np.ndarray
  center: np.ndarray
  semi_axes: np.ndarray
  rotation: np.ndarray
  num_views: np.ndarray

  def take(self, rows: np.ndarray) -> 'Landmarks':
    """Those of these rows, or of this mask."""
    return Landmarks(*(column[rows] for column in self))


def landmark_text(caption: str) -> str:
  """The part of a caption that holds at any time and from anywhere."""
  return _OF_THE_MOMENT.sub('', caption)


def detect(
  instance: np.ndarray,
  objects: Sequence[Mapping[str, Any]],
  *,
  min_pixels: int = 30,
  min_side: int = 4,
  min_share: float = 0.2,
) -> Detections:
  """The objects of a frame that its image shows well enough.

  Args:
    instance: [H, W] int, numbers of the objects that the pixels show.
    objects: of the frame, each with instance, category and caption.
    min_pixels: that show an object.
    min_side: pixels, of the longer side of a box.
    min_share: of a box's pixels that show the object: less is mostly hidden.
  """
  known = {thing['instance']: thing for thing in objects}
  rows, columns = np.nonzero(instance)
  numbers, owner, pixels = np.unique(
    instance[rows, columns], return_inverse=True, return_counts=True
  )
  box = _boxes(rows, columns, owner, len(numbers))
  sides = box[:, 2:] - box[:, :2]
  share = (pixels / sides.prod(1)).astype(np.float32)
  good = np.isin(numbers, list(known)) & (pixels >= min_pixels)
  good &= (sides.max(1, initial=0) >= min_side) & (share >= min_share)
  things = [known[int(number)] for number in numbers[good]]
  size = instance.shape[1], instance.shape[0]
  box = box[good].astype(np.float32)
  return Detections(
    box,
    _categories(things),
    np.array([landmark_text(thing['caption']) for thing in things], str),
    numbers[good].astype(np.int64),
    pixels[good],
    share[good],
    ((box[:, :2] <= 0) | (box[:, 2:] >= size)).any(1),
    numbers[good] >= vehicles.FIRST_INSTANCE,
  )


def _categories(things: Sequence[Mapping[str, Any]]) -> np.ndarray:
  """Places [N] in CATEGORIES of what names an object's category."""
  numbers = [CATEGORIES.index(thing['category']) for thing in things]
  return np.array(numbers, np.int64)


def _boxes(rows, columns, owner, count):
  """The box [count, 4] of each owner's pixels."""
  low = np.full((count, 2), np.iinfo(np.int64).max)
  high = np.zeros((count, 2), np.int64)
  pixels = np.stack([columns, rows], axis=1)
  np.minimum.at(low, owner, pixels)
  np.maximum.at(high, owner, pixels + 1)
  return np.concatenate([low, high], axis=1)


def with_noise(
  detections: Detections,
  rng: np.random.Generator,
  image_size: tuple[int, int],
  edge: float = 0.05,
  missed: float = 0.0,
) -> Detections:
  """What a worse detector reports of the same objects.

  Args:
    detections: of one image.
    rng: source of randomness.
    image_size: (H, W), to which boxes are clipped.
    edge: deviation of each edge that is not at the border, as a part of the
      box's width or height.
    missed: probability that an object is not detected.
  """
  found = detections.take(rng.random(len(detections.box)) >= missed)
  sides = np.tile(found.box[:, 2:] - found.box[:, :2], 2)
  moved = found.box + edge * sides * rng.normal(size=found.box.shape)
  limit = np.tile(image_size[::-1], 2).astype(np.float32)
  inside = (found.box > 0) & (found.box < limit)
  box = np.clip(np.where(inside, moved, found.box), 0, limit)
  low, high = np.sort([box[:, :2], box[:, 2:]], axis=0)
  box = np.concatenate([low, high], axis=1).astype(np.float32)
  return found._replace(box=box)


def landmarks(
  dataset: schema.Dataset, town: str, *, min_pixels: int = 30
) -> Landmarks:
  """What stays in a town, as its first drive sees it.

  Args:
    dataset: whose `read` knows 'objects'.
    town: its name.
    min_pixels: of an image that has to show a thing, for a view of it.

  Raises:
    InputError: no such town.
  """
  frames = dataset.frames
  here = np.flatnonzero(frames.town == town)
  if not len(here):
    raise InputError(
      f'{dataset.name} has no town {town!r}; it has '
      f'{sorted(set(frames.town.tolist()))}'
    )
  things, num_views = {}, {}
  for row in here[frames.drive[here] == frames.drive[here[0]]]:
    for thing in dataset.read(int(row), ('objects',))['objects']:
      number = thing['instance']
      if number < vehicles.FIRST_INSTANCE and thing['pixels'] >= min_pixels:
        things.setdefault(number, thing)
        num_views[number] = num_views.get(number, 0) + 1
  numbers = sorted(things)
  found = [things[number] for number in numbers]

  def column(name, width):
    values = [thing[name] for thing in found]
    return np.array(values, np.float64).reshape(len(found), *width)

  return Landmarks(
    np.array(numbers, np.int64),
    _categories(found),
    np.array([landmark_text(thing['caption']) for thing in found], str),
    column('center', (3,)),
    column('semi_axes', (3,)),
    _rotation_z(column('yaw', ())),
    np.array([num_views[number] for number in numbers], np.int64),
  )


def _rotation_z(yaw):
  """Rotations [L, 3, 3] about z."""
  cos, sin, zero = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)
  rows = [[cos, -sin, zero], [sin, cos, zero], [zero, zero, zero + 1]]
  return np.moveaxis(np.array(rows), 2, 0)
