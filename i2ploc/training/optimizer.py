# SPDX-License-Identifier: Apache-2.0
"""AdamW with warm-up, cosine decay and clipping by the global norm."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import optax

PyTree = Any


class Optimizer(NamedTuple):
  """An `optax.GradientTransformation` that also tells its learning rate.

  Attributes:
    init: `params -> opt_state`.
    update: `gradients, opt_state, params -> updates, opt_state`.
    learning_rate: `step -> learning rate`, for the metrics.
  """

  init: Callable
  update: Callable
  learning_rate: Callable


def make_optimizer(
  learning_rate: float,
  warmup_steps: int,
  num_steps: int,
  weight_decay: float,
  clip_norm: float,
  *,
  b2: float = 0.999,
  final_fraction: float = 0.0,
) -> Optimizer:
  """AdamW (Loshchilov and Hutter, 2019) with a warm-up and a cosine.

  The learning rate rises linearly from 0, reaches `learning_rate` at step
  `warmup_steps` and falls along half a cosine to
  `final_fraction * learning_rate` at `num_steps`. Gradients are scaled to a
  global norm of at most `clip_norm` before Adam sees them. Weight decay acts
  on the leaves named `kernel` only, which is how linen names the matrices of
  dense, convolution and attention layers: biases (of any rank), norm scales,
  tokens, position embeddings, cluster centres and temperatures stay free.

  Args:
    learning_rate: peak learning rate.
    warmup_steps: length of the warm-up, may be 0.
    num_steps: length of the run, warm-up included.
    weight_decay: decoupled decay per step, multiplied by the learning rate.
    clip_norm: largest global gradient norm.
    b2: decay of Adam's second moment.
    final_fraction: learning rate at the end relative to its peak.

  Returns:
    The optimizer.

  Raises:
    ValueError: the warm-up does not fit, or a number has no meaning.
  """
  if not 0 <= warmup_steps < num_steps:
    raise ValueError(
      f'warmup_steps is {warmup_steps} and num_steps is {num_steps}; the'
      ' warm-up has to end before the run does: lower warmup_steps.'
    )
  if learning_rate <= 0 or clip_norm <= 0 or weight_decay < 0:
    raise ValueError(
      f'learning_rate={learning_rate} and clip_norm={clip_norm} must be'
      f' positive and weight_decay={weight_decay} must not be negative.'
    )
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=learning_rate,
    warmup_steps=warmup_steps,
    decay_steps=num_steps,
    end_value=final_fraction * learning_rate,
  )
  transform = optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=decayed),
  )
  return Optimizer(transform.init, transform.update, schedule)


def decayed(params: PyTree) -> PyTree:
  """Tells which parameters weight decay acts on.

  Args:
    params: nested dictionaries of parameters.

  Returns:
    The same structure with True at the leaves named `kernel`.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: getattr(path[-1], 'key', None) == 'kernel', params
  )
