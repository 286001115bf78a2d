# SPDX-License-Identifier: Apache-2.0
"""Differences between models that were found and models that were planted.

All functions take B models of either, pytrees of arrays [B, ...], and return
[B] errors by name, in the units of `UNITS`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from i2ploc.geometry import epipolar

UNITS = {
  'angle': '°',
  'corner': 'px',
  'direction': '°',
  'epipolar': 'px',
  'offset': 'm',
  'position': 'm',
  'rotation': '°',
  'scale': '%',
  'translation': 'm',
}

Errors = Mapping[str, np.ndarray]


def camera_errors(found: Any, true: Any) -> Errors:
  """Errors of `camera_from_map`: the camera's position and its rotation."""

  def centers(pose):
    return -np.einsum('nji,nj->ni', pose.rotation, pose.translation)

  return {
    'position': np.linalg.norm(centers(found) - centers(true), axis=1),
    'rotation': _turn(found.rotation, true.rotation),
  }


def relative_errors(found: Any, true: Any) -> Errors:
  """Errors of relative poses, whose translation has length 1."""
  apart = np.linalg.norm(found.translation - true.translation, axis=1)
  return {
    'direction': _degrees(apart / 2),
    'rotation': _turn(found.rotation, true.rotation),
  }


def motion_errors(found: Any, true: Any) -> Errors:
  """Errors of `a_from_b`, with or without scale."""
  errors = {
    'translation': np.linalg.norm(found.translation - true.translation, axis=1),
    'rotation': _turn(found.rotation, true.rotation),
  }
  if hasattr(true, 'scale'):
    errors['scale'] = 100 * np.abs(found.scale / true.scale - 1)
  return errors


def surface_errors(found: Any, true: Any) -> Errors:
  """Errors of planes or lines, whose normals may have either sign."""
  side = np.sign(np.sum(found.normal * true.normal, axis=1))
  apart = np.linalg.norm(side[:, None] * found.normal - true.normal, axis=1)
  return {
    'offset': np.abs(side * found.offset - true.offset),
    'angle': _degrees(apart / 2),
  }


def corner_errors(
  found: np.ndarray, true: np.ndarray, *, corners: np.ndarray, focal: float
) -> Errors:
  """Errors of homographies: the mean distance between mapped corners.

  Args:
    found: [B, 3, 3], of any scale.
    true: [B, 3, 3], of any scale.
    corners: [4, 2].
    focal: pixels per unit of the corners.
  """
  apart = mapped(found, corners) - mapped(true, corners)
  return {'corner': focal * np.linalg.norm(apart, axis=-1).mean(axis=1)}


def epipolar_errors(
  found: np.ndarray, true: np.ndarray, *, points: np.ndarray, focal: float
) -> Errors:
  """Errors of fundamental matrices: the mean distance between epipolar lines.

  Every point of image 0 has a line in image 1 by the true matrix. Sampson's
  distance to the matrix that was found is measured at all places of that line
  that are nearest to a point, unless they are outside of the points' rectangle
  (after Zhang, Determining the epipolar geometry and its uncertainty, 1998).

  Args:
    found: [B, 3, 3], of any scale.
    true: [B, 3, 3], of any scale.
    points: [K, 2], of both images.
    focal: pixels per unit of the points.
  """
  errors = []
  edge = np.abs(points).max(axis=0)
  start = np.insert(points, 2, 1.0, axis=1)
  for matrix, reference in zip(found, true, strict=True):
    lines = start @ reference.T
    lines = (
      lines / np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)[:, None]
    )
    away = start @ lines.T  # [K, K], of every point from every line
    ends = points[:, None] - away[..., None] * lines[:, :2]
    inside = (np.abs(ends) <= edge).all(-1)
    place, line = np.nonzero(inside)
    first, second = (
      start[line].T,
      np.insert(ends[place, line], 2, 1.0, axis=1).T,
    )
    distances = epipolar.sampson(matrix, tuple(first), tuple(second))
    errors.append(focal * np.abs(distances).mean() if len(line) else np.inf)
  return {'epipolar': np.asarray(errors)}


def mapped(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Points [N, 2] as homographies [..., 3, 3] map them, [..., N, 2]."""
  points = np.concatenate([points, np.ones((len(points), 1))], axis=1)
  moved = points @ np.swapaxes(homography, -1, -2)
  # A wrong model may map a corner to infinity.
  depth = np.where(moved[..., 2:] == 0, np.finfo(float).tiny, moved[..., 2:])
  return moved[..., :2] / depth


def _degrees(half_chord):
  """The angle of a chord of the unit circle, from half the chord."""
  return np.degrees(2 * np.arcsin(np.clip(half_chord, 0, 1)))


def _turn(found, true):
  """Angles [B] between rotations [B, 3, 3], degrees."""
  # |A - B| is sqrt(8) times the sine of half the angle.
  return _degrees(np.linalg.norm(found - true, axis=(1, 2)) / np.sqrt(8))
