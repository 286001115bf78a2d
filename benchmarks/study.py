# SPDX-License-Identifier: Apache-2.0
"""Studies: configs that are trained alike, once per seed, and their table.

A study is a table of rows and columns in a script that calls `main`.
Finished runs are read from their workdirs and an interrupted one continues, so
the same command may be given again and again; rows with fewer seeds than asked
for say so. Intervals are Student's t over the seeds, 95 %; differences to the
first row are taken seed by seed.
"""

import collections
from collections.abc import Mapping
from collections.abc import Sequence
import concurrent.futures
import importlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from absl import app
from absl import flags
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECALL = 'test/cross/image_to_points/recall@1_10m'
# Student's t for 95 %, two-sided, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}


class Row(NamedTuple):
  """One variant.

  Attributes:
    title: what the table calls it.
    config: file of configs/ and its argument.
    fields: config fields that differ.
    start: the row whose run of the same seed it takes, as the field `start_as`.
    start_as: 'train.pretrained' to train on, 'checkpoint' to evaluate alone.
    mode: 'train', or 'evaluate' for what is not trained.
    direction: of what is read off, for columns with '{direction}'.
  """

  title: str
  config: str
  fields: Mapping[str, str] = {}
  start: str = ''
  start_as: str = 'train.pretrained'
  mode: str = 'train'
  direction: str = 'image_to_image'

  def metric(self, column: str) -> str:
    """Where results.json has a column."""
    return column.format(direction=self.direction)


class Study(NamedTuple):
  """What is compared, and what is read off.

  Attributes:
    name: of the marks `<!-- name -->` and `<!-- /name -->` around the table.
    title: of the table's first column.
    rows: by short name; the first is what the others are compared with.
    columns: names in results.json by title, perhaps with '{direction}' of the
      row; the first is compared.
  """

  name: str
  title: str
  rows: Mapping[str, Row]
  columns: Mapping[str, str]


class Options(NamedTuple):
  """How a study is run.

  Attributes:
    workdir: one folder per run in here.
    data_dir: where the data lies; None for the config's default.
    names: only these rows; empty for all.
    num_seeds: runs of each row.
    steps: of training, of the first row's batch: all rows get as many pairs;
      None for each config's own.
    jobs: runs at a time, which share the cores.
    train: False to show what is there.
  """

  workdir: pathlib.Path
  data_dir: str | None = None
  names: Sequence[str] = ()
  num_seeds: int = 3
  steps: int | None = None
  jobs: int = 1
  train: bool = True


# Fields of a row that stays as it is initialised.
UNTRAINED = {
  'train.num_steps': '1',
  'optimizer.warmup_steps': '0',
  'optimizer.learning_rate': '1e-12',
  'optimizer.matrix_learning_rate': '0.0',
  'optimizer.weight_decay': '0.0',
}
# Of a run's folder: two rows may start from one run.
_LOCKS: Mapping[pathlib.Path, threading.Lock] = collections.defaultdict(
  threading.Lock
)
Results = Mapping[str, Mapping[int, Mapping[str, float]]]


def default_config(row: Row):
  """The resolved config of a row."""
  if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
  name, _, arg = row.config.partition(':')
  module = importlib.import_module(f'configs.{name.removesuffix(".py")}')
  return module.get_config(arg)


def command(
  study: Study, name: str, seed: int, folder: pathlib.Path, options: Options
) -> list[str]:
  """The command that trains and evaluates a row.

  A row with another batch size gets as many pairs, not as many steps.
  """
  row = study.rows[name]
  fields = {**row.fields, 'seed': str(seed)}
  if row.start:
    fields[row.start_as] = str(_folder(options, row.start, seed))
  if row.mode == 'train':
    num_steps = str(_num_steps(study, row, options))
    fields = {'train.num_steps': num_steps, 'train.eval_every': num_steps} | (
      fields
    )
  parts = [
    sys.executable,
    'main.py',
    f'--mode={row.mode}',
    f'--config=configs/{row.config}',
    f'--workdir={folder}',
    *(f'--config.{key}={value}' for key, value in fields.items()),
  ]
  data_dir = options.data_dir
  return parts + ([f'--data_dir={data_dir}'] if data_dir else [])


def _num_steps(study, row, options) -> int:
  """As many readings as all rows see, in batches of the row's size."""
  config = default_config(row).train
  pairs = config.num_steps * config.batch_size
  if options.steps:
    first = default_config(next(iter(study.rows.values()))).train
    pairs = options.steps * first.batch_size
  size = int(row.fields.get('train.batch_size', config.batch_size))
  return pairs // size


def _environment(jobs: int) -> dict[str, str]:
  """Environment in which each of several runs uses its own cores."""
  if jobs == 1:
    return dict(os.environ)
  threads = max((os.cpu_count() or 1) // jobs, 1)
  own = (
    f'{os.environ.get("XLA_FLAGS", "")} '
    f'--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} '
    f'intra_op_parallelism_threads={threads}'
  )
  return os.environ | {'XLA_FLAGS': own}


def _folder(options, name, seed):
  return options.workdir.absolute() / f'{name}-{seed}'


def train(
  study: Study, name: str, seed: int, options: Options
) -> dict[str, float]:
  """The results of a row and seed, trained unless they are there.

  Raises:
    RuntimeError: the training failed; the message names its log.
  """
  folder = _folder(options, name, seed)
  results = folder / 'results.json'
  row = study.rows[name]
  if row.start and not results.exists():
    train(study, row.start, seed, options)
  with _LOCKS[folder]:
    return _train_once(study, name, seed, options)


def _train_once(study, name, seed, options):
  folder, row = _folder(options, name, seed), study.rows[name]
  results = folder / 'results.json'
  if not results.exists():
    folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    with (folder / 'log.txt').open('a') as log:
      done = subprocess.run(
        command(study, name, seed, folder, options),
        cwd=ROOT,
        env=_environment(options.jobs),
        stdout=log,
        stderr=subprocess.STDOUT,
        check=False,
      )
    if done.returncode:
      raise RuntimeError(f'{name}, seed {seed} failed: see {folder}/log.txt')
    minutes = (time.time() - start) / 60
    column = row.metric(next(iter(study.columns.values())))
    value = json.loads(results.read_text())[column]
    print(f'{name}, seed {seed}: {value:.1f} ({minutes:.1f} min)', flush=True)
  return json.loads(results.read_text())


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Mean and half the width of its 95 % interval; nan of a single value."""
  values = np.asarray(values, float)
  if len(values) < 2:
    return float(values.mean()), float('nan')
  error = values.std(ddof=1) / np.sqrt(len(values))
  return float(values.mean()), float(STUDENT.get(len(values) - 1, 2.0) * error)


def table(study: Study, results: Results, num_seeds: int) -> str:
  """Markdown: a line per row, the difference to the first row beside it."""
  first, *others = study.columns
  head = [study.title, first, 'difference', *others]
  lines = [head, ['---'] * len(head)]
  main = study.columns[first]
  reference = results.get(next(iter(study.rows)), {})
  for name, runs in results.items():
    row = study.rows[name]
    cells = [row.title]
    if len(runs) < num_seeds:
      cells[0] += f' ({len(runs)} of {num_seeds} seeds)'
    for metric in map(row.metric, study.columns.values()):
      cells.append(_cell([r[metric] for r in runs.values() if metric in r]))
    shared = [seed for seed in runs if seed in reference]
    first_main = study.rows[next(iter(study.rows))].metric(main)
    differences = [
      runs[seed][row.metric(main)] - reference[seed][first_main]
      for seed in shared
    ]
    own = runs is reference
    cells.insert(2, '' if own else _cell(differences, sign=True))
    lines.append(cells)
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def _cell(values, sign=False):
  if not values:
    return ''
  mean, half = interval(values)
  text = f'{mean:+.1f}' if sign else f'{mean:.1f}'
  return text if np.isnan(half) else f'{text} ± {half:.1f}'


def insert(text: str, name: str, path: pathlib.Path) -> None:
  """Puts a table between the marks of a file.

  Raises:
    ValueError: the file lacks the marks.
  """
  opening, closing = f'<!-- {name} -->\n', f'<!-- /{name} -->\n'
  before, found, rest = path.read_text().partition(opening)
  _, end, after = rest.partition(closing)
  if not (found and end):
    raise ValueError(f'{path} lacks the lines {opening!r} and {closing!r}.')
  path.write_text(before + opening + text + closing + after)


def run_study(study: Study, options: Options) -> Results:
  """Trains what is missing and prints the table.

  Raises:
    ValueError: an unknown row.
    RuntimeError: a training failed.
  """
  if unknown := set(options.names) - set(study.rows):
    raise ValueError(f'No rows {sorted(unknown)}; known: {list(study.rows)}.')
  names = [name for name in study.rows if name in (options.names or study.rows)]
  # All rows with one seed before any with the next: a table at any time.
  runs = [(name, seed) for seed in range(options.num_seeds) for name in names]
  if not options.train:
    done = [_folder(options, *run) / 'results.json' for run in runs]
    runs = [run for run, path in zip(runs, done, strict=True) if path.exists()]
  with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
    found = list(pool.map(lambda run: train(study, *run, options), runs))
  results = {name: {} for name in names}
  for (name, seed), result in zip(runs, found, strict=True):
    results[name][seed] = result
  results = {name: found for name, found in results.items() if found}
  print(table(study, results, options.num_seeds))
  return results


def main(*studies: Study) -> None:
  """The command line of one study or more, whose rows have different names."""
  rows = [name for study in studies for name in study.rows]
  names = [study.name for study in studies]
  flags.DEFINE_multi_enum('study', names, names, 'Only these tables.')
  flags.DEFINE_string('workdir', None, 'One folder per run in here.')
  flags.DEFINE_string('data_dir', None, 'Where the data lies.')
  flags.DEFINE_multi_enum('row', [], rows, 'Only these rows.')
  flags.DEFINE_integer('seeds', 3, 'Runs of each row.', lower_bound=1)
  flags.DEFINE_integer('steps', None, "Training steps; default: the config's.")
  flags.DEFINE_integer(
    'jobs', 1, 'Runs at a time, which share the cores.', lower_bound=1
  )
  flags.DEFINE_boolean('table', False, 'Train nothing: what is there.')
  flags.DEFINE_string('page', None, 'File with marks for the table.')
  flags.DEFINE_string('json', None, 'Where to write the numbers.')
  flags.mark_flag_as_required('workdir')

  def run(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    options = Options(
      workdir=pathlib.Path(given.workdir),
      data_dir=given.data_dir,
      num_seeds=given.seeds,
      steps=given.steps,
      jobs=given.jobs,
      train=not given.table,
    )
    found = {}
    for study in studies:
      some = [name for name in given.row if name in study.rows]
      if study.name not in given.study or (given.row and not some):
        continue
      results = run_study(study, options._replace(names=some))
      found |= results
      if given.page:
        text = table(study, results, options.num_seeds)
        insert(text, study.name, pathlib.Path(given.page))
    if given.json:
      pathlib.Path(given.json).write_text(json.dumps(found, indent=1))

  app.run(run)
