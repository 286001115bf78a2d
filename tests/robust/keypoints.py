# SPDX-License-Identifier: Apache-2.0
"""Keypoints of real images for tests: corners and gradient histograms.

Harris corners on a pyramid, turned by the mean gradient around them, described
by 4 x 4 histograms of 8 directions (after Lowe, 2004), matched if each is the
other's nearest and clearly nearer than the next.
"""

import pathlib

import numpy as np
from PIL import Image
from scipy import ndimage

_LEVELS, _RATIO = 7, 2**0.5
_GRID, _SPACING, _MARGIN = 16, 1.3, 16


def load(path: pathlib.Path, longest: int) -> tuple[np.ndarray, float]:
  """Grey values [H, W], shrunk, and by how much."""
  image = Image.open(path).convert('L')
  shrink = max(1.0, max(image.size) / longest)
  size = [round(length / shrink) for length in image.size]
  return np.asarray(image.resize(size, Image.LANCZOS), np.float32), shrink


def _corners(grey, count):
  """Integer positions [K, 2] (column, row) of the strongest corners."""
  gradient = [ndimage.gaussian_filter(grey, 1.0, order) for order in _ORDERS]
  xx, xy, yy = (
    ndimage.gaussian_filter(gradient[i] * gradient[j], 1.5)
    for i, j in ((0, 0), (0, 1), (1, 1))
  )
  strength = (xx * yy - xy * xy) / (xx + yy + 1e-6)
  peaks = strength == ndimage.maximum_filter(strength, 5)
  peaks[:_MARGIN], peaks[-_MARGIN:] = False, False
  peaks[:, :_MARGIN], peaks[:, -_MARGIN:] = False, False
  rows, columns = np.nonzero(peaks)
  best = np.argsort(-strength[rows, columns])[:count]
  return np.stack([columns[best], rows[best]], axis=-1), gradient


_ORDERS = ((0, 1), (1, 0))


def _describe(positions, gradient):
  """[K, 128] of corners of one level."""
  wide = [ndimage.gaussian_filter(g, 4.0) for g in gradient]
  x, y = positions.T
  angle = np.arctan2(wide[1][y, x], wide[0][y, x])[:, None]
  cos, sin = np.cos(angle), np.sin(angle)
  steps = (np.arange(_GRID) - (_GRID - 1) / 2) * _SPACING
  v, u = (g.ravel() for g in np.meshgrid(steps, steps, indexing='ij'))
  there = [y[:, None] + sin * u + cos * v, x[:, None] + cos * u - sin * v]
  dx, dy = (ndimage.map_coordinates(g, there, order=1) for g in gradient)
  dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
  weight = np.hypot(dx, dy) * np.exp(-(u**2 + v**2) / (2 * steps.max() ** 2))
  turn = np.arctan2(dy, dx) * (8 / (2 * np.pi)) % 8
  low = np.floor(turn).astype(int)
  cell = np.arange(_GRID) // 4
  cell = (4 * cell[:, None] + cell).ravel()
  found = np.zeros((len(x), 128))
  rows = np.arange(len(x))[:, None]
  for part, share in ((low, 1 - (turn - low)), (low + 1, turn - low)):
    np.add.at(found, (rows, 8 * cell + part % 8), weight * share)
  found /= found.sum(1, keepdims=True) + 1e-9
  return np.sqrt(found)


def keypoints(
  grey: np.ndarray, count: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
  """Pixels [K, 2] (top-left centre at 0.5) and unit descriptors [K, 128]."""
  points, descriptors = [], []
  for level in range(_LEVELS):
    scale = _RATIO**level
    blurred = ndimage.gaussian_filter(grey, 0.5 * scale) if level else grey
    small = ndimage.zoom(
      blurred, 1 / scale, order=1, mode='grid-constant', grid_mode=True
    )
    if min(small.shape) < 4 * _MARGIN:
      break
    positions, gradient = _corners(small, round(count / scale))
    size = np.array(grey.shape[::-1]) / small.shape[::-1]
    points.append((positions + 0.5) * size)
    descriptors.append(_describe(positions, gradient))
  return np.concatenate(points), np.concatenate(descriptors)


def match(
  descriptors0: np.ndarray, descriptors1: np.ndarray, ratio: float = 0.9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rows [N] of both images, and scores [N], the higher the clearer."""
  away = 2 - 2 * np.float32(descriptors0) @ np.float32(descriptors1).T
  nearest = away.argmin(1)
  two = np.sqrt(np.maximum(np.partition(away, 1, axis=1)[:, :2], 1e-9))
  rows = np.arange(len(away))
  chosen = (away.argmin(0)[nearest] == rows) & (two[:, 0] < ratio * two[:, 1])
  rows = rows[chosen]
  return rows, nearest[rows], (1 - two[:, 0] / two[:, 1])[rows]
