# SPDX-License-Identifier: Apache-2.0
"""The numbers of an evaluation as lines of text."""

from collections.abc import Iterator
from collections.abc import Mapping

PROTOCOLS = (
  'cross',
  'opposite',
  'sync',
  'cross_any_heading',
  'opposite_any_heading',
)
DIRECTIONS = ('image_to_points', 'points_to_image')
COLUMNS = ('1', '5', '10', '20', '1%')


def table(
  results: Mapping[str, float], split: str, radius: float = 10.0
) -> Iterator[str]:
  """Recall beside chance, one line per protocol and direction.

  Args:
    results: of `RetrievalEvaluator.run`, percent.
    split: first part of the names.
    radius: metres.

  Yields:
    Lines: R@N with the 95 % interval of R@1, chance, and over 3 frames.
  """
  at = f'{radius:g}m'
  head = ' '.join(f'{"R@" + n:>6}' for n in COLUMNS)
  yield (
    f'{split}, within {radius:g} m, %'.ljust(38)
    + f'{head}  R@1 95 %        3 frames  answerable'
  )
  for protocol in PROTOCOLS:
    base = f'{split}/{protocol}'
    if f'{base}/queries' not in results:
      continue
    for direction in DIRECTIONS:
      name = f'{base}/{direction}'
      if f'{name}/recall@1_{at}' in results:
        yield _recall_line(results, name, f'{protocol} {direction}', at)
    chance = ' '.join(
      f'{results.get(f"{base}/chance@{n}_{at}", float("nan")):6.1f}'
      for n in COLUMNS
    )
    yield f'  {protocol + " chance":36}{chance}'


def _recall_line(results, name, title, at):
  recalls = ' '.join(
    f'{results[f"{name}/recall@{n}_{at}"]:6.1f}' for n in COLUMNS
  )
  first = f'{name}/recall@1_{at}'
  own = name.endswith(DIRECTIONS[0])
  counts = name.rpartition('/')[0] if own else name
  return (
    f'  {title:36}{recalls}'
    f'  [{results[first + "_low"]:.1f}, {results[first + "_high"]:.1f}]'.ljust(
      17
    )
    + f'{results[first + "_3_frames"]:8.1f}'
    f'  {results[f"{counts}/answerable_{at}"]:.0f}'
    f' of {results[f"{counts}/queries"]:.0f}'
  )
