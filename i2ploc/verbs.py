# SPDX-License-Identifier: Apache-2.0
"""The verbs: train, evaluate, index, localize, over the task of a config.

Each joins a config, the data of an experiment and a workdir, and leaves files
that the next one reads:

  train     checkpoints/  metrics.jsonl  events/  and what evaluate writes
  evaluate  results.json  evaluation.json, and what its task leaves for a report
  index     the map of its task
  localize  answers.jsonl

config.json is written by whichever of the first three came first or trained.
What a verb reads of a workdir was made with a config; one that differs where it
matters is refused, unless `allow_changes` says that it is meant. All raise
InputError for what a user can mend, a workdir that cannot be written first of
all.
"""

from collections.abc import Sequence
import contextlib
import functools
import json
import pathlib
from typing import Any

import jax

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.localization import answer as answer_lib
from i2ploc.localization import query_files
from i2ploc.tasks import captions
from i2ploc.tasks import hypotheses
from i2ploc.tasks import objects
from i2ploc.tasks import places
from i2ploc.tasks import task as task_lib
from i2ploc.training import checkpoint
from i2ploc.training import lock
from i2ploc.training import loop
from i2ploc.training import metric_writer
from i2ploc.training import provenance
from i2ploc.training import state as state_lib
from i2ploc.training import step as step_lib

TASKS = {
  'captions': captions.make_task,
  'hypotheses': hypotheses.make_task,
  'objects': objects.make_task,
  'places': places.make_task,
}
# What each verb needs of a task.
_NEEDS = {
  'train': 'training',
  'evaluate': 'evaluate',
  'index': 'index',
  'localize': 'localizer',
}
# A run continues although these are not as they were: they do not change what
# a step of training does, or say where something lies.
_MAY_CHANGE = (
  'task',
  'name',
  'checkpoint',
  'evaluation.',
  'index.',
  'sequence.',
  'train.num_steps',
  'train.num_chunks',
  'train.eval_every',
  'train.save_every',
  'train.pretrained',
  'data.packed',
  'data.test',
)
_FOLDER = '_dir'
# A best checkpoint that was chosen otherwise is no better or worse.
_CHOOSES = (
  'data.validation',
  'evaluation.select',
  'evaluation.exclude_self',
  'evaluation.disc',
)
# Folders of a workdir that verbs write into.
_FOLDERS = (
  *('checkpoints', 'checkpoints/steps', 'checkpoints/best', 'events'),
  *('parts', 'maps', 'descriptors', 'queries'),
)


def train(
  config: Any,
  data: Any,
  workdir: str | pathlib.Path,
  *,
  allow_changes: bool = False,
) -> None:
  """Trains, chooses the checkpoint on validation, evaluates on test.

  Continues from the newest checkpoint of the workdir, if its config is the
  same as far as training goes. Nobody else trains there meanwhile.

  Args:
    config: of the run.
    data: of the run.
    workdir: of the run.
    allow_changes: continues with fields that are not as before.

  Raises:
    InputError: nothing to train, or the workdir holds another run, which may be
      going on.
  """
  training = _of_task(config, data, 'train', allow_changes)
  workdir = _writable(workdir)
  # Of processes that train together the first one writes.
  alone = lock.hold if jax.process_index() == 0 else contextlib.nullcontext
  with alone(workdir):
    checkpoints = checkpoint.open_checkpoints(config, workdir)
    try:
      _fit(config, workdir, training, checkpoints, allow_changes)
    finally:
      checkpoints.close()
    if data.has('test'):
      evaluate(config, data, workdir)


def evaluate(
  config: Any,
  data: Any,
  workdir: str | pathlib.Path,
  *,
  allow_changes: bool = False,
) -> dict[str, float]:
  """Measures on the test data; writes results.json and prints a table.

  Args:
    config: of what is measured.
    data: with a test split.
    workdir: with a checkpoint or a map, unless the config names weights.
    allow_changes: takes those of a config that differs where it matters.
  """
  measure = _of_task(config, data, 'evaluate', allow_changes)
  workdir = _writable(workdir)
  found = measure(workdir)
  results = {name: float(value) for name, value in found.results.items()}
  files.save_json(workdir / 'results.json', results)
  files.save_json(
    workdir / 'evaluation.json',
    {
      **found.facts,
      'skipped': list(found.skipped),
      'config': config.to_dict(),
    },
  )
  _describe(config, workdir)
  for line in (*found.lines, *found.skipped):
    print(line)
  return results


def index(
  config: Any,
  data: Any,
  workdir: str | pathlib.Path,
  *,
  allow_changes: bool = False,
) -> None:
  """Makes the map that `localize` asks; arguments as those of `evaluate`."""
  make = _of_task(config, data, 'index', allow_changes)
  workdir = _writable(workdir)
  print(make(workdir))
  _describe(config, workdir)


def localize(
  config: Any,
  data: Any,
  workdir: str | pathlib.Path,
  paths: Sequence[str],
  intrinsics: Sequence[str | float] = (),
  near: Sequence[str | float] = (),
  *,
  upright: bool = True,
  allow_changes: bool = False,
) -> None:
  """Answers image files; prints JSON lines and writes answers.jsonl.

  Args:
    config: that made the map.
    data: of which no reading is needed.
    workdir: with the map.
    paths: image files, or patterns of them.
    intrinsics: fx, fy, cx, cy of the files, see `query_files.read_queries`.
    near: east, north and radius about them, see `query_files.read_queries`.
    upright: whether they are turned as their EXIF says, see the same.
    allow_changes: asks a map of a config that differs where it matters.
  """
  open_map = _of_task(config, data, 'localize', allow_changes)
  workdir = _writable(workdir)
  stages, camera, with_boxes, num_images = open_map(workdir)
  queries = query_files.read_queries(
    paths,
    intrinsics=intrinsics,
    camera=camera,
    with_boxes=with_boxes,
    length=num_images,
    near=near,
    upright=upright,
  )
  lines = []
  for query in queries:
    answers = functools.reduce(
      lambda found, stage, query=query: stage(query, found), stages, []
    )
    line = answer_lib.record(query, answers)
    lines.append(json.dumps(line, allow_nan=False))
    print(lines[-1], flush=True)
  files.save_text(workdir / 'answers.jsonl', '\n'.join(lines) + '\n')


def make_task(
  config: Any, data: Any, allow_changes: bool = False
) -> task_lib.Task:
  """The task of a config.

  Args:
    config: with `task`, of TASKS.
    data: the config's `sources` object; None of one that names no data.
    allow_changes: whether checkpoints and maps of a workdir may be of a config
      that differs where it matters.

  Raises:
    InputError: an unknown task, or a model that cannot be built.
  """
  if config.task not in TASKS:
    raise InputError(f'Unknown task {config.task!r}; known: {sorted(TASKS)}.')
  return TASKS[config.task](config, data, allow_changes)


def _of_task(config, data, verb, allow_changes):
  """What a verb needs of the config's task."""
  task = make_task(config, data, allow_changes)
  part = getattr(task, _NEEDS[verb])
  if part is None:
    known = [v for v, need in _NEEDS.items() if getattr(task, need) is not None]
    raise InputError(f'{config.name} has no {verb!r}; it has {known}.')
  return part


def _writable(workdir) -> pathlib.Path:
  """The workdir, once it is known that files can be written there."""
  workdir = pathlib.Path(workdir)
  files.check_folder(workdir, _FOLDERS)
  return workdir


def _describe(config, workdir):
  """Writes config.json, unless a training run did."""
  if not (workdir / 'checkpoints').is_dir():
    files.save_json(workdir / 'config.json', config.to_dict())


def _fit(
  config,
  workdir,
  training: task_lib.Training,
  checkpoints: checkpoint.Checkpoints,
  allow_changes: bool,
) -> None:
  """Trains from the last checkpoint of a workdir, or from fresh variables.

  What can be wrong with model, optimizer and workdir is found before data is
  read, and the workdir is written last: config.json once the checkpoint has
  turned out to fit.
  """
  changes = _check_continued(checkpoints, config, allow_changes)
  key = jax.random.key(config.seed)
  shapes = dict(jax.eval_shape(training.init, key))
  training.optimizer.trains(shapes['params'])
  checkpoints.check_space(jax.eval_shape(_start(config, training), shapes))
  step = step_lib.make_train_step(
    training.embed,
    training.loss,
    training.optimizer,
    num_chunks=config.train.num_chunks,
    ema_decay=config.train.ema_decay,
  )
  batches, evaluators = training.batches(), training.evaluators()
  variables = dict(training.init(key))
  if not checkpoints.steps():
    variables = dict(training.prepare(variables))
  count = sum(x.size for x in jax.tree.leaves(variables['params']))
  print(f'{count:,} parameters')
  writer = metric_writer.MetricWriter(
    workdir, headline=('loss', 'recall_at_1', 'accuracy', 'scale')
  )

  def started():
    if changes:  # what was the best of another config says nothing of this one
      checkpoints.forget_best()
    files.save_json(workdir / 'config.json', config.to_dict())

  try:
    loop.train(
      _start(config, training)(variables),
      batches,
      step,
      num_steps=config.train.num_steps,
      evaluators=evaluators,
      eval_every=config.train.eval_every,
      best_metric=config.evaluation.select,
      checkpoints=checkpoints,
      save_every=config.train.save_every,
      writer=writer,
      id_keys=training.id_keys,
      refresh_every=training.refresh_every,
      started=started,
    )
  finally:
    writer.close()


def _start(config, training):
  """From variables to the state that training starts from."""

  def start(variables):
    others = {k: v for k, v in variables.items() if k != 'params'}
    return state_lib.init_state(
      variables['params'],
      others,
      training.optimizer.init,
      jax.random.key(config.seed + 1),
    )

  return start


def _check_continued(checkpoints, config, allow_changes):
  """Says what is not as before; refuses what training depends on.

  Returns:
    The fields of the latter.

  Raises:
    InputError: there are some, and they are not allowed, or come too late.
  """
  saved = (checkpoints.provenance() or {}).get('config')
  if saved is None:
    return {}
  changes = provenance.config_changes(saved, config.to_dict())
  harmless = provenance.only(changes, _may_change)
  others = provenance.only(changes, lambda name: name not in harmless)
  provenance.check_changes(
    f'{checkpoints.directory} holds a run',
    others,
    'Choose another --workdir, delete this one to start again',
    allowed=allow_changes,
  )
  steps = checkpoints.steps()
  if others and steps and steps[-1] >= config.train.num_steps:
    raise InputError(
      f'{checkpoints.directory} holds a run that has ended, at step'
      f' {steps[-1]}: nothing would be trained with the changes. Raise'
      ' train.num_steps.'
    )
  if harmless:
    print(f'continuing with {provenance.describe_changes(harmless)}')
  return others


def _may_change(name):
  if name in _CHOOSES:
    return False
  return name.startswith(_MAY_CHANGE) or name.endswith(_FOLDER)
