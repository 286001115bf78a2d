# SPDX-License-Identifier: Apache-2.0
"""Changes of sensor readings that keep camera, LiDAR and calibration in step.

A batch is the dict of raw sensor tensors that the input pipeline emits. Only
what the physical world could have shown is changed: light, and handedness.
"""

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]


def color_jitter(
  key: jax.Array, images: jax.Array, strength: float
) -> jax.Array:
  """Random brightness, contrast, saturation and colour cast, per image.

  Args:
    key: PRNG key.
    images: [B, H, W, 3] float in 0..1.
    strength: largest relative change of brightness, contrast and saturation;
      the colour cast is a quarter of it.

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
  return jnp.clip(images, 0.0, 1.0)


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
