# SPDX-License-Identifier: Apache-2.0
"""Flags in, one of five verbs out; everything else is importable.

python main.py --mode=train --config=configs/saliency_i2ploc.py --workdir=DIR
"""

import glob
import os
import sys

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from i2ploc import commands
from i2ploc.report import html
from input_pipeline import source

MODES = ('train', 'evaluate', 'index', 'localize', 'report')
MODE = flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Checkpoints and results.')
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the sensor data lies.')
QUERY = flags.DEFINE_multi_string('query', [], 'Image files or patterns.')
CAMERA = flags.DEFINE_list('intrinsics', [], 'fx,fy,cx,cy of the queries.')
flags.mark_flags_as_required(['config', 'workdir'])


def main(argv: list[str]) -> None:
  """Runs one verb; bad input ends in one line, --verbosity=1 shows where."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}')
  cache = os.path.expanduser('~/.cache/i2ploc/jax')
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  logging.info('%s on %s', MODE.value, jax.devices())
  try:
    run(CONFIG.value, WORKDIR.value)
  except (ValueError, FileNotFoundError) as error:
    logging.debug('', exc_info=True)
    sys.exit(f'{MODE.value}: {error}')


def run(config, workdir: str) -> None:
  """Joins config, data and workdir as the flags say."""
  data = source.Source(data_dir=DATA_DIR.value, **config.data)
  if MODE.value == 'report':
    print(html.write_report(workdir))
  elif MODE.value == 'localize':
    paths = [p for q in QUERY.value for p in sorted(glob.glob(q)) or [q]]
    camera = tuple(map(float, CAMERA.value))
    commands.localize(config, data, workdir, paths, camera)
  else:
    getattr(commands, MODE.value)(config, data, workdir)


if __name__ == '__main__':
  app.run(main)
