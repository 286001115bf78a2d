# SPDX-License-Identifier: Apache-2.0
"""The Poincare ball of curvature -c: points with c |x|^2 < 1.

`curvature` is c >= 0, a number or an array that broadcasts against the leading
axes of the points; it may be traced and learned. Everything is written in
squared norms and in functions that are smooth there (tanh(t)/t and its kin),
so that values and gradients stay finite at the origin, for coincident points
and at c = 0, where the ball becomes flat space with distance 2 |x - y|.

Reference:
  Ganea et al., Hyperbolic Neural Networks, NeurIPS 2018.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

# `project` keeps points this fraction of the radius inside: 1 - c |x|^2 then
# has three significant digits left in float32.
BORDER = 1e-3

# What 1 - c |x|^2 and the denominator of the addition are taken to be at least.
_SMALLEST = 1e-6

# Below this squared argument the power series is as exact in float32 as the
# quotient, and its derivative more so.
_SERIES = 0.05


def _norm(squared: jax.Array) -> jax.Array:
  """Square root whose gradient at 0 is 0."""
  positive = squared > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _quotient(
  function: Callable[[jax.Array], jax.Array],
  series: tuple[float, ...],
  squared: jax.Array,
) -> jax.Array:
  """function(t) / t as a smooth function of t^2; series: lowest power first."""
  small = squared < _SERIES
  t = jnp.sqrt(jnp.where(small, 1.0, squared))
  near = jnp.where(small, squared, 0.0)
  polynomial = jnp.zeros_like(near)
  for coefficient in reversed(series):
    polynomial = polynomial * near + coefficient
  return jnp.where(small, polynomial, function(t) / t)


_tanh_quotient = functools.partial(
  _quotient, jnp.tanh, (1, -1 / 3, 2 / 15, -17 / 315, 62 / 2835)
)
_artanh_quotient = functools.partial(
  _quotient,
  lambda t: jnp.arctanh(jnp.minimum(t, 0.999999)),
  (1, 1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11),
)
_arsinh_quotient = functools.partial(
  _quotient, jnp.arcsinh, (1, -1 / 6, 3 / 40, -5 / 112, 35 / 1152)
)


def clip_norm(vectors: jax.Array, max_norm: float) -> jax.Array:
  """Shortens vectors [..., D] longer than `max_norm` to that length.

  Features of any length mapped into the ball pile up at its border, where
  gradients vanish; clipping them first is the remedy.

  Reference:
    Guo et al., Clipped Hyperbolic Classifiers Are Super-Hyperbolic
    Classifiers, CVPR 2022.
  """
  squared = jnp.sum(vectors**2, -1, keepdims=True)
  too_long = squared > max_norm**2
  length = jnp.sqrt(jnp.where(too_long, squared, 1.0))
  return vectors * jnp.where(too_long, max_norm / length, 1.0)


def project(points: jax.Array, curvature: jax.Array | float) -> jax.Array:
  """Brings points [..., D] at or beyond the border back inside the ball.

  Returns:
    [..., D] with sqrt(c) |x| <= 1 - `BORDER`; points inside do not move.
  """
  squared = curvature * jnp.sum(points**2, -1)
  outside = squared > (1.0 - BORDER) ** 2
  length = jnp.sqrt(jnp.where(outside, squared, 1.0))
  return points * jnp.where(outside, (1.0 - BORDER) / length, 1.0)[..., None]


def exp_map_zero(vectors: jax.Array, curvature: jax.Array | float) -> jax.Array:
  """Points [..., D] of the ball reached from the origin along `vectors`.

  x = tanh(sqrt(c) |v|) v / (sqrt(c) |v|), so that x is 2 |v| from the origin,
  then `project`ed: in float32 tanh reaches 1.

  Args:
    vectors: [..., D] tangent vectors at the origin.
    curvature: c.
  """
  squared = curvature * jnp.sum(vectors**2, -1)
  points = vectors * _tanh_quotient(squared)[..., None]
  return project(points, curvature)


def log_map_zero(points: jax.Array, curvature: jax.Array | float) -> jax.Array:
  """Tangent vectors [..., D] at the origin: the inverse of `exp_map_zero`.

  v = artanh(sqrt(c) |x|) x / (sqrt(c) |x|); points on or beyond the border
  give a finite vector without meaning.
  """
  squared = curvature * jnp.sum(points**2, -1)
  return points * _artanh_quotient(squared)[..., None]


def mobius_add(
  a: jax.Array, b: jax.Array, curvature: jax.Array | float
) -> jax.Array:
  """a (+) b [..., D], the addition that moves the origin to `a`.

  a (+) b = ((1 + 2c<a,b> + c|b|^2) a + (1 - c|a|^2) b)
            / (1 + 2c<a,b> + c^2 |a|^2 |b|^2)

  Neither commutative nor associative; (-a) (+) (a (+) b) = b.
  """
  c = jnp.asarray(curvature)[..., None]
  inner = c * jnp.sum(a * b, -1, keepdims=True)
  squared_a = c * jnp.sum(a**2, -1, keepdims=True)
  squared_b = c * jnp.sum(b**2, -1, keepdims=True)
  total = (1 + 2 * inner + squared_b) * a + (1 - squared_a) * b
  denominator = 1 + 2 * inner + squared_a * squared_b
  return total / jnp.maximum(denominator, _SMALLEST)


def distance(
  a: jax.Array, b: jax.Array, curvature: jax.Array | float
) -> jax.Array:
  """Geodesic distance [...] between points [..., D] of the ball.

  d = 2/sqrt(c) artanh(sqrt(c) |(-a) (+) b|), evaluated in the equal form
  2/sqrt(c) arsinh(sqrt(c) |a - b| / sqrt((1 - c|a|^2)(1 - c|b|^2))): its
  argument is free of cancellation for close points, and it neither saturates
  nor needs a clamp near the border, where artanh of float32 ends at about 17.
  """
  c = jnp.asarray(curvature)
  room_a = jnp.maximum(1 - c * jnp.sum(a**2, -1), _SMALLEST)
  room_b = jnp.maximum(1 - c * jnp.sum(b**2, -1), _SMALLEST)
  chord_squared = jnp.sum((a - b) ** 2, -1) / (room_a * room_b)
  return 2 * _norm(chord_squared) * _arsinh_quotient(c * chord_squared)
