# SPDX-License-Identifier: Apache-2.0
"""Robust estimation, measured: curves over the budget and the table of cells.

Reads the content of hypotheses.json: `rows`, one per cell of a grid, and of
each of the `problems` what its error is and what counts as a success.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from html import escape
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.report import figures

_COLORS = ('c-cross', 'c-opposite', 'c-sync', 'c-other', 'c-image', 'c-points')
_MILLION = 1e6

Row = Mapping[str, Any]


class Setting(NamedTuple):
  """What the lines of one chart have in common."""

  problem: str
  num_data: int
  noise: float


def lead(content: Mapping[str, Any]) -> str:
  """What was measured, in a few sentences."""
  trials = content['setup']['trials']
  success = ' '.join(
    f'<em>{escape(_words(name))}</em>: {escape(about["success"])}, threshold'
    f' {trials["threshold"]:g} {about["noise_unit"]}.'
    for name, about in content['problems'].items()
  )
  return (
    f'<p class="lead">{trials["num_problems"]} planted problems per cell, the'
    ' same for every sampler and score, on'
    f' {escape(str(content["setup"]["device"]))}. A budget is the largest'
    ' number of minimal samples; a search that is sure enough stops before.'
    f' What is a success: {success}</p>'
  )


def section(content: Mapping[str, Any]) -> str:
  """Charts and table of every setting."""
  groups: dict[Setting, list[Row]] = {}
  for row in content['rows']:
    setting = Setting(row['problem'], row['num_data'], row['noise'])
    groups.setdefault(setting, []).append(row)
  parts = []
  for setting, rows in groups.items():
    about = content['problems'][setting.problem]
    parts.append(
      f'<h3>{escape(_words(setting.problem))}, {setting.num_data} data, noise'
      f' {setting.noise:g} {about["noise_unit"]}</h3>'
      f'<div class="grid2">{"".join(_charts(rows, about))}</div>'
      + _table(rows, about)
    )
  return ''.join(parts)


def _words(name: str) -> str:
  return name.replace('_', ' ')


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


def _charts(rows: Sequence[Row], about: Mapping[str, str]) -> Iterator[str]:
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


def _chart(rows, measure, title, y_range=None, scale=1.0) -> str:
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
    return ''
  return figures.line_chart(
    series,
    title=title,
    x_label='samples, at most',
    y_range=y_range,
    log_x=True,
  )


def _table(rows: Sequence[Row], about: Mapping[str, str]) -> str:
  budgets = sorted({row['budget'] for row in rows})
  head = ''.join(f'<th>{budget:,} samples</th>' for budget in budgets)
  lines = {}
  for row in rows:
    key = row['outliers'], row['sampler'], row['score']
    lines.setdefault(key, {})[row['budget']] = row
  body = ''
  for (share, sampler, score), cells in sorted(lines.items()):
    body += (
      f'<tr><th scope="row">{100 * share:g} % outliers</th>'
      f'<td class="text">{escape(sampler)}</td>'
      f'<td class="text">{escape(_words(score))}</td>'
      + ''.join(_cell(cells.get(b), about['unit']) for b in budgets)
      + '</tr>'
    )
  return (
    '<p class="lead after">Success in percent with its 95 % interval; median'
    f' {escape(about["error"])} error of the successes; samples drawn, on'
    ' average; time per problem.</p>'
    '<div class="scroll"><table><thead><tr><th scope="row">Data</th>'
    '<th class="text">Sampler</th><th class="text">Score</th>'
    f'{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )


def _cell(row: Row | None, unit: str) -> str:
  if row is None:
    return '<td>–</td>'
  error = '–'
  if row['error'] is not None:
    error = (
      f'{row["error"]:.2g} [{row["error_low"]:.2g}, {row["error_high"]:.2g}]'
      f' {unit}'
    )
  return (
    f'<td><span class="value">{row["success"]:.0f}</span><span class="small">'
    f'[{row["success_low"]:.0f}, {row["success_high"]:.0f}]</span>'
    f'<span class="small">{escape(error)}</span>'
    f'<span class="small">{row["draws"]:,.0f} drawn,'
    f' {row["milliseconds"]:.2g} ms</span></td>'
  )
