# SPDX-License-Identifier: Apache-2.0
"""What is seen in images of a place: boxes of a detector, descriptors of them.

A place is an `input_pipeline.sources.places.Place`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

from absl import logging
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from i2ploc.objects import detections as detections_lib
from i2ploc.objects import files
from i2ploc.objects.map import place_map

# Of the images of a place, of which nobody says what a detector saw.
_MOST_UNNAMED = 0.5


def without(
  detections: detections_lib.Detections,
  leave_out: Sequence[str],
  categories: Sequence[str],
) -> detections_lib.Detections:
  """The detections without those of some categories.

  Args:
    detections: of an image.
    leave_out: names of categories.
    categories: names of the detector's numbers.
  """
  keep = ~np.isin(detections.category, _numbers(leave_out, categories))
  return detections.take(np.flatnonzero(keep))


def _check_named(place, names, frames) -> None:
  """Counts images that a detector's file does not name; refuses many of them.

  An image without objects is listed too, or is rare: most that are missing were
  never shown to the detector, and as such they would be maps and queries
  without objects.
  """
  missing = sorted(names - frames.keys())
  if len(missing) > _MOST_UNNAMED * len(names):
    raise InputError(
      f'{place.detections} names {len(names) - len(missing)} of the'
      f' {len(names)} images of {place.name}, not {missing[0]!r}; it has'
      f' {sorted(frames)[:2]}. Run the detector on all of them, and list those'
      ' without boxes too.'
    )
  if missing:
    logging.warning(
      '%s: no boxes of %d of %d images of %s (first: %s).',
      place.detections, len(missing), len(names), place.name, missing[0],
    )  # fmt: skip


def _numbers(names, categories) -> list[int]:
  return [i for i, name in enumerate(categories) if name in names]


def prepare(
  detections: detections_lib.Detections,
  lens: lens_lib.Lens,
  encode: Callable[[np.ndarray], np.ndarray] | None = None,
) -> detections_lib.Detections:
  """Detections as maps are made of them and asked with them.

  Args:
    detections: boxes in an image as it is.
    lens: of the image.
    encode: boxes [M, 4] to descriptors [M, D]; None for none.

  Returns:
    With descriptors; boxes are those that a pinhole with the lens's intrinsics
    would see.
  """
  if encode is not None:
    detections = detections._replace(embedding=encode(detections.box))
  if not lens.is_plane:
    detections = detections_lib.undistort(detections, lens)
  return detections


class Observer:
  """What a detector sees in images of a place, and descriptors of it.

  The detections come from a file or from labels, the descriptors from an
  encoder, if there is one.
  """

  def __init__(
    self, place: Any, encoder: Any = None, leave_out: Sequence[str] = ()
  ):
    """Reads the place's file of detections, if it has one.

    Args:
      place: with mapping, queries, detections and categories.
      encoder: an `image_text.ImageTextEncoder`; None where only categories
        count.
      leave_out: categories that are left out: what moves is no landmark.

    Raises:
      MissingFileError: no such file.
      InputError: it names less than half of the images.
    """
    self._encoder, self._frames = encoder, None
    self._leave_out = leave_out
    self._categories = tuple(place.categories)
    if place.detections is not None:
      found = files.load_detections(place.detections, place.mapping.image_size)
      names = {*place.mapping.names, *place.queries.names}
      _check_named(place, names, found.frames)
      self._frames = found.frames

  def boxes(
    self, shots: Any, row: int
  ) -> tuple[detections_lib.Detections, tuple[str, ...] | None]:
    """Boxes in the image as it is, and the texts that go with them, if any.

    Args:
      shots: images of the place.
      row: which of them.
    """
    if self._frames is not None:
      nothing = detections_lib.make_detections(
        np.zeros((0, 4)), [], [], shots.image_size
      )
      found = self._frames.get(shots.names[row], nothing)
      return without(found, self._leave_out, self._categories), None
    labels = shots.labels(row)
    keep = detections_lib.box_fault(labels.box) == ''
    keep &= ~np.isin(
      labels.category, _numbers(self._leave_out, self._categories)
    )
    labels = labels.take(np.flatnonzero(keep))
    found = detections_lib.make_detections(
      labels.box,
      labels.category,
      np.ones(len(labels.category)),
      shots.image_size,
    )
    return found, tuple(labels.text.tolist())

  def look(self, shots: Any, row: int) -> place_map.Sighting:
    """The boxes of an image, prepared; see `boxes` and `prepare`."""
    found, texts = self.boxes(shots, row)
    encode = None
    if self._encoder is not None:
      encode = functools.partial(self._encoder.encode_boxes, shots.read(row))
    found = prepare(found, shots.lens, encode)
    return place_map.Sighting(found, texts, shots.position[row])
