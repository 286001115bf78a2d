# SPDX-License-Identifier: Apache-2.0
"""Relative poses of two calibrated cameras from five points.

Five epipolar equations leave E = x X + y Y + z Z + w W, and E is essential if

  det E = 0,   2 E E^T E - trace(E E^T) E = 0,

ten cubics in the unknowns. Elimination of the products with the highest powers
of x and y leaves three equations that are linear in (x, y, 1), with
coefficients of degree 3, 3 and 4 in (z, w): their determinant, of degree 10, is
zero (Nister, An efficient solution to the five-point relative pose problem,
PAMI 2004). It is never expanded: its values at eleven angles of (z, w) are
enough, see `polynomial`. Each root is the start of Newton's method on the pose
itself, which restores the digits that float32 lost and carries the gradient.

Conventions in `epipolar`. Written for one sample and vmapped by the caller.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import compilation
from i2ploc.geometry import epipolar
from i2ploc.geometry import essential as essential_lib
from i2ploc.geometry import polynomial
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors

# Real roots that are kept. One sample in 200 has all ten: the last two are left
# out, because a loop of eight is one vector on a CPU: all takes 0.7 as long.
NUM_SOLUTIONS = 8
_DEGREE = 10
NUM_POLISH = 3
# Length that a unit row has beside those before it, below which the rows are
# dependent.
_DEPENDENT = 1e-5
# Largest residual of the epipolar equations, of unit vectors, at a solution.
_SOLVED = 1e-5
# Longest step of Newton's method, radians.
_LONGEST_STEP = 0.2
# Products of three unknowns: those that are eliminated, and those that are
# kept, which are linear in x, linear in y, or have neither.
_ELIMINATED = ['xxx', 'xxy', 'xyy', 'yyy', 'xxz', 'xxw', 'xyz', 'xyw']
_ELIMINATED += ['yyz', 'yyw']
_KEPT = ['xzz', 'xzw', 'xww', 'yzz', 'yzw', 'yww', 'zzz', 'zzw', 'zww', 'www']
_FIRST_USED = _ELIMINATED.index('xxz')


def _expansion():
  """Mixtures [4, 32] of X, Y, Z, W, and the coefficients [32, 20] of a cubic.

  The coefficients are linear in the values of the cubic at the mixtures. Of
  several random mixtures these lose the fewest digits, less than one.
  """
  mixtures = np.random.default_rng(102).normal(size=(32, 4))
  mixtures /= np.linalg.norm(mixtures, axis=1, keepdims=True)
  unknown = dict(zip('xyzw', mixtures.T, strict=True))
  products = [
    unknown[i] * unknown[j] * unknown[k] for i, j, k in _ELIMINATED + _KEPT
  ]
  return mixtures.T, np.linalg.pinv(np.stack(products, axis=-1)).T


_MIXTURES, _COEFFICIENTS = _expansion()
# A random rotation of the basis: a common camera motion must not be a special
# case in which an unknown vanishes.
_MIX = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
_exact = functools.partial(jnp.matmul, precision=rigid.EXACT)


def _cubics(basis):
  """Coefficients [10, 20] of the ten cubics; of X, Y, Z, W [4, 9]."""
  mixtures = jnp.asarray(_MIXTURES, basis.dtype)
  flat = _exact(basis.T, mixtures)
  determinant = epipolar.determinant(flat.T.reshape(-1, 3, 3))
  matrix = flat.reshape(3, 3, -1)
  square = (matrix[:, None] * matrix).sum(2)
  trace = square[0, 0] + square[1, 1] + square[2, 2]
  triple = (square[:, :, None] * matrix).sum(1)
  rest = (2 * triple - trace * matrix).reshape(9, -1)
  values = jnp.concatenate([determinant[None], rest])
  return _exact(values, jnp.asarray(_COEFFICIENTS, basis.dtype))


def _reduced(cubics):
  """[6, 10]: the last six eliminated products by those kept, negated.

  Gauss and Jordan's elimination, each time with the largest remaining row.
  """
  size = len(_ELIMINATED)

  def eliminate(k, state):
    matrix, turns = state
    column = jax.lax.dynamic_index_in_dim(matrix, k, axis=1, keepdims=False)
    left = jnp.where(turns < 0, jnp.abs(column), -1.0)
    chosen = jnp.arange(size) == jnp.argmax(left)
    row = jnp.where(chosen[:, None], matrix, 0.0).sum(0)
    pivot = jnp.where(chosen, column, 0.0).sum()
    row = row / jnp.where(jnp.abs(pivot) < 1e-30, 1e-30, pivot)
    factor = jnp.where(chosen, column - 1, column)
    return matrix - factor[:, None] * row, jnp.where(chosen, k, turns)

  start = cubics, jnp.full(size, -1)
  matrix, turns = jax.lax.fori_loop(0, size, eliminate, start)
  wanted = turns == jnp.arange(_FIRST_USED, size)[:, None]
  rows = jnp.where(wanted[:, :, None], matrix[:, size:], 0.0)
  return rows.sum(1)


def _linear(reduced):
  """Coefficients of three equations that are linear in x, y and 1.

  x x z = -first and x x w = -second, so that w first = z second; likewise with
  x y and y y.

  Returns:
    [3, 4], [3, 4] and [3, 5], of z z z, z z w, ... and z z z z, ...
  """
  first, second = reduced[0::2], reduced[1::2]
  columns = ((0, 3), (3, 6), (6, 10))
  zero = jnp.zeros_like(first[:, :1])
  return tuple(
    jnp.concatenate([zero, first[:, i:j]], axis=-1)
    - jnp.concatenate([second[:, i:j], zero], axis=-1)
    for i, j in columns
  )


def _at(coefficients, where):
  """The three equations, as rows, at angles [T] of (z, w)."""
  z, w = jnp.sin(where), jnp.cos(where)
  zz, ww = z * z, w * w
  third = jnp.stack([z * zz, zz * w, z * ww, w * ww])
  fourth = jnp.stack([zz * zz, z * zz * w, zz * ww, z * w * ww, ww * ww])
  values = [
    _exact(part, powers)
    for part, powers in zip(coefficients, (third, third, fourth), strict=True)
  ]
  return tuple(tuple(value[i] for value in values) for i in range(3))


def _essentials(basis):
  """Essential matrices among mixtures of [4, 9]: rows of [V], valid [V]."""
  basis = _exact(jnp.asarray(_MIX, basis.dtype), basis)
  coefficients = _linear(_reduced(_cubics(basis)))
  where = jnp.asarray(polynomial.angles(_DEGREE), basis.dtype)
  a, b, c = _at(coefficients, where)
  determinants = jnp.asarray(vectors.dot(a, vectors.cross(b, c)))
  where, valid = (
    kept[:NUM_SOLUTIONS] for kept in polynomial.roots(determinants)
  )
  mix = jnp.stack(_mixtures(coefficients, where))
  flat = _exact(basis.T, mix)
  squared = jnp.sum(flat**2, axis=0)
  valid &= jnp.isfinite(squared) & (squared > 0)
  scale = jnp.sqrt(2 / jnp.where(valid, squared, 1.0))
  return vectors.rows(tuple(flat * jnp.where(valid, scale, 0.0))), valid


@compilation.once
def _mixtures(coefficients, where):
  """Shares of X, Y, Z and W, up to a factor, at roots [V]."""
  x, y, one = vectors.longest(vectors.cofactors(_at(coefficients, where)))
  return x, y, one * jnp.sin(where), one * jnp.cos(where)


def _solve(columns, right):
  """Solves square systems by orthogonalisation; finite if one is singular.

  Args:
    columns: of the matrix, D arrays [D, V].
    right: [D, V].

  Returns:
    D arrays [V].
  """
  size, upper, found = len(columns), [], []
  left = jnp.stack([*columns, right])
  for _ in range(size):
    column = left[0]
    inverse = jax.lax.rsqrt((column**2).sum(0) + vectors.TINY)
    along = inverse * inverse * (left[1:] * column).sum(1)
    left = left[1:] - along[:, None] * column
    upper.append(along)
  # Of the columns orthogonalised without their lengths: unit triangular.
  for k in reversed(range(size)):
    rest = upper[k][-1]
    for j, x in enumerate(reversed(found)):
      rest = rest - upper[k][j] * x
    found.append(rest)
  return tuple(reversed(found))


def _errors(rotation, translation, rays0, rays1):
  """Epipolar equations [N, V], and the vectors in their gradients."""
  turned = vectors.apply(rotation, rays0)
  normals = vectors.cross(turned, rays1)
  return vectors.dot(normals, translation), normals, turned


@compilation.once
def _step(rotation, translation, rays0, rays1):
  """Newton's step [5, V] towards five epipolar equations."""
  errors, normals, turned = _errors(rotation, translation, rays0, rays1)
  columns = (
    *vectors.cross(turned, vectors.cross(rays1, translation)),
    *(vectors.dot(normals, v) for v in vectors.tangents(translation)),
  )
  step = jnp.stack(_solve(columns, -errors))
  squared = jnp.sum(step**2, axis=0)
  long = squared > _LONGEST_STEP**2
  shorter = _LONGEST_STEP * jax.lax.rsqrt(jnp.where(long, squared, 1.0))
  return step * jnp.where(long, shorter, 1.0)


def _polish(rotation, translation, rays0, rays1):
  """A step of Newton's; rows of the rotation are [3, V]."""
  step = _step(rotation, translation, rays0, rays1)
  # The rotation by 2 arctan(|step| / 2) about the step (Cayley).
  half = vectors.scaled(tuple(step[:3]), 0.5)
  factor = 2 / (1 + vectors.dot(half, half))
  once = vectors.cross(half, rotation)
  twice = vectors.total(once, vectors.cross(half, once))
  rotation = vectors.total(rotation, vectors.scaled(twice, factor))
  first, second = vectors.tangents(translation)
  moved = vectors.total(
    translation, vectors.scaled(first, step[3]), vectors.scaled(second, step[4])
  )
  return rotation, vectors.unit(moved)


def _poses(essential, rays0, rays1):
  """Exact poses of [V] essential matrices, and whether they are solutions."""
  fixed0, fixed1 = jax.lax.stop_gradient((rays0, rays1))
  # One pair of rays is ahead of both cameras in one of the four poses only.
  rotation, translation = essential_lib.choose(
    essential, *([x[:1] for x in r] for r in (fixed0, fixed1))
  )
  pose = jax.lax.fori_loop(
    0,
    NUM_POLISH,
    # The last step alone carries the whole gradient.
    lambda _, pose: _polish(*jax.lax.stop_gradient(pose), rays0, rays1),
    (tuple(map(jnp.stack, rotation)), translation),
  )
  errors = _errors(*pose, rays0, rays1)[0]
  near, far = essential_lib.depths(*pose, rays0, rays1)
  ahead = jnp.all((near > 0) & (far > 0), axis=0)
  return pose, ahead & (jnp.abs(errors).max(0) < _SOLVED)


def from_five(
  rays0: jax.Array, rays1: jax.Array
) -> tuple[rigid.Rigid, jax.Array]:
  """Relative poses with five points ahead of both cameras, in given directions.

  Args:
    rays0: [5, 3] unit directions in camera 0.
    rays1: [5, 3] of the same points in camera 1.

  Returns:
    camera1_from_camera0: [8] poses, translations of length 1; finite and
      meaningless where not valid.
    valid: [8] bool.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from i2ploc.geometry import five_points
    >>> rng = np.random.default_rng(0)
    >>> points = rng.uniform([-2, -2, 4], [2, 2, 9], (5, 3))
    >>> rays = points / np.linalg.norm(points, axis=1, keepdims=True)
    >>> moved = points + [1, 0, 0]
    >>> moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    >>> poses, valid = jax.jit(five_points.from_five)(rays, moved)
    >>> poses.translation[valid, 0].max().round(3).item()
    1.0
  """
  chex.assert_shape([rays0, rays1], (5, 3))
  rows = epipolar.equations(*jax.lax.stop_gradient((rays0, rays1)))
  basis, smallest = epipolar.complement(rows)
  usable = (smallest > _DEPENDENT) & jnp.isfinite(basis).all()
  basis = jnp.where(usable, basis, jnp.eye(9, dtype=basis.dtype)[:4])
  essential, real = _essentials(basis)
  pose, solved = _poses(
    essential,
    *(tuple(jnp.where(usable, r, 0.0).T[:, :, None]) for r in (rays0, rays1)),
  )
  return essential_lib.stacked(*pose), solved & real & usable
