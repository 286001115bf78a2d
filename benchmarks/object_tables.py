# SPDX-License-Identifier: Apache-2.0
"""Tables of `object_localization`: success, draws, differences."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from i2ploc.evaluation import metrics
from i2ploc.evaluation import poses


def show(results: Sequence[dict[str, Any]]) -> None:
  """Prints a table."""
  names = list(results[0]['success'])
  print(
    f'{"method":24}{"draws":>6}'
    + ''.join(f'{name:>22}' for name in names[:3])
    + ''.join(f'{name:>11}' for name in names[3:])
    + f'{"median cm":>11}{"ms":>8}{"ECE":>7}{"AUC":>7}'
  )
  for result in results:
    rates = [result['success'][name] for name in names]
    print(
      f'{result["method"]:24}{result["draws"] or "all":>6}'
      + ''.join(_with_interval(rate) for rate in rates[:3])
      + ''.join(f'{rate["value"]:11.3f}' for rate in rates[3:])
      + f'{100 * result["median_metres"]:11.2f}{result["median_ms"]:8.1f}'
      + f'{result["calibration_error"]:7.3f}{result["ranking_quality"]:7.3f}'
    )


def _with_interval(rate):
  text = f'{rate["value"]:.3f} [{rate["low"]:.3f}, {rate["high"]:.3f}]'
  return f'{text:>22}'


def show_draws(
  results: Sequence[dict[str, Any]],
  metres: float = 0.5,
  relative: bool = False,
) -> dict[str, float]:
  """Prints and returns how many draws it takes to localize 90 %.

  Args:
    results: of all methods with all budgets.
    metres: within which a query is localized.
    relative: 90 % of what the best of the results localizes, and not of all.
  """
  share = 0.9
  if relative:
    share *= max(np.mean(np.asarray(r['distance']) < metres) for r in results)
  needed = {}
  for name in dict.fromkeys(result['method'] for result in results):
    own = [r for r in results if r['method'] == name and r['draws']]
    success = np.asarray([r['distance'] for r in own]) < metres
    budgets = [r['draws'] for r in own]
    needed[name] = poses.budget_for(budgets, success, share)
    print(
      f'{name:24} {needed[name]:8.0f} draws to {100 * share:.1f} % within'
      f' {metres} m'
    )
  return needed


def show_differences(
  results: Sequence[dict[str, Any]], blocks: np.ndarray, metres: float = 2.0
) -> list[dict[str, Any]]:
  """Prints and returns by how much each method differs from the first one.

  Success within `metres`, query by query and with the same draws; intervals of
  95 % resample blocks.
  """
  hits = {
    (r['method'], r['draws']): np.asarray(r['distance']) < metres
    for r in results
  }
  first, rows = results[0]['method'], []
  for (name, draws), own in hits.items():
    if name == first:
      continue
    gain = (own.astype(float) - hits[first, draws])[:, None]
    low, high = metrics.bootstrap_interval(gain, np.ones_like(gain), blocks)
    rows.append(
      {
        'method': name,
        'draws': draws,
        'value': float(gain.mean()),
        'low': float(low[0]),
        'high': float(high[0]),
      }
    )
    print(
      f'{name:24}{draws or "all":>6} {_with_interval(rows[-1])} of success '
      f'within {metres:g} m beside {first}'
    )
  return rows
