# SPDX-License-Identifier: Apache-2.0
"""What two cameras see, by numpy and in float64."""

import numpy as np
from scipy.spatial import transform

SIZE = np.array([640.0, 480.0])
FOCAL = 500.0


def homographies(
  rng: np.random.Generator, size: int, num_points: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Points [S, N, 2] of two images around 1, and H [S, 3, 3] between them."""
  corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
  there = corners + rng.uniform(-0.3, 0.3, (size, 4, 2))
  rows = np.zeros((size, 8, 9))
  for i in range(4):
    x, y = corners[i]
    u, v = there[:, i].T
    point = np.array([x, y, 1.0])
    rows[:, 2 * i, :3] = rows[:, 2 * i + 1, 3:6] = point
    rows[:, 2 * i, 6:] = -u[:, None] * point
    rows[:, 2 * i + 1, 6:] = -v[:, None] * point
  found = np.linalg.svd(rows)[2][:, -1].reshape(-1, 3, 3)
  found *= np.sign(found[:, 2:, 2:])
  points0 = rng.uniform(-1, 1, (size, num_points, 2))
  return points0, mapped(found, points0), found


def mapped(matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Points [S, N, 2] under homographies [S, 3, 3]."""
  seen = np.einsum('sij,snj->sni', matrices[..., :2], points)
  seen = seen + matrices[:, None, :, 2]
  return seen[..., :2] / seen[..., 2:]


def poses(
  rng: np.random.Generator, size: int, motion: str = 'any'
) -> tuple[np.ndarray, np.ndarray]:
  """Rotations [S, 3, 3] and unit translations [S, 3], camera1_from_camera0."""
  shift = {'forward': [0.0, 0.02, -1.0], 'sideways': [1.0, 0.0, 0.0]}
  axes = rng.normal(size=(size, 3))
  axes /= np.linalg.norm(axes, axis=1, keepdims=True)
  largest = {'any': 20.0, 'forward': 2.0, 'sideways': 0.0}[motion]
  angles = np.deg2rad(rng.uniform(0, largest, (size, 1)))
  rotation = transform.Rotation.from_rotvec(angles * axes).as_matrix()
  translation = rng.normal(size=(size, 3))
  if motion in shift:
    translation = np.tile(shift[motion], (size, 1))
  translation /= np.linalg.norm(translation, axis=1, keepdims=True)
  return rotation, translation


def rays(
  rng: np.random.Generator,
  rotation: np.ndarray,
  translation: np.ndarray,
  num_points: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Unit directions [S, N, 3] in both cameras, of points 2 to 10 m away."""
  size = len(rotation)
  plane = (rng.uniform(0, 1, (size, num_points, 2)) - 0.5) * SIZE / FOCAL
  rays0 = np.concatenate([plane, np.ones((size, num_points, 1))], axis=-1)
  points = rays0 * rng.uniform(2, 10, (size, num_points, 1))
  rays1 = np.einsum('sij,snj->sni', rotation, points) + translation[:, None]
  return _unit(rays0), _unit(rays1)


def _unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def essentials(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
  """[S, 3, 3], of norm 1."""
  x, y, z = translation.T
  zero = np.zeros_like(x)
  cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
  return cross.reshape(-1, 3, 3) @ rotation / np.sqrt(2)
