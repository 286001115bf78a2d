# SPDX-License-Identifier: Apache-2.0
"""Flags in, one of five verbs out; everything else is importable."""

import os
import sys

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from i2ploc import verbs
from i2ploc.report import html
from input_pipeline.sources import opening

VERBS = ('train', 'evaluate', 'index', 'localize', 'report')
MODE = flags.DEFINE_enum('mode', 'train', VERBS, 'What to do.')
CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Checkpoints and results.')
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the sensor data lies.')
QUERY = flags.DEFINE_multi_string('query', [], 'Image files or patterns.')
CAMERA = flags.DEFINE_list('intrinsics', [], 'fx,fy,cx,cy of the queries.')
flags.mark_flags_as_required(['config', 'workdir'])


def parse(argv: list[str]) -> list[str]:
  """Parses flags; an unknown config field ends in one line."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError) as error:
    sys.exit(f'--config: {error}')


def main(argv: list[str]) -> None:
  """Runs one verb; bad input ends in one line, --verbosity=1 shows where."""
  jax.config.update(
    'jax_compilation_cache_dir', os.path.expanduser('~/.cache/i2ploc/jax')
  )
  config, workdir = CONFIG.value, WORKDIR.value
  try:
    data = opening.open_source(config, DATA_DIR.value)
    if argv[1:] and MODE.value != 'localize':
      raise ValueError(f'unexpected arguments {argv[1:]}')
    if MODE.value == 'report':
      print(html.write_report(workdir))
    elif MODE.value == 'localize':
      find = verbs.verb(config, 'localize')
      camera = tuple(map(float, CAMERA.value))
      find(config, data, workdir, QUERY.value + argv[1:], camera)
    else:
      verbs.verb(config, MODE.value)(config, data, workdir)
  except (ValueError, FileNotFoundError) as error:
    logging.debug('', exc_info=True)
    sys.exit(f'{MODE.value}: {error}')


if __name__ == '__main__':
  flags.FLAGS['verbosity'].using_default_value = False  # hush, orbax
  app.run(main, flags_parser=parse)
