# SPDX-License-Identifier: Apache-2.0
"""Pairs of pixels of two images with a known answer."""

import numpy as np

from i2ploc.geometry import lens as lens_lib
from tests.geometry import two_views

SIZE = two_views.SIZE
LENS = lens_lib.Lens(
  'pinhole',
  np.array(
    [[two_views.FOCAL, 0.0, SIZE[0] / 2], [0.0, two_views.FOCAL, SIZE[1] / 2]]
    + [[0.0, 0.0, 1.0]]
  ),
)


def spoilt(rng, points0, points1, outliers, noise):
  """Noise on both images, random places in image 1 for a share of the pairs."""
  size = len(points0)
  inliers = np.ones(size, bool)
  inliers[rng.permutation(size)[: round(outliers * size)]] = False
  points0 = points0 + noise * rng.normal(size=points0.shape)
  points1 = points1 + noise * rng.normal(size=points1.shape)
  anywhere = rng.uniform(0, 1, (size, 2)) * SIZE
  return points0, np.where(inliers[:, None], points1, anywhere), inliers


def homography(
  num_data: int, outliers: float, seed: int = 0, noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Pixels of both images, which are inliers, and image1_from_image0."""
  rng = np.random.default_rng(seed)
  _, _, matrix = two_views.homographies(rng, 1)
  to_pixels = np.array(
    [[SIZE[0] / 2, 0, SIZE[0] / 2], [0, SIZE[1] / 2, SIZE[1] / 2], [0, 0, 1.0]]
  )
  matrix = to_pixels @ matrix[0] @ np.linalg.inv(to_pixels)
  points0 = rng.uniform(0, 1, (num_data, 2)) * SIZE
  points1 = two_views.mapped(matrix[None], points0[None])[0]
  return *spoilt(rng, points0, points1, outliers, noise), matrix


def poses(
  num_data: int,
  outliers: float,
  seed: int = 0,
  noise: float = 1.0,
  motion: str = 'any',
  baseline: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Pixels of both images, inliers, rotation and unit translation."""
  rng = np.random.default_rng(seed)
  rotation, translation = two_views.poses(rng, 1, motion)
  rays = two_views.rays(rng, rotation, baseline * translation, num_data)
  points0, points1 = (
    two_views.FOCAL * r[0, :, :2] / r[0, :, 2:] + SIZE / 2 for r in rays
  )
  pairs = spoilt(rng, points0, points1, outliers, noise)
  return *pairs, rotation[0], translation[0]


def degrees(a: np.ndarray, b: np.ndarray) -> float:
  """Angle between rotations [3, 3] or directions [3]."""
  if a.ndim == 2:
    sine = np.linalg.norm(a - b) / np.sqrt(8)
  else:
    sine = np.linalg.norm(a - b) / 2
  return float(np.degrees(2 * np.arcsin(np.clip(sine, 0, 1))))
