# SPDX-License-Identifier: Apache-2.0
"""One optimization step, with a gradient cache for batches beyond memory.

A contrastive loss needs the embeddings of the whole batch at once, its encoder
does not. With `num_chunks > 1` the batch is encoded chunk by chunk without
keeping activations, the loss sees all embeddings, and the backward pass encodes
every chunk again: gradients of the full batch at the memory of one chunk and
about 1.33 times the encoder's cost (Gao et al., Scaling deep contrastive
learning batch size under memory limited setup, 2021). Averaging the gradients
of small batches instead would lose the negatives that cross chunks.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.training import optimizer as optimizer_lib
from i2ploc.training import state as state_lib

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Embed = Callable[[PyTree, PyTree, Batch, jax.Array], tuple[PyTree, PyTree]]
Loss = Callable[[PyTree, PyTree, Batch], tuple[jax.Array, Metrics]]
TrainStep = Callable[
  [state_lib.TrainState, Batch], tuple[state_lib.TrainState, Metrics]
]


def make_train_step(
  embed: Embed,
  loss: Loss,
  optimizer: optimizer_lib.Optimizer,
  *,
  ema_decay: float,
  num_chunks: int = 1,
) -> TrainStep:
  """Returns the jitted train step; it donates the state it is given.

  Only what trains, see `optimizer.Optimizer`, is differentiated, and the rest
  stays as it is to the bit, as does its average.

  The step's key is `fold_in(state.key, step)`, and chunk i's key is split from
  it, the same in both encodings. The moving average starts as a plain one:
  its decay is `min(ema_decay, (1 + step) / (10 + step))`. Embeddings may come
  in bfloat16 (the compute type is the model's attribute); they reach the loss
  in float32, and parameters, gradients and optimizer state are float32.

  Args:
    embed: `params, model_state, batch, key -> embeddings, model_state`, the
      embeddings a pytree whose leaves have the batch as leading axis.
    loss: `params, embeddings, batch -> scalar, metrics`, over the whole batch.
    optimizer: see `optimizer.make_optimizer`.
    ema_decay: decay of the parameters' moving average, in [0, 1).
    num_chunks: pieces in which the batch is encoded; 1 encodes it at once.

  Returns:
    `state, batch -> state, metrics`. Metrics are those of `loss` and `loss`,
    `gradient_norm` (of what trains, before clipping), `update_norm`,
    `learning_rate` and `all_finite`. While tracing it raises ValueError if
    `num_chunks` does not divide the batch, or if it is above 1 and the model
    keeps batch statistics, which would depend on the chunk.

  Raises:
    InputError: `ema_decay` or `num_chunks` is out of range.
  """
  if not 0 <= ema_decay < 1 or num_chunks < 1:
    raise InputError(
      f'ema_decay={ema_decay} must be in [0, 1) and num_chunks={num_chunks}'
      ' at least 1.'
    )

  def objective(trained, frozen, model_state, batch, key):
    params = optimizer_lib.join(trained, frozen)
    if num_chunks > 1:
      _check_chunks(model_state, batch, num_chunks)
      embeddings = _embed_chunks(
        embed, num_chunks, params, model_state, batch, key
      )
    else:
      embeddings, model_state = embed(params, model_state, batch, key)
    value, metrics = loss(params, jax.tree.map(_float32, embeddings), batch)
    return value, (metrics, model_state)

  def train_step(state, batch):
    key = jax.random.fold_in(state.key, state.step)
    flags = optimizer.trains(state.params)
    trained, frozen = optimizer_lib.split(state.params, flags)
    grad = jax.value_and_grad(objective, has_aux=True)
    (value, (metrics, model_state)), gradients = grad(
      trained, frozen, state.model_state, batch, key
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    params = optimizer_lib.join(optax.apply_updates(trained, updates), frozen)
    metrics = metrics | {
      'loss': value,
      'gradient_norm': optax.tree.norm(gradients),
      'update_norm': optax.tree.norm(updates),
      'learning_rate': jnp.asarray(optimizer.learning_rate(state.step)),
    }
    norms = (value, metrics['gradient_norm'], metrics['update_norm'])
    metrics['all_finite'] = jnp.isfinite(jnp.stack(norms)).all()
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))

    def average(moves, new, old):
      return optax.incremental_update(new, old, 1 - decay) if moves else old

    new_state = state_lib.TrainState(
      step=state.step + 1,
      params=params,
      model_state=model_state,
      opt_state=opt_state,
      ema_params=jax.tree.map(
        average,
        state_lib.model_params(flags),
        state_lib.model_params(params),
        state.ema_params,
      ),
      key=state.key,
    )
    return new_state, metrics

  return compilation.jit(train_step, donate_argnums=0)


def _embed_chunks(embed, num_chunks, params, model_state, batch, key):
  """Embeds [B, ...] as a scan over [num_chunks, B / num_chunks, ...]."""

  # A scan already keeps XLA from merging the two encodings of a chunk.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def encode(params, chunk, key):
    return embed(params, model_state, chunk, key)[0]

  def body(_, chunk_and_key):
    return None, encode(params, *chunk_and_key)

  chunks = jax.tree.map(
    lambda x: x.reshape(num_chunks, -1, *x.shape[1:]), batch
  )
  keys = jax.random.split(key, num_chunks)
  _, embeddings = jax.lax.scan(body, None, (chunks, keys))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), embeddings)


def _check_chunks(model_state, batch, num_chunks):
  """Raises ValueError if encoding in chunks would not be exact."""
  if jax.tree.leaves(model_state):
    raise InputError(
      f'num_chunks={num_chunks}, but the model keeps'
      f' {sorted(model_state)}, which would be computed per chunk and not over'
      ' the batch: use num_chunks=1, or a model with layer or group'
      ' normalization or with frozen statistics.'
    )
  for name, size in sorted((k, jnp.shape(v)[0]) for k, v in batch.items()):
    if size % num_chunks:
      raise InputError(
        f'The batch holds {size} rows of {name!r}, which num_chunks='
        f'{num_chunks} does not divide: choose a divisor of the batch size.'
      )


def _float32(x):
  return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
