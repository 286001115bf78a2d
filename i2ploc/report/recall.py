# SPDX-License-Identifier: Apache-2.0
"""The headline figures and the recall table, from the names in results.json.

A rate is '<split>/<protocol>[/<town>]/<direction>/recall@<N>_<radius>m'; what
chance reaches and the number of queries stand one level above for queries of
the camera, and beside the rate for queries of the LiDAR.
"""

from collections.abc import Mapping
from html import escape
import re
from typing import NamedTuple

from i2ploc.report import workdir as workdir_lib

HEADLINE_RADIUS = '10'
_RATE = re.compile(r'recall@(\d+%?)_([\d.]+)m')
_DIRECTION = {
  'image_to_points': 'camera → LiDAR map',
  'points_to_image': 'LiDAR → camera map',
}

Results = Mapping[str, float]


class Row(NamedTuple):
  """One protocol in one direction, of all towns or of one."""

  split: str
  protocol: str
  direction: str
  town: str = ''

  @property
  def base(self) -> str:
    """What counts and chance of camera queries are named after."""
    parts = (self.split, self.protocol, self.town)
    return '/'.join(part for part in parts if part)

  def key(self, metric: str) -> str:
    """The name of a rate."""
    return f'{self.base}/{self.direction}/{metric}'

  def count_key(self, results: Results, metric: str) -> str:
    """The name of a count or of chance."""
    own = self.key(metric)
    return own if own in results else f'{self.base}/{metric}'


def direction_text(direction: str) -> str:
  """How the page says a direction."""
  return _DIRECTION.get(direction, direction)


def protocol_text(protocol: str) -> str:
  """How the page says a protocol."""
  return protocol.replace('_', ', ', 1).replace('_', ' ')


def color_class(protocol: str) -> str:
  """The CSS colour class of a protocol, the same in every figure."""
  known = protocol in workdir_lib.PROTOCOLS
  return f'c-{protocol}' if known else 'c-other'


def rows_from_results(results: Results) -> list[Row]:
  """All rows, each pooled one followed by its towns; 'test' if there is one."""
  rows = set()
  for name in results:
    parts = name.split('/')
    if len(parts) < 4 or not _RATE.fullmatch(parts[-1]):
      continue
    if parts[-2] in workdir_lib.DIRECTIONS:
      rows.add(Row(parts[0], parts[1], parts[-2], '/'.join(parts[2:-2])))
  if any(row.split == 'test' for row in rows):
    rows = {row for row in rows if row.split == 'test'}
  return sorted(rows, key=_row_order)


def _row_order(row: Row) -> tuple:
  known = workdir_lib.PROTOCOLS
  place = known.index(row.protocol) if row.protocol in known else len(known)
  return row.split, place, row.protocol, row.direction, row.town


def headline(results: Results) -> str:
  """The first protocol's figures for camera queries as tiles, or ''."""
  rows = [row for row in rows_from_results(results) if not row.town]
  if not rows:
    return ''
  row, radius = rows[0], HEADLINE_RADIUS
  tiles = []
  for name, metric in (
    ('Recall@1', f'recall@1_{radius}m'),
    ('Recall@5', f'recall@5_{radius}m'),
    ('Recall@1, 3 frames', f'recall@1_{radius}m_3_frames'),
  ):
    if row.key(metric) in results:
      tiles.append(_tile(results, row, f'{name} at {radius} m', metric))
  error = row.key('median_error_m')
  if error in results:
    tiles.append(
      '<div class="tile"><div class="name">Median error</div>'
      f'<div class="big" data-key="{escape(error)}">{results[error]:.1f}'
      '<small>m</small></div><div class="note">of the first answer</div></div>'
    )
  return (
    '<p class="tiles-of">Protocol '
    f'<strong>{escape(protocol_text(row.protocol))}</strong>,'
    f' {escape(direction_text(row.direction))}, {escape(row.split)} split:</p>'
    f'<div class="tiles">{"".join(tiles)}</div>'
  )


def _tile(results: Results, row: Row, name: str, metric: str) -> str:
  key = row.key(metric)
  notes = []
  if f'{key}_low' in results and f'{key}_high' in results:
    notes.append(
      f'95 % in {results[key + "_low"]:.1f}–{results[key + "_high"]:.1f}'
    )
  chance = results.get(_chance_key(results, row, metric))
  if chance is not None:
    notes.append(f'chance {chance:.1f}')
  return (
    f'<div class="tile"><div class="name">{name}</div>'
    f'<div class="big" data-key="{escape(key)}">{results[key]:.1f}'
    f'<small>%</small></div><div class="note">{" · ".join(notes)}</div></div>'
  )


def _chance_key(results: Results, row: Row, metric: str) -> str:
  # Three frames in a row are drawn as one: chance is that of one frame.
  rate = _RATE.match(metric)
  return row.count_key(results, f'chance@{rate[1]}_{rate[2]}m') if rate else ''


def tables(results: Results) -> str:
  """One table per radius as panels of a switch."""
  rows = rows_from_results(results)
  found = {
    rate.groups()
    for name in results
    if (rate := _RATE.fullmatch(name.rsplit('/', 1)[-1]))
  }
  radii = sorted({radius for _, radius in found}, key=float)
  counts = sorted(
    {n for n, _ in found}, key=lambda n: (n.endswith('%'), int(n.rstrip('%')))
  )
  panels = []
  for radius in radii:
    first = ' data-first' if radius == HEADLINE_RADIUS else ''
    panels.append(
      f'<div class="panel" data-label="within {radius} m"{first}>'
      f'<h3 class="panel-title">Right within {radius} m</h3>'
      f'<div class="scroll">{_table(results, rows, radius, counts)}</div></div>'
    )
  return f'<div class="switcher">{"".join(panels)}</div>'


def _table(
  results: Results, rows: list[Row], radius: str, counts: list[str]
) -> str:
  metrics = [f'recall@{n}_{radius}m' for n in counts]
  titles = [f'R@{n.replace("%", " %")}' for n in counts]
  # Three frames only where the evaluation has it.
  metrics.insert(1, f'recall@1_{radius}m_3_frames')
  titles.insert(1, 'R@1,<br>3 frames')
  head = ''.join(f'<th scope="col">{title}</th>' for title in titles)
  body = ''.join(_table_row(results, row, metrics, radius) for row in rows)
  return (
    '<table><thead><tr><th scope="row">Protocol, direction</th>'
    f'{head}<th scope="col">Median<br>error</th>'
    '<th scope="col">Answerable<br>of queries</th></tr></thead>'
    f'<tbody>{body}</tbody></table>'
  )


def _table_row(
  results: Results, row: Row, metrics: list[str], radius: str
) -> str:
  if row.town:
    kind, name = 'town', escape(row.town)
  else:
    kind = 'pooled'
    name = (
      f'{escape(protocol_text(row.protocol))}<span class="direction">'
      f'{escape(direction_text(row.direction))}</span>'
    )
  cells = ''.join(_cell(results, row, metric) for metric in metrics)
  queries = row.count_key(results, 'queries')
  answerable = row.count_key(results, f'answerable_{radius}m')
  return (
    f'<tr class="{kind}"><th scope="row">{name}</th>{cells}'
    f'<td>{_number(results, row.key("median_error_m"), 1, " m")}</td>'
    f'<td>{_number(results, answerable, 0)} of'
    f' {_number(results, queries, 0)}</td></tr>'
  )


def _number(results: Results, key: str, digits: int, unit: str = '') -> str:
  if key not in results:
    return '–'
  text = f'{results[key]:.{digits}f}{unit}'
  return f'<span data-key="{escape(key)}">{text}</span>'


def _cell(results: Results, row: Row, metric: str) -> str:
  key = row.key(metric)
  if key not in results:
    return '<td>–</td>'
  chance_key = _chance_key(results, row, metric)
  chance = results.get(chance_key)
  if row.town:
    beside = '' if chance is None else f' / {_number(results, chance_key, 1)}'
    return f'<td>{_number(results, key, 1)}{beside}</td>'
  mark = ''
  small = []
  if f'{key}_low' in results and f'{key}_high' in results:
    low = _number(results, f'{key}_low', 1)
    small.append(f'{low}–{_number(results, f"{key}_high", 1)}')
  if chance is not None:
    mark = f'<b style="left:{chance:.1f}%"></b>'
    small.append(f'chance {_number(results, chance_key, 1)}')
  notes = ''.join(f'<span class="small">{note}</span>' for note in small)
  return (
    f'<td class="{color_class(row.protocol)}"><span class="value"'
    f' data-key="{escape(key)}">{results[key]:.1f}</span><span class="meter">'
    f'<i style="width:{min(results[key], 100):.1f}%"></i>{mark}</span>'
    f'{notes}</td>'
  )
