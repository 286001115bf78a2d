# SPDX-License-Identifier: Apache-2.0
"""Photos in order: which was taken for which, as a chart instead of a map.

Frames that are numbered and places along a line have no map to look at. Over
the queries in order stands the place that answered each: a good traversal is a
line, a wrong answer a cross beside it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from i2ploc.report import charts
from i2ploc.report import figures
from i2ploc.report import templates
from i2ploc.report import workdir as workdir_lib

_MOST_TOWNS = 8
_SIDE = 540  # of the longer axis, in units of which text has 13


class _Matches(NamedTuple):
  """One town; both coordinates count the same thing.

  Attributes:
    asked: [Q] where the queries are.
    answered: [Q] where their first answers are, NaN without one.
    low, high: of the map.
    verdicts: [Q] of `charts.verdicts`.
    names: x and y axis.
    radius: half the width of the band of right answers; None where the
      coordinates of queries and map cannot be compared.
  """

  asked: np.ndarray
  answered: np.ndarray
  low: float
  high: float
  verdicts: np.ndarray
  names: tuple[str, str]
  radius: float | None


def charts_of_order(
  predictions: Mapping[str, workdir_lib.Arrays],
  photos: workdir_lib.Photos | None,
  radius: float,
) -> templates.Markup:
  """A chart per town; nothing for photos in no order.

  Args:
    predictions: the ranked answers, by protocol and direction.
    photos: what the rows are; None if nobody knows.
    radius: within which an answer is right.
  """
  drawn = []
  for record in charts.comparable(predictions).values():
    for town in dict.fromkeys(record['towns'].tolist()):
      found = _numbered(record, town, photos, radius) or _along_line(
        record, town, photos, radius
      )
      if found is not None and len(drawn) < _MOST_TOWNS:
        right, wrong = (
          int((found.verdicts == word).sum()) for word in ('hit', 'miss')
        )
        drawn.append(
          {
            'town': town,
            'drawing': _drawing(found, town),
            'told': f'{right} of {right + wrong}',
          }
        )
  if not drawn:
    return templates.Markup()
  return templates.render('matches.html', charts=drawn)


def _numbered(record, town, photos, radius) -> _Matches | None:
  """By number, of frames and other photos that are in order."""
  if photos is None or not (photos.ordered or photos.unit == 'frames'):
    return None
  numbers = np.array(photos.numbers, float)
  asked = record['towns'] == town
  first = record['ranked_rows'][asked, 0]
  places = numbers[record['map_rows'][record['map_towns'] == town]]
  return _Matches(
    numbers[record['query_rows'][asked]],
    np.where(first < 0, np.nan, numbers[first]),
    places.min(),
    places.max(),
    charts.verdicts(record, radius, photos.has_length)[asked],
    ('number of the query', 'number of the photo that answers'),
    radius if photos.unit == 'frames' else None,
  )


def _along_line(record, town, photos, radius) -> _Matches | None:
  """By position, of places that lie on one axis."""
  asked = record['towns'] == town
  asked &= np.isfinite(record['query_positions'][:, :2]).all(1)
  places = record['map_positions'][record['map_towns'] == town, :2]
  places = places[np.isfinite(places).all(1)]
  queries = record['query_positions'][asked, :2]
  if not len(queries) or not len(places):
    return None
  everything = np.concatenate([places, queries])
  if not charts.on_a_line(everything):
    return None
  axis = int(np.argmax(np.ptp(everything, axis=0)))
  first = record['ranked_rows'][asked, 0]
  answers = charts.positions(record, first)[:, axis]
  unit = 'm' if photos is None else photos.unit
  return _Matches(
    queries[:, axis],
    np.where(first < 0, np.nan, answers),
    places[:, axis].min(),
    places[:, axis].max(),
    charts.verdicts(record, radius)[asked],
    (f'where the query is ({unit})', f'where its answer is ({unit})'),
    radius,
  )


def _drawing(found: _Matches, town: str) -> templates.Markup:
  left, bottom, top, right = 62, 46, 12, 14
  x_low, x_high = _span(found.asked.min(), found.asked.max())
  y_low, y_high = _span(found.low, found.high)
  # One scale for both axes, unless that would make a thread of it.
  extent = np.array([x_high - x_low, y_high - y_low])
  across, up = _SIDE * np.maximum(extent, extent.max() / 2) / extent.max()
  width, height = left + across + right, top + up + bottom

  def place(x, y):
    u, v = (x - x_low) / extent[0], (y - y_low) / extent[1]
    return np.stack([left + across * u, height - bottom - up * v], -1)

  parts = []
  if found.radius is not None:
    # Where queries and map have the same coordinate, and the radius beside.
    low, high = max(x_low, y_low), min(x_high, y_high)
    ends = np.array([low, high, high, low])
    off = found.radius * np.array([-1, -1, 1, 1])
    d = 'L'.join(f'{x:.1f} {y:.1f}' for x, y in place(ends, ends + off))
    parts.append(templates.Markup(f'<path class="band" d="M{d}Z"/>'))
  parts.append(_axes(place, (x_low, x_high), (y_low, y_high)))
  for kind, css in (('unknown', 'none'), ('none', 'none'), ('hit', 'hit')):
    chosen = (found.verdicts == kind) & np.isfinite(found.answered)
    at = place(found.asked[chosen], found.answered[chosen])
    parts.append(figures.dots(at, f'spot c-{css}'))
  chosen = (found.verdicts == 'miss') & np.isfinite(found.answered)
  at = place(found.asked[chosen], found.answered[chosen])
  parts.append(figures.crosses(at, 'spot c-miss'))
  x_name, y_name = found.names
  parts.append(
    templates.Markup(
      '<text class="mid" x="{:.0f}" y="{:.0f}">{}</text>'
      '<text class="mid" transform="translate(14 {:.0f}) rotate(-90)">{}</text>'
    ).format(
      (left + width - right) / 2,
      height - 6,
      x_name,
      (top + height - bottom) / 2,
      y_name,
    )
  )
  return templates.render(
    'drawing.html',
    css='map',
    width=round(width),
    height=round(height),
    label=f'{town}: {y_name} over {x_name}',
    parts=parts,
  )


def _span(low: float, high: float) -> tuple[float, float]:
  """With a margin, and never empty."""
  margin = max(0.02 * (high - low), 0.5)
  return float(low) - margin, float(high) + margin


def _axes(place, x_range, y_range) -> templates.Markup:
  parts = []
  for value in figures.round_ticks(*x_range):
    x, y = place(value, y_range[0])
    parts.append(
      f'<path class="axis" d="M{x:.1f} {y:.1f}v4"/>'
      f'<text class="mid" x="{x:.1f}" y="{y + 18:.1f}">{value:g}</text>'
    )
  for value in figures.round_ticks(*y_range):
    x, y = place(x_range[0], value)
    right = place(x_range[1], value)[0]
    parts.append(
      f'<path class="grid" d="M{x:.1f} {y:.1f}H{right:.1f}"/>'
      f'<text class="end" x="{x - 7:.1f}" y="{y + 4:.1f}">{value:g}</text>'
    )
  return templates.Markup(''.join(parts))
