# SPDX-License-Identifier: Apache-2.0
"""Normalisation to unit length that survives the zero vector."""

import jax
import jax.numpy as jnp


def unit(
  x: jax.Array, axis: int | tuple[int, ...] = -1, epsilon: float = 1e-12
) -> jax.Array:
  """x / sqrt(|x|^2 + epsilon): zero stays zero, with a finite gradient.

  Args:
    x: any shape.
    axis: the axes that make up one vector.
    epsilon: squared length at which vectors start to shrink instead of being
      blown up; the gradient is at most epsilon**-0.5.

  Returns:
    The shape of `x`.
  """
  squared = jnp.sum(x * x, axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(squared + epsilon)
