# SPDX-License-Identifier: Apache-2.0
"""Real cameras: from directions to measured pixels and back.

A lens is a projection (onto a plane, or even in the angle off the axis), what
the glass does to it (see `distortion`), and a matrix that makes pixels. What
a robust estimator is given are pixels of a real camera: they become directions
once, here, on the host and in float64; everything behind works without a camera
model. Of jax arrays the same functions make jax arrays.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import arrays
from i2ploc.geometry import distortion as distortion_lib
from i2ploc.geometry import projections


class Model(NamedTuple):
  """A camera model.

  Attributes:
    names: of its coefficients, in their order.
    counts: how many may be given; those that are not are 0.
    projection: what directions become before distortion.
    stages: of all coefficients, what happens then.
  """

  names: str
  counts: tuple[int, ...]
  projection: str
  stages: Callable[..., tuple[distortion_lib.Stage, ...]]


def _no_stages():
  return ()


def _opencv(k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4, tilt_x, tilt_y):
  bent = distortion_lib.Polynomial(
    (k1, k2, k3),
    (k4, k5, k6) if any((k4, k5, k6)) else (),
    (p1, p2),
    (s1, s2, s3, s4),
  )
  if tilt_x or tilt_y:
    return bent, distortion_lib.Tilt(tilt_x, tilt_y)
  return (bent,)


def _fisheye(*k):
  return (distortion_lib.Polynomial(k),)


def _thin_prism_fisheye(k1, k2, p1, p2, k3, k4, s1, s2):
  return (
    distortion_lib.Polynomial(
      (k1, k2, k3, k4), (), (p1, p2), (s1, 0.0, s2, 0.0)
    ),
  )


def _fisheye624(k1, k2, k3, k4, k5, k6, p1, p2, *prism):
  return (
    distortion_lib.Polynomial((k1, k2, k3, k4, k5, k6)),
    # It says p1 to what is p2 in OpenCV.
    distortion_lib.Polynomial((), (), (p2, p1), prism),
  )


def _fov(omega):
  return (distortion_lib.FieldOfView(omega),)


def _division(k):
  return (distortion_lib.Division(k),)


def _eucm(alpha, beta):
  del alpha, beta  # of the projection
  return ()


MODELS = {
  'pinhole': Model('', (0,), projections.PLANE, _no_stages),
  'opencv': Model(
    'k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4 taux tauy',
    (0, 4, 5, 8, 12, 14),
    projections.PLANE,
    _opencv,
  ),
  'fisheye': Model('k1 k2 k3 k4', (0, 4), projections.ANGLE, _fisheye),
  'thin_prism_fisheye': Model(
    'k1 k2 p1 p2 k3 k4 sx1 sy1', (8,), projections.ANGLE, _thin_prism_fisheye
  ),
  'fisheye624': Model(
    'k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3', (12,), projections.ANGLE, _fisheye624
  ),
  'fov': Model('omega', (1,), projections.PLANE, _fov),
  'division': Model('k', (1,), projections.PLANE, _division),
  'eucm': Model('alpha beta', (2,), projections.SURFACE, _eucm),
  'equirectangular': Model('', (0,), projections.SPHERE, _no_stages),
}
# Of entries of the intrinsics that are 0 or 1.
_ROUNDING = 1e-6


class Lens(NamedTuple):
  """A camera: x right, y down, z forward, top-left pixel centre (0.5, 0.5).

  A direction (x, y, z) becomes a position: (x, y) / z for 'pinhole', 'opencv'
  (Brown's model with OpenCV's coefficients), 'fov' and 'division'; its angle
  off the axis, in radians and in the direction of (x, y), for the fisheyes
  (Kannala and Brandt, TPAMI 2006; OpenCV's fisheye, ORB-SLAM3's
  KannalaBrandt8); (x, y) / (alpha d + (1 - alpha) z) with
  d^2 = beta (x^2 + y^2) + z^2 for 'eucm' (Khomutenko et al., RA-L 2016);
  azimuth and elevation for 'equirectangular', see `panorama`. The position is
  distorted, see `distortion`, and multiplied by the intrinsics. A fisheye has

    theta' = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8)

  Attributes:
    model: of `MODELS`.
    intrinsics: [3, 3]; pixels, or pixels per radian if fisheye or
      equirectangular. OpenCV counts pixel centres from 0: add 0.5 to its
      principal point.
    distortion: coefficients in the order of `MODELS`, as a row or a column;
      empty, or None, for none.
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
    """Pixels per radian on the optical axis, on average of both sides."""
    matrix = np.asarray(self.intrinsics, np.float64)
    focal = float(np.sqrt(abs(matrix[0, 0] * matrix[1, 1])))
    if self.model == 'fov':
      omega = abs(self.coefficients[0])
      focal *= float(2 * np.tan(omega / 2) / omega)
    return focal

  @property
  def is_plane(self) -> bool:
    """Whether pixels are a matrix times what is seen on the plane z = 1."""
    plain = self.model in ('pinhole', 'opencv')
    return plain and not self.coefficients.any()

  @property
  def is_wide(self) -> bool:
    """Whether pixels measure angles rather than positions on a plane."""
    return (
      self.model == 'fov' or MODELS[self.model].projection != projections.PLANE
    )


def check_lens(lens: Lens) -> None:
  """Raises InputError for a lens that cannot be."""
  if not isinstance(lens, Lens):
    raise InputError(
      f"a camera must be a Lens, as Lens('pinhole', intrinsics), not "
      f'{type(lens).__name__}'
    )
  if lens.model not in MODELS:
    raise InputError(
      f'unknown camera model {lens.model!r}; known: {list(MODELS)}'
    )
  _check_intrinsics(lens.intrinsics)
  given = () if lens.distortion is None else lens.distortion
  coefficients = _numbers(given, 'distortion')
  model, count = MODELS[lens.model], coefficients.size
  if count not in model.counts or coefficients.ndim > 2:
    raise InputError(
      f'{count} distortion coefficients; {lens.model!r} takes'
      f' {" or ".join(map(str, model.counts))}'
      + (f', in the order {model.names}' if model.names else '')
    )
  if not np.isfinite(coefficients).all():
    raise InputError(f'distortion must be finite, not {coefficients.tolist()}')
  _check_range(lens)


def plain_intrinsics(lens: Lens) -> np.ndarray:
  """The matrix of a camera that has nothing else: no distortion, no fisheye.

  For models, which compare columns with directions as a pinhole or a panorama
  has them.

  Returns:
    [3, 3] float64.

  Raises:
    InputError: an impossible lens, or one whose images must be undistorted.
  """
  check_lens(lens)
  if not lens.is_plane and lens.model != 'equirectangular':
    raise InputError(
      f'a camera {lens.model!r} with distortion {lens.coefficients.tolist()},'
      ' expected a pinhole: undistort its images and give the camera matrix of'
      ' the undistorted ones'
    )
  return np.asarray(lens.intrinsics, np.float64)


def _check_range(lens):
  """Raises InputError for coefficients beyond what they mean."""
  values = lens.coefficients
  if lens.model == 'fov' and not 0 < abs(values[0]) < np.pi:
    raise InputError(f'omega = {values[0]:g} must be between 0 and pi radians')
  if lens.model == 'eucm' and not (0 <= values[0] <= 1 and values[1] > 0):
    raise InputError(
      f'alpha = {values[0]:g} must be of [0, 1] and beta = {values[1]:g}'
      ' positive'
    )
  if lens.model == 'opencv' and (np.abs(values[12:]) >= np.pi / 2).any():
    raise InputError(
      f'tilts of the sensor {values[12:].tolist()} must be less than pi / 2'
      ' radians'
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


def _coordinates(values, width, name):
  """Columns of positions or directions, and which rows are finite."""
  if not isinstance(values, jax.Array):
    values = np.asarray(values, np.float64)
  if not values.ndim or values.shape[-1] != width:
    raise InputError(f'{name} must be [..., {width}], not {list(values.shape)}')
  parts = tuple(values[..., i] for i in range(width))
  xp = arrays.namespace(values)
  finite = xp.isfinite(values).all(-1)
  return tuple(xp.where(finite, one, 1.0) for one in parts), finite


def _stages(lens):
  given = lens.coefficients.tolist()
  if not any(given):
    return ()
  model = MODELS[lens.model]
  return model.stages(*given, *[0.0] * (max(model.counts) - len(given)))


def _projection(lens):
  """The kind of projection, its parameters, and its largest radius."""
  kind = MODELS[lens.model].projection
  parameters = ()
  if kind == projections.SURFACE:
    parameters = tuple(lens.coefficients.tolist())
  widest = np.pi if kind == projections.ANGLE else distortion_lib.WIDEST
  return kind, parameters, widest


def _matrix(lens):
  """fx, skew, cx, fy, cy."""
  (fx, skew, cx), (_, fy, cy) = np.asarray(
    lens.intrinsics, np.float64
  ).tolist()[:2]
  return fx, skew, cx, fy, cy


def _imaged(lens, points):
  """Pixels and their derivatives by the points, as separate arrays."""
  check_lens(lens)
  kind, parameters, widest = _projection(lens)
  coordinates, finite = _coordinates(points, 3, 'points')
  seen = projections.project(kind, parameters, *coordinates)
  u, v, valid = seen.u, seen.v, finite & seen.valid
  along, down = seen.slope[:3], seen.slope[3:]
  for stage in _stages(lens):
    bent = distortion_lib.distort(stage, u, v, widest)
    u, v, valid = bent.x, bent.y, valid & bent.valid
    a, b, c, d = bent.slope
    along, down = (
      tuple(
        one * right + other * below
        for right, below in zip(along, down, strict=True)
      )
      for one, other in ((a, b), (c, d))
    )
    widest = distortion_lib.WIDEST
  fx, skew, cx, fy, cy = _matrix(lens)
  along = tuple(
    fx * right + skew * below for right, below in zip(along, down, strict=True)
  )
  down = tuple(fy * below for below in down)
  return (fx * u + skew * v + cx, fy * v + cy), (along, down), valid


def project(lens: Lens, points: Any) -> tuple[Any, Any]:
  """Pixels of points in the camera frame.

  Args:
    lens: the camera; a constant of traced code.
    points: [..., 3], any length but zero; of jax, or numbers of the host.

  Returns:
    pixels: [..., 2]; float64 of the host, else of the points' type. Of invalid
      points, finite but meaningless.
    valid: [...] bool; False behind a camera that looks ahead, and from where on
      the distortion folds back. Whether the pixel lies inside the image is the
      caller's question.

  Raises:
    InputError: an impossible lens, or points of another shape.
  """
  pixels, _, valid = _imaged(lens, points)
  return arrays.namespace(*pixels).stack(pixels, -1), valid


def jacobian(lens: Lens, points: Any) -> tuple[Any, Any]:
  """Derivatives of the pixels of points.

  Args:
    lens: as in `project`.
    points: [..., 3], as in `project`.

  Returns:
    jacobian: [..., 2, 3], pixels per metre; meaningless at invalid points.
    valid: [...] bool, see `project`.

  Raises:
    InputError: see `project`.
  """
  _, rows, valid = _imaged(lens, points)
  xp = arrays.namespace(*rows[0])
  return xp.stack([xp.stack(row, -1) for row in rows], -2), valid


def ray_jacobian(lens: Lens, rays: Any) -> tuple[Any, Any]:
  """Derivatives of the unit directions of pixels: how a ray turns.

  Args:
    lens: as in `project`.
    rays: [..., 3] unit vectors, of `rays_from_pixels`.

  Returns:
    jacobian: [..., 3, 2], radians per pixel, at right angles to the ray; zero
      at invalid rays.
    valid: [...] bool, see `project`.

  Raises:
    InputError: see `project`.
  """
  slope, valid = jacobian(lens, rays)
  xp = arrays.namespace(slope)
  # The pseudoinverse: a ray's length does not move its pixel.
  right, below = slope[..., 0, :], slope[..., 1, :]
  a, b, d = (
    (one * other).sum(-1)
    for one, other in ((right, right), (right, below), (below, below))
  )
  determinant = a * d - b * b
  valid = valid & (determinant > 0)
  determinant = xp.where(valid, determinant, 1.0)[..., None]
  columns = [
    (d[..., None] * right - b[..., None] * below) / determinant,
    (a[..., None] * below - b[..., None] * right) / determinant,
  ]
  turned = xp.stack(columns, -1)
  return xp.where(valid[..., None, None], turned, 0.0), valid


def _undistorted(lens, pixels):
  """Positions of pixels after the projection, and which there are."""
  _, _, widest = _projection(lens)
  (column, row), valid = _coordinates(pixels, 2, 'pixels')
  fx, skew, cx, fy, cy = _matrix(lens)
  v = (row - cy) / fy
  u = (column - cx - skew * v) / fx
  stages = _stages(lens)
  for i, stage in reversed(list(enumerate(stages))):
    limit = distortion_lib.WIDEST if i else widest
    u, v, found = distortion_lib.undistort(stage, u, v, limit)
    valid = valid & found
  return u, v, valid


def plane_from_pixels(lens: Lens, pixels: Any) -> tuple[Any, Any]:
  """Where the directions of pixels meet the plane z = 1 of the camera.

  Args:
    lens: a camera that looks ahead, not 'equirectangular'.
    pixels: [..., 2] (column, row).

  Returns:
    plane: [..., 2], float64 of the host; zero for pixels that the lens cannot
      have imaged, or not ahead.
    valid: [...] bool; False for those, and for pixels that are not finite.

  Raises:
    InputError: an impossible lens, one that looks all around, or pixels of
      another shape.
  """
  check_lens(lens)
  kind, parameters, _ = _projection(lens)
  if kind == projections.SPHERE:
    raise InputError('an equirectangular camera has no plane ahead of it')
  u, v, valid = _undistorted(lens, pixels)
  xp = arrays.namespace(u, v)
  if kind != projections.PLANE:
    x, y, z, found = projections.rays(kind, parameters, u, v)
    valid = valid & found & (z > 1 / distortion_lib.WIDEST)
    z = xp.where(valid, z, 1.0)
    u, v = x / z, y / z
  plane = xp.stack([u, v], -1)
  return xp.where(valid[..., None], plane, 0.0), valid


def rays_from_pixels(lens: Lens, pixels: Any) -> tuple[Any, Any]:
  """Directions in which a camera sees pixels.

  Args:
    lens: the camera; a constant of traced code.
    pixels: [..., 2] (column, row).

  Returns:
    rays: [..., 3] unit vectors in the camera frame, float64 of the host; ahead
      for pixels that the lens cannot have imaged.
    valid: [...] bool; False for those, and for pixels that are not finite.

  Raises:
    InputError: an impossible lens, or pixels of another shape.
  """
  check_lens(lens)
  kind, parameters, _ = _projection(lens)
  u, v, valid = _undistorted(lens, pixels)
  x, y, z, found = projections.rays(kind, parameters, u, v)
  xp = arrays.namespace(x, y, z)
  valid = valid & found
  rays = xp.stack([x, y, z], -1)
  ahead = xp.asarray([0.0, 0.0, 1.0], rays.dtype)
  return xp.where(valid[..., None], rays, ahead), valid
