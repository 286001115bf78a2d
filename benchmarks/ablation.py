# SPDX-License-Identifier: Apache-2.0
"""What each part of the method earns: the table of the README.

Trains every row with the same budget on synthetic_city, once per seed,
evaluates it on the test towns, and prints means with 95 % intervals over the
seeds (Student's t), and the difference to the first row, seed by seed. Finished
runs are read from their workdirs and an interrupted one continues, so the same
command may be given again and again; rows with fewer seeds than asked for say
so.

python benchmarks/ablation.py --workdir=runs/ablation --data_dir=demo/data \
  --jobs=2 --readme=README.md
"""

from collections.abc import Mapping
from collections.abc import Sequence
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from absl import app
from absl import flags
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
MARKS = '<!-- ablation -->\n', '<!-- /ablation -->\n'


class Row(NamedTuple):
  """One variant of the method.

  Attributes:
    title: what the table calls it.
    config: file of configs/ and its argument.
    fields: config fields that differ.
  """

  title: str
  config: str = 'saliency_i2ploc.py'
  fields: Mapping[str, str] = {}


RELATION = 'loss.relation_weights'
ROWS = {
  'ours': Row('ours'),
  'no_saliency': Row('without saliency', 'saliency_i2ploc.py:saliency=none'),
  'released_saliency': Row(
    'released saliency (a sigmoid)', 'saliency_i2ploc.py:saliency=released'
  ),
  'all_tokens': Row(
    'NetVLAD over all tokens, as in the paper',
    'saliency_i2ploc.py:aggregator=netvlad',
  ),
  'euclidean': Row(
    '+ Euclidean relations', fields={RELATION: '(1.0, 0.0, 0.0)'}
  ),
  'angle': Row(
    '+ angle relations (released: weight 2)',
    fields={RELATION: '(0.0, 2.0, 0.0)'},
  ),
  'hyperbolic': Row(
    '+ hyperbolic relations, features before normalisation',
    fields={RELATION: '(0.0, 0.0, 1.0)', 'loss.curvature': '1.0'},
  ),
  'same_drive': Row(
    'pairs of one drive only, as in the paper',
    fields={'data.cross_drive': '0.0', 'data.max_offset': '0.0'},
  ),
  'no_poses': Row(
    'near places are negatives, as in the paper',
    fields={'loss.ignore_radius': '0.0'},
  ),
  'batch_norm': Row(
    'BatchNorm in the NetVLAD head',
    fields={
      'model.aggregator.norm': 'batch',
      'model.aggregator.output_batch_norm': 'True',
    },
  ),
  'small_batch': Row('batches of 16', fields={'train.batch_size': '16'}),
  'adamw': Row(
    'AdamW for matrices too',
    fields={
      'optimizer.matrix_learning_rate': '0.0',
      'optimizer.weight_decay': '0.05',
    },
  ),
  'points': Row(
    'point groups, as in the paper, instead of range images',
    'saliency_i2ploc.py:lidar=points',
  ),
  'panorama': Row(
    'panoramas, sectors turned for headings',
    'saliency_i2ploc.py:camera=panorama',
  ),
  'ae_spherical': Row('AE-Spherical-like, triplets', 'ae_spherical.py'),
}
CROSS = 'test/cross/image_to_points/recall@1_10m'
COLUMNS = {
  'cross R@1': CROSS,
  'R@5': 'test/cross/image_to_points/recall@5_10m',
  'R@1, 3 frames': f'{CROSS}_3_frames',
  'opposite R@1': 'test/opposite/image_to_points/recall@1_10m',
  'image saliency on movable': 'test/saliency/image/movable_share',
  'points saliency on movable': 'test/saliency/points/movable_share',
}
# Student's t for 95 %, two-sided, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}

WORKDIR = flags.DEFINE_string('workdir', None, 'One folder per run in here.')
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the data lies.')
NAMES = flags.DEFINE_multi_enum('row', [], list(ROWS), 'Only these rows.')
SEEDS = flags.DEFINE_integer('seeds', 3, 'Runs of each row.', lower_bound=1)
STEPS = flags.DEFINE_integer(
  'steps', None, "Training steps; default: the demonstration's."
)
JOBS = flags.DEFINE_integer(
  'jobs', 1, 'Runs at a time, which share the cores.', lower_bound=1
)
TABLE = flags.DEFINE_boolean('table', False, 'Train nothing: what is there.')
README = flags.DEFINE_string('readme', None, 'File with marks for the table.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
flags.mark_flag_as_required('workdir')


def command(row: Row, seed: int, workdir: pathlib.Path) -> list[str]:
  """The command that trains and evaluates a row."""
  fields = {'seed': str(seed), **row.fields}
  if STEPS.value:
    fields['train.num_steps'] = str(STEPS.value)
  if 'train.batch_size' in fields:  # of a smaller batch more steps: equal pairs
    share = 64 // int(fields['train.batch_size'])
    steps = (STEPS.value or default_steps(row)) * share
    fields['train.num_steps'] = str(steps)
  steps = int(fields.get('train.num_steps', default_steps(row)))
  fields['train.eval_every'] = str(steps)
  parts = [
    sys.executable,
    'main.py',
    '--mode=train',
    f'--config=configs/{row.config}',
    f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in fields.items()),
  ]
  return parts + ([f'--data_dir={DATA_DIR.value}'] if DATA_DIR.value else [])


def default_steps(row: Row) -> int:
  """Training steps of a row's config as it stands."""
  import importlib

  sys.path.insert(0, str(ROOT))
  name, _, arg = row.config.partition(':')
  module = importlib.import_module(f'configs.{name.removesuffix(".py")}')
  return module.get_config(arg).train.num_steps


def _results(workdir, name, seed):
  return workdir / f'{name}-{seed}' / 'results.json'


def run(name: str, seed: int, workdir: pathlib.Path) -> dict[str, float]:
  """The results of a row and seed, trained unless they are there."""
  results = _results(workdir, name, seed)
  folder = results.parent
  if not results.exists():
    folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    environment = dict(os.environ)
    if JOBS.value > 1:
      threads = max((os.cpu_count() or 1) // JOBS.value, 1)
      environment['XLA_FLAGS'] = (
        f'{os.environ.get("XLA_FLAGS", "")} '
        f'--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} '
        f'intra_op_parallelism_threads={threads}'
      )
    with (folder / 'log.txt').open('a') as log:
      done = subprocess.run(
        command(ROWS[name], seed, folder),
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        check=False,
      )
    if done.returncode:
      raise RuntimeError(f'{name}, seed {seed} failed: see {folder}/log.txt')
    minutes = (time.time() - start) / 60
    recall = json.loads(results.read_text())[CROSS]
    print(f'{name}, seed {seed}: {recall:.1f} ({minutes:.1f} min)', flush=True)
  return json.loads(results.read_text())


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Mean and half the width of its 95 % interval over the seeds."""
  values = np.asarray(values, float)
  if len(values) < 2:
    return float(values.mean()), float('nan')
  error = values.std(ddof=1) / np.sqrt(len(values))
  return float(values.mean()), float(STUDENT.get(len(values) - 1, 2.0) * error)


def table(results: Mapping[str, Mapping[int, dict[str, float]]]) -> str:
  """Markdown: a line per row, the difference to the first row beside it."""
  head = ['SaliencyI2PLoc, test towns, within 10 m, %', *COLUMNS]
  head.insert(2, 'against ours')
  lines = [head, ['---'] * len(head)]
  reference = next(iter(results.values()))
  for name, runs in results.items():
    cells = [ROWS[name].title]
    if len(runs) < SEEDS.value:
      cells[0] += f' ({len(runs)} of {SEEDS.value} seeds)'
    for metric in COLUMNS.values():
      cells.append(_cell([r[metric] for r in runs.values() if metric in r]))
    differences = [
      runs[seed][CROSS] - reference[seed][CROSS]
      for seed in runs
      if seed in reference and runs is not reference
    ]
    cells.insert(2, _cell(differences, sign=True))
    lines.append(cells)
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def _cell(values, sign=False):
  if not values:
    return ''
  mean, half = interval(values)
  text = f'{mean:+.1f}' if sign else f'{mean:.1f}'
  return text if np.isnan(half) else f'{text} ± {half:.1f}'


def main(argv: list[str]) -> None:
  """Runs the rows and prints the table."""
  del argv
  workdir = pathlib.Path(WORKDIR.value).absolute()
  names = [name for name in ROWS if not NAMES.value or name in NAMES.value]
  runs = [(name, seed) for seed in range(SEEDS.value) for name in names]
  if TABLE.value:
    runs = [r for r in runs if _results(workdir, *r).exists()]
  # All rows with one seed before any with the next: a table at any time.
  with concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
    found = list(pool.map(lambda r: run(*r, workdir), runs))
  results = {name: {} for name in names}
  for (name, seed), result in zip(runs, found, strict=True):
    results[name][seed] = result
  results = {name: found for name, found in results.items() if found}
  text = table(results)
  print(text)
  if README.value:
    path = pathlib.Path(README.value)
    before, _, rest = path.read_text().partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
      raise ValueError(f'{path} lacks the marks {MARKS}.')
    path.write_text(before + MARKS[0] + text + MARKS[1] + after)
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(results, indent=1))


if __name__ == '__main__':
  app.run(main)
