# SPDX-License-Identifier: Apache-2.0
"""Flags in, one of five verbs out; everything else is importable."""

import os
import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from i2ploc import verbs
from i2ploc.errors import InputError
from i2ploc.report import html
from input_pipeline.sources import opening

VERBS = ('train', 'evaluate', 'index', 'localize', 'report')
MODE = flags.DEFINE_enum('mode', 'train', VERBS, 'What to do.')
CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Checkpoints and results; runs/CONFIG if not given.'
)
DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where the sensor data lies.')
QUERY = flags.DEFINE_multi_string('query', [], 'Image files or patterns.')
INTRINSICS = flags.DEFINE_list('intrinsics', [], 'fx,fy,cx,cy of the queries.')
NEAR = flags.DEFINE_list(
  'near', [], 'east,north,radius: about where the queries are, metres.'
)
flags.mark_flag_as_required('config')


def parse(argv: list[str]) -> list[str]:
  """Parses flags; what a flag or a config refuses ends in one line."""
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError, OSError, TypeError) as error:
    sys.exit(f'--config: {error}')
  except flags.Error as error:
    # Before the ValueError of a config absl shows where it was raised.
    _, refused, reason = str(error).rpartition('\nValueError: ')
    sys.exit(f'--config: {reason.strip()}' if refused else str(error))


def run(paths: list[str]) -> None:
  """Runs the verb of the flags; `paths` are more queries."""
  config, workdir = CONFIG.value, WORKDIR.value or _workdir()
  if paths and MODE.value != 'localize':
    raise InputError(f'Unexpected arguments {paths}.')
  if MODE.value == 'report':
    print(html.write_report(workdir, DATA_DIR.value))
    return
  data = opening.open_source(config, DATA_DIR.value)
  if MODE.value == 'localize':
    queries = QUERY.value + paths
    verbs.localize(config, data, workdir, queries, INTRINSICS.value, NEAR.value)
  else:
    getattr(verbs, MODE.value)(config, data, workdir)


def _workdir() -> str:
  """A folder named after the config, here."""
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  workdir = f'runs/{pathlib.PurePath(path.partition(":")[0]).stem}'
  print(f'--workdir={workdir}')
  return workdir


def main(argv: list[str]) -> None:
  """Bad input ends in one line; --verbosity=1 shows where."""
  jax.config.update(
    'jax_compilation_cache_dir', os.path.expanduser('~/.cache/i2ploc/jax')
  )
  try:
    run(argv[1:])
  except InputError as error:
    logging.debug('', exc_info=True)
    sys.exit(f'{MODE.value}: {error}')


if __name__ == '__main__':
  # Without --verbosity absl would log everything: keep orbax quiet.
  flags.FLAGS['verbosity'].using_default_value = False
  app.run(main, flags_parser=parse)
