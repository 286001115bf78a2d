# SPDX-License-Identifier: Apache-2.0
"""AdamW, Muon for matrices, or SGD; warm-up, cosine decay, clipping."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import optax
from optax import contrib

from i2ploc.errors import InputError

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
  matrix_learning_rate: float = 0.0,
  factors: Mapping[str, float] | None = None,
  b2: float = 0.999,
  final_fraction: float = 0.0,
  momentum: float = 0.0,
  accumulation: int = 1,
) -> Optimizer:
  """AdamW (Loshchilov and Hutter, 2019), Muon (Jordan et al., 2024), or SGD.

  The learning rates rise linearly from 0, reach their peaks at step
  `warmup_steps` and fall along half a cosine to `final_fraction` of them at
  `num_steps`. Gradients are scaled to a global norm of at most `clip_norm`.
  Muon moves a matrix along its momentum made orthogonal, so that a step changes
  all directions alike instead of the few that dominate a small model's
  gradient. Weight decay acts on the leaves named `kernel` only, which is how
  linen names the matrices of dense, convolution and attention layers: biases
  (of any rank), norm scales, tokens, position embeddings, cluster centres and
  temperatures stay free.

  Args:
    learning_rate: peak of AdamW.
    warmup_steps: length of the warm-up, may be 0.
    num_steps: length of the run, warm-up included.
    weight_decay: decoupled decay per step, multiplied by the learning rate.
    clip_norm: largest global gradient norm.
    matrix_learning_rate: peak of Muon, which then moves the kernels; 0 leaves
      them to AdamW.
    factors: on the step of all parameters below a path: {'image': 0.1,
      'image/blocks_0': 0.0}; the longest path counts, 0 freezes.
    b2: decay of Adam's second moment.
    final_fraction: learning rate at the end relative to its peak.
    momentum: of SGD, which then moves everything at `learning_rate`, its decay
      added to the gradient; 0 leaves it to AdamW and Muon.
    accumulation: steps whose mean gradient makes one update. `warmup_steps` and
      `num_steps` count all of them.

  Returns:
    The optimizer; its `learning_rate` is AdamW's.

  Raises:
    InputError: the warm-up does not fit, or a number has no meaning.
  """
  _check_steps(warmup_steps, num_steps, accumulation)
  _check_rates(
    learning_rate, matrix_learning_rate, weight_decay, clip_norm, momentum
  )

  def schedule(peak):
    return optax.warmup_cosine_decay_schedule(
      init_value=0.0,
      peak_value=peak,
      warmup_steps=warmup_steps // accumulation,
      decay_steps=num_steps // accumulation,
      end_value=final_fraction * peak,
    )

  if momentum:
    descent = optax.chain(
      optax.add_decayed_weights(weight_decay, decayed),
      optax.sgd(schedule(learning_rate), momentum),
    )
  elif matrix_learning_rate:
    descent = contrib.muon(
      schedule(matrix_learning_rate),
      weight_decay=weight_decay,
      adam_b2=b2,
      adam_learning_rate=schedule(learning_rate),
      muon_weight_dimension_numbers=matrices,
    )
  else:
    descent = optax.adamw(
      schedule(learning_rate), b2=b2, weight_decay=weight_decay, mask=decayed
    )
  transforms = [optax.clip_by_global_norm(clip_norm), descent]
  if factors:
    transforms.append(_scaled(factors))
  transform = optax.chain(*transforms)
  if accumulation > 1:
    transform = optax.MultiSteps(transform, accumulation)
  rate = schedule(learning_rate)
  return Optimizer(
    transform.init, transform.update, lambda step: rate(step // accumulation)
  )


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


def matrices(params: PyTree) -> PyTree:
  """Tells which parameters are matrices, and along which axes.

  Args:
    params: nested dictionaries of parameters.

  Returns:
    The same structure: at kernels the axes that are summed over (all but the
    last; of three axes, one matrix per index of the first) and the last,
    elsewhere None.
  """

  def axes(is_kernel, leaf):
    if not is_kernel or leaf.ndim < 2:
      return None
    first = 1 if leaf.ndim == 3 else 0
    return contrib.MuonDimensionNumbers(
      tuple(range(first, leaf.ndim - 1)), (leaf.ndim - 1,)
    )

  return jax.tree.map(axes, decayed(params), params)


def _scaled(factors: Mapping[str, float]) -> optax.GradientTransformation:
  """Multiplies the steps of the parameters below some paths."""

  def factor(path):
    name = '/'.join(str(key.key) for key in path) + '/'
    below = [p for p in factors if name.startswith(p.rstrip('/') + '/')]
    return factors[max(below, key=len)] if below else 1.0

  def scale(updates, params):
    names = {
      '/'.join(str(key.key) for key in path) + '/'
      for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    for path in factors:
      if not any(name.startswith(path.rstrip('/') + '/') for name in names):
        raise InputError(
          f'optimizer factors name {path!r}, which no parameter lies below;'
          f' there are {sorted({n.split("/")[0] for n in names})}.'
        )
    return jax.tree_util.tree_map_with_path(
      lambda path, update: update * factor(path), updates
    )

  return optax.stateless(scale)


def _check_steps(warmup_steps, num_steps, accumulation):
  """Raises ValueError unless there are updates after the warm-up."""
  if not 0 <= warmup_steps < num_steps:
    raise InputError(
      f'warmup_steps is {warmup_steps} and num_steps is {num_steps}; the'
      ' warm-up has to end before the run does: lower warmup_steps.'
    )
  if not 1 <= accumulation <= num_steps - warmup_steps:
    raise InputError(
      f'accumulation={accumulation} must be at least 1, and at most the'
      f' {num_steps - warmup_steps} steps after the warm-up.'
    )


def _check_rates(
  learning_rate, matrix_learning_rate, weight_decay, clip_norm, momentum
):
  """Raises ValueError for numbers without meaning."""
  if not 0 <= momentum < 1 or (momentum and matrix_learning_rate):
    raise InputError(
      f'momentum={momentum} must be in [0, 1), and 0 if Muon moves the matrices'
      f' (matrix_learning_rate={matrix_learning_rate}).'
    )
  numbers = dict(
    weight_decay=weight_decay, matrix_learning_rate=matrix_learning_rate
  )
  if learning_rate <= 0 or clip_norm <= 0 or min(numbers.values()) < 0:
    raise InputError(
      f'learning_rate={learning_rate} and clip_norm={clip_norm} must be'
      f' positive and none of {numbers} negative.'
    )
