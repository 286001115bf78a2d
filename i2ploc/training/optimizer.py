# SPDX-License-Identifier: Apache-2.0
"""AdamW, Muon for matrices, or SGD; warm-up, cosine decay, clipping.

What does not train has no state and no gradient. Classifiers of groups of
classes, which take turns, have an Adam each.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import fnmatch
from typing import Any
from typing import NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from i2ploc.errors import InputError

PyTree = Any

# Where a loss keeps its parameters, and among them the classifiers of groups.
_LOSS = 'loss'
_CLASSES = 'loss/classes'
_MAX_LISTED = 24


class Optimizer(NamedTuple):
  """An `optax.GradientTransformation` of what trains.

  Attributes:
    init: `params -> opt_state`, of all parameters; the state holds nothing of
      those that do not train.
    update: `gradients, opt_state, params -> updates, opt_state`, all of what
      trains alone: the first part of `split(params, trains(params))`.
    learning_rate: `step -> learning rate`, for the metrics.
    trains: `params -> flags`, the same structure with True at what trains.
  """

  init: Callable
  update: Callable
  learning_rate: Callable
  trains: Callable


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
  trainable: Sequence[str] = (),
  class_learning_rate: float = 1e-2,
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

  Parameters below `loss/classes` are classifiers with a leading axis of groups:
  each group has its own Adam, see `per_group`, at a constant learning rate,
  without decay, and their gradients are not clipped with the others (Berton et
  al., Rethinking visual geo-localization for large-scale applications, 2022).

  Args:
    learning_rate: peak of AdamW.
    warmup_steps: length of the warm-up, may be 0.
    num_steps: length of the run, warm-up included.
    weight_decay: decoupled decay per step, multiplied by the learning rate.
    clip_norm: largest global gradient norm.
    matrix_learning_rate: peak of Muon, which then moves the kernels; 0 leaves
      them to AdamW.
    factors: on the step of all parameters below a path: {'image': 0.1,
      'image/blocks_0': 0.0}; the longest path counts, and what has 0 does not
      train.
    b2: decay of Adam's second moment.
    final_fraction: learning rate at the end relative to its peak.
    momentum: of SGD, which then moves everything at `learning_rate`, its decay
      added to the gradient; 0 leaves it to AdamW and Muon.
    accumulation: steps whose mean gradient makes one update. `warmup_steps` and
      `num_steps` count all of them; of a group's classifier, the steps in which
      it has a gradient.
    trainable: patterns of the model's parameters that train, as of `fnmatch`,
      in which * matches any number of names: ('image/blocks_11/*', '*norm*').
      All train if there is none. Those of a loss always do.
    class_learning_rate: of classifiers of groups.

  Returns:
    The optimizer; its `learning_rate` is AdamW's. Given parameters, it raises
    InputError for a factor or pattern that names none of them, or if nothing
    trains.

  Raises:
    InputError: the warm-up does not fit, or a number has no meaning.
  """
  _check_steps(warmup_steps, num_steps, accumulation)
  _check_rates(
    learning_rate,
    matrix_learning_rate,
    weight_decay,
    clip_norm,
    momentum,
    class_learning_rate,
  )
  factors = factors or {}

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
  scaled = [_scaled(factors)] if factors else []

  def finished(*transforms):
    transform = optax.chain(*transforms, *scaled)
    if accumulation > 1:
      transform = optax.MultiSteps(transform, accumulation)
    return transform

  rest = finished(*transforms)
  classes = per_group(finished(optax.adam(class_learning_rate)))

  def trains(params):
    return _trains(params, trainable, factors)

  def init(params):
    trained, _ = split(params, trains(params))
    of_classes, others = split(trained, _flags_below(_CLASSES, trained))
    if not of_classes:
      return rest.init(others)
    return {'rest': rest.init(others), 'classes': classes.init(of_classes)}

  def update(gradients, opt_state, params):
    flags = _flags_below(_CLASSES, params)
    of_classes, others = split(params, flags)
    if not of_classes:
      return rest.update(gradients, opt_state, params)
    for_classes, for_others = split(gradients, flags)
    moved, rest_state = rest.update(for_others, opt_state['rest'], others)
    turned, class_state = classes.update(
      for_classes, opt_state['classes'], of_classes
    )
    return join(moved, turned), {'rest': rest_state, 'classes': class_state}

  rate = schedule(learning_rate)
  return Optimizer(
    init, update, lambda step: rate(step // accumulation), trains
  )


def per_group(
  transform: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """An optimizer for each group, of which only those with a gradient move.

  In a step whose gradient is exactly zero at all parameters of a group, its
  parameters and its state stay as they are: moments do not decay and steps are
  not counted. One Adam for all groups would move the resting ones along their
  old momentum, and correct the bias of moments for steps without a gradient.

  Args:
    transform: of one group.

  Returns:
    The transformation of parameters [G, ...], as the G of one group each.
    `init` raises InputError if the parameters do not agree on G.
  """

  def init(params):
    sizes = {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape[:1]
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    if len(set(sizes.values())) > 1 or () in sizes.values():
      raise InputError(
        f'The first axes of parameters by group are {sizes}; expected the'
        ' number of groups everywhere.'
      )
    return jax.vmap(transform.init)(params)

  def update(updates, state, params=None):
    moves = jnp.stack(
      [(x != 0).any(range(1, x.ndim)) for x in jax.tree.leaves(updates)]
    ).any(0)

    def where_moving(new, old):
      return jnp.where(moves.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    updates, new_state = jax.vmap(transform.update)(updates, state, params)
    zeros = jax.tree.map(jnp.zeros_like, updates)
    return (
      jax.tree.map(where_moving, updates, zeros),
      jax.tree.map(where_moving, new_state, state),
    )

  return optax.GradientTransformation(init, update)


def split(params: PyTree, flags: PyTree) -> tuple[PyTree, PyTree]:
  """Parts nested dictionaries.

  Args:
    params: nested dictionaries.
    flags: the same structure, of bools.

  Returns:
    Nested dictionaries of the leaves that are flagged, and of the others.
  """
  flags = traverse_util.flatten_dict(flags, keep_empty_nodes=True)
  parts = {}, {}
  for path, leaf in traverse_util.flatten_dict(
    params, keep_empty_nodes=True
  ).items():
    parts[flags[path] is not True][path] = leaf
  chosen, others = map(traverse_util.unflatten_dict, parts)
  return chosen, others


def join(chosen: PyTree, others: PyTree) -> PyTree:
  """Puts the nested dictionaries together that `split` made."""
  flatten = traverse_util.flatten_dict
  return traverse_util.unflatten_dict(
    flatten(chosen, keep_empty_nodes=True)
    | flatten(others, keep_empty_nodes=True)
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

  def scale(updates, params):
    del params
    return _map_names(
      lambda name, update: update * _factor(factors, name), updates
    )

  return optax.stateless(scale)


def _factor(factors, name):
  """The factor of a parameter: that of the longest path it lies below."""
  below = [path for path in factors if _lies_below(path, name)]
  return factors[max(below, key=len)] if below else 1.0


def _trains(params, trainable, factors):
  """Flags what trains; raises InputError for names of nothing."""
  names = jax.tree.leaves(_map_names(lambda name, _: name, params))
  for path in factors:
    if not any(_lies_below(path, name) for name in names):
      raise InputError(
        f'optimizer factors name {path!r}, which no parameter lies below;'
        f' there are {sorted({n.split("/")[0] for n in names})}.'
      )
  for pattern in trainable:
    if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
      parts = sorted({'/'.join(name.split('/')[:2]) for name in names})
      more = f' and {len(parts) - _MAX_LISTED} more' * (
        len(parts) > _MAX_LISTED
      )
      raise InputError(
        f'optimizer.trainable holds {pattern!r}, which matches no parameter;'
        f' there are {parts[:_MAX_LISTED]}{more}: name some of them, with * for'
        ' what lies below.'
      )

  def flag(name, _):
    named = not trainable or _lies_below(_LOSS, name)
    named = named or any(fnmatch.fnmatchcase(name, p) for p in trainable)
    return named and _factor(factors, name) != 0

  flags = _map_names(flag, params)
  if not any(jax.tree.leaves(flags)):
    raise InputError(
      f'Nothing trains with trainable={tuple(trainable)} and factors='
      f'{dict(factors)}: name more, or raise a factor above 0.'
    )
  return flags


def _flags_below(path, params):
  return _map_names(lambda name, _: _lies_below(path, name), params)


def _lies_below(path, name):
  return f'{name}/'.startswith(path.rstrip('/') + '/')


def _map_names(function, params):
  """Maps `function(name, leaf)`, names being paths like image/norm/scale."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: function('/'.join(str(k.key) for k in path), leaf),
    params,
  )


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
  learning_rate,
  matrix_learning_rate,
  weight_decay,
  clip_norm,
  momentum,
  class_learning_rate,
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
  positive = dict(
    learning_rate=learning_rate,
    clip_norm=clip_norm,
    class_learning_rate=class_learning_rate,
  )
  if min(positive.values()) <= 0 or min(numbers.values()) < 0:
    raise InputError(
      f'{positive} must be positive and none of {numbers} negative.'
    )
