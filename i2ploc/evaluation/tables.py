# SPDX-License-Identifier: Apache-2.0
"""The numbers of `sequence_scores` as Markdown."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

from i2ploc.evaluation import questions

COLUMNS = (
  'sequence',
  'direction',
  'within',
  'queries',
  'answerable',
  'database',
  'chance@1',
  'R@1 [95 %]',
  'R@5',
  'R@10',
  'R@1%',
  'R@1, ties found',
)
REVISITS = (
  'candidates, mean',
  'F1max',
  'R@1 same heading (of)',
  'R@1 opposite heading (of)',
)


def markdown(
  results: Mapping[str, float],
  protocols: Sequence[questions.Protocol],
) -> Iterator[str]:
  """A heading, the protocol in one sentence and a table, per protocol.

  Args:
    results: of `sequence_scores.score`.
    protocols: the scored ones.

  Yields:
    Lines of Markdown.
  """
  for protocol in protocols:
    yield f'### {protocol.title}: `{protocol.name}`'
    yield ''
    yield protocol.describe()
    yield ''
    yield from table(
      (*COLUMNS, *(REVISITS if protocol.exclude_recent else ())),
      _rows(results, protocol),
    )
    yield ''


def table(
  columns: Sequence[str], rows: Iterator[Sequence[str]]
) -> Iterator[str]:
  """A Markdown table."""
  yield '| ' + ' | '.join(columns) + ' |'
  yield '|' + ' --- |' * len(columns)
  for row in rows:
    yield '| ' + ' | '.join(row) + ' |'


def _rows(
  results: Mapping[str, float], protocol: questions.Protocol
) -> Iterator[list[str]]:
  names = [name.split('/') for name in results if name.endswith('/queries')]
  for owner, sequence, direction, _ in names:
    if owner != protocol.name:
      continue
    prefix = f'{owner}/{sequence}/{direction}'
    for radius in protocol.radii:
      yield [
        sequence,
        direction.replace('_', ' '),
        f'{radius:g} m',
        *_cells(results, prefix, f'_{radius:g}m'),
        *(
          _revisit_cells(results, prefix, f'_{radius:g}m')
          if protocol.exclude_recent
          else ()
        ),
      ]


def _cells(results: Mapping[str, float], prefix: str, at: str) -> list[str]:
  def rate(name: str) -> str:
    value = results.get(f'{prefix}/{name}')
    return '-' if value is None else f'{value:.1f}'

  first = rate(f'recall@1{at}')
  if first != '-':
    low, high = (rate(f'recall@1{at}_{end}') for end in ('low', 'high'))
    first = f'{first} [{low}, {high}]'
  chance = results.get(f'{prefix}/chance@1{at}')
  return [
    f'{results[f"{prefix}/queries"]:.0f}',
    f'{results[f"{prefix}/answerable{at}"]:.0f}',
    f'{results[f"{prefix}/database"]:.0f}',
    '-' if chance is None else f'{chance:.2f}',
    first,
    *(rate(f'recall@{n}{at}') for n in ('5', '10', '1%')),
    rate(f'recall@1{at}_ties_found'),
  ]


def _revisit_cells(
  results: Mapping[str, float], prefix: str, at: str
) -> list[str]:
  f1 = results.get(f'{prefix}/f1_max{at}')
  cells = [f'{results[f"{prefix}/candidates"]:.0f}']
  cells.append('-' if f1 is None else f'{f1:.1f}')
  for heading in ('same', 'opposite'):
    value = results.get(f'{prefix}/recall@1{at}_{heading}_heading')
    count = results.get(f'{prefix}/answerable{at}_{heading}_heading')
    cells.append('-' if value is None else f'{value:.1f} ({count:.0f})')
  return cells
