# SPDX-License-Identifier: Apache-2.0
"""Learned position embeddings on another grid, as torch resamples them.

`torch.nn.functional.interpolate(mode='bicubic', align_corners=False)` is two
different filters, and a checkpoint goes with one of them:
- antialias=True: cubic with a = -0.5, widened when shrinking, with weights that
  are normalised anew at the border (timm, DINOv2 with registers).
- antialias=False: cubic with a = -0.75, four taps whatever the scale, and the
  border repeated (ViT, DINOv2 and CLIP of Hugging Face).
`jax.image.resize` has the first alone. DINOv2's authors name torch a scale
instead of a size, for a target that is 0.1 larger than it is: samples then lie
closer by that share.
"""

import numpy as np

from i2ploc.errors import InputError

# The negative lobe of the cubic.
ANTIALIASED, PLAIN = -0.5, -0.75


def resample(
  position: np.ndarray,
  from_grid: tuple[int, int],
  to_grid: tuple[int, int],
  antialias: bool,
  offset: float = 0.0,
) -> np.ndarray:
  """Resamples embeddings bicubically.

  Args:
    position: [N, D], row-major over `from_grid`, without a CLS entry.
    from_grid: (rows, columns), N in all.
    to_grid: (rows, columns).
    antialias: which filter, see the module.
    offset: added to the target's size for the distance of its samples, see the
      module; not used where both grids are the same.

  Returns:
    [M, D] float64, row-major over `to_grid`.

  Raises:
    InputError: N embeddings do not make `from_grid`.
  """
  if len(position) != from_grid[0] * from_grid[1]:
    raise InputError(
      f'{len(position)} position embeddings do not make a grid of '
      f'{from_grid[0]} x {from_grid[1]}'
    )
  rows, columns = (
    _weights(size, target, antialias, offset if from_grid != to_grid else 0.0)
    for size, target in zip(from_grid, to_grid, strict=True)
  )
  grid = np.asarray(position, np.float64).reshape(*from_grid, -1)
  resampled = np.einsum('ih,jw,hwd->ijd', rows, columns, grid, optimize=True)
  return resampled.reshape(-1, grid.shape[-1])


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
  """Keys' kernel: 1 at 0, 0 at all other integers and beyond +-2."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _weights(
  size: int, target: int, antialias: bool, offset: float
) -> np.ndarray:
  """[target, size]: what each old sample adds to each new one."""
  # In float32 as torch has them: 37 samples at 73 places differ by 1e-5.
  scale = np.float32(size / (target + offset))
  center = (np.arange(target, dtype=np.float32) + 0.5) * scale - 0.5
  if antialias:
    apart = np.arange(size) - center[:, None]
    weights = _cubic(apart / max(scale, 1.0), ANTIALIASED)
    return weights / weights.sum(axis=1, keepdims=True)
  taps = np.floor(center).astype(int)[:, None] + np.arange(-1, 3)
  weights = np.zeros((target, size))
  np.add.at(
    weights,
    (np.arange(target)[:, None], np.clip(taps, 0, size - 1)),
    _cubic(taps - center[:, None], PLAIN),
  )
  return weights
