# SPDX-License-Identifier: Apache-2.0
"""What is trained of places: pairs of two sensors, or batches that are planned.

Planned batches are of images, or of images and renderings of one place. Who is
in a batch is decided round by round, perhaps by the model as it is then: by
hard negatives, clusters of its descriptors, groups of classes.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import jax
import numpy as np

from i2ploc import factory
from i2ploc.errors import InputError
from i2ploc.learning import embeddings
from i2ploc.learning import objectives
from i2ploc.models import fitting
from i2ploc.models import towers as towers_lib
from i2ploc.models.weights import published
from i2ploc.tasks import runs
from i2ploc.tasks import task as task_lib
from i2ploc.training import loop

Evaluators = Callable[[], Sequence[loop.Evaluator]]


def pairs(
  config: Any,
  data: Any,
  towers: towers_lib.CompiledTowers,
  evaluators: Evaluators,
) -> task_lib.Training:
  """Images with scans, see `drives.Source.train_batches`.

  Args:
    config: of the task.
    data: a `sources.drives.Source`.
    towers: the model.
    evaluators: opens those whose numbers choose the best checkpoint.

  Raises:
    InputError: a model, loss or optimizer that cannot be trained.
  """
  _check(config, towers)
  return task_lib.Training(
    init=functools.partial(_init, config, towers),
    batches=functools.partial(
      data.train_batches, config.train.batch_size, config.seed
    ),
    embed=embeddings.make_embed(
      towers.model,
      color_jitter=config.train.color_jitter,
      mirror=config.train.mirror,
      yaw=config.train.yaw,
      cutout=config.train.cutout,
    ),
    loss=objectives.make_loss(
      **config.loss.to_dict(), sides=(config.query_side, config.map_side)
    ),
    optimizer=factory.make_optimizer(
      config.train.num_steps, **config.optimizer.to_dict()
    ),
    evaluators=evaluators,
    id_keys=tuple(f'{side}_index' for side in towers.sides),
  )


def planned(
  config: Any,
  data: Any,
  towers: towers_lib.CompiledTowers,
  evaluators: Evaluators,
) -> task_lib.Training:
  """Batches that a planner chooses, see `drives.Source.planned_batches`.

  Args:
    config: of the task, with `sampling` and `augmentation`.
    data: as in `pairs`.
    towers: as in `pairs`.
    evaluators: as in `pairs`.

  Raises:
    InputError: as in `pairs`.
  """
  _check(config, towers)
  _check_chunks(config)
  sampling = config.sampling.to_dict()
  size = config.evaluation.batch_size

  def split_batches(rows):
    return data.split('train').batches(rows, (config.query_side,), size)

  def describe(variables, rows):
    embed = towers.embed(config.query_side)
    found = [
      np.asarray(embed(variables, batch), np.float32)[batch['mask']]
      for batch in split_batches(rows)
    ]
    return np.concatenate(found)

  learned = objectives.Learned(
    class_counts=_outside(lambda: data.class_counts(sampling)),
    num_domains=_outside(lambda: data.num_domains),
  )
  objective = objectives.make_objective(
    **config.loss.to_dict(),
    sides=(config.query_side, config.map_side),
    learned=learned,
  )

  def init(key):
    variables = _init(config, towers, key)
    found = objective.init(key, *_widths(towers, config.query_side))
    if found:
      variables['params'] = {**variables['params'], 'loss': found}
    return variables

  def prepare(variables):
    if not config.train.fit_clusters:
      return variables
    frames = data.split('train').frames
    rows = np.flatnonzero(frames.has_image)
    return fitting.init_netvlad(
      towers.model,
      config.query_side,
      variables,
      lambda some: split_batches(rows[some]),
      len(rows),
      seed=config.seed,
    )

  return task_lib.Training(
    init=init,
    prepare=prepare,
    batches=lambda: data.planned_batches(
      config.train.batch_size, config.seed, describe, sampling
    ),
    embed=embeddings.make_image_embed(
      towers.model, **config.augmentation.to_dict()
    ),
    loss=objective.loss,
    optimizer=factory.make_optimizer(
      config.train.num_steps, **config.optimizer.to_dict()
    ),
    evaluators=evaluators,
    id_keys=('image_index',),
    refresh_every=sampling['steps'],
  )


def _outside(ask):
  """Asks about data while tracing, when it may have to be generated first."""

  @functools.cache
  def answer():
    with jax.ensure_compile_time_eval():
      return ask()

  return answer


def _widths(towers, side):
  """Widths of a side's descriptors and of its encoder's tokens."""
  model = towers.model
  descriptor, out = jax.eval_shape(
    functools.partial(model.apply, side=side),
    towers_lib.shapes(model),
    model.example(),
  )
  return descriptor.shape[-1], out['tokens'].features.shape[-1]


def _check(config, towers):
  if fitting.needs_fit(towers.model):
    raise InputError(
      f'{config.name}: a vocabulary or a whitening is fitted to a map, not'
      ' trained: set model.whitening to 0 and choose another aggregator.'
    )


def _check_chunks(config):
  """Chunks draw on their own what has to be alike all over a batch."""
  shared = [
    name
    for name in ('mirror', 'mixing', 'overhead')
    if config.augmentation[name]
  ]
  if config.train.num_chunks > 1 and shared:
    raise InputError(
      f'train.num_chunks={config.train.num_chunks} with {shared} of'
      ' augmentation, which would change a town or a year in different ways:'
      ' turn them off, or take one chunk.'
    )


def _init(config, towers, key: jax.Array) -> dict[str, Any]:
  """Fresh variables, or those that training starts from."""
  start = config.train.pretrained
  variables = dict(towers.init(key))
  if start and runs.is_run(start):
    return runs.load_variables(start, towers.model, variables)
  if start:
    variables = published.with_encoders(start, towers.model, variables)
  return variables
