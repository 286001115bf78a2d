# SPDX-License-Identifier: Apache-2.0
"""Lenses of images that were turned, as EXIF's orientations say.

An image that stands on its side in its file is turned before it is shown, and
its camera with it: focal lengths change places, and the principal point goes
where its pixel goes. `image_files.turn` does the same to the pixels.
"""

import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib

# By orientation: (column, row) of the turned image from those of the file, and
# how often its width and height are added to them.
_TURNS = {
  1: ([[1, 0], [0, 1]], (0, 0)),
  2: ([[-1, 0], [0, 1]], (1, 0)),
  3: ([[-1, 0], [0, -1]], (1, 1)),
  4: ([[1, 0], [0, -1]], (0, 1)),
  5: ([[0, 1], [1, 0]], (0, 0)),
  6: ([[0, -1], [1, 0]], (1, 0)),
  7: ([[0, -1], [-1, 0]], (1, 1)),
  8: ([[0, 1], [-1, 0]], (0, 1)),
}
_QUARTERS = (5, 6, 7, 8)
# Of OpenCV's coefficients those that have a direction, p1 and p2; what comes
# behind the radial ones has one too.
_TANGENTIAL, _NUM_KNOWN = slice(2, 4), 8
_DIRECTED = ('thin_prism_fisheye', 'fisheye624')


def turned_size(
  image_size: tuple[int, int], orientation: int
) -> tuple[int, int]:
  """(H, W) of an image once it is turned.

  >>> turned_size((20, 30), 6), turned_size((20, 30), 3)
  ((30, 20), (20, 30))
  """
  height, width = image_size
  return (width, height) if orientation in _QUARTERS else (height, width)


def turn_lens(
  lens: lens_lib.Lens, image_size: tuple[int, int], orientation: int
) -> lens_lib.Lens:
  """The lens of the turned image.

  With y = A x + b of pixels and A a turn by right angles or a mirror, a camera
  turns with its image: K' = (A K A^T, A c + b), and p' = A p of the tangential
  distortion (p2, p1).

  Args:
    lens: of the image in its file.
    image_size: (H, W) of it, pixels.
    orientation: EXIF's, 1 to 8.

  Raises:
    InputError: a panorama turned by a quarter is none any more; skew, or
      distortion of which it is not known here how it turns.
  """
  if orientation == 1:
    return lens
  matrix = np.array(lens.intrinsics, np.float64)
  coefficients = lens.coefficients.copy()
  reason = ''
  if orientation in _QUARTERS and lens.model == 'equirectangular':
    reason = 'a panorama'
  elif orientation in _QUARTERS and matrix[0, 1]:
    reason = f'a camera with a skew of {matrix[0, 1]:g}'
  elif lens.model in _DIRECTED or (
    lens.model == 'opencv' and coefficients.size > _NUM_KNOWN
  ):
    reason = f'a lens of {coefficients.size} coefficients'
  if reason:
    raise InputError(
      f'{reason} cannot be turned as the EXIF orientation {orientation} says; '
      'turn the image itself, or take it as it is stored'
    )
  turn, borders = _TURNS[orientation]
  turn = np.array(turn, np.float64)
  width_height = turned_size(image_size, orientation)[::-1]
  matrix[:2, :2] = turn @ matrix[:2, :2] @ turn.T
  matrix[:2, 2] = turn @ matrix[:2, 2] + np.array(borders) * width_height
  if lens.model == 'opencv' and coefficients.size:
    tangential = turn @ coefficients[_TANGENTIAL][::-1]
    coefficients[_TANGENTIAL] = tangential[::-1]
  return lens._replace(intrinsics=matrix, distortion=coefficients)
