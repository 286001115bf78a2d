# SPDX-License-Identifier: Apache-2.0
"""Vectors and matrices whose coordinates are arrays of their own.

A vector is a tuple of its three coordinates, a matrix a tuple of its rows. Each
coordinate is an array over many vectors, of any shape that broadcasts. Arrays
whose last axis is 3 would be ten times slower: XLA makes loops of length 3 of
them. All is written for numpy and jax alike, see `arrays`.
"""

from collections.abc import Sequence
from typing import Any

from i2ploc.geometry import arrays

TINY = 1e-12

Coordinate = Any  # an array, or a number
Vector = Sequence[Coordinate] | arrays.Array
Matrix = Sequence[Vector] | arrays.Array


def dot(a: Vector, b: Vector) -> Any:
  """a . b."""
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vector, b: Vector) -> Vector:
  """a x b."""
  return (
    a[1] * b[2] - a[2] * b[1],
    a[2] * b[0] - a[0] * b[2],
    a[0] * b[1] - a[1] * b[0],
  )


def scaled(a: Vector, factor: Coordinate) -> Vector:
  """`a` times a number."""
  return tuple(x * factor for x in a)


def minus(a: Vector, b: Vector) -> Vector:
  """a - b."""
  return tuple(x - y for x, y in zip(a, b, strict=True))


def total(*vectors: Vector) -> Vector:
  """The sum of vectors."""
  return tuple(sum(parts) for parts in zip(*vectors, strict=True))


def unit(a: Vector) -> Vector:
  """`a` with length 1; the zero vector stays zero."""
  xp = arrays.namespace(*a)
  return scaled(a, arrays.rsqrt(xp.maximum(dot(a, a), TINY)))


def where(condition: Coordinate, a: Vector, b: Vector) -> Vector:
  """`a` where the condition holds, else `b`."""
  xp = arrays.namespace(condition, *a, *b)
  return tuple(xp.where(condition, x, y) for x, y in zip(a, b, strict=True))


def longest(vectors: Matrix) -> Vector:
  """The longest of three."""
  first, second, third = vectors
  lengths = [dot(v, v) for v in vectors]
  if isinstance(lengths[0], float):  # a number of numpy too
    return vectors[lengths.index(max(lengths))]
  best = where(lengths[1] > lengths[0], second, first)
  xp = arrays.namespace(*lengths)
  return where(lengths[2] > xp.maximum(*lengths[:2]), third, best)


def tangents(direction: Vector) -> tuple[Vector, Vector]:
  """Two unit vectors orthogonal to one, and to each other.

  The x and y axes, reflected by the mirror that moves the z axis to the
  direction or to its opposite, whichever is further (Householder).
  """
  x, y, z = direction
  xp = arrays.namespace(z)
  side = xp.where(z < 0, -1.0, 1.0)
  part = 1 / (1 + xp.abs(z))
  mixed = -x * y * part
  first = 1 - x * x * part, mixed, -side * x
  return first, (mixed, 1 - y * y * part, -side * y)


def rows(flat: Vector) -> Matrix:
  """A matrix, from its nine coordinates."""
  return flat[:3], flat[3:6], flat[6:]


def transposed(matrix: Matrix) -> Matrix:
  """Columns for rows."""
  return tuple(zip(*matrix, strict=True))


def apply(matrix: Matrix, vector: Vector) -> Vector:
  """The product of a matrix and a vector."""
  return tuple(dot(row, vector) for row in matrix)


def cofactors(matrix: Matrix) -> Matrix:
  """The transposed adjugate: the determinant times the inverse, transposed."""
  a, b, c = matrix
  return cross(b, c), cross(c, a), cross(a, b)
