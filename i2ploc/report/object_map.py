# SPDX-License-Identifier: Apache-2.0
"""A map of objects from above.

Reads the JSON file of an object map; its z axis points up.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.report import figures
from i2ploc.report import templates

FORMAT = 'i2ploc.object_map.1'
WIDTH = 760  # of the drawing, in units of which text has 13
_COLORS = ('cross', 'opposite', 'sync', 'other', 'image', 'points')
# More landmarks are drawn without their names.
_MOST_NAMED = 80


class Landmark(NamedTuple):
  """One object.

  Attributes:
    id: in the map.
    name: its first label, or its category.
    category: number.
    center: [3] metres.
    shape: [3, 3] square metres, R diag(semi-axes)^2 R^T.
    semi_axes: [3] metres.
    deviation: metres, of the centre, or None.
    num_views: images it was made from.
  """

  id: int
  name: str
  category: int
  center: np.ndarray
  shape: np.ndarray
  semi_axes: np.ndarray
  deviation: float | None
  num_views: int


def load_landmarks(path: str | os.PathLike) -> list[Landmark]:
  """Reads the JSON file of an object map.

  Raises:
    MissingFileError: no such file.
    InputError: it is something else, empty or damaged.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise MissingFileError(f'There is no object map {path}.')
  try:
    content = json.loads(path.read_text('utf-8'))
    if content['format'] != FORMAT:
      raise InputError(f'its format is {content["format"]!r}, not {FORMAT!r}')
    landmarks = [_landmark(record) for record in content['landmarks']]
  except (KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
    raise InputError(
      f'{path} is not an object map ({type(error).__name__}: {error}).'
    ) from None
  if not landmarks:
    raise InputError(f'{path} is empty: it has no landmarks.')
  return landmarks


def _landmark(record: Mapping[str, Any]) -> Landmark:
  rotation = np.asarray(record['rotation'], float).reshape(3, 3)
  semi_axes = np.asarray(record['semi_axes'], float).reshape(3)
  center = np.asarray(record['center'], float).reshape(3)
  if not all(np.isfinite(x).all() for x in (rotation, semi_axes, center)):
    raise InputError(f'landmark {record["id"]} is not finite')
  factor = rotation * semi_axes
  category = int(record.get('category', -1))
  labels = record.get('labels') or [f'category {category}']
  deviation = None
  if 'covariance' in record:
    deviation = math.sqrt(np.trace(np.asarray(record['covariance'], float)))
  return Landmark(
    id=int(record['id']),
    name=str(labels[0]),
    category=category,
    center=center,
    shape=factor @ factor.T,
    semi_axes=semi_axes,
    deviation=deviation,
    num_views=int(record.get('num_views', 0)),
  )


class _Plan:
  """Metres east and north to units of the drawing."""

  def __init__(self, points: np.ndarray):
    low, high = points.min(0), points.max(0)
    margin = 0.06 * max((high - low).max(), 0.1)
    self._low, self._high = low - margin, high + margin
    self.scale = WIDTH / (self._high - self._low)[0]
    # Neither a ribbon nor a tower: a drawing fits on a screen.
    span = (self._high - self._low)[1] * self.scale
    grown = max(0.45 * WIDTH - span, 0) / self.scale / 2
    self._low[1] -= grown
    self._high[1] += grown
    if span > 1.2 * WIDTH:
      wider = (span / self.scale / 1.2 - (self._high - self._low)[0]) / 2
      self._low[0] -= wider
      self._high[0] += wider
      self.scale = WIDTH / (self._high - self._low)[0]
    self.height = (self._high - self._low)[1] * self.scale

  def place(self, points: np.ndarray) -> np.ndarray:
    """[N, 2] of metres [N, 2]; north is up."""
    x = points[..., 0] - self._low[0]
    y = self._high[1] - points[..., 1]
    return self.scale * np.stack([x, y], axis=-1)


def _shadow(shape: np.ndarray, center: np.ndarray) -> np.ndarray:
  """Outline [49, 2] of an ellipsoid seen from above."""
  values, vectors = np.linalg.eigh(shape[:2, :2])
  angle = np.linspace(0, 2 * np.pi, 49)
  circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  return center[:2] + circle * np.sqrt(np.maximum(values, 0)) @ vectors.T


def _path(points: np.ndarray) -> str:
  return 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in points)


def drawing(landmarks: Sequence[Landmark]) -> templates.Markup:
  """The landmarks from above as SVG; at least one."""
  shadows = [_shadow(one.shape, one.center) for one in landmarks]
  plan = _Plan(np.concatenate(shadows))
  categories = sorted({one.category for one in landmarks})
  # Small ones last, where the pointer finds them.
  order = sorted(
    zip(landmarks, shadows, strict=True), key=lambda x: -np.ptp(x[1], 0).max()
  )
  shapes = templates.render(
    'landmark_shapes.html',
    shapes=[
      {
        'landmark': one,
        'color': _COLORS[categories.index(one.category) % len(_COLORS)],
        'path': _path(plan.place(shadow)),
        'at': plan.place(one.center[:2]),
      }
      for one, shadow in order
    ],
    named=len(order) <= _MOST_NAMED,
  )
  return templates.render(
    'drawing.html',
    css='map',
    width=WIDTH,
    height=round(plan.height),
    label='Object map from above',
    parts=[shapes, figures.scale_bar(plan.scale, WIDTH, plan.height)],
  )


def section(landmarks: Sequence[Landmark]) -> templates.Markup:
  """The drawing with a legend and the table of the landmarks."""
  return templates.render(
    'landmarks.html', landmarks=landmarks, drawing=drawing(landmarks)
  )
