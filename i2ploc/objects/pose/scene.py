# SPDX-License-Identifier: Apache-2.0
"""The detections of an image and their candidates, as arrays of static shape.

Boxes are on the plane z = 1. Only the ellipsoids that some detection may show
are in a scene, so that time depends on the number of candidates and not on the
size of the map. Their coordinates have an origin near them, where float32 is
most accurate.
"""

from typing import NamedTuple

import numpy as np

from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.geometry import rigid
from i2ploc.objects import association

# Tolerance of an edge of a detection: a share of the image (3 of 640 pixels, to
# which detectors scale images) and a share of the box.
EDGE_OF_IMAGE, EDGE_OF_BOX = 3 / 640, 0.05
# Smaller scenes are padded to these sizes: one program serves most images.
_FEWEST_DETECTIONS, _FEWEST_CANDIDATES, _FEWEST_LANDMARKS = 16, 8, 32


class Scene(NamedTuple):
  """The detections of an image and their candidates in a map; padded.

  Coordinates are those of the map minus an origin near the candidates.

  Attributes:
    box: [M, 4] detections on the plane z = 1.
    weight: [M], 0 for padding.
    open: bool [M, 4], edges on the border of the image, beyond which the object
      may continue.
    scale: [M], 1 / tolerance of a detection's edges, on the plane z = 1.
    landmark: int32 [M, K], candidates of every detection, rows of the
      ellipsoids.
    support: [M, K], weight of a candidate's overlap; 0 for padding.
    ellipsoids: leading axis L.
    bounds: [4], the image on the plane z = 1.
  """

  box: rigid.Array
  weight: rigid.Array
  open: rigid.Array
  scale: rigid.Array
  landmark: rigid.Array
  support: rigid.Array
  ellipsoids: ellipsoid_lib.Ellipsoid
  bounds: rigid.Array


class Placed(NamedTuple):
  """A scene and its place in the map.

  Attributes:
    scene: leading axes padded to powers of two.
    origin: float64 [3], the scene's origin in the map.
    rows: int [L'], landmarks of the map that are in the scene, in its order.
  """

  scene: Scene
  origin: np.ndarray
  rows: np.ndarray

  def scene_rows(self, landmarks: np.ndarray) -> np.ndarray:
    """Rows in the scene of landmarks that are in it."""
    return np.searchsorted(self.rows, landmarks)


def bucket(count: int, smallest: int) -> int:
  """`count` rounded up to a power of two: few programs serve all images."""
  return max(smallest, 1 << max(count - 1, 0).bit_length())


def pad(array: np.ndarray, size: int) -> np.ndarray:
  """`array` with zeros up to `size` rows."""
  out = np.zeros((size, *array.shape[1:]), array.dtype)
  out[: len(array)] = array
  return out


def plane_boxes(box: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
  """Boxes [M, 4] on the plane z = 1, of boxes in pixels; float64."""
  matrix = np.asarray(intrinsics, np.float64)
  offset, scale = np.tile(matrix[:2, 2], 2), np.tile(np.diagonal(matrix)[:2], 2)
  return (np.asarray(box, np.float64) - offset) / scale


def make_scene(
  box: np.ndarray,
  weight: np.ndarray,
  cut: np.ndarray,
  ellipsoids: ellipsoid_lib.Ellipsoid,
  judging: association.Candidates,
  rows: np.ndarray,
  intrinsics: np.ndarray,
  image_size: tuple[int, int],
) -> Placed:
  """The scene of one image.

  Args:
    box: [M, 4] pixels, sound.
    weight: [M] of the detections.
    cut: bool [M, 4], edges on the border of the image.
    ellipsoids: leading axis L, the whole map.
    judging: pairs by which poses are judged.
    rows: int [L'], sorted, landmarks of the map that pairs name; at least one.
    intrinsics: [3, 3], without skew.
    image_size: (height, width).
  """
  landmark, real = _table(judging, len(box), rows)
  size = len(landmark)
  plane = plane_boxes(box, intrinsics)
  focal = np.sqrt(intrinsics[0, 0] * intrinsics[1, 1])
  side = np.sqrt(np.prod(plane[:, 2:] - plane[:, :2], axis=-1))
  edge = EDGE_OF_IMAGE * max(image_size) / focal
  scale = 1 / np.hypot(edge, EDGE_OF_BOX * side)
  origin = np.asarray(ellipsoids.center, np.float64)[rows].mean(0)
  image = np.asarray([[0.0, 0.0, image_size[1], image_size[0]]])
  scene = Scene(
    box=_narrow(pad(plane, size)),
    weight=_narrow(pad(np.asarray(weight, np.float64), size)),
    open=pad(np.asarray(cut, bool), size),
    scale=_narrow(pad(scale, size)),
    landmark=landmark,
    support=_narrow(real),
    ellipsoids=_padded_ellipsoids(ellipsoids, rows, origin),
    bounds=_narrow(plane_boxes(image, intrinsics)[0]),
  )
  return Placed(scene, origin, rows)


def _narrow(array):
  return np.asarray(array, np.float32)


def _padded_ellipsoids(ellipsoids, rows, origin):
  """The rows around the origin; padding is valid, and no one's candidate."""
  size = bucket(len(rows), _FEWEST_LANDMARKS)
  center, axes, rotation = (
    pad(np.asarray(leaf, np.float64)[rows], size) for leaf in ellipsoids
  )
  center[: len(rows)] -= origin
  axes[len(rows) :], rotation[len(rows) :] = 1.0, np.eye(3)
  return ellipsoid_lib.Ellipsoid(*map(_narrow, (center, axes, rotation)))


def _table(pairs, num_detections, rows):
  """Candidates of every detection, int32 [M, K], and which are real [M, K]."""
  order = np.argsort(pairs.observation, kind='stable')
  observation = pairs.observation[order]
  counts = np.bincount(observation, minlength=num_detections)
  column = np.arange(len(order)) - (np.cumsum(counts) - counts)[observation]
  shape = (
    bucket(num_detections, _FEWEST_DETECTIONS),
    bucket(int(counts.max(initial=0)), _FEWEST_CANDIDATES),
  )
  landmark, real = np.zeros(shape, np.int32), np.zeros(shape, bool)
  landmark[observation, column] = np.searchsorted(rows, pairs.landmark[order])
  real[observation, column] = True
  return landmark, real
