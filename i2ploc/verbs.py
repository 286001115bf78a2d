# SPDX-License-Identifier: Apache-2.0
"""Which verbs a config has: its task names the module that holds them."""

from collections.abc import Callable

from i2ploc.errors import InputError
from i2ploc.tasks import captions
from i2ploc.tasks import hypotheses
from i2ploc.tasks import objects
from i2ploc.tasks import places

TASKS = {
  'captions': captions,
  'hypotheses': hypotheses,
  'image_to_points': places,
  'objects': objects,
}
VERBS = ('train', 'evaluate', 'index', 'localize')


def verb(config, name: str) -> Callable[..., None]:
  """The function of a verb.

  Args:
    config: with `task`, of TASKS, and `name`.
    name: of VERBS.

  Raises:
    InputError: an unknown task, or one without this verb.
  """
  if config.task not in TASKS:
    raise InputError(f'Unknown task {config.task!r}; known: {sorted(TASKS)}.')
  module = TASKS[config.task]
  if not hasattr(module, name):
    known = [verb for verb in VERBS if hasattr(module, verb)]
    raise InputError(f'{config.name} has no {name!r}; it has {known}.')
  return getattr(module, name)
