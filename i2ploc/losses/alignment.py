# SPDX-License-Identifier: Apache-2.0
"""Alignment: one side learns to give the descriptors of the other.

The other side is frozen: a model that exists already, whose descriptors are
targets. Afterwards either side answers the other's queries.
"""

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.losses import contrastive

SIDES = ('a', 'b')


def check_frozen(frozen: str) -> None:
  """Raises InputError unless `frozen` names a side."""
  if frozen not in SIDES:
    raise InputError(f'frozen={frozen!r}: expected one of {SIDES}')


def alignment(
  a: jax.Array,
  b: jax.Array,
  relations: jax.Array | None = None,
  *,
  frozen: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean squared difference of paired rows, over all B D numbers.

  >>> a, b = jnp.eye(2), jnp.ones((2, 2))
  >>> loss, _ = alignment(a, b, frozen='a')
  >>> float(loss)
  0.5
  >>> jax.grad(lambda a: alignment(a, b, frozen='a')[0])(a).tolist()
  [[0.0, 0.0], [0.0, 0.0]]

  Args:
    a: [B, D].
    b: [B, D]; its row i was paired with that of a.
    relations: [B, B] in {+1, 0, -1}, a_i to b_j; for the metrics alone. None:
      pairs (i, i) are positive and all others negative.
    frozen: 'a' or 'b', the side without gradient.

  Returns:
    The loss.
    Metrics: those of `contrastive.batch_metrics`.

  Raises:
    InputError: another side, or shapes that do not fit.

  References:
    Berton et al., MeshVPR, ECCV 2024.
  """
  check_frozen(frozen)
  similarities, relations = contrastive.compare(a, b, relations)
  a, b = (
    jax.lax.stop_gradient(rows) if side == frozen else rows
    for side, rows in zip(SIDES, (a, b), strict=True)
  )
  difference = a.astype(jnp.float32) - b.astype(jnp.float32)
  metrics = contrastive.batch_metrics(similarities, relations)
  return (difference**2).mean(), metrics
