# SPDX-License-Identifier: Apache-2.0
"""The headline figures and the recall table, from the names in results.json.

A rate is '<split>/<protocol>[/<town>]/<direction>/recall@<N>_<within>', where
<within> says how near a right answer is: '25m', '7frames', 'overlap', 'listed'.
What chance reaches and the number of queries stand beside the rate where they
are of one direction only, otherwise one level above.
"""

from collections.abc import Mapping
import re
from typing import NamedTuple

from i2ploc.report import templates
from i2ploc.report import workdir as workdir_lib

_RATE = re.compile(r'recall@(\d+%?)_([\d.]+m|[\d.]+frames|overlap|listed)')
_FRAMES = re.compile(r'(\d+)_frames')
_LENGTH = re.compile(r'([\d.]+)(m|frames)')
_WITHIN = {'overlap': 'where footprints overlap', 'listed': 'as listed'}
# Ends of names that are no rates of their own.
_ABOUT = ('low', 'high', 'of_all_queries', 'ties_found')
PHOTOS = 'image_to_image'  # photos that ask photos
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
    rate = _RATE.match(metric)
    if not rate:
      return ''
    own = self.count_key(results, metric.replace('recall@', 'chance@'))
    # Frames in a row are drawn as one, unless they have a chance of their own.
    one = self.count_key(results, f'chance@{rate[1]}_{rate[2]}')
    return own if own in results else one


def within_text(within: str) -> str:
  """How the page says what is right.

  >>> within_text('25m'), within_text('7frames'), within_text('listed')
  ('within 25 m', 'within 7 frames', 'as listed')
  """
  if length := _LENGTH.fullmatch(within):
    return f'within {length[1]} {length[2]}'
  return _WITHIN.get(within, within)


def _within_order(within: str) -> tuple[bool, float]:
  length = _LENGTH.fullmatch(within)
  return length is None, float(length[1]) if length else 0.0


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


def headline(results: Results, within: str) -> templates.Markup:
  """The first protocol's figures as tiles, or nothing."""
  rows = [row for row in rows_from_results(results) if not row.town]
  if not rows:
    return templates.Markup()
  rates = {
    'Recall@1': f'recall@1_{within}',
    'Recall@5': f'recall@5_{within}',
  }
  for end in _variants(results, rows[0], within):
    if frames := _FRAMES.fullmatch(end):
      name = f'Recall@1, {frames[1]} frames'
      rates[name] = f'recall@1_{within}_{end}'
  return templates.render(
    'headline.html',
    results=results,
    row=rows[0],
    protocol=protocol_text(rows[0].protocol),
    direction=direction_text(rows[0].direction),
    photos=rows[0].direction == PHOTOS,
    at=within_text(within).replace('within', 'at'),
    rates={k: v for k, v in rates.items() if rows[0].key(v) in results},
  )


def _rates(results: Results) -> tuple[list[str], list[str]]:
  """What is counted: N in order, and how near, in order."""
  found = {
    rate.groups()
    for name in results
    if (rate := _RATE.fullmatch(name.rsplit('/', 1)[-1]))
  }
  counts = sorted(
    {n for n, _ in found}, key=lambda n: (n.endswith('%'), int(n.rstrip('%')))
  )
  return counts, sorted({within for _, within in found}, key=_within_order)


def measured(results: Results, within: str) -> str:
  """The same, or the first that was measured where that was not."""
  _, withins = _rates(results)
  return within if within in withins or not withins else withins[0]


def tables(results: Results, within: str) -> templates.Markup:
  """One table per radius as panels of a switch, the given one first seen."""
  counts, withins = _rates(results)
  rows = rows_from_results(results)
  panels = {}
  for one in withins:
    columns = {
      f'recall@{n}_{one}': [f'R@{n.replace("%", " %")}'] for n in counts
    }
    # Frames in a row only where the evaluation has them.
    frames = f'recall@1_{one}_3_frames'
    if any(row.key(frames) in results for row in rows):
      first, *rest = columns.items()
      columns = dict([first, (frames, ['R@1,', '3 frames']), *rest])
    panels[one] = columns
  return templates.render(
    'recall.html',
    results=results,
    rows=rows,
    panels=panels,
    first=within,
    within_text=within_text,
    protocol_text=protocol_text,
    direction_text=direction_text,
    color_class=color_class,
  )


def photo_tables(results: Results, within: str) -> templates.Markup:
  """Recall of photos beside chance, a line per N; cities below.

  Args:
    results: the numbers by name.
    within: what counts as right, of the panel that is first seen.
  """
  counts, withins = _rates(results)
  rows = [r for r in rows_from_results(results) if r.direction == PHOTOS]
  panels = {}
  for one in withins:
    pooled = [
      row
      for row in rows
      if not row.town
      and any(row.key(f'recall@{n}_{one}') in results for n in counts)
    ]
    panels[one] = [
      {
        'row': row,
        'counts': [
          n for n in counts if row.key(f'recall@{n}_{one}') in results
        ],
        'variants': _variants(results, row, one),
        'towns': [
          r
          for r in rows
          if r.town and (r.split, r.protocol) == (row.split, row.protocol)
        ],
      }
      for row in pooled
    ]
  return templates.render(
    'photo_recall.html',
    results=results,
    panels={one: tables for one, tables in panels.items() if tables},
    first=within,
    within_text=within_text,
    protocol_text=protocol_text,
  )


def _variants(results: Results, row: Row, within: str) -> list[str]:
  """Other ways to count the same rate: ends of names, as of sequences."""
  start = f'{row.base}/{row.direction}/recall@'
  ends = {
    name.partition(f'_{within}_')[2]
    for name in results
    if name.startswith(start) and f'_{within}_' in name
  }
  return sorted(end for end in ends if not end.endswith(_ABOUT))


def chart_points(
  results: Results, within: str
) -> dict[str, list[tuple[int, float]]]:
  """Recall and chance over N of the first protocol of photos.

  Returns:
    'recall' and 'chance' as lists of (N, percent); empty without any.
  """
  counts, _ = _rates(results)
  found: dict[str, list[tuple[int, float]]] = {'recall': [], 'chance': []}
  for row in rows_from_results(results):
    if row.town or row.direction != PHOTOS:
      continue
    for n in counts:
      metric = f'recall@{n}_{within}'
      keys = {
        'recall': row.key(metric),
        'chance': row.chance_key(results, metric),
      }
      if n.endswith('%') or not all(key in results for key in keys.values()):
        continue
      for name, key in keys.items():
        found[name].append((int(n), results[key]))
    break
  return found
