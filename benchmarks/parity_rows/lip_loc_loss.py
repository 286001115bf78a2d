# SPDX-License-Identifier: Apache-2.0
"""The loss of LIP-Loc against its released form."""

import jax
import numpy as np

from benchmarks.parity_rows import comparison
from i2ploc.losses import soft_targets as soft_targets_lib

Comparison = comparison.Comparison


def soft_targets(path):
  """Embeddings of several lengths, and those of the released heads.

  Where they are long the gradients reach far beyond 1.
  """
  golden = np.load(path)
  names = {name.rpartition('/')[0] for name in golden.files}

  def loss(image, points):
    return soft_targets_lib.soft_targets(image, points)[0]

  loss = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  for case in sorted(n for n in names if n.startswith('loss_only/')):
    image, points = (golden[f'{case}/{s}_emb'] for s in ('camera', 'lidar'))
    value, gradients = loss(image, points)
    expected = golden[f'{case}/loss_float64']
    yield Comparison('value', value, expected, 1e-6)
    expected = tuple(
      golden[f'{case}/grad_{s}_float64'] for s in ('camera', 'lidar')
    )
    yield Comparison('gradients', gradients, expected, 1e-6)
  for head in ('head_small', 'head_256'):
    for size in (1, 2, 5, 8):
      case = f'{head}/B{size}'
      image, points = (golden[f'{case}/{s}_emb'] for s in ('camera', 'lidar'))
      expected = golden[f'{case}/loss_float64']
      yield Comparison(
        "value, heads' embeddings", loss(image, points)[0], expected, 1e-6
      )


MODULES = (comparison.Module('LIP-Loc loss', 'liploc_model.npz', soft_targets),)
