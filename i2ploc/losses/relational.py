# SPDX-License-Identifier: Apache-2.0
"""Relation consistency: both sides should agree on who is near whom.

Each term compares a relation among the rows of side a with the same relation
among those of side b, entry by entry, by the mean Huber loss
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

# Rows nearer than this count as equal: smaller differences of float32
# descriptors are rounding noise, and so is their direction.
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


def _disagreement(relation: Relation, a: jax.Array, b: jax.Array) -> jax.Array:
  return optax.huber_loss(
    _normalized_distances(relation, a.astype(jnp.float32)),
    _normalized_distances(relation, b.astype(jnp.float32)),
  ).mean()


def _separation(a: jax.Array, b: jax.Array) -> jax.Array:
  """Euclidean distance [...], without gradient between coincident rows."""
  squared = jnp.sum((a - b) ** 2, -1)
  apart = squared > _COINCIDENT**2
  return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def euclidean_consistency(a: jax.Array, b: jax.Array) -> jax.Array:
  """Huber loss between the normalised Euclidean distances.

  Only ratios count, whatever the scale and the width:

  >>> a = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
  >>> float(euclidean_consistency(a, 2.0 * a))
  0.0
  >>> bool(euclidean_consistency(a, a[::-1]) > 0)
  True

  Args:
    a: [B, D] descriptors.
    b: [B, E] descriptors, row i of the place of that of a.

  Returns:
    Scalar, 0 for B = 1.
  """
  return _disagreement(_separation, a, b)


def _angles_at(row: jax.Array, rows: jax.Array) -> jax.Array:
  """Cosines [B, B] of the angles that pairs of rows span seen from `row`."""
  directions = rows - row
  length = _separation(rows, row)[:, None]
  apart = length > 0
  directions = jnp.where(apart, directions / jnp.where(apart, length, 1.0), 0.0)
  return jnp.matmul(
    directions, directions.T, precision=jax.lax.Precision.HIGHEST
  )


def angle_consistency(a: jax.Array, b: jax.Array) -> jax.Array:
  """Huber loss between the cosines of all angles among triplets of rows.

  A_ijk = u_ij . u_ik with u_ij the direction from row i to row j, 0 where i and
  j coincide; the mean is over all B^3 entries, computed corner by corner.

  Angles do not change when side b is turned, moved and scaled:

  >>> a = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  >>> turned = 3.0 * a @ jnp.array([[0.0, 1.0], [-1.0, 0.0]]) + 5.0
  >>> bool(angle_consistency(a, turned) < 1e-12)
  True

  Args:
    a: [B, D] descriptors.
    b: [B, E] descriptors, row i of the place of that of a.

  Returns:
    Scalar, 0 for B = 1.
  """
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)

  def corner(rows):
    row_a, row_b = rows
    return optax.huber_loss(_angles_at(row_a, a), _angles_at(row_b, b)).mean()

  return _by_rows(corner, (a, b)).mean()


def hyperbolic_consistency(
  a_features: jax.Array,
  b_features: jax.Array,
  *,
  curvature: jax.Array | float,
  max_norm: float,
) -> jax.Array:
  """Huber loss between the normalised distances in the Poincare ball.

  Takes features BEFORE their normalisation: descriptors of unit norm all lie
  on one sphere of the ball, where the distance is a function of the Euclidean
  one (their ratio within 2.00 to 2.14 at curvature 0.1) and adds nothing.

  >>> a = jnp.array([[0.1, 0.0], [0.0, 0.5], [1.5, 0.0]])
  >>> options = dict(curvature=0.1, max_norm=2.0)
  >>> float(hyperbolic_consistency(a, a, **options))
  0.0
  >>> bool(hyperbolic_consistency(a, a[::-1], **options) > 0)
  True

  Args:
    a_features: [B, D], any length; clipped to `max_norm`.
    b_features: [B, E].
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

  return _disagreement(relation, in_ball(a_features), in_ball(b_features))


def relation_consistency(
  a: jax.Array,
  b: jax.Array,
  a_features: jax.Array,
  b_features: jax.Array,
  *,
  euclidean_weight: float,
  angle_weight: float,
  hyperbolic_weight: float,
  curvature: jax.Array | float = 0.1,
  max_norm: float = 2.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted sum of the three terms; a term of weight 0 is not computed.

  The released default of SaliencyI2PLoc is weights 0, 2, 0.

  >>> a = jnp.eye(3)
  >>> b = a[:, ::-1] * jnp.array([1.0, 2.0, 1.0])
  >>> weights = dict(
  ...     euclidean_weight=1.0, angle_weight=2.0, hyperbolic_weight=0.0)
  >>> loss, terms = relation_consistency(a, b, a, b, **weights)
  >>> sorted(terms)
  ['angle', 'euclidean']
  >>> bool(loss == terms['euclidean'] + 2 * terms['angle'])
  True

  Args:
    a: [B, D] unit descriptors.
    b: [B, D] unit descriptors.
    a_features: [B, D] the same before normalisation.
    b_features: [B, D] the same before normalisation.
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
    terms['euclidean'] = euclidean_consistency(a, b)
  if angle_weight:
    terms['angle'] = angle_consistency(a, b)
  if hyperbolic_weight:
    terms['hyperbolic'] = hyperbolic_consistency(
      a_features, b_features, curvature=curvature, max_norm=max_norm
    )
  weights = {
    'euclidean': euclidean_weight,
    'angle': angle_weight,
    'hyperbolic': hyperbolic_weight,
  }
  total = sum(weights[name] * term for name, term in terms.items())
  return jnp.asarray(total, jnp.float32), terms
