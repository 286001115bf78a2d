# SPDX-License-Identifier: Apache-2.0
"""Losses and gradients on eight devices and on one, as a process.

XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
  python -m tests.losses.eight_devices

Prints the largest difference of each case as JSON, relative beyond 1.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity_rows import comparison
from i2ploc.losses import sharded
from i2ploc.losses import tiled
from i2ploc.losses import tiles

SIZE, TILE = 8 * 5, 2
FACTORS = {'info_nce': (14.0,), 'sigmoid': (14.0, -3.0)}


def make_batch():
  """Descriptors, and relations that single rows and devices lack kinds of."""
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(2, SIZE, 6)).astype(np.float32)
  rows[1] += rows[0]
  rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
  relations = rng.integers(-1, 2, (SIZE, SIZE))
  relations[:10] = np.minimum(relations[:10], 0)
  relations[10:15] = 1
  relations[:, 7] = 0
  places = tiles.Places(
    lambda a, b: a[:, b], jnp.asarray(relations), jnp.arange(SIZE)
  )
  return rows, places


def compare(name: str, places: tiles.Places | None, rows, mesh) -> float:
  """Largest difference of the value, the metrics and all gradients."""

  def many(*args):
    given = dict(mesh=mesh, axis_name='data', tile=TILE)
    return getattr(sharded, name)(*args, places, **given)

  def one(*args):
    return getattr(tiled, name)(*args, places, tile=SIZE)

  args = *rows, *FACTORS[name]
  numbers = tuple(range(len(args)))
  results = [
    jax.jit(jax.value_and_grad(loss, numbers, has_aux=True))(*args)
    for loss in (many, one)
  ]
  return comparison.difference(*results)


def main() -> None:
  """Compares and prints."""
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows, places = make_batch()
  apart = {
    f'{name}, {kind}': compare(name, which, rows, mesh)
    for name in FACTORS
    for kind, which in (('pairs', None), ('ragged', places))
  }
  try:
    compare('info_nce', None, rows[:, :-1], mesh)
  except ValueError as error:
    apart['error'] = str(error)
  print(json.dumps(apart))


if __name__ == '__main__':
  main()
