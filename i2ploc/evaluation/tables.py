# SPDX-License-Identifier: Apache-2.0
"""The numbers of `retrieval` as lines of text and as Markdown."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

from i2ploc.evaluation import protocols as protocols_lib
from i2ploc.photos import truth as truth_lib
from i2ploc.retrieval import sequences

RECALL_AT = ('1', '5', '10', '20', '100', '1%')
SUFFIXES = {
  '_of_all_queries': 'of all queries',
  '_without_duplicates': 'without duplicates',
}
# What is printed first, if it was asked: what means localization.
FIRST = ('cross', 'opposite', 'sync')
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


def text(
  results: Mapping[str, float],
  split: str,
  radius: float = 10.0,
  unit: str = truth_lib.METRES,
  length: int = sequences.THREE_FRAMES.length,
) -> Iterator[str]:
  """Recall beside chance, one line per question and direction.

  Args:
    results: of `RetrievalEvaluator.run`, percent.
    split: first part of the names.
    radius: within which an answer is right.
    unit: of the radius, see `photos.truth`.
    length: frames of a sequence.

  Yields:
    Lines: R@N with the 95 % interval of R@1, of sequences, and chance. Where it
    differs, recall over all queries, also those without a right answer, and
    over those without a duplicate in the database; and that of sequences of
    which any frame may be the right one. A question without any right answer
    has a line that says why.
  """
  at = truth_lib.within_name(unit, radius)
  head = ' '.join(f'{"R@" + n:>6}' for n in RECALL_AT)
  yield (
    f'{split}, {truth_lib.within_text(unit, radius)}, %'.ljust(38)
    + f'{head}  R@1 95 %      {length:3} frames  answerable'
  )
  parts = [name.split('/') for name in results]
  names = {p[1]: None for p in parts if p[0] == split and p[2:] == ['queries']}
  known = {name: i for i, name in enumerate(FIRST)}
  for name in sorted(names, key=lambda name: known.get(name, len(known))):
    base = f'{split}/{name}'
    directions = [
      p[2]
      for p in parts
      if p[:2] == [split, name] and p[3:] == [f'recall@1_{at}']
    ]
    for direction in directions:
      yield _recall_line(results, base, direction, at, length)
      yield from _other_counts(results, base, direction, at, length)
    if directions:
      yield f'  {name + " chance":36}' + ' '.join(
        f'{results.get(f"{base}/chance@{n}_{at}", float("nan")):6.1f}'
        for n in RECALL_AT
      )
    else:
      yield f'  {name:36}{_why_nothing(results, base, at)}'


def _other_counts(
  results: Mapping[str, float],
  base: str,
  direction: str,
  at: str,
  length: int,
) -> Iterator[str]:
  """Recall over other sets of queries, where it differs."""
  prefix = f'{base}/{direction}'
  plain = [results.get(f'{prefix}/recall@{n}_{at}') for n in RECALL_AT]
  any_frame = {f'_{length}_frames_any_frame': f'any frame of {length} right'}
  for suffix, label in (SUFFIXES | any_frame).items():
    values = [
      results.get(f'{prefix}/recall@{n}_{at}{suffix}') for n in RECALL_AT
    ]
    if values[0] is None or (values == plain and 'all' in suffix):
      continue
    yield f'    {label:34}' + ' '.join(
      f'{value:6.1f}' for value in values if value is not None
    )


def _why_nothing(results: Mapping[str, float], base: str, at: str) -> str:
  """Why a question has no recall."""
  if f'{base}/answerable_{at}' not in results:
    return f'not scored within {at}'
  unknown = results.get(f'{base}/queries_without_position', 0.0)
  return (
    f'none of {results[f"{base}/queries"]:.0f} queries has a right answer;'
    f' {unknown:.0f} are without position'
  )


def _recall_line(
  results: Mapping[str, float],
  base: str,
  direction: str,
  at: str,
  length: int,
) -> str:
  prefix = f'{base}/{direction}'
  recalls = ' '.join(
    f'{results.get(f"{prefix}/recall@{n}_{at}", float("nan")):6.1f}'
    for n in RECALL_AT
  )
  first = f'{prefix}/recall@1_{at}'
  # The main direction's counts have no direction in their names.
  counts = prefix if f'{prefix}/queries' in results else base
  sequences = results.get(f'{first}_{length}_frames')
  return (
    f'  {base.partition("/")[2] + " " + direction:36}{recalls}'
    f'  [{results[first + "_low"]:.1f}, {results[first + "_high"]:.1f}]'.ljust(
      17
    )
    + ('       -' if sequences is None else f'{sequences:8.1f}')
    + f'  {results[f"{counts}/answerable_{at}"]:.0f}'
    f' of {results[f"{counts}/queries"]:.0f}'
  )


def markdown(
  results: Mapping[str, float],
  protocols: Sequence[protocols_lib.Protocol],
) -> Iterator[str]:
  """A heading, the protocol in one sentence and a table, per protocol.

  Args:
    results: of `retrieval.score_drives`.
    protocols: the scored ones.

  Yields:
    Lines of Markdown.
  """
  for protocol in protocols:
    yield f'### {protocol.title}: `{protocol.name}`'
    yield ''
    yield protocol.describe()
    yield ''
    yield from markdown_table(
      (*COLUMNS, *(REVISITS if protocol.exclude_recent else ())),
      _rows(results, protocol),
    )
    yield ''


def markdown_table(
  columns: Sequence[str], rows: Iterator[Sequence[str]]
) -> Iterator[str]:
  """A Markdown table."""
  yield '| ' + ' | '.join(columns) + ' |'
  yield '|' + ' --- |' * len(columns)
  for row in rows:
    yield '| ' + ' | '.join(row) + ' |'


def _rows(
  results: Mapping[str, float], protocol: protocols_lib.Protocol
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
