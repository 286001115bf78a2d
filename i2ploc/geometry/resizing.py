# SPDX-License-Identifier: Apache-2.0
"""Images of another size, and the intrinsics that belong to them.

The one implementation for training, maps and queries: what a model sees must
not depend on who prepared it. Host code on numpy arrays, safe in loader
threads. Images are stretched to the size asked for, whatever their shape was;
the intrinsics are stretched with them.
"""

import numpy as np
from PIL import Image

from i2ploc.geometry import lens as lens_lib


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """An image of another size, bicubic and antialiased.

  Args:
    image: uint8 [H, W, 3].
    size: (H, W) of the result.

  Returns:
    uint8 [H, W, 3]; the image itself if it has the size.

  >>> resize_image(np.full((4, 6, 3), 7, np.uint8), (2, 9)).shape
  (2, 9, 3)
  """
  return _resize(image, size, Image.Resampling.BICUBIC)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Classes uint8 [H, W] of the resized image's pixels: of the nearest one."""
  return _resize(labels, size, Image.Resampling.NEAREST)


def _resize(image, size, resample):
  if image.shape[:2] == tuple(size):
    return image
  return np.asarray(Image.fromarray(image).resize(size[::-1], resample))


def resize_intrinsics(
  intrinsics: np.ndarray,
  size_before: tuple[int, int],
  size_after: tuple[int, int],
) -> np.ndarray:
  """The intrinsics of a resized image.

  The first row is multiplied by the ratio of the widths, the second by that of
  the heights: enough, since pixels count from the image's corner.

  Args:
    intrinsics: [..., 3, 3] of the image before.
    size_before: (H, W), pixels.
    size_after: (H, W), pixels.

  Returns:
    [..., 3, 3] of the same type.

  >>> matrix = np.array([[50.0, 0, 40], [0, 60, 16], [0, 0, 1]])
  >>> resize_intrinsics(matrix, (32, 80), (16, 40))
  array([[25.,  0., 20.],
         [ 0., 30.,  8.],
         [ 0.,  0.,  1.]])
  """
  intrinsics = np.asarray(intrinsics)
  scale = np.array(
    [size_after[1] / size_before[1], size_after[0] / size_before[0], 1.0],
    intrinsics.dtype,
  )
  return intrinsics * scale[:, None]


def resize_lens(
  lens: lens_lib.Lens,
  size_before: tuple[int, int],
  size_after: tuple[int, int],
) -> lens_lib.Lens:
  """The lens of a resized image; distortion does not depend on the size."""
  matrix = resize_intrinsics(lens.intrinsics, size_before, size_after)
  return lens._replace(intrinsics=matrix)
