# SPDX-License-Identifier: Apache-2.0
"""Normalisation: to unit length that survives the zero vector, and by batch."""

from flax import linen as nn
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


class BatchNorm(nn.Module):
  """Each channel by the batch in training, by running statistics otherwise.

  Ioffe and Szegedy, ICML 2015. The running variance is the unbiased one, as in
  the paper and in torch; `nn.BatchNorm` keeps the biased one, which for a batch
  of four descriptors is a quarter less.

  Attributes:
    momentum: share of the old running statistics that a step keeps.
    epsilon: added to variances.
    dtype: of the result; statistics are always float32.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Normalises x [..., D] over all its leading axes."""
    shape = x.shape[-1:]
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape)
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    x = x.astype(jnp.float32)
    mean, var = running_mean.value, running_var.value
    if train:
      axes = tuple(range(x.ndim - 1))
      mean, var = jnp.mean(x, axes), jnp.var(x, axes)
      if not self.is_initializing():
        count = x.size // x.shape[-1]
        unbiased = var * (count / max(count - 1, 1))
        keep, add = self.momentum, 1 - self.momentum
        running_mean.value = keep * running_mean.value + add * mean
        running_var.value = keep * running_var.value + add * unbiased
    y = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
    return y.astype(self.dtype)
