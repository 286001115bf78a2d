# SPDX-License-Identifier: Apache-2.0
"""From measured pixels to directions, on the host and in float64.

What a robust estimator is given are pixels of a real camera. They become
directions once, here; everything behind works without a camera model.
"""

from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError

MODELS = ('pinhole', 'opencv', 'equirectangular')
# Newton's method doubles the digits; the strongest lens here needs six.
_NUM_ITERATIONS = 12
# What may be left of the distortion equation, on the plane z = 1.
_TOLERANCE = 1e-9
_NUM_COEFFICIENTS = (0, 4, 5, 8)
# Of entries of the intrinsics that are 0 or 1.
_ROUNDING = 1e-6


class Lens(NamedTuple):
  """A camera: x right, y down, z forward, top-left pixel centre (0.5, 0.5).

  With (x, y) on the plane z = 1, r^2 = x^2 + y^2, 'opencv' has

    s = (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6)
    x' = x s + 2 p1 x y + p2 (r^2 + 2 x^2)
    y' = y s + p1 (r^2 + 2 y^2) + 2 p2 x y

  and 'equirectangular' columns and rows even in azimuth and elevation, see
  `panorama`.

  Attributes:
    model: of `MODELS`.
    intrinsics: [3, 3]; pixels, or pixels per radian if equirectangular.
      OpenCV counts pixel centres from 0: add 0.5 to its principal point.
    distortion: none (empty, or None), or k1 k2 p1 p2 [k3 [k4 k5 k6]] in
      OpenCV's order, as a row or a column.
  """

  model: str
  intrinsics: np.ndarray
  distortion: np.ndarray | None = np.zeros(0)

  @property
  def coefficients(self) -> np.ndarray:
    """The distortion as [C] float64, C = 0 if there is none."""
    if self.distortion is None:
      return np.zeros(0)
    return np.asarray(self.distortion, np.float64).ravel()

  @property
  def focal_length(self) -> float:
    """Pixels per unit of the plane z = 1, or per radian, on average."""
    matrix = np.asarray(self.intrinsics, np.float64)
    return float(np.sqrt(abs(matrix[0, 0] * matrix[1, 1])))


def check_lens(lens: Lens) -> None:
  """Raises InputError for a lens that cannot be."""
  if not isinstance(lens, Lens):
    raise InputError(
      f"a camera must be a Lens, as Lens('pinhole', intrinsics), not "
      f'{type(lens).__name__}'
    )
  if lens.model not in MODELS:
    raise InputError(f'unknown camera model {lens.model!r}; known: {MODELS}')
  _check_intrinsics(lens.intrinsics)
  given = () if lens.distortion is None else lens.distortion
  coefficients = _numbers(given, 'distortion')
  count = coefficients.size
  if count not in _NUM_COEFFICIENTS or coefficients.ndim > 2:
    raise InputError(
      f'{count} distortion coefficients; known: {_NUM_COEFFICIENTS}, in the '
      'order k1 k2 p1 p2 k3 k4 k5 k6'
    )
  if not np.isfinite(coefficients).all():
    raise InputError(f'distortion must be finite, not {coefficients.tolist()}')
  if count and lens.model != 'opencv':
    raise InputError(
      f"distortion goes with the model 'opencv', not with {lens.model!r}"
    )


def _check_intrinsics(intrinsics):
  """Raises InputError for what is not the matrix of a camera."""
  matrix = _numbers(intrinsics, 'intrinsics')
  told = matrix.tolist()
  if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
    raise InputError(f'intrinsics must be finite [3, 3], not {told}')
  if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
    raise InputError(
      f'focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g} must be positive'
    )
  small = _ROUNDING * matrix[0, 0]
  below = max(abs(matrix[1, 0]), abs(matrix[2, 0]), abs(matrix[2, 1])) > small
  if below and not np.triu(matrix, 1).any():
    raise InputError(f'intrinsics are transposed: {told}')
  if below or abs(matrix[2, 2] - 1) > _ROUNDING:
    raise InputError(
      'intrinsics must be upper triangular with a last row of 0, 0, 1, not '
      f'{told}'
    )


def _numbers(values, name):
  """Values as float64; InputError if they are no numbers."""
  try:
    return np.asarray(values, np.float64)
  except (TypeError, ValueError) as error:
    raise InputError(f'{name} must be numbers, not {values!r}') from error


def _distort(coefficients, plane):
  """Distorted positions [N, 2] and their derivatives [N, 2, 2]."""
  k1, k2, p1, p2, k3, k4, k5, k6 = coefficients
  x, y = plane.T
  square = x * x + y * y
  top = 1 + square * (k1 + square * (k2 + square * k3))
  bottom = 1 + square * (k4 + square * (k5 + square * k6))
  top_slope = k1 + square * (2 * k2 + square * 3 * k3)
  bottom_slope = k4 + square * (2 * k5 + square * 3 * k6)
  scale = top / bottom
  slope = (top_slope - scale * bottom_slope) / bottom
  found = np.stack(
    [
      x * scale + 2 * p1 * x * y + p2 * (square + 2 * x * x),
      y * scale + p1 * (square + 2 * y * y) + 2 * p2 * x * y,
    ],
    axis=-1,
  )
  mixed = 2 * slope * x * y + 2 * p1 * x + 2 * p2 * y
  along_x = scale + 2 * slope * x * x + 2 * p1 * y + 6 * p2 * x
  along_y = scale + 2 * slope * y * y + 6 * p1 * y + 2 * p2 * x
  rows = [np.stack([along_x, mixed], -1), np.stack([mixed, along_y], -1)]
  return found, np.stack(rows, axis=1)


def _undistort(coefficients, target):
  """Positions [N, 2] whose distortion is the target; [N] whether found."""
  plane = target.copy()
  with np.errstate(all='ignore'):
    for _ in range(_NUM_ITERATIONS):
      found, slope = _distort(coefficients, plane)
      miss = target - found
      (a, b), (_, d) = np.moveaxis(slope, 0, -1)
      determinant = a * d - b * b
      step = np.stack(
        [d * miss[:, 0] - b * miss[:, 1], a * miss[:, 1] - b * miss[:, 0]], -1
      )
      plane = plane + step / determinant[:, None]
    found, slope = _distort(coefficients, plane)
    miss = np.abs(target - found).max(axis=-1)
    # Beyond the fold of a radial polynomial Newton finds another branch.
    upright = (np.linalg.det(slope) > 0) & (np.trace(slope.T) > 0)
  valid = np.isfinite(miss) & (miss < _TOLERANCE) & upright
  return np.where(valid[:, None], plane, 0.0), valid


def _angles_or_plane(lens, pixels):
  """Pixels [N, 2] without intrinsics; [N] bool, whether finite."""
  pixels = np.asarray(pixels, np.float64)
  if pixels.ndim != 2 or pixels.shape[1] != 2:
    raise InputError(f'pixels must be [N, 2], not {list(pixels.shape)}')
  matrix = np.asarray(lens.intrinsics, np.float64)
  valid = np.atleast_1d(np.isfinite(pixels).all(axis=-1))
  found = np.where(valid[:, None], pixels, matrix[:2, 2]) - matrix[:2, 2]
  found[:, 1] /= matrix[1, 1]
  found[:, 0] = (found[:, 0] - matrix[0, 1] * found[:, 1]) / matrix[0, 0]
  return found, valid


def plane_from_pixels(
  lens: Lens, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Where the directions of pixels meet the plane z = 1 of the camera.

  Args:
    lens: a camera that looks ahead, not 'equirectangular'.
    pixels: [N, 2] (column, row).

  Returns:
    plane: [N, 2] float64; zero for pixels that the lens cannot have imaged.
    valid: [N] bool; False for those, and for pixels that are not finite.

  Raises:
    InputError: an impossible lens, one that looks all around, or pixels of
      another shape.
  """
  check_lens(lens)
  if lens.model == 'equirectangular':
    raise InputError('an equirectangular camera has no plane ahead of it')
  return _plane(lens, pixels)


def _plane(lens, pixels):
  plane, valid = _angles_or_plane(lens, pixels)
  if lens.coefficients.size:
    coefficients = np.zeros(8)
    coefficients[: lens.coefficients.size] = lens.coefficients
    plane, found = _undistort(coefficients, plane)
    valid &= found
  return plane, valid


def rays_from_pixels(
  lens: Lens, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Directions in which a camera sees pixels.

  Args:
    lens: the camera.
    pixels: [N, 2] (column, row).

  Returns:
    rays: [N, 3] float64 unit vectors in the camera frame; ahead for pixels
      that the lens cannot have imaged.
    valid: [N] bool; False for those, and for pixels that are not finite.

  Raises:
    InputError: an impossible lens, or pixels of another shape.
  """
  check_lens(lens)
  if lens.model == 'equirectangular':
    angles, valid = _angles_or_plane(lens, pixels)
    x, y = angles.T
    level = np.cos(y)
    rays = [level * np.sin(x), np.sin(y), level * np.cos(x)]
    return np.stack(rays, axis=-1), valid
  plane, valid = _plane(lens, pixels)
  rays = np.concatenate([plane, np.ones((len(plane), 1))], axis=-1)
  return rays / np.linalg.norm(rays, axis=-1, keepdims=True), valid
