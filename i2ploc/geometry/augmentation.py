# SPDX-License-Identifier: Apache-2.0
"""Changes of sensor readings that keep camera, LiDAR and calibration in step.

A batch is the dict of raw sensor tensors that the input pipeline emits. Only
what the physical world could have shown is changed: light, handedness, and
where the vehicle heads. `cutout` alone takes something away, of what an encoder
is given.
"""

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import camera
from i2ploc.geometry import panorama
from i2ploc.geometry import rigid

Batch = dict[str, jax.Array]


def color_jitter(
  key: jax.Array, images: jax.Array, strength: float, hue: float = 0.0
) -> jax.Array:
  """Random brightness, contrast, saturation, colour cast and hue, per image.

  The ranges of brightness, contrast, saturation and hue are those of
  torchvision's ColorJitter, which draws their order too and has no cast.

  Args:
    key: PRNG key.
    images: [B, H, W, 3] float in 0..1.
    strength: largest relative change of brightness, contrast and saturation;
      the colour cast is a quarter of it.
    hue: largest turn of the circle of hues to either side, of 1 around; 0.5
      for any hue, 0 for none, which is decided while tracing.

  Returns:
    [B, H, W, 3] in 0..1.
  """
  keys = jax.random.split(key, 4)
  shape = (images.shape[0], 1, 1, 1)

  def factor(key, spread, shape=shape):
    return 1.0 + jax.random.uniform(key, shape, minval=-spread, maxval=spread)

  cast = factor(keys[0], strength / 4, (images.shape[0], 1, 1, 3))
  images = images * factor(keys[1], strength) * cast
  mean = images.mean((1, 2, 3), keepdims=True)
  images = mean + (images - mean) * factor(keys[2], strength)
  gray = images.mean(-1, keepdims=True)
  images = gray + (images - gray) * factor(keys[3], strength)
  images = jnp.clip(images, 0.0, 1.0)
  if hue:
    # Not split off: what else is drawn does not depend on whether this is.
    key = jax.random.fold_in(key, len(keys))
    turn = jax.random.uniform(key, shape[:-1], minval=-hue, maxval=hue)
    images = _turn_hue(images, turn)
  return images


def _turn_hue(images, turn):
  """Turns hues by parts [..., 1, 1] of their circle; value, saturation stay."""
  value, low = images.max(-1), images.min(-1)
  chroma = value - low
  red, green, blue = jnp.moveaxis(images, -1, 0)
  some = jnp.where(chroma > 0, chroma, 1.0)
  sixth = jnp.select(
    [value == red, value == green],
    [(green - blue) / some, 2.0 + (blue - red) / some],
    4.0 + (red - green) / some,
  )
  sixth = sixth + 6.0 * turn
  # Each channel's distance to its own hue on the circle of six.
  apart = (sixth[..., None] + jnp.asarray([5.0, 3.0, 1.0])) % 6.0
  missing = jnp.clip(jnp.minimum(apart, 4.0 - apart), 0.0, 1.0)
  return value[..., None] - chroma[..., None] * missing


def cutout(
  key: jax.Array,
  images: jax.Array,
  probability: float = 0.9,
  num_holes: int = 5,
  sides: tuple[float, float] = (50 / 224, 100 / 224),
) -> jax.Array:
  """Rectangles of zeros, as LIP-Loc cuts them into both sensors' images.

  DeVries and Taylor, Improved Regularization with Cutout, 2017.

  Args:
    key: PRNG key.
    images: [B, H, W, C], normalised, so that zero is their mean.
    probability: that an image has holes at all.
    num_holes: in an image that has; they may overlap.
    sides: least and largest height and width over H and W.

  Returns:
    [B, H, W, C].
  """
  keys = jax.random.split(key, 3)
  batch, *shape, _ = images.shape
  draws = (num_holes, batch, 2)
  low, high = sides
  side = jax.random.uniform(keys[0], draws, minval=low, maxval=high)
  start = jax.random.uniform(keys[1], draws) * (1.0 - side)
  row, column = ((jnp.arange(size) + 0.5) / size for size in shape)

  def within(place, axis):
    first, extent = start[..., axis, None], side[..., axis, None]
    return (place >= first) & (place < first + extent)

  holes = within(row, 0)[..., :, None] & within(column, 1)[..., None, :]
  some = jax.random.bernoulli(keys[2], probability, (batch, 1, 1))
  hidden = holes.any(0) & some
  return jnp.where(hidden[..., None], 0.0, images)


def mirror(batch: Batch, flags: jax.Array) -> Batch:
  """Mirrors left and right where `flags` [B] is set.

  Image, cloud and calibration describe the mirrored world together: with
  S_c = diag(-1, 1, 1) in the camera and S_l = diag(1, -1, 1) in the LiDAR,
  camera_from_lidar becomes S_c camera_from_lidar S_l, a rigid motion again.

  Args:
    batch: with image, intrinsics, points and camera_from_lidar.
    flags: [B] bool.

  Returns:
    The batch, its other entries untouched.
  """
  width = batch['image'].shape[2]
  image = jnp.where(
    flags[:, None, None, None], batch['image'][:, :, ::-1], batch['image']
  )
  intrinsics = batch['intrinsics']
  center = jnp.where(flags, width - intrinsics[:, 0, 2], intrinsics[:, 0, 2])
  skew = jnp.where(flags, -intrinsics[:, 0, 1], intrinsics[:, 0, 1])
  intrinsics = intrinsics.at[:, 0, 2].set(center).at[:, 0, 1].set(skew)
  sign = jnp.where(flags, -1.0, 1.0)
  points = batch['points'].at[..., 1].multiply(sign[:, None])
  motion = batch['camera_from_lidar']
  motion = motion.at[:, 0, :].multiply(sign[:, None])
  motion = motion.at[:, :, 1].multiply(sign[:, None])
  return batch | {
    'image': image,
    'intrinsics': intrinsics,
    'points': points,
    'camera_from_lidar': motion,
  }


def turn(batch: Batch, angle: jax.Array, projection: str) -> Batch:
  """Turns the vehicle to the left, counter-clockwise from above.

  The LiDAR turns about its own z axis and the camera about its own y axis, each
  where it stands: what a panorama shows from another place is not known. Hence
  it is the mounting that changes. With R_z(a) of the LiDAR and R_y(a), which
  adds a to every azimuth, of the camera,
    points' = R_z(-a) points
    camera_from_lidar' = R_y(a) camera_from_lidar R_z(a)
  in which the camera no longer is ahead of the LiDAR but where it was.

  A panorama is rolled. Of a pinhole image, seen through the homography
  K R_y(-a) K^-1, the border repeats where it had not looked, so the angles are
  small there: a few degrees. Both are interpolated linearly.

  Args:
    batch: with image, intrinsics, points and camera_from_lidar.
    angle: [B], radians.
    projection: one of `camera.PROJECTIONS`; a panorama shows the whole circle.

  Returns:
    The batch, its image float32 in unchanged units, its other entries
    untouched.
  """
  camera.check_projection(projection)
  chex.assert_shape(angle, batch['image'].shape[:1])
  move = _roll if projection == 'equirectangular' else _warp
  image = jax.vmap(move)(batch['image'], batch['intrinsics'], angle)
  turned = rigid.rotation_z(angle)
  points = batch['points']
  xyz = rigid.rotate(rigid.rotation_z(-angle)[:, None], points[..., :3])
  lidar = rigid.Rigid(turned, jnp.zeros((*angle.shape, 3)))
  own = rigid.Rigid(_rotation_y(angle), jnp.zeros((*angle.shape, 3)))
  motion = rigid.from_matrix(batch['camera_from_lidar'])
  motion = rigid.compose(rigid.compose(own, motion), lidar)
  return batch | {
    'image': image,
    'points': jnp.concatenate([xyz, points[..., 3:]], axis=-1),
    'camera_from_lidar': rigid.to_matrix(motion),
  }


def _rotation_y(angle: jax.Array) -> jax.Array:
  """Rotations [..., 3, 3] of the camera frame that add `angle` to azimuths."""
  # The y axis points down: the order x, z, y is that of rotations about z.
  order = jnp.asarray([0, 2, 1])
  return rigid.rotation_z(-angle)[..., order[:, None], order]


def _roll(image, intrinsics, angle):
  """A panorama [H, W, C] whose content moves right by `angle` radians."""
  shift = angle * intrinsics[0, 0]
  whole = jnp.floor(shift)
  part = shift - whole
  image = jnp.roll(image.astype(jnp.float32), whole.astype(jnp.int32), axis=1)
  return (1 - part) * image + part * jnp.roll(image, 1, axis=1)


def _warp(image, intrinsics, angle):
  """A pinhole image [H, W, C] whose camera turns left by `angle` radians."""
  height, width = image.shape[:2]
  rows, columns = jnp.mgrid[:height, :width] + 0.5
  rays = camera.bearings(intrinsics, jnp.stack([columns, rows], axis=-1))
  seen = jnp.matmul(rays, _rotation_y(angle), precision=rigid.EXACT)
  return panorama.sample(image, camera.project(intrinsics, seen)[0])
