# SPDX-License-Identifier: Apache-2.0
"""What photos from above show of the ground: four corners, and who overlaps.

As EarthLoc and EarthMatch name their images: '@lat1@lon1@lat2@lon2@lat3@lon3@
lat4@lon4@...', degrees of the corners in turn. A footprint is the convex
quadrilateral of its corners in latitude and longitude, whose sides are straight
there; that is not the shortest way over ground, and of no use around a pole.
Footprints that only touch overlap. One whose corners are equal is a point.
"""

from collections.abc import Sequence
import pathlib

import numpy as np

from i2ploc.errors import InputError
from i2ploc.photos import csv_tables
from i2ploc.photos import listing

_CORNERS = 8  # numbers of four corners


def in_name(name: str) -> list[float] | None:
  """The eight degrees of a name; None where it holds none.

  >>> in_name('@1@2@1@3@0@3@0@2@ISS064.jpg')
  [1.0, 2.0, 1.0, 3.0, 0.0, 3.0, 0.0, 2.0]
  >>> in_name('@0551000.25@4180000.50@10@S@37.7@-122.4@@.jpg')
  """
  fields = pathlib.PurePosixPath(name).stem.split('@')[: _CORNERS + 1]
  if len(fields) <= _CORNERS or fields[0]:
    return None
  numbers = [csv_tables.number(field) for field in fields[1:]]
  limits = (90, 180) * 4
  if not all(abs(x) <= most for x, most in zip(numbers, limits, strict=True)):
    return None
  return numbers


def from_names(names: Sequence[str]) -> np.ndarray:
  """Footprints in file names.

  Args:
    names: N paths with '/'; the last part counts.

  Returns:
    float64 [N, 4, 2]: latitude and longitude of the corners, degrees, counter-
    clockwise with north up and east right. Longitudes of one footprint differ
    by less than 180 degrees, so they may leave [-180, 180].

  Raises:
    InputError: some names hold no four corners.
  """
  found = [in_name(name) for name in names]
  bad = [name for name, x in zip(names, found, strict=True) if x is None]
  if bad:
    raise InputError(
      f'{len(bad)} of {len(names)} names have no footprint:'
      f' {listing.examples(bad)}. Expected'
      ' @lat1@lon1@lat2@lon2@lat3@lon3@lat4@lon4@...'
    )
  return in_turn(np.array(found, np.float64).reshape(-1, 4, 2))


def in_turn(corners: np.ndarray) -> np.ndarray:
  """Corners counter-clockwise, around the globe to where the first one is.

  Args:
    corners: [N, 4, 2] degrees, around the middle in any order.

  Returns:
    float64 [N, 4, 2], see `from_names`.
  """
  first = corners[:, :1, 1]
  around = first + (corners[..., 1] - first + 180) % 360 - 180
  corners = np.stack([corners[..., 0], around], -1)
  # In turn around the middle, whichever way they were written.
  away = corners - corners.mean(1, keepdims=True)
  order = np.argsort(np.arctan2(away[..., 0], away[..., 1]), axis=1)
  return np.take_along_axis(corners, order[..., None], 1)


def overlap(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Which footprints overlap which.

  Two convex shapes are apart if, seen along the side of one of them, their
  shadows are (the separating axis theorem).

  Args:
    x: [Q, 4, 2], see `from_names`.
    y: [M, 4, 2].

  Returns:
    bool [Q, M].

  >>> square = np.array([[0.0, 0], [0, 2], [2, 2], [2, 0]])
  >>> overlap(square[None], np.stack([square + 1, square + 3]))
  array([[ True, False]])
  """
  # Around the globe to where the other one is.
  turns = np.round((x[:, None, :, 1].mean(-1) - y[:, :, 1].mean(-1)) / 360)
  low, high = x.min(1), x.max(1)
  near = np.ones((len(x), len(y)), bool)
  for axis, shift in ((0, 0.0), (1, 360 * turns)):
    near &= y[:, :, axis].min(1) + shift <= high[:, None, axis]
    near &= y[:, :, axis].max(1) + shift >= low[:, None, axis]
  rows, columns = np.nonzero(near)
  one, other = x[rows], y[columns].copy()
  other[..., 1] += 360 * turns[rows, columns, None]
  apart = np.zeros(len(rows), bool)
  for shape in (one, other):
    sides = np.roll(shape, -1, 1) - shape
    normals = np.stack([sides[..., 1], -sides[..., 0]], -1)
    shadows = [np.einsum('pac,pbc->pab', normals, s) for s in (one, other)]
    apart |= (
      (shadows[0].max(2) < shadows[1].min(2))
      | (shadows[1].max(2) < shadows[0].min(2))
    ).any(1)
  near[rows[apart], columns[apart]] = False
  return near
