# SPDX-License-Identifier: Apache-2.0
"""The headline figures and the recall table, from the names in results.json.

A rate is '<split>/<protocol>[/<town>]/<direction>/recall@<N>_<radius>m'. What
chance reaches and the number of queries stand beside the rate where they are
of one direction only, otherwise one level above.
"""

from collections.abc import Mapping
import re
from typing import NamedTuple

from i2ploc.report import templates
from i2ploc.report import workdir as workdir_lib

_RATE = re.compile(r'recall@(\d+%?)_([\d.]+)m')
_SIDES = {'image': 'camera', 'points': 'LiDAR'}
_MAPS = {'image': 'camera map', 'points': 'LiDAR map'}

Results = Mapping[str, float]


class Row(NamedTuple):
  """One protocol in one direction, of all towns or of one."""

  split: str
  protocol: str
  direction: str
  town: str = ''

  @property
  def base(self) -> str:
    """What counts and chance of both directions are named after."""
    parts = (self.split, self.protocol, self.town)
    return '/'.join(part for part in parts if part)

  def key(self, metric: str) -> str:
    """The name of a rate."""
    return f'{self.base}/{self.direction}/{metric}'

  def count_key(self, results: Results, metric: str) -> str:
    """The name of a count or of chance."""
    own = self.key(metric)
    return own if own in results else f'{self.base}/{metric}'

  def chance_key(self, results: Results, metric: str) -> str:
    """The name of what chance reaches of a rate."""
    # Three frames in a row are drawn as one: chance is that of one frame.
    rate = _RATE.match(metric)
    return (
      self.count_key(results, f'chance@{rate[1]}_{rate[2]}m') if rate else ''
    )


def direction_text(direction: str) -> str:
  """How the page says a direction."""
  query, _, asked = direction.partition('_to_')
  if query == asked == 'image':
    return 'photo → photos'
  return f'{_SIDES.get(query, query)} → {_MAPS.get(asked, f"{asked} map")}'


def protocol_text(protocol: str) -> str:
  """How the page says a protocol."""
  return protocol.replace('_', ', ', 1).replace('_', ' ')


def color_class(protocol: str) -> str:
  """The CSS colour class of a protocol, the same in every figure."""
  if protocol in workdir_lib.PROTOCOLS:
    return f'c-{protocol}'
  # Of the variants of protocols two may share a chart.
  return 'c-image' if protocol.startswith('opposite') else 'c-other'


def rows_from_results(results: Results) -> list[Row]:
  """All rows, each pooled one followed by its towns; 'test' if there is one."""
  rows = set()
  for name in results:
    parts = name.split('/')
    if len(parts) < 4 or not _RATE.fullmatch(parts[-1]):
      continue
    if workdir_lib.DIRECTION.fullmatch(parts[-2]):
      rows.add(Row(parts[0], parts[1], parts[-2], '/'.join(parts[2:-2])))
  if any(row.split == 'test' for row in rows):
    rows = {row for row in rows if row.split == 'test'}
  return sorted(rows, key=_row_order)


def _row_order(row: Row) -> tuple:
  known = workdir_lib.PROTOCOLS
  place = known.index(row.protocol) if row.protocol in known else len(known)
  return row.split, place, row.protocol, row.direction, row.town


def headline(results: Results, radius: float) -> templates.Markup:
  """The first protocol's figures within a radius as tiles, or nothing."""
  rows = [row for row in rows_from_results(results) if not row.town]
  if not rows:
    return templates.Markup()
  rates = {
    'Recall@1': f'recall@1_{radius:g}m',
    'Recall@5': f'recall@5_{radius:g}m',
    'Recall@1, 3 frames': f'recall@1_{radius:g}m_3_frames',
  }
  return templates.render(
    'headline.html',
    results=results,
    row=rows[0],
    protocol=protocol_text(rows[0].protocol),
    direction=direction_text(rows[0].direction),
    radius=f'{radius:g}',
    rates={k: v for k, v in rates.items() if rows[0].key(v) in results},
  )


def tables(results: Results, radius: float) -> templates.Markup:
  """One table per radius as panels of a switch, the given one first seen."""
  found = {
    rate.groups()
    for name in results
    if (rate := _RATE.fullmatch(name.rsplit('/', 1)[-1]))
  }
  counts = sorted(
    {n for n, _ in found}, key=lambda n: (n.endswith('%'), int(n.rstrip('%')))
  )
  rows = rows_from_results(results)
  panels = {}
  for r in sorted({r for _, r in found}, key=float):
    columns = {
      f'recall@{n}_{r}m': [f'R@{n.replace("%", " %")}'] for n in counts
    }
    # Frames in a row only where the evaluation has them.
    frames = f'recall@1_{r}m_3_frames'
    if any(row.key(frames) in results for row in rows):
      first, *rest = columns.items()
      columns = dict([first, (frames, ['R@1,', '3 frames']), *rest])
    panels[r] = columns
  return templates.render(
    'recall.html',
    results=results,
    rows=rows,
    panels=panels,
    first=f'{radius:g}',
    protocol_text=protocol_text,
    direction_text=direction_text,
    color_class=color_class,
  )
