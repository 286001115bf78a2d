# SPDX-License-Identifier: Apache-2.0
"""Object-based localization: success, where queries were, what they saw.

Reads the content of objects.json, results.json and the maps beside them.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from html import escape
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from i2ploc.report import figures
from i2ploc.report import object_map

# Metres within which a query counts as found, for badges and maps.
RADIUS = 1.0
# More names in one picture would cover it; they appear under the pointer.
_MOST_NAMED = 8
# Of a picture, pixels: photographs of 4:3 need not fill the page.
_TALLEST = 420
_LIMITS = ('0.1m', '0.2m', '0.5m', '1m', '2m')
_TILES = ('0.5m', '1m', '2m')

Record = Mapping[str, Any]


def headline(results: Mapping[str, float]) -> str:
  """Tiles of success within some distances, of all places together."""
  place = _places(results)[0]
  tiles = []
  for limit in _TILES:
    name = f'test/{place}/success@{limit}'
    if name in results:
      low, high = results[f'{name}_low'], results[f'{name}_high']
      tiles.append(
        f'<div class="tile"><div class="name">within {limit[:-1]} m</div>'
        f'<div class="big" data-key="{name}">{results[name]:.1f}'
        f'<small> %</small></div><div class="note">95 %: {low:.1f} to'
        f' {high:.1f}</div></div>'
      )
  return f'<div class="tiles">{"".join(tiles)}</div>'


def _places(results) -> list[str]:
  return list(
    dict.fromkeys(name.split('/')[1] for name in results if '/success@' in name)
  )


def table(results: Mapping[str, float]) -> str:
  """Success, errors and time by place."""
  rows = []
  for place in _places(results):

    def value(name, digits, place=place):
      found = results.get(f'test/{place}/{name}')
      return '–' if found is None else f'{found:.{digits}f}'

    cells = ''.join(
      f'<td><span class="value">{value(f"success@{limit}", 1)}</span>'
      f'<span class="small">[{value(f"success@{limit}_low", 1)},'
      f' {value(f"success@{limit}_high", 1)}]</span></td>'
      for limit in _LIMITS
    )
    rows.append(
      f'<tr><th scope="row">{escape(place)}</th>{cells}'
      f'<td>{value("median_metres", 2)}</td>'
      f'<td>{value("median_degrees", 2)}</td>'
      f'<td>{value("median_milliseconds", 1)}</td>'
      f'<td>{value("median_draws", 0)}</td>'
      f'<td>{value("median_landmarks", 0)}</td>'
      f'<td>{value("queries", 0)}</td></tr>'
    )
  head = ''.join(f'<th>{limit[:-1]} m</th>' for limit in _LIMITS)
  return (
    '<div class="scroll"><table><thead><tr><th class="text">Place</th>'
    f'{head}<th>Error (m)</th><th>Error (°)</th><th>ms</th><th>Triples</th>'
    '<th>Landmarks</th><th>Queries</th></tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def maps(content: Record, folder: pathlib.Path) -> str:
  """Where queries were right and wrong, and the landmarks of every place."""
  parts = []
  for place, records in content['places'].items():
    found = [one for one in records if one['found']]
    queries = np.array([one['position'] for one in records])[:, :2]
    believed = [one['found'] or one['position'] for one in records]
    right = np.array([_is_right(one) for one in records])
    trip = figures.Trip(
      track=np.array(content['tracks'][place]),
      queries=queries,
      believed=np.array(believed)[:, :2],
      right=right,
      answerable=np.array([one['found'] is not None for one in records]),
    )
    drawing = figures.trajectory_map(trip, label=f'Queries in {place}')
    parts.append(
      f'<h3>{escape(place)}</h3><div class="maps"><figure>{drawing}'
      f'<figcaption>{int(right.sum())} of {len(records)} queries within'
      f' {RADIUS:g} m; {len(records) - len(found)} without an answer'
      '</figcaption></figure></div>'
    )
    path = folder / 'maps' / f'{place}.json'
    if path.is_file():
      landmarks = object_map.load_landmarks(path)
      parts.append(
        f'<details><summary>{len(landmarks)} landmarks</summary>'
        f'{object_map.section(landmarks)}</details>'
      )
  return ''.join(parts)


def _is_right(record: Record) -> bool:
  return record['metres'] is not None and record['metres'] < RADIUS


def strips(
  content: Record, folder: pathlib.Path, count: int, width: int
) -> str:
  """Queries with their boxes and the projected ellipsoids, failures first."""
  examples = [
    (place, one)
    for place, records in content['places'].items()
    for one in records
    if one.get('example')
  ]
  examples.sort(key=lambda pair: _is_right(pair[1]))
  size = content['image_size']
  return ''.join(
    _strip(place, one, folder / 'queries' / one['image'], size, width)
    for place, one in examples[:count]
  )


def _strip(place, record, path, image_size, width) -> str:
  kind, word = ('hit', 'right') if _is_right(record) else ('miss', 'wrong')
  if record['metres'] is None:
    facts = escape(record['reason'])
  else:
    facts = (
      f'{record["metres"]:.2f} m and {record["degrees"]:.1f}° off, confidence'
      f' {100 * record["confidence"]:.0f} %, score {record["score"]:.2f},'
      f' {record["draws"]} triples'
    )
  return (
    '<article class="strip"><div class="strip-head">'
    f'<span class="badge {kind}">{word}</span>'
    f'<h4>{escape(place)}, {escape(record["image"])}</h4>'
    f'<span>{facts}</span></div>'
    f'{_picture(record, path, image_size, width)}</article>'
  )


def _picture(record, path, image_size, width) -> str:
  """The image with what was detected (grey) and what explains it (colour)."""
  height = width * image_size[0] / image_size[1]
  scale = width / image_size[1]
  parts = [f'<rect width="{width}" height="{height:.0f}" fill="#0c0c0c"/>']
  if path.is_file():
    with Image.open(path) as picture:
      image = np.asarray(picture.convert('RGB'))
    parts = [
      f'<image width="{width}" height="{height:.0f}"'
      f' href="{figures.image_uri(image, width)}"/>'
    ]
  boxes = scale * np.array(record['boxes']).reshape(-1, 4)
  for left, top, right, bottom in boxes:
    parts.append(
      f'<path class="line c-none" d="M{left:.1f} {top:.1f}H{right:.1f}'
      f'V{bottom:.1f}H{left:.1f}Z"/>'
    )
  for one in record['outlines']:
    points = scale * np.array(one['points'])
    outline = 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in points)
    parts.append(
      f'<path class="line c-cross" d="{outline}Z"><title>'
      f'{escape(one["name"])}, overlap {one["overlap"]:.2f}</title></path>'
    )
    if len(record['outlines']) <= _MOST_NAMED:
      x, y = points.mean(0)
      parts.append(
        f'<text class="mid scale-text" x="{x:.1f}" y="{y:.1f}">'
        f'{escape(_short(one["name"]))}</text>'
      )
  return (
    f'<svg viewBox="0 0 {width} {height:.0f}" role="img"'
    f' style="max-width:{_TALLEST / height * width:.0f}px"'
    f' aria-label="Boxes and ellipsoids">{"".join(parts)}</svg>'
  )


def _short(name: str, most: int = 24) -> str:
  return name if len(name) <= most else name[: most - 1] + '…'


def sections(
  content: Record,
  results: Mapping[str, float],
  folder: pathlib.Path,
  count: int,
  width: int,
) -> Iterator[tuple[str, str, str]]:
  """Anchor, title and HTML of each part of the page.

  Args:
    content: of objects.json.
    results: of results.json.
    folder: the workdir.
    count: queries that are shown, at most.
    width: pixels of a picture, at most.
  """
  radius = content['radius']
  around = f'within {radius:g} m of a rough idea of the place' if radius else ''
  yield (
    'success',
    'Success',
    '<p class="lead">Percent of all queries, also of those without an answer,'
    ' whose position is found within a distance, with 95 % intervals of a block'
    f' bootstrap. Candidates are the landmarks {around or "of the whole map"}.'
    f'</p>{table(results)}',
  )
  yield (
    'maps',
    'Where it was right',
    '<p class="lead">From above, y up; the line is where the map was made.'
    ' Blue queries are right, from red ones a line leads to the answer, grey'
    f' ones have none.</p>{maps(content, folder)}',
  )
  yield (
    'queries',
    'Queries',
    '<p class="lead">Failures first. Grey: what the detector said. Blue: the'
    ' ellipsoids that explain it, as the pose found sees them.</p>'
    + strips(content, folder, count, width),
  )
