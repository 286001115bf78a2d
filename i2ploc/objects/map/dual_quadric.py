# SPDX-License-Identifier: Apache-2.0
"""An ellipsoid from boxes around it in posed images, in closed form.

The edge of a box is a plane through the camera that touches the ellipsoid, for
n^T x + d = 0 with |n| = 1

  n^T A n - (n^T c + d)^2 = 0,   that is   n^T S n - 2 d n^T c = d^2

with S = A - c c^T: linear in the nine entries of S and c, the dual quadric
(Nicholson, Milford, Suenderhauf, QuadricSLAM, RA-L 2019). What is no ellipsoid
(an eigenvalue of A of the wrong sign) or too long for its boxes is a ball.
"""

from typing import NamedTuple

import numpy as np

from i2ploc.geometry import ellipsoid as ellipsoid_lib

_UNKNOWNS = 9
# Of the radius of the ball: semi-axes between, a centre within.
_LONG, _SHORT, _FAR = 6.0, 0.03, 2.0


class Views(NamedTuple):
  """V boxes of one object.

  Attributes:
    rotation: [V, 3, 3], camera_from_map.
    translation: [V, 3].
    box: [V, 4] on the plane z = 1.
    precision: [V, 4] of the edges, 1 / tolerance on the plane z = 1.
    open: [V, 4] bool, or 0 and 1: edges beyond which the object may go on.
    weight: [V] 0 or 1, of what is real and what fills up.
  """

  rotation: np.ndarray
  translation: np.ndarray
  box: np.ndarray
  precision: np.ndarray
  open: np.ndarray
  weight: np.ndarray

  def take(self, rows: np.ndarray) -> 'Views':
    """The boxes of these rows."""
    return Views(*(leaf[rows] for leaf in self))


def _ball(center, radius):
  return ellipsoid_lib.Ellipsoid(center, np.full(3, radius), np.eye(3))


def tangent_planes(views: Views) -> tuple[np.ndarray, np.ndarray]:
  """Planes of all edges: unit normals [V, 4, 3] and offsets [V, 4].

  n^T x + d = 0 in the map frame.
  """
  lines = np.zeros((*views.box.shape, 3))
  lines[:, [0, 2], 0] = lines[:, [1, 3], 1] = 1
  lines[..., 2] = -views.box
  lines /= np.linalg.norm(lines, axis=-1, keepdims=True)
  normals = np.einsum('vij,vei->vej', views.rotation, lines)
  return normals, np.einsum('vi,vei->ve', views.translation, lines)


def start(
  views: Views, center: np.ndarray, radius: float
) -> ellipsoid_lib.Ellipsoid:
  """The ellipsoid in closed form, or else the ball.

  Args:
    views: at least 3.
    center: [3] of the ball.
    radius: metres.
  """
  normals, offsets = tangent_planes(views)
  used = ~views.open.astype(bool)
  normal = normals[used]
  # Around the ball and in its radii all unknowns are of size 1.
  offset = (offsets[used] + normal @ center) / radius
  n0, n1, n2 = normal.T
  table = np.stack(
    [
      n0 * n0, n1 * n1, n2 * n2, 2 * n0 * n1, 2 * n0 * n2, 2 * n1 * n2,
      -2 * offset * n0, -2 * offset * n1, -2 * offset * n2,
    ],
    axis=-1,
  )  # fmt: skip
  ball = _ball(center, radius)
  if len(table) < _UNKNOWNS:
    return ball
  found, _, rank, _ = np.linalg.lstsq(table, offset**2, rcond=1e-4)
  xx, yy, zz, xy, xz, yz, *shift = found
  shift = np.array(shift)
  square = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
  values, vectors = np.linalg.eigh(square + np.outer(shift, shift))
  if rank < _UNKNOWNS or values[0] < _SHORT**2 or values[-1] > _LONG**2:
    return ball
  if np.linalg.norm(shift) > _FAR:
    return ball
  turn = vectors * [1, 1, np.linalg.det(vectors)]
  return ellipsoid_lib.Ellipsoid(
    center + radius * shift, radius * np.sqrt(values), turn
  )
