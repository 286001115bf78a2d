# SPDX-License-Identifier: Apache-2.0
"""What are samplers, scores and budgets worth? Measured on planted problems.

  evaluate  hypotheses.json

No dataset, no training. hypotheses.json is written after every cell: a run that
was killed goes on where it was, and a longer list of anything in the config
measures what is new.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
import numpy as np

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.evaluation import hypotheses
from i2ploc.evaluation import planted_problems
from i2ploc.robust import consensus
from i2ploc.tasks import task as task_lib

FILE = 'hypotheses.json'


def make_task(
  config: Any, data: Any, allow_changes: bool = False
) -> task_lib.Task:
  """The task; `data` is none.

  Args:
    config: with `grid`, `trials` and `search`.
    data: not used.
    allow_changes: not used: rows of two experiments make no table.
  """
  del data, allow_changes
  return task_lib.Task(evaluate=functools.partial(_evaluate, config))


def _evaluate(config, workdir) -> task_lib.Evaluation:
  """Measures the cells of the config's grid that the workdir does not have.

  Numbers by problem, sampler and score, over all cells: mean `success`,
  percent, and geometric means of `draws` and `hypotheses_per_second`.

  Raises:
    InputError: unknown names in the grid, or a workdir with rows of another
      experiment.
  """
  grid = hypotheses.Grid(**config.grid.to_dict())
  trials = hypotheses.Trials(**config.trials.to_dict())
  settings = consensus.DEFAULT._replace(**config.search.to_dict())
  setup = {
    'trials': trials._asdict(),
    'search': config.search.to_dict(),
    'device': jax.devices()[0].device_kind,
  }
  saved = _saved(workdir / FILE, setup)
  done = []
  for row in hypotheses.rows(grid, trials, settings, saved):
    done.append(row)
    if row not in saved:
      saved.append(row)
      _save(workdir, setup, saved)
      print(f'{len(done):4} of {grid.num_cells}  {_line(row)}', flush=True)
  return task_lib.Evaluation(summary(done))


def _saved(path, setup):
  """The rows of a file, none if there is no file."""
  if not path.is_file():
    return []
  content = files.load_json(path, 'delete it to start anew')
  try:
    before, rows = content['setup'], list(content['rows'])
  except (KeyError, TypeError) as error:
    raise InputError(
      f'{path} holds no experiment ({error!r}); delete it to start anew.'
    ) from error
  if before != setup:
    changed = sorted(name for name in setup if before.get(name) != setup[name])
    raise InputError(
      f'{path} holds an experiment with other {", ".join(changed)}: choose'
      ' another workdir, or delete the file.'
    )
  return rows


def _save(workdir, setup, rows):
  names = sorted({row['problem'] for row in rows})
  content = {
    'setup': setup,
    'problems': {name: planted_problems.describe(name) for name in names},
    'rows': rows,
  }
  files.save_json(workdir / FILE, content)


def _line(row):
  unit = planted_problems.describe(row['problem'])['unit']
  error = '-' if row['error'] is None else f'{row["error"]:.2g} {unit}'
  return (
    f'{row["problem"]} {row["sampler"]} {row["score"]} N {row["num_data"]}'
    f' outliers {100 * row["outliers"]:.0f} % noise {row["noise"]:g}'
    f' budget {row["budget"]}: success {row["success"]:.0f} %'
    f' [{row["success_low"]:.0f}, {row["success_high"]:.0f}], error {error},'
    f' {row["draws"]:.0f} draws, {row["hypotheses_per_second"]:,.0f} per second'
  )


def summary(rows: Sequence[Mapping]) -> dict[str, float]:
  """Numbers by '<problem>/<sampler>/<score>/<measure>', see `_evaluate`."""
  groups = {}
  for row in rows:
    name = '/'.join((row['problem'], row['sampler'], row['score']))
    groups.setdefault(name, []).append(row)
  results = {}
  for name, group in groups.items():
    results[f'{name}/success'] = float(np.mean([r['success'] for r in group]))
    for measure in ('draws', 'hypotheses_per_second'):
      logs = [math.log(r[measure]) for r in group]
      results[f'{name}/{measure}'] = math.exp(np.mean(logs))
  return results
