# SPDX-License-Identifier: Apache-2.0
"""A model of synthetic_city on real KITTI raw frames.

Takes the checkpoint of a workdir (trained on synthetic_city: zero-shot),
indexes the scans of a KITTI raw folder, localizes its images, and prints
recall beside chance.

python benchmarks/kitti_frames.py --workdir=demo/run --data_dir=KITTI_RAW
python benchmarks/kitti_frames.py --config=lip_loc.py --workdir=runs/lip_loc \
  --data_dir=KITTI_RAW
"""

import json
import pathlib
import shutil
import subprocess
import sys

from absl import app
from absl import flags

CONFIG = flags.DEFINE_string('config', 'saliency_i2ploc.py', 'Of configs/.')
WORKDIR = flags.DEFINE_string('workdir', None, 'With checkpoints/.')
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Of the KITTI raw layout.')
OUTPUT = flags.DEFINE_string('output', None, 'Default: WORKDIR-kitti_raw.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
ROOT = pathlib.Path(__file__).resolve().parents[1]
flags.mark_flags_as_required(['workdir', 'data_dir'])


def main(argv: list[str]) -> None:
  """Evaluates, indexes, localizes and reports."""
  del argv
  source = pathlib.Path(WORKDIR.value).absolute()
  output = pathlib.Path(OUTPUT.value or f'{source}-kitti_raw').absolute()
  data_dir = pathlib.Path(DATA_DIR.value).absolute()
  shutil.copytree(
    source / 'checkpoints', output / 'checkpoints', dirs_exist_ok=True
  )
  images = f'{data_dir}/*/*_sync/image_02/data/*.png'
  for mode in ('evaluate', 'index', 'localize', 'report'):
    command = [
      sys.executable,
      'main.py',
      f'--mode={mode}',
      f'--config=configs/{CONFIG.value}:dataset=kitti_raw',
      f'--workdir={output}',
      f'--data_dir={data_dir}',
      f'--query={images}',
    ]
    subprocess.run(command, check=True, cwd=ROOT)
  results = json.loads((output / 'results.json').read_text())
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(results, indent=1))


if __name__ == '__main__':
  app.run(main)
