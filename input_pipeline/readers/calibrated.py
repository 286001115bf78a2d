# SPDX-License-Identifier: Apache-2.0
"""The lens of images that may not have the size that was calibrated.

Smaller copies of recordings are common. Images that are the calibrated size
times a factor get the lens that goes with them; cropped or stretched ones are
refused, for which nobody knows what was cut off.
"""

from collections.abc import Sequence
import pathlib

from absl import logging
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import resizing
from input_pipeline.readers import kitti_files

# Images whose headers are read: the first, the last and some between. All
# others are compared with these when they are read.
_NUM_HEADERS = 8
# Of a principal point from the middle of the image, in sides of it; KITTI-360's
# is 0.14 away.
_OFF_CENTER = 0.2


def fit(
  lens: lens_lib.Lens,
  size: tuple[int, int] | None,
  images: Sequence[pathlib.Path],
  source: str,
) -> tuple[lens_lib.Lens, tuple[int, int] | None]:
  """The lens of image files, and their size.

  Args:
    lens: as calibrated, the half pixel added.
    size: (H, W) of the images that were calibrated, pixels; None if nobody
      knows, which leaves the principal point to tell.
    images: of one camera; only headers of some are read.
    source: where the lens was read, for messages.

  Returns:
    lens: scaled where the images are the calibrated ones times a factor.
    size: (H, W) of the images; None where no header is whole.

  Raises:
    InputError: the images have several sizes, or one that no factor explains,
      or the lens is not of images of the size.
  """
  if size is not None and not _is_centered(lens, size):
    raise InputError(
      f'{source} is of images of {_told(size)} by its own file, but its '
      f'principal point is {_center(lens)}: correct the size, or the lens.'
    )
  found = _common_size(images)
  if found is None or found == size:
    return lens, found
  path = images[0]
  if size is None:
    if not _is_centered(lens, found):
      raise InputError(
        f'{path}: an image of {_told(found)}, but the principal point of '
        f'{source} is {_center(lens)}: was it resized or cropped after the '
        'calibration? Use the original images.'
      )
    return lens, found
  if not resizing.is_resize(size, found):
    raise InputError(
      f'{path}: an image of {_told(found)}, but {source} is of {_told(size)}, '
      'and no factor makes one of the other: the images were cropped or '
      'stretched, or are of another camera. Use the original images, or write '
      'the calibration of these.'
    )
  logging.info(
    '%s and others are %s, %s is of %s: took the lens times the factor.',
    path, _told(found), source, _told(size),
  )  # fmt: skip
  return resizing.resize_lens(lens, size, found), found


def check_size(
  found: tuple[int, ...], size: tuple[int, int] | None, path: pathlib.Path
) -> None:
  """Refuses an image (H, W) of another size than its camera's images have.

  Args:
    found: shape of the image, (H, W, ...).
    size: (H, W) of the camera's images; None if no header told it.
    path: of the image.

  Raises:
    InputError: they differ.
  """
  if size is not None and tuple(found[:2]) != tuple(size):
    raise InputError(
      f'{path}: an image of {_told(found)}, where its camera has images of '
      f'{_told(size)}; give all images of a camera one size.'
    )


def _common_size(images) -> tuple[int, int] | None:
  """(H, W) of some images; None if no header is whole."""
  places = np.linspace(0, len(images) - 1, min(len(images), _NUM_HEADERS))
  sizes: dict[tuple[int, int], pathlib.Path] = {}
  for i in places.round().astype(int).tolist():
    size = kitti_files.image_size(images[i : i + 1])
    if size is not None:
      sizes.setdefault(size, images[i])
  if len(sizes) > 1:
    (first, one), (second, other) = list(sizes.items())[:2]
    raise InputError(
      f'{other}: an image of {_told(second)}, where {one.name} has '
      f'{_told(first)}; give all images of a camera one size.'
    )
  return next(iter(sizes), None) or kitti_files.image_size(images)


def _is_centered(lens, size) -> bool:
  """Whether the principal point is about in the middle of images (H, W)."""
  center = np.asarray(lens.intrinsics)[:2, 2]
  return bool((np.abs(center / size[::-1] - 0.5) <= _OFF_CENTER).all())


def _center(lens) -> list[float]:
  return np.asarray(lens.intrinsics)[:2, 2].round(1).tolist()


def _told(size) -> str:
  return f'{size[1]}x{size[0]}'
