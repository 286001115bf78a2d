# SPDX-License-Identifier: Apache-2.0
"""Training steps on random readings, for benchmarks of time and memory."""

import ml_collections
import numpy as np

from i2ploc import factory
from i2ploc.geometry import panorama
from i2ploc.learning import embeddings
from i2ploc.learning import objectives
from i2ploc.models import towers as towers_lib
from i2ploc.training import step as step_lib

# Camera x right, y down, z forward; LiDAR x forward, y left, z up.
CAMERA_FROM_LIDAR = np.asarray(
  [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32
)
FOCAL = 0.58  # of KITTI's cameras, in widths of the image


def make_batch(config: ml_collections.ConfigDict, size: int) -> dict:
  """Random readings: noise, and points on ground and walls around."""
  rng = np.random.default_rng(0)
  num_points, image_size = config.data.num_points, config.data.image_size
  points = rng.uniform(-20.0, 20.0, (size, num_points, 4))
  points[..., 2] = -1.7
  half = num_points // 2
  points[:, :half, 1] = np.sign(points[:, :half, 1]) * 12.0
  points[:, :half, 2] = rng.uniform(-1.7, 8.0, (size, half))
  points += rng.normal(0.0, 0.05, points.shape)
  place = 50.0 * np.arange(size)[:, None] * [1.0, 0.0, 0.0]
  row = np.arange(size, dtype=np.int32)
  if config.model.projection == 'pinhole':
    height, width = image_size
    intrinsics = np.diag([FOCAL * width, FOCAL * width, 1.0])
    intrinsics[:2, 2] = width / 2, height / 2
  else:
    intrinsics = panorama.sphere_intrinsics(image_size)
  rig = intrinsics, CAMERA_FROM_LIDAR
  intrinsics, motion = (np.tile(x, (size, 1, 1)) for x in rig)
  return {
    'image': rng.integers(0, 256, (size, *image_size, 3), np.uint8),
    'intrinsics': intrinsics.astype(np.float32),
    'points': points.astype(np.float32),
    'points_mask': np.ones((size, num_points), bool),
    'camera_from_lidar': motion,
    'image_position': place.astype(np.float32),
    'points_position': place.astype(np.float32),
    'image_town': np.zeros(size, np.int32),
    'points_town': np.zeros(size, np.int32),
    'image_index': row,
    'points_index': row,
  }


def make_towers(
  config: ml_collections.ConfigDict,
) -> towers_lib.CompiledTowers:
  """The towers of a config."""
  model = factory.make_model(
    **config.model.to_dict(), image_size=tuple(config.data.image_size)
  )
  return towers_lib.CompiledTowers(model, 'points', tuple(config.index.views))


def make_step(config, towers: towers_lib.CompiledTowers, num_chunks: int):
  """The training step of a config, and its optimizer."""
  fields = config.train
  optimizer = factory.make_optimizer(
    fields.num_steps, **config.optimizer.to_dict()
  )
  embed = embeddings.make_embed(
    towers.model,
    color_jitter=fields.color_jitter,
    mirror=fields.mirror,
    yaw=fields.yaw,
    cutout=fields.cutout,
  )
  step = step_lib.make_train_step(
    embed,
    objectives.make_loss(**config.loss.to_dict()),
    optimizer,
    ema_decay=fields.ema_decay,
    num_chunks=num_chunks,
  )
  return step, optimizer
