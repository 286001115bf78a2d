# SPDX-License-Identifier: Apache-2.0
"""The losses of `tiled` over the devices of a mesh.

Every device compares its own rows with all columns, which it gathers: their
descriptors are small beside what the encoders keep (32 MiB for 32,768 of width
256), and the tiles are not gathered at all. Sums over rows are then sums over
devices.

JAX never differentiates through a collective here, where a gradient that is a
factor off has many ways in: forward and backward are two maps over the mesh
that each say which sums they take, and the rule that joins them lies outside of
both.
"""

import functools

import jax

from i2ploc.errors import InputError
from i2ploc.losses import tiled
from i2ploc.losses import tiles


def _with_all_columns(block, axis_name):
  gather = functools.partial(
    jax.lax.all_gather, axis_name=axis_name, tiled=True
  )
  return block._replace(
    columns=gather(block.columns),
    column_places=jax.tree.map(gather, block.column_places),
  )


def _compute(form, mesh, axis_name, tiling, block, *factors):
  if axis_name not in mesh.shape:
    raise InputError(
      f'axis_name={axis_name!r}: the mesh has {list(mesh.shape)}'
    )
  if len(block.rows) % mesh.shape[axis_name]:
    raise InputError(
      f'{len(block.rows)} rows over {mesh.shape[axis_name]} devices: expected '
      'as many on each'
    )
  tiling = tiling._replace(axis_name=axis_name)

  def forward(block, factors):
    block = _with_all_columns(block, axis_name)
    return form.forward(tiling, block, factors)

  def backward(block, factors, kept):
    block = _with_all_columns(block, axis_name)
    by_rows, by_columns, by_factors = form.backward(
      tiling, block, factors, kept
    )
    by_columns = jax.lax.psum_scatter(by_columns, axis_name, tiled=True)
    return by_rows, by_columns, by_factors

  rows = jax.sharding.PartitionSpec(axis_name)
  same = jax.sharding.PartitionSpec()
  kept = (rows, same)
  # What is the same everywhere went through a sum over devices.
  spread = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
  loss = tiles.differentiable(
    spread(forward, in_specs=(rows, same), out_specs=(same, kept)),
    spread(backward, in_specs=(rows, same, kept), out_specs=(rows, rows, same)),
  )
  return loss(block, *factors)


def info_nce(
  a: jax.Array,
  b: jax.Array,
  scale: jax.Array | float,
  places: tiles.Places | None = None,
  *,
  mesh: jax.sharding.Mesh,
  axis_name: str,
  tile: int = 128,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`tiled.info_nce` of a batch whose rows are spread over an axis of a mesh.

  >>> mesh = jax.make_mesh(
  ...     (1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  >>> a = jax.numpy.eye(3)
  >>> loss, _ = info_nce(a, a, scale=10.0, mesh=mesh, axis_name='data', tile=2)
  >>> round(float(loss), 6)
  9.1e-05

  Args:
    a: [B, D] unit norm, of the whole batch; wherever it lies, it is moved to
      where it belongs.
    b: [B, D] unit norm.
    scale: inverse temperature.
    places: see `tiled.info_nce`.
    mesh: of devices.
    axis_name: of the mesh; its size must divide B.
    tile: rows that a device compares at once.

  Returns:
    See `contrastive.info_nce`.

  Raises:
    InputError: see `tiles.cut`, or a batch that cannot be spread.
  """
  pairs = tiles.cut(a, b, places, tile)
  return _compute(tiled.INFO_NCE, mesh, axis_name, *pairs, scale)


def sigmoid(
  a: jax.Array,
  b: jax.Array,
  scale: jax.Array | float,
  bias: jax.Array | float,
  places: tiles.Places | None = None,
  *,
  mesh: jax.sharding.Mesh,
  axis_name: str,
  tile: int = 128,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`tiled.sigmoid` of a batch whose rows are spread over an axis of a mesh.

  >>> mesh = jax.make_mesh(
  ...     (1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  >>> a = jax.numpy.eye(3)
  >>> mesh = dict(mesh=mesh, axis_name='data', tile=2)
  >>> loss, _ = sigmoid(a, a, scale=10.0, bias=-5.0, **mesh)
  >>> round(float(loss), 4)
  0.0201

  Args:
    a: [B, D] unit norm.
    b: [B, D] unit norm.
    scale: on the similarities.
    bias: see `contrastive.sigmoid`.
    places: see `tiled.info_nce`.
    mesh: see `info_nce`.
    axis_name: see `info_nce`.
    tile: see `info_nce`.

  Returns:
    See `contrastive.sigmoid`.

  Raises:
    InputError: see `info_nce`.
  """
  pairs = tiles.cut(a, b, places, tile)
  return _compute(tiled.SIGMOID, mesh, axis_name, *pairs, scale, bias)
