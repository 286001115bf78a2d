# SPDX-License-Identifier: Apache-2.0
"""A map of objects from above, as a self-contained page.

Reads the JSON file of an object map; its z axis points up.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import html
import json
import math
import os
import pathlib
import string
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.report import figures

FORMAT = 'i2ploc.object_map.1'
WIDTH = 760  # of the drawing, in units of which text has 13
_HERE = pathlib.Path(__file__).parent
_COLORS = ('cross', 'opposite', 'sync', 'other', 'image', 'points')
_MAX_CAMERAS = 400
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


def _camera_paths(plan: _Plan, cameras: np.ndarray) -> str:
  """Dots with a line in the direction of view."""
  some = np.linspace(0, len(cameras) - 1, min(len(cameras), _MAX_CAMERAS))
  cameras = cameras[some.round().astype(int)]
  at = plan.place(cameras[:, :2, 3])
  ahead = cameras[:, :2, 2] * [1, -1]
  tips = at + 14 * ahead
  dots = ''.join(f'M{x:.1f} {y:.1f}h0' for x, y in at)
  views = ''.join(_path(np.stack(pair)) for pair in zip(at, tips, strict=True))
  return (
    f'<path class="leap c-none" d="{views}"/>'
    f'<path class="spot c-none" d="{dots}"/>'
  )


def drawing(
  landmarks: Sequence[Landmark], cameras: np.ndarray | None = None
) -> str:
  """The landmarks from above as SVG.

  Args:
    landmarks: at least one.
    cameras: [N, 4, 4] world_from_camera, or None.
  """
  shadows = [_shadow(one.shape, one.center) for one in landmarks]
  points = np.concatenate(shadows)
  if cameras is not None and len(cameras):
    points = np.concatenate([points, cameras[:, :2, 3]])
  plan = _Plan(points)
  categories = sorted({one.category for one in landmarks})
  parts = []
  if cameras is not None and len(cameras):
    parts.append(_camera_paths(plan, cameras))
  # Small ones last, where the pointer finds them.
  order = sorted(
    zip(landmarks, shadows, strict=True), key=lambda x: -np.ptp(x[1], 0).max()
  )
  for one, shadow in order:
    color = _COLORS[categories.index(one.category) % len(_COLORS)]
    told = html.escape(f'{one.name}, id {one.id}, {one.num_views} views')
    parts.append(
      f'<path class="line c-{color}" d="{_path(plan.place(shadow))}Z">'
      f'<title>{told}</title></path>'
    )
  for one, _ in order if len(order) <= _MOST_NAMED else ():
    x, y = plan.place(one.center[:2])
    parts.append(
      f'<text class="mid" x="{x:.1f}" y="{y + 4:.1f}">'
      f'{html.escape(one.name)}</text>'
    )
  parts.append(figures.scale_bar(plan.scale, WIDTH, plan.height))
  return (
    f'<svg class="map" viewBox="0 0 {WIDTH} {plan.height:.0f}" role="img"'
    f' aria-label="Object map from above">{"".join(parts)}</svg>'
  )


def _table(landmarks):
  rows = []
  for one in landmarks:
    size = ' × '.join(f'{200 * a:.0f}' for a in sorted(one.semi_axes)[::-1])
    place = ', '.join(f'{x:.2f}' for x in one.center)
    deviation = '–' if one.deviation is None else f'{100 * one.deviation:.1f}'
    rows.append(
      f'<tr><th scope="row">{html.escape(one.name)}</th><td>{one.id}</td>'
      f'<td>{place}</td><td>{size}</td><td>{deviation}</td>'
      f'<td>{one.num_views or "–"}</td></tr>'
    )
  return (
    '<div class="scroll"><table><thead><tr><th class="text">Object</th>'
    '<th>Id</th><th>Centre (m)</th><th>Size (cm)</th><th>± (cm)</th>'
    f'<th>Views</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
  )


def section(
  landmarks: Sequence[Landmark], cameras: np.ndarray | None = None
) -> str:
  """The drawing with a legend and the table, as HTML."""
  told = f'{len(landmarks)} objects from above, y up.'
  if cameras is not None and len(cameras):
    told += f' Grey: {len(cameras)} cameras and where they look.'
  return (
    f'<p class="lead">{told} Every ellipse is the shadow of an ellipsoid; a'
    ' colour is a category.</p>'
    f'<figure>{drawing(landmarks, cameras)}</figure>'
    f'<h3>Landmarks</h3>{_table(landmarks)}'
  )


def write_page(
  path: str | os.PathLike,
  output: str | os.PathLike,
  cameras: np.ndarray | None = None,
) -> str:
  """Writes the page of a map.

  Args:
    path: JSON file of the map.
    output: HTML file.
    cameras: [N, 4, 4] world_from_camera of the images it was made from, or
      None.

  Returns:
    The path of the page.

  Raises:
    MissingFileError: no such map.
    InputError: it cannot be read, or cameras of another shape.
  """
  if cameras is not None:
    cameras = np.asarray(cameras, float)
    if cameras.ndim != 3 or cameras.shape[1:] != (4, 4):
      raise InputError(
        f'cameras are {list(cameras.shape)}, expected [N, 4, 4].'
      )
  landmarks = load_landmarks(path)
  name = html.escape(pathlib.Path(path).stem)
  template = string.Template((_HERE / 'template.html').read_text('utf-8'))
  page = template.substitute(
    title=f'{name} · i2ploc object map',
    style=(_HERE / 'style.css').read_text('utf-8'),
    body=f'<header><h1>{name}</h1></header>{section(landmarks, cameras)}',
  )
  files.save_text(output, page)
  return str(output)
