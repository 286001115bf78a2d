# SPDX-License-Identifier: Apache-2.0
"""Pairs of a batch a tile of rows at a time, for `tiled`.

Rows are compared with all columns, some rows at once, and nothing of a tile
outlives it: a matrix of all pairs, of their similarities or of who is near
whom, never exists. On several devices each has a block of rows, and all
columns: what is summed over rows is then summed over devices as well.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.losses import contrastive

PyTree = Any


class Places(NamedTuple):
  """Who is near whom, for a tile at a time.

  Attributes:
    relate: `places of a, places of b -> [T, B]` in {+1, 0, -1}, of T rows of
      the one with all of the other. It may use traced arrays only through
      these arguments.
    a: pytree of [B, ...], what is known of where the readings of a were taken.
    b: pytree of [B, ...], the same of b.
  """

  relate: Callable[[PyTree, PyTree], jax.Array]
  a: PyTree
  b: PyTree


class Tiling(NamedTuple):
  """How a batch is cut: static values, no traced arrays.

  Attributes:
    size: rows of a tile; of its float32 temporaries there are about three.
    relate: see `Places`.
    axis_name: mesh axis over which rows are spread; None: this device has all.
  """

  size: int
  relate: Callable[[PyTree, PyTree], jax.Array]
  axis_name: str | None = None


class Block(NamedTuple):
  """Rows that a device compares with all columns.

  Attributes:
    rows: [R, D] descriptors of a.
    columns: [B, D] descriptors of b.
    row_places: pytree of [R, ...], see `Places`.
    column_places: pytree of [B, ...].
  """

  rows: jax.Array
  columns: jax.Array
  row_places: PyTree
  column_places: PyTree


class Tile(NamedTuple):
  """Some rows [T, D] against all columns, and what is known per row [T]."""

  rows: jax.Array
  similarities: jax.Array
  positive: jax.Array
  negative: jax.Array
  known: PyTree


def scan(
  body: Callable[[PyTree, Tile], tuple[PyTree, PyTree]],
  carry: PyTree,
  tiling: Tiling,
  block: Block,
  known: PyTree = None,
) -> tuple[PyTree, PyTree]:
  """Scans over tiles of rows.

  Args:
    body: `carry, tile -> carry, found`, with leaves [T, ...] of `found`.
    carry: to start with.
    tiling: see the class.
    block: see the class.
    known: pytree of [R, ...], handed out with the rows.

  Returns:
    The last carry, and what was found, [R, ...].
  """
  num_rows = len(block.rows)
  size = min(tiling.size, num_rows)
  num_tiles = -(-num_rows // size)

  def fold(x):
    padding = [(0, num_tiles * size - num_rows)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(num_tiles, size, *x.shape[1:])

  def step(carry, given):
    index, rows, places, known = given
    relations = tiling.relate(places, block.column_places)
    # The last tile may reach beyond the rows.
    relations = jnp.where(index[:, None] < num_rows, relations, 0)
    similarities = _product(rows, block.columns.T)
    tile = Tile(rows, similarities, relations > 0, relations < 0, known)
    return body(carry, tile)

  index = jnp.arange(num_tiles * size).reshape(num_tiles, size)
  given = jax.tree.map(fold, (block.rows, block.row_places, known))
  carry, found = jax.lax.scan(step, carry, (index, *given))
  found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], found)
  return carry, found


def cut(
  a: jax.Array, b: jax.Array, places: Places | None, tile: int
) -> tuple[Tiling, Block]:
  """The whole batch as one block, in float32.

  Args:
    a: [B, D].
    b: [B, D]; its row i was paired with that of a.
    places: None: pairs (i, i) are positive and all others negative.
    tile: rows compared at once; need not divide B.

  Raises:
    InputError: shapes that do not fit, or a tile without rows.
  """
  contrastive.check_pairs(a, b)
  if tile < 1:
    raise InputError(f'tile={tile}: expected at least one row')
  if places is None:
    row = jnp.arange(len(a))
    places = Places(_paired_alone, row, row)
  for leaf in jax.tree.leaves((places.a, places.b)):
    if jnp.shape(leaf)[:1] != a.shape[:1]:
      raise InputError(
        f'places of shape {jnp.shape(leaf)}: expected {len(a)} rows, one '
        'per descriptor'
      )
  rows, columns = a.astype(jnp.float32), b.astype(jnp.float32)
  block = Block(rows, columns, places.a, places.b)
  return Tiling(tile, places.relate), block


def _paired_alone(row, column):
  return jnp.where(row[:, None] == column, 1, -1)


def _product(x, y):
  return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def over_devices(x: PyTree, tiling: Tiling) -> PyTree:
  """Sums what every device has summed over its own rows."""
  return x if tiling.axis_name is None else jax.lax.psum(x, tiling.axis_name)


def seen(tile: Tile) -> dict[str, jax.Array]:
  """What the metrics need of each row of a tile, [T]."""
  similarities, found = tile.similarities, {}
  for name, where in ('positive', tile.positive), ('negative', tile.negative):
    found |= {
      f'best_{name}': similarities.max(1, where=where, initial=-jnp.inf),
      f'sum_{name}': similarities.sum(1, where=where),
      f'num_{name}': where.sum(1).astype(jnp.float32),
    }
  return found


def metrics(seen: dict[str, jax.Array], tiling: Tiling) -> dict:
  """See `contrastive.batch_metrics`."""
  hit = seen['best_positive'] > seen['best_negative']
  sums = {name: x.sum() for name, x in seen.items() if 'best' not in name}
  has_positive = seen['num_positive'] > 0
  counts = {'hit': hit.sum(), 'row': has_positive.sum()}
  total = over_devices(sums | counts, tiling)

  def mean(name):
    return total[f'sum_{name}'] / jnp.maximum(total[f'num_{name}'], 1)

  return {
    'recall_at_1': total['hit'] / jnp.maximum(total['row'], 1),
    'positive_similarity': mean('positive'),
    'negative_similarity': mean('negative'),
  }


def slopes(
  slope: Callable[[Tile], jax.Array],
  tiling: Tiling,
  block: Block,
  scale: jax.Array,
  known: PyTree = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Gradients by the descriptors, and by scale and bias of the logits.

  Args:
    slope: `tile -> [T, B]`, gradient by the logits.
    tiling: see the class.
    block: see the class.
    scale: logits are this times the similarities, plus a bias.
    known: see `scan`.

  Returns:
    [R, D] by the rows, [B, D] by the columns (this device's part), and two
    scalars.
  """

  def body(total, tile):
    by_logits = slope(tile)
    total += _product(by_logits.T, tile.rows)
    return total, (_product(by_logits, block.columns), by_logits.sum(1))

  zeros = jnp.zeros_like(block.columns)
  by_columns, (by_rows, by_bias) = scan(body, zeros, tiling, block, known)
  factors = (by_rows * block.rows).sum(), by_bias.sum()
  by_scale, by_bias = over_devices(factors, tiling)
  return scale * by_rows, scale * by_columns, by_scale, by_bias


def differentiable(forward: Callable, backward: Callable) -> Callable:
  """A loss whose gradient is computed by its own function.

  Args:
    forward: `block, factors -> (loss, metrics), kept`.
    backward: `block, factors, kept -> by_rows, by_columns, by_factors`.

  Returns:
    `block, *factors -> loss, metrics`; the metrics have no gradient.
  """

  @jax.custom_vjp
  def loss(block, *factors):
    return forward(block, factors)[0]

  def keep(block, *factors):
    result, kept = forward(block, factors)
    return result, (block, factors, kept)

  def gradient(residuals, cotangents):
    by_result = cotangents[0]
    found = jax.tree.map(lambda x: by_result * x, backward(*residuals))
    by_rows, by_columns, by_factors = found
    return Block(by_rows, by_columns, None, None), *by_factors

  loss.defvjp(keep, gradient)
  return lambda block, *factors: loss(
    block, *(jnp.asarray(x, jnp.float32) for x in factors)
  )
