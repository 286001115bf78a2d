# SPDX-License-Identifier: Apache-2.0
"""Which variant of a method finds its place: the table of the README.

Trains every row with the demonstration's budget, evaluates it on the test
towns and prints recall beside chance. Finished rows are read from their
workdirs; an interrupted row continues.

python benchmarks/methods.py --workdir=runs/methods --data_dir=demo/data \
  --json=runs/methods.json
"""

import json
import pathlib
import subprocess
import sys
import time

from absl import app
from absl import flags

ROWS = {
  'points, NetVLAD per azimuth sector': '',
  'range image, NetVLAD per azimuth sector': 'lidar=range',
  'points, NetVLAD over all tokens (the paper)': 'aggregator=netvlad',
  'points, per sector, no saliency': 'saliency=none',
  'points, per sector, released saliency': 'saliency=released',
}
METRICS = {
  'R@1': 'image_to_points/recall@1_10m',
  'low': 'image_to_points/recall@1_10m_low',
  'high': 'image_to_points/recall@1_10m_high',
  'R@5': 'image_to_points/recall@5_10m',
  'R@20': 'image_to_points/recall@20_10m',
  '3 frames': 'image_to_points/recall@1_10m_3_frames',
  'chance': 'chance@1_10m',
}
ROOT = pathlib.Path(__file__).resolve().parents[1]

CONFIG = flags.DEFINE_string('config', 'configs/saliency_i2ploc.py', 'Config.')
WORKDIR = flags.DEFINE_string('workdir', None, 'One folder per row in here.')
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the data lies.')
NAMES = flags.DEFINE_multi_string('row', [], 'Only these rows.')
SEEDS = flags.DEFINE_integer('seeds', 1, 'Runs of each row.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
flags.mark_flag_as_required('workdir')


def run_row(arg: str, seed: int, workdir: pathlib.Path) -> dict[str, float]:
  """Trains and evaluates one row unless its results are there."""
  results = workdir / 'results.json'
  if not results.exists():
    command = [
      sys.executable,
      'main.py',
      '--mode=train',
      f'--config={CONFIG.value}:{arg}',
      f'--config.seed={seed}',
      f'--workdir={workdir}',
    ]
    if DATA_DIR.value:
      command.append(f'--data_dir={DATA_DIR.value}')
    start = time.time()
    subprocess.run(command, check=True, cwd=ROOT)
    seconds = time.time() - start
    (workdir / 'seconds.json').write_text(json.dumps(seconds))
  return json.loads(results.read_text())


def main(argv: list[str]) -> None:
  """Runs the rows and prints the table."""
  del argv
  unknown = set(NAMES.value) - set(ROWS)
  if unknown:
    raise app.UsageError(f'Unknown rows {unknown}; known: {list(ROWS)}')
  workdir = pathlib.Path(WORKDIR.value).absolute()
  numbers = {}
  print(f'{"test/cross, within 10 m, %":46}{"  ".join(METRICS)}')
  for name, arg in ROWS.items():
    if NAMES.value and name not in NAMES.value:
      continue
    for seed in range(SEEDS.value):
      folder = workdir / f'{arg or "default"}-{seed}'
      results = run_row(arg, seed, folder)
      row = {k: results[f'test/cross/{v}'] for k, v in METRICS.items()}
      numbers |= {f'{name}/{seed}/{k}': v for k, v in row.items()}
      values = '  '.join(f'{v:{len(k)}.1f}' for k, v in row.items())
      print(f'{name:46}{values}', flush=True)
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
  app.run(main)
