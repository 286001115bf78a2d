# SPDX-License-Identifier: Apache-2.0
"""What every training of a config has in common, between data and model."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

import jax

from i2ploc import factory
from i2ploc import files
from i2ploc.training import checkpoint
from i2ploc.training import loop
from i2ploc.training import metric_writer
from i2ploc.training import state as state_lib
from i2ploc.training import step as step_lib


def fit(
  config: Any,
  workdir: str,
  *,
  variables: Mapping[str, Any],
  batches: Any,
  embed: Callable[..., Any],
  loss: Callable[..., Any],
  evaluators: Sequence[Any],
  id_keys: Sequence[str],
) -> None:
  """Trains from the last checkpoint of a workdir, or from `variables`.

  Args:
    config: with train, optimizer, evaluation.select and seed.
    workdir: for config.json, checkpoints/, metrics.jsonl and events/.
    variables: fresh ones, 'params' among them.
    batches: resumable iterator, see `training.loop`.
    embed: see `training.step.make_train_step`.
    loss: likewise.
    evaluators: whose numbers choose the best checkpoint.
    id_keys: fields of a batch that say what it consists of.
  """
  files.save_json(pathlib.Path(workdir) / 'config.json', config.to_dict())
  state = {name: value for name, value in variables.items() if name != 'params'}
  params = variables['params']
  count = sum(x.size for x in jax.tree.leaves(params))
  print(f'{count:,} parameters')
  optimizer = factory.make_optimizer(
    config.train.num_steps, **config.optimizer.to_dict()
  )
  step = step_lib.make_train_step(
    embed,
    loss,
    optimizer,
    num_chunks=config.train.num_chunks,
    ema_decay=config.train.ema_decay,
  )
  writer = metric_writer.MetricWriter(
    workdir, headline=('loss', 'recall_at_1', 'scale')
  )
  checkpoints = checkpoint.open_checkpoints(config, workdir)
  try:
    loop.train(
      state_lib.init_state(
        params, state, optimizer.init, jax.random.key(config.seed + 1)
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
      id_keys=id_keys,
    )
  finally:
    checkpoints.close()
    writer.close()
