# SPDX-License-Identifier: Apache-2.0
"""The verbs: train, evaluate, index, localize, over the task of a config.

Each joins a config, the data of an experiment and a workdir, and leaves files
that the next one reads:

  train     checkpoints/  metrics.jsonl  events/  and what evaluate writes
  evaluate  results.json, and what its task leaves for a report
  index     the map of its task
  localize  answers.jsonl

config.json is written by whichever of the first three came first or trained.
All raise InputError for what a user can mend.
"""

from collections.abc import Sequence
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
  'data.validation',
)
_FOLDER = '_dir'


def train(config: Any, data: Any, workdir: str | pathlib.Path) -> None:
  """Trains, chooses the checkpoint on validation, evaluates on test.

  Continues from the newest checkpoint of the workdir, if its config is the
  same as far as training goes.

  Raises:
    InputError: nothing to train, or the workdir holds another run.
  """
  training = _of_task(config, data, 'train')
  workdir = pathlib.Path(workdir)
  checkpoints = checkpoint.open_checkpoints(config, workdir)
  try:
    _fit(config, workdir, training, checkpoints)
  finally:
    checkpoints.close()
  if data.has('test'):
    evaluate(config, data, workdir)


def evaluate(
  config: Any, data: Any, workdir: str | pathlib.Path
) -> dict[str, float]:
  """Measures on the test data; writes results.json and prints a table."""
  measure = _of_task(config, data, 'evaluate')
  workdir = pathlib.Path(workdir)
  results, lines = measure(workdir)
  results = {name: float(value) for name, value in results.items()}
  files.save_json(workdir / 'results.json', results)
  _describe(config, workdir)
  for line in lines:
    print(line)
  return results


def index(config: Any, data: Any, workdir: str | pathlib.Path) -> None:
  """Makes the map that `localize` asks."""
  make = _of_task(config, data, 'index')
  workdir = pathlib.Path(workdir)
  print(make(workdir))
  _describe(config, workdir)


def localize(
  config: Any,
  data: Any,
  workdir: str | pathlib.Path,
  paths: Sequence[str],
  intrinsics: Sequence[str | float] = (),
  near: Sequence[str | float] = (),
  upright: bool = True,
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
  """
  open_map = _of_task(config, data, 'localize')
  workdir = pathlib.Path(workdir)
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


def make_task(config: Any, data: Any) -> task_lib.Task:
  """The task of a config.

  Args:
    config: with `task`, of TASKS.
    data: the config's `sources` object; None of one that names no data.

  Raises:
    InputError: an unknown task, or a model that cannot be built.
  """
  if config.task not in TASKS:
    raise InputError(f'Unknown task {config.task!r}; known: {sorted(TASKS)}.')
  return TASKS[config.task](config, data)


def _of_task(config, data, verb):
  """What a verb needs of the config's task."""
  task = make_task(config, data)
  part = getattr(task, _NEEDS[verb])
  if part is None:
    known = [v for v, need in _NEEDS.items() if getattr(task, need) is not None]
    raise InputError(f'{config.name} has no {verb!r}; it has {known}.')
  return part


def _describe(config, workdir):
  """Writes config.json, unless a training run did."""
  if not (workdir / 'checkpoints').is_dir():
    files.save_json(workdir / 'config.json', config.to_dict())


def _fit(config, workdir, training: task_lib.Training, checkpoints) -> None:
  """Trains from the last checkpoint of a workdir, or from fresh variables.

  What can be wrong with model, optimizer and workdir is found before data is
  read, and the workdir is written last.
  """
  _check_continued(checkpoints, config)
  shapes = jax.eval_shape(training.init, jax.random.key(config.seed))
  training.optimizer.trains(shapes['params'])
  step = step_lib.make_train_step(
    training.embed,
    training.loss,
    training.optimizer,
    num_chunks=config.train.num_chunks,
    ema_decay=config.train.ema_decay,
  )
  batches, evaluators = training.batches(), training.evaluators()
  model_state = dict(training.init(jax.random.key(config.seed)))
  if not checkpoints.steps():
    model_state = dict(training.prepare(model_state))
  params = model_state.pop('params')
  files.save_json(workdir / 'config.json', config.to_dict())
  count = sum(x.size for x in jax.tree.leaves(params))
  print(f'{count:,} parameters')
  writer = metric_writer.MetricWriter(
    workdir, headline=('loss', 'recall_at_1', 'accuracy', 'scale')
  )
  try:
    loop.train(
      state_lib.init_state(
        params,
        model_state,
        training.optimizer.init,
        jax.random.key(config.seed + 1),
      ),
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
    )
  finally:
    writer.close()


def _check_continued(checkpoints, config):
  """Refuses to continue the run of another config; says what is not as before.

  Raises:
    InputError: a field differs that training depends on.
  """
  saved = (checkpoints.provenance() or {}).get('config', {})
  changes = provenance.config_changes(saved, config.to_dict())
  harmless = {
    name: change
    for name, change in changes.items()
    if name.startswith(_MAY_CHANGE) or name.endswith(_FOLDER)
  }
  others = {k: v for k, v in changes.items() if k not in harmless}
  if others:
    raise InputError(
      f'{checkpoints.directory} holds a run of another config:'
      f' {provenance.describe_changes(others)}. Choose another --workdir, or'
      ' delete this one to start again.'
    )
  if harmless:
    print(f'continuing with {provenance.describe_changes(harmless)}')
