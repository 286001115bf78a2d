# SPDX-License-Identifier: Apache-2.0
"""Answers of object-based localization as numbers, for files and pages."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.localization import objects as objects_lib
from i2ploc.objects.map import landmarks


def picture(
  answer: objects_lib.Answer,
  objects: landmarks.ObjectMap,
  box: np.ndarray,
  intrinsics: np.ndarray,
) -> dict[str, Any]:
  """What can be drawn of an answer.

  Args:
    answer: of one image.
    objects: the map that was asked.
    box: [M, 4] of the detections, pixels.
    intrinsics: [3, 3] of the pinhole.

  Returns:
    reason, confidence, score, rival, draws; found, the camera's position or
    None; boxes [M][4]; outlines, one per explained detection: its number `box`,
    the landmark's name, their overlap, and points of the projected ellipsoid.
  """
  record = {
    'reason': answer.reason,
    'confidence': answer.confidence,
    'score': answer.score,
    'rival': answer.rival,
    'draws': answer.num_draws,
    'found': None,
    'boxes': np.round(box, 1).tolist(),
    'outlines': [],
  }
  if not answer.localizable:
    return record
  rows, names = answer.pairs[:, 1], objects.names()
  shapes = ellipsoid_lib.Ellipsoid(*(x[rows] for x in objects.ellipsoid))
  plane = ellipsoid_lib.outline_points(shapes, answer.camera_from_map)
  pixels = np.asarray(plane) * np.diagonal(intrinsics)[:2] + intrinsics[:2, 2]
  record['found'] = answer.camera_in_map.tolist()
  record['outlines'] = [
    {
      'box': one,
      'name': names[row],
      'overlap': float(overlap),
      'points': np.round(points, 1).tolist(),
    }
    for (one, row), overlap, points in zip(
      answer.pairs.tolist(), answer.overlaps, pixels, strict=True
    )
  ]
  return record


def line(
  path: str, answers: Sequence[tuple[str, objects_lib.Answer]]
) -> dict[str, Any]:
  """A record of answers.jsonl.

  Args:
    path: of the image.
    answers: with the names of their maps, best first.
  """
  found = [(name, one) for name, one in answers if one.localizable]
  return {
    'query': str(path),
    'reason': '' if found else answers[0][1].reason,
    'answers': [
      {
        'rank': rank,
        'town': name,
        'position': one.camera_in_map.tolist(),
        'heading': _heading(one.camera_from_map),
        'camera_from_map': _matrix(one.camera_from_map).tolist(),
        'similarity': one.score,
        'confidence': one.confidence,
        'num_pairs': len(one.pairs),
      }
      for rank, (name, one) in enumerate(found, 1)
    ],
  }


def _heading(motion) -> float:
  """Of the optical axis, from the map's x towards y, radians."""
  ahead = motion.rotation[2]
  return float(np.arctan2(ahead[1], ahead[0]))


def _matrix(motion) -> np.ndarray:
  matrix = np.eye(4)
  matrix[:3, :3], matrix[:3, 3] = motion
  return matrix
