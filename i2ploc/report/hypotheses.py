# SPDX-License-Identifier: Apache-2.0
"""Robust estimation, measured: curves over the budget and the table of cells.

Reads the content of hypotheses.json: `rows`, one per cell of a grid, and of
each of the `problems` what its error is and what counts as a success.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.report import figures
from i2ploc.report import templates

_COLORS = ('c-cross', 'c-opposite', 'c-sync', 'c-other', 'c-image', 'c-points')
_MILLION = 1e6

Row = Mapping[str, Any]


class Setting(NamedTuple):
  """What the lines of one chart have in common."""

  problem: str
  num_data: int
  noise: float


def lead(content: Mapping[str, Any]) -> templates.Markup:
  """What was measured, in a few sentences."""
  return templates.render(
    'hypotheses_lead.html',
    trials=content['setup']['trials'],
    device=content['setup']['device'],
    problems=content['problems'],
    words=_words,
  )


def section(content: Mapping[str, Any]) -> templates.Markup:
  """Charts and table of every setting."""
  groups: dict[Setting, list[Row]] = {}
  for row in content['rows']:
    setting = Setting(row['problem'], row['num_data'], row['noise'])
    groups.setdefault(setting, []).append(row)
  settings = []
  for setting, rows in groups.items():
    about = content['problems'][setting.problem]
    settings.append(
      {
        'setting': setting,
        'about': about,
        'charts': [chart for chart in _charts(rows, about) if chart],
        'budgets': sorted({row['budget'] for row in rows}),
        'lines': _lines(rows),
      }
    )
  return templates.render('hypotheses.html', settings=settings, words=_words)


def _words(name: str) -> str:
  return name.replace('_', ' ')


def _lines(rows: Sequence[Row]) -> dict[tuple, dict[int, Row]]:
  """Rows by their budget, by share of outliers, sampler and score."""
  lines: dict[tuple, dict[int, Row]] = {}
  for row in rows:
    key = row['outliers'], row['sampler'], row['score']
    lines.setdefault(key, {})[row['budget']] = row
  return dict(sorted(lines.items()))


def _methods(rows: Sequence[Row]) -> dict[str, list[Row]]:
  """Rows by the name of their sampler and, if there are several, score."""
  scores = {row['score'] for row in rows}
  methods: dict[str, list[Row]] = {}
  for row in sorted(rows, key=lambda row: row['budget']):
    name = row['sampler']
    if len(scores) > 1:
      name += f', {_words(row["score"])}'
    methods.setdefault(name, []).append(row)
  return methods


def _charts(
  rows: Sequence[Row], about: Mapping[str, str]
) -> Iterator[templates.Markup]:
  """Success per share of outliers, then error and speed."""
  shares = sorted({row['outliers'] for row in rows})
  for share in shares:
    yield _chart(
      [row for row in rows if row['outliers'] == share],
      'success',
      f'Success (%), {100 * share:g} % outliers',
      y_range=(0, 100),
    )
  # Where most succeed, errors can be compared.
  middle = shares[len(shares) // 2]
  some = [row for row in rows if row['outliers'] == middle]
  told = f'{about["error"]} error of successes ({about["unit"]})'
  yield _chart(some, 'error', f'Median {told}, {100 * middle:g} % outliers')
  yield _chart(
    rows,
    'hypotheses_per_second',
    'Million hypotheses per second, mean over outliers',
    scale=_MILLION,
  )


def _chart(
  rows: Sequence[Row],
  measure: str,
  title: str,
  y_range: tuple[float, float] | None = None,
  scale: float = 1.0,
) -> templates.Markup:
  """A line per method over the budget; the mean where there are several."""
  series = []
  for i, (name, group) in enumerate(_methods(rows).items()):
    told = [row for row in group if row[measure] is not None]
    budgets = sorted({row['budget'] for row in told})
    cells = [[r for r in told if r['budget'] == b] for b in budgets]

    def mean(field, cells=cells):
      return np.array([np.mean([r[field] for r in c]) for c in cells]) / scale

    if not cells:
      continue
    single = f'{measure}_low' in told[0] and max(map(len, cells)) == 1
    series.append(
      figures.Series(
        name,
        _COLORS[i % len(_COLORS)],
        np.asarray(budgets, float),
        mean(measure),
        'dots',
        mean(f'{measure}_low') if single else None,
        mean(f'{measure}_high') if single else None,
      )
    )
  if not series:
    return templates.Markup()
  return figures.line_chart(
    series,
    title=title,
    x_label='samples, at most',
    y_range=y_range,
    log_x=True,
  )
