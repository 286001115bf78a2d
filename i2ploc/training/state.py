# SPDX-License-Identifier: Apache-2.0
"""What a training run carries from one step to the next.

Everything the next step depends on is in `TrainState`, except the position in
the data, which belongs to the iterator and is saved beside it: the state and
the iterator's position together continue a run bit for bit.

Beside the model's parameters there may be those of the loss, such as a
classifier's weights, below the key `loss`. They train like the others, but are
neither averaged nor evaluated nor published.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class TrainState(NamedTuple):
  """A training run between two steps.

  Attributes:
    step: [] int32, the number of finished steps.
    params: parameters of the model and, below `loss`, of the loss, float32.
    model_state: the model's other variable collections, such as
      `{'batch_stats': ...}`; `{}` for most models.
    opt_state: the optimizer's state.
    ema_params: exponential moving average of the model's parameters; what is
      evaluated, indexed and published.
    key: PRNG key of the run. It never changes: a step uses
      `fold_in(key, step)`.
  """

  step: jax.Array
  params: PyTree
  model_state: PyTree
  opt_state: PyTree
  ema_params: PyTree
  key: jax.Array


def init_state(
  params: PyTree,
  model_state: PyTree,
  init_optimizer: Callable[[PyTree], PyTree],
  key: jax.Array,
) -> TrainState:
  """Returns the state before the first step.

  The arrays are copied, because the train step donates the state: the caller's
  `params` stay usable, and `ema_params` is not the same buffer as `params`.

  Args:
    params: parameters to start from.
    model_state: other variable collections, `{}` if there are none.
    init_optimizer: `optimizer.init`.
    key: PRNG key from which every step's key is derived.

  Returns:
    The state, at step 0.
  """
  params = jax.tree.map(_copy, params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=jax.tree.map(_copy, model_state),
    opt_state=init_optimizer(params),
    ema_params=jax.tree.map(_copy, model_params(params)),
    key=jnp.copy(key),
  )


def model_params(params: PyTree) -> PyTree:
  """Returns the parameters without those of the loss.

  Args:
    params: dictionary of parameters, or of anything about them.
  """
  return {name: below for name, below in params.items() if name != 'loss'}


def averaged_variables(state: TrainState) -> dict[str, PyTree]:
  """Returns the linen variables that are evaluated: the averaged parameters.

  Nothing of the loss is among them.

  Args:
    state: any state.

  Returns:
    `{'params': ema_params, **model_state}`, for `model.apply`.
  """
  return {'params': state.ema_params, **state.model_state}


def _copy(leaf: jax.Array) -> jax.Array:
  return jnp.array(leaf, copy=True)
