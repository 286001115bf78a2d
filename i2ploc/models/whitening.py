# SPDX-License-Identifier: Apache-2.0
"""PCA-whitening of descriptors as the head of a tower.

Jegou and Chum, Negative evidences and co-occurrences, ECCV 2012. What the
descriptors of a map have in common is taken away, and the directions that are
left count as much as they tell places apart. Learned from descriptors of the
map alone, without labels, see `fitting`.
"""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.models.encoders import normalization

# Part of the largest variance below which a direction is rounding.
_ROUNDING = 1e-10


class Fitted(NamedTuple):
  """Variables of a `Whitening`.

  Attributes:
    mean: [D].
    projection: [D, features].
  """

  mean: np.ndarray
  projection: np.ndarray


class Whitening(nn.Module):
  """(z - mean) P at unit length.

  Its variables, mean [D] and projection P [D, features], are of the collection
  'map'. Until they are fitted they are NaN, and so are the descriptors.

  >>> found = Fitted(mean=jnp.ones(2), projection=jnp.asarray([[1.0], [0.0]]))
  >>> variables = {'map': found._asdict()}
  >>> Whitening(1).apply(variables, jnp.asarray([[3.0, 7.0]])).tolist()
  [[1.0]]

  Attributes:
    features: width of the descriptor.
  """

  features: int

  @nn.compact
  def __call__(self, descriptor: jax.Array) -> jax.Array:
    """Maps [B, D] to [B, features]."""
    width = descriptor.shape[-1]

    def variable(name, *shape):
      return self.variable('map', name, jnp.full, shape, jnp.nan).value

    centered = descriptor - variable('mean', width)
    projection = variable('projection', width, self.features)
    return normalization.unit(centered @ projection)


def fit(descriptors: np.ndarray, features: int) -> Fitted:
  """PCA-whitening with variances shrunk as much as their number asks for.

  Few descriptors say little about small variances, and dividing by them would
  blow up noise. So every variance is drawn towards the mean of all by the
  share of Ledoit and Wolf (A well-conditioned estimator for large-dimensional
  covariance matrices, 2004), which follows from the descriptors: close to 0
  for many of them, close to 1 (no whitening, a PCA alone) for a few. The mean
  is that over the at most M - 1 directions in which M descriptors can differ.

  A small map still whitens badly: of 111 frames of one walk, R@1 of VLAD is
  92 % as it is and 91 % with 32 numbers, but 84 % with 64 and 81 % with 110.
  Take a quarter of the map's size, or many places.

  >>> rng = np.random.default_rng(0)
  >>> found = fit(rng.normal(size=(4000, 3)) * [1.0, 5.0, 0.2] + 7.0, 2)
  >>> gain = np.linalg.norm(found.projection.astype(float), axis=0)
  >>> found.mean.round().tolist(), gain.round(1).tolist()
  ([7.0, 7.0, 7.0], [0.2, 1.0])

  Args:
    descriptors: [M, D] of the map.
    features: number of directions that are kept, at most M - 1 and D.

  Raises:
    InputError: fewer than `features` directions in which descriptors differ,
      or descriptors that are not finite.
  """
  x = np.asarray(descriptors, np.float64)
  count, width = x.shape
  if not np.isfinite(x).all():
    raise InputError(
      'whitening: descriptors of the map are not finite; look for readings '
      'that are, and for weights that were not loaded'
    )
  mean = x.mean(axis=0)
  x = x - mean
  # Of the smaller of the two products; both have the same variances.
  tall = count > width
  product = (x.T @ x if tall else x @ x.T) / count
  variances, vectors = np.linalg.eigh(product)
  variances, vectors = np.maximum(variances[::-1], 0.0), vectors[:, ::-1]
  rank = int((variances > _ROUNDING * variances[0]).sum())
  rank = min(rank, count - 1) if variances[0] > 0 else 0
  if features > rank:
    raise InputError(
      f'whitening to {features} numbers needs descriptors that differ in '
      f'{features} directions; the {count} descriptors of {width} numbers that '
      f'the map gave differ in {rank}. Set features to at most {rank}, or take '
      'a larger map'
    )
  directions = vectors[:, :features]
  if not tall:
    directions = x.T @ directions
    directions /= np.linalg.norm(directions, axis=0)
  # The sign of an eigenvector is the library's choice: make it ours.
  largest = np.abs(directions).argmax(axis=0)
  directions *= np.sign(directions[largest, np.arange(features)])
  share = _shrinkage(x, variances)
  mean_variance = variances.sum() / _span(x)
  kept = (1 - share) * variances[:features] + share * mean_variance
  projection = directions / np.sqrt(kept)
  return Fitted(mean.astype(np.float32), projection.astype(np.float32))


def _span(x):
  """Number of directions in which x [M, D] can differ."""
  return min(x.shape[1], max(len(x) - 1, 1))


def _shrinkage(x, variances):
  """Ledoit and Wolf's share of the mean variance, of centred x [M, D]."""
  squared = (variances**2).sum()
  spread = squared - variances.sum() ** 2 / _span(x)
  error = ((x**2).sum(axis=1) ** 2).mean() - squared
  return float(np.clip(error / len(x) / max(spread, 1e-300), 0.0, 1.0))
