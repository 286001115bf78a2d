# SPDX-License-Identifier: Apache-2.0
"""Relation consistency: both modalities should agree on who is near whom.

Each term compares a relation among the images of a batch with the same
relation among its point clouds, entry by entry, by the mean Huber loss
(delta 1). Distances are divided by their mean over pairs of different rows, so
only ratios count; angles need no scale.

Departs from the released code of SaliencyI2PLoc: the diagonal is exactly 0 and
stays out of the normalising mean (released: rounding noise enters it at
random); coincident rows have no direction and no gradient (released: gradients
of 1e10); a batch of one gives 0 (released: NaN).

References:
  Li et al., SaliencyI2PLoc, Information Fusion 118, 2025.
  Park et al., Relational Knowledge Distillation, CVPR 2019.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from i2ploc.geometry import hyperbolic

# Rows nearer than this are one row: differences of float32 descriptors below
# it are rounding noise, and so would be their direction.
_COINCIDENT = 1e-5

# Rows of a relation computed at once; with the gradient recomputed, memory is
# this times B (B + D), not B^2 D.
_ROWS = 16

Relation = Callable[[jax.Array, jax.Array], jax.Array]


def _by_rows(function: Callable, rows: jax.Array | tuple) -> jax.Array:
  first = jax.tree.leaves(rows)[0]
  size = min(_ROWS, first.shape[0])
  return jax.lax.map(jax.checkpoint(function), rows, batch_size=size)


def _normalized_distances(relation: Relation, rows: jax.Array) -> jax.Array:
  """[B, B] distances over their mean off the diagonal, which is exactly 0."""
  size = rows.shape[0]
  distances = _by_rows(lambda row: relation(row[None], rows), rows)
  mean = distances.sum() / max(size * (size - 1), 1)
  return distances / jnp.maximum(mean, _COINCIDENT)


def _disagreement(
  relation: Relation, image: jax.Array, points: jax.Array
) -> jax.Array:
  return optax.huber_loss(
    _normalized_distances(relation, image.astype(jnp.float32)),
    _normalized_distances(relation, points.astype(jnp.float32)),
  ).mean()


def _separation(a: jax.Array, b: jax.Array) -> jax.Array:
  """Euclidean distance [...], without gradient between coincident rows."""
  squared = jnp.sum((a - b) ** 2, -1)
  apart = squared > _COINCIDENT**2
  return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def euclidean_consistency(image: jax.Array, points: jax.Array) -> jax.Array:
  """Huber loss between the normalised Euclidean distances.

  Args:
    image: [B, D] descriptors.
    points: [B, E] descriptors, row i of the place of image i.

  Returns:
    Scalar, 0 for B = 1.
  """
  return _disagreement(_separation, image, points)


def _angles_at(row: jax.Array, rows: jax.Array) -> jax.Array:
  """Cosines [B, B] of the angles that pairs of rows span seen from `row`."""
  directions = rows - row
  length = _separation(rows, row)[:, None]
  apart = length > 0
  directions = jnp.where(apart, directions / jnp.where(apart, length, 1.0), 0.0)
  return jnp.matmul(
    directions, directions.T, precision=jax.lax.Precision.HIGHEST
  )


def angle_consistency(image: jax.Array, points: jax.Array) -> jax.Array:
  """Huber loss between the cosines of all angles among triplets of rows.

  A_ijk = u_ij . u_ik with u_ij the direction from row i to row j, 0 where i and
  j coincide; the mean is over all B^3 entries, computed corner by corner.

  Args:
    image: [B, D] descriptors.
    points: [B, E] descriptors, row i of the place of image i.

  Returns:
    Scalar, 0 for B = 1.
  """
  image, points = image.astype(jnp.float32), points.astype(jnp.float32)

  def corner(rows):
    image_row, points_row = rows
    return optax.huber_loss(
      _angles_at(image_row, image), _angles_at(points_row, points)
    ).mean()

  return _by_rows(corner, (image, points)).mean()


def hyperbolic_consistency(
  image_features: jax.Array,
  points_features: jax.Array,
  *,
  curvature: jax.Array | float,
  max_norm: float,
) -> jax.Array:
  """Huber loss between the normalised distances in the Poincare ball.

  Takes features BEFORE their normalisation: descriptors of unit norm all lie
  on one sphere of the ball, where the distance is a function of the Euclidean
  one (their ratio within 2.00 to 2.14 at curvature 0.1) and adds nothing.

  Args:
    image_features: [B, D], any length; clipped to `max_norm`.
    points_features: [B, E].
    curvature: c > 0 of the ball; may be learned.
    max_norm: longest tangent vector.

  Returns:
    Scalar, 0 for B = 1.
  """

  def in_ball(features):
    clipped = hyperbolic.clip_norm(features.astype(jnp.float32), max_norm)
    return hyperbolic.exp_map_zero(clipped, curvature)

  def relation(a, b):
    return hyperbolic.distance(a, b, curvature)

  return _disagreement(
    relation, in_ball(image_features), in_ball(points_features)
  )


def relation_consistency(
  image: jax.Array,
  points: jax.Array,
  image_features: jax.Array,
  points_features: jax.Array,
  *,
  euclidean_weight: float,
  angle_weight: float,
  hyperbolic_weight: float,
  curvature: jax.Array | float = 0.1,
  max_norm: float = 2.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted sum of the three terms; a term of weight 0 is not computed.

  The released default of SaliencyI2PLoc is weights 0, 2, 0.

  Args:
    image: [B, D] unit descriptors.
    points: [B, D] unit descriptors.
    image_features: [B, D] the same before normalisation.
    points_features: [B, D] the same before normalisation.
    euclidean_weight: of `euclidean_consistency`.
    angle_weight: of `angle_consistency`.
    hyperbolic_weight: of `hyperbolic_consistency`.
    curvature: c > 0 of the ball; may be learned.
    max_norm: longest tangent vector of the hyperbolic term.

  Returns:
    The loss, and the unweighted terms by name.
  """
  terms = {}
  if euclidean_weight:
    terms['euclidean'] = euclidean_consistency(image, points)
  if angle_weight:
    terms['angle'] = angle_consistency(image, points)
  if hyperbolic_weight:
    terms['hyperbolic'] = hyperbolic_consistency(
      image_features, points_features, curvature=curvature, max_norm=max_norm
    )
  weights = {
    'euclidean': euclidean_weight,
    'angle': angle_weight,
    'hyperbolic': hyperbolic_weight,
  }
  total = sum(weights[name] * term for name, term in terms.items())
  return jnp.asarray(total, jnp.float32), terms
