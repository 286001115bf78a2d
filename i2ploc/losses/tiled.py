# SPDX-License-Identifier: Apache-2.0
"""The losses of `contrastive` in memory linear in the batch.

The way forward keeps a few numbers per row and per column, which columns gather
tile by tile, and the way back computes every tile again (Cheng et al., Breaking
the Memory Barrier, 2024, arXiv 2410.17243).

Of InfoNCE, with S = scale a @ b^T, A_i the log-sum of the exponentials of
the negatives of row i, n_i its positives and R the rows that have any, the
rows' half of the gradient by S is

  -1/(2 R n_i) sigmoid(A_i - S_ij)  at positives,
  w_i exp(S_ij - A_i)  at negatives, w_i = 1/(2 R n_i) sum_p sigmoid(A_i - S_ip)
    over the positives p,

and the columns' half is the same of S^T. Rows see all of their negatives before
their positives in one sweep; for columns that takes a second one.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.losses import tiles

# Below all logits: a maximum of nothing whose differences are no NaN.
_LOWEST = -1e30


class _Margins(NamedTuple):
  """Of rows or columns, [N]: see the module.

  Attributes:
    bound: A, log-sum of the exponentials of negatives; -inf without any.
    share: 1/(2 R n) of each of the n positives; 0 without any.
    push: w.
  """

  bound: jax.Array
  share: jax.Array
  push: jax.Array


def _pull(logits, bound, positive, axis):
  """Sums over positives: -log(e^s / (e^s + e^A)), and its slopes by A."""
  gap = bound - logits
  loss = jax.nn.softplus(gap).sum(axis, where=positive)
  return loss, jax.nn.sigmoid(gap).sum(axis, where=positive)


def _share(num_positive, num_groups):
  share = 0.5 / jnp.maximum(num_groups * num_positive, 1)
  return jnp.where(num_positive > 0, share, 0.0)


def _negatives(tiling, block, scale):
  """First sweep: all of the rows, and the bounds of the columns."""

  def body(columns, tile):
    logits = scale * tile.similarities
    negatives = jnp.where(tile.negative, logits, -jnp.inf)
    bound = jax.nn.logsumexp(negatives, axis=1)
    pull = _pull(logits, bound[:, None], tile.positive, 1)
    highest, total, count = columns
    higher = jnp.maximum(highest, negatives.max(0))
    total = total * jnp.exp(highest - higher)
    total += jnp.exp(negatives - higher).sum(0)
    count += tile.positive.sum(0)
    return (higher, total, count), (bound, pull, tiles.seen(tile))

  zero = jnp.zeros(len(block.columns))
  start = (jnp.full_like(zero, _LOWEST), zero, zero)
  return tiles.scan(body, start, tiling, block)


def _positives_of_columns(tiling, block, scale, bound):
  """Second sweep: see `_pull`."""

  def body(total, tile):
    pull = _pull(scale * tile.similarities, bound, tile.positive, 0)
    return jax.tree.map(jnp.add, total, pull), None

  zero = jnp.zeros(len(block.columns))
  total, _ = tiles.scan(body, (zero, zero), tiling, block)
  return tiles.over_devices(total, tiling)


def _info_nce_forward(tiling, block, factors):
  (scale,) = factors
  columns, (bound, pull, seen) = _negatives(tiling, block, scale)
  highest, total, count = columns
  if tiling.axis_name is not None:
    higher = jax.lax.pmax(highest, tiling.axis_name)
    total, highest = total * jnp.exp(highest - higher), higher
  total, count = tiles.over_devices((total, count), tiling)
  column_bound = highest + jnp.log(total)
  column_pull = _positives_of_columns(tiling, block, scale, column_bound)
  num_rows = tiles.over_devices((seen['num_positive'] > 0).sum(), tiling)
  row_share = _share(seen['num_positive'], num_rows)
  column_share = _share(count, (count > 0).sum())
  loss = tiles.over_devices((row_share * pull[0]).sum(), tiling)
  loss += (column_share * column_pull[0]).sum()
  rows = _Margins(bound, row_share, row_share * pull[1])
  columns = _Margins(column_bound, column_share, column_share * column_pull[1])
  metrics = tiles.metrics(seen, tiling) | {'scale': scale}
  return (loss, metrics), (rows, columns)


def _info_nce_backward(tiling, block, factors, margins):
  (scale,) = factors
  rows, columns = margins

  def slope(tile):
    logits = scale * tile.similarities
    rows = jax.tree.map(lambda x: x[:, None], tile.known)
    sides = [(side, jnp.exp(logits - side.bound)) for side in (rows, columns)]
    pull = sum(side.share / (1 + odds) for side, odds in sides)
    push = sum(side.push * odds for side, odds in sides)
    # Where push is no number there are no negatives to be pushed.
    return jnp.where(tile.positive, -pull, jnp.where(tile.negative, push, 0.0))

  by_rows, by_columns, by_scale, _ = tiles.slopes(
    slope, tiling, block, scale, rows
  )
  return by_rows, by_columns, (by_scale,)


def _sigmoid_forward(tiling, block, factors):
  scale, bias = factors

  def body(carry, tile):
    logits = scale * tile.similarities + bias
    losses = jax.nn.softplus(jnp.where(tile.positive, -logits, logits))
    losses = losses.sum(1, where=tile.positive | tile.negative)
    return carry, (losses, tiles.seen(tile))

  _, (losses, seen) = tiles.scan(body, None, tiling, block)
  loss = tiles.over_devices(losses.sum(), tiling) / len(block.columns)
  metrics = tiles.metrics(seen, tiling) | {'scale': scale, 'bias': bias}
  return (loss, metrics), ((), ())


def _sigmoid_backward(tiling, block, factors, nothing):
  del nothing
  scale, bias = factors

  def slope(tile):
    logits = scale * tile.similarities + bias
    wrong = jax.nn.sigmoid(jnp.where(tile.positive, -logits, logits))
    push = jnp.where(tile.negative, wrong, 0.0)
    return jnp.where(tile.positive, -wrong, push) / len(block.columns)

  by_rows, by_columns, *by_factors = tiles.slopes(slope, tiling, block, scale)
  return by_rows, by_columns, tuple(by_factors)


class Form(NamedTuple):
  """A loss and its gradient, over the tiles of a block.

  Attributes:
    forward: `tiling, block, factors -> (loss, metrics), (of_rows, of_columns)`;
      the latter is what the way back needs, pytrees of [R, ...] and [B, ...].
    backward: `tiling, block, factors, (of_rows, of_columns) -> by_rows [R, D],
      by_columns [B, D], by_factors`; by_columns is this device's part of a sum.
  """

  forward: Callable
  backward: Callable


INFO_NCE = Form(_info_nce_forward, _info_nce_backward)
SIGMOID = Form(_sigmoid_forward, _sigmoid_backward)


def _compute(form, tiling, block, *factors):
  loss = tiles.differentiable(
    functools.partial(form.forward, tiling),
    functools.partial(form.backward, tiling),
  )
  return loss(block, *factors)


def info_nce(
  a: jax.Array,
  b: jax.Array,
  scale: jax.Array | float,
  places: tiles.Places | None = None,
  *,
  tile: int = 128,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`contrastive.info_nce` of form 'clip', its metrics without gradient.

  >>> a = jnp.eye(3)
  >>> loss, _ = info_nce(a, a, scale=10.0, tile=2)
  >>> round(float(loss), 6)
  9.1e-05

  Relations are asked for tile by tile, here whether two places are within 5 m:

  >>> def relate(a, b):
  ...   return jnp.where(jnp.abs(a[:, None] - b) < 5.0, 1, -1)
  >>> metres = jnp.array([0.0, 3.0, 60.0])
  >>> places = tiles.Places(relate, metres, metres)
  >>> loss, _ = info_nce(a, a, scale=10.0, places=places, tile=2)
  >>> round(float(loss), 3)
  0.231

  Args:
    a: [B, D] unit norm.
    b: [B, D] unit norm; its row i was paired with that of a.
    scale: inverse temperature.
    places: who is near whom; None: pairs (i, i) are positive and all others
      negative.
    tile: rows compared at once; need not divide B.

  Returns:
    See `contrastive.info_nce`.

  Raises:
    InputError: see `tiles.cut`.
  """
  return _compute(INFO_NCE, *tiles.cut(a, b, places, tile), scale)


def sigmoid(
  a: jax.Array,
  b: jax.Array,
  scale: jax.Array | float,
  bias: jax.Array | float,
  places: tiles.Places | None = None,
  *,
  tile: int = 128,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`contrastive.sigmoid`, its metrics without gradient.

  >>> a = jnp.eye(3)
  >>> loss, _ = sigmoid(a, a, scale=10.0, bias=-5.0, tile=2)
  >>> round(float(loss), 4)
  0.0201

  Args:
    a: [B, D] unit norm.
    b: [B, D] unit norm.
    scale: on the similarities.
    bias: see `contrastive.sigmoid`.
    places: see `info_nce`.
    tile: see `info_nce`.

  Returns:
    See `contrastive.sigmoid`.

  Raises:
    InputError: see `tiles.cut`.
  """
  return _compute(SIGMOID, *tiles.cut(a, b, places, tile), scale, bias)
