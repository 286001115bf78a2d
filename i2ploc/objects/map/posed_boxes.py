# SPDX-License-Identifier: Apache-2.0
"""The boxes of a sequence of posed images, as map construction needs them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.geometry import rigid
from i2ploc.objects import detections as detections_lib
from i2ploc.objects.map import dual_quadric
from i2ploc.objects.map import ray_clusters

# Ellipsoids are projected in multiples of this: one compilation for most maps.
_BUCKET = 64
_ORIGINS = 1000.0  # metres between origins that `around_origin` chooses from
# To which edges of boxes are believed, of the longer side of the image. Not of
# the boxes: large objects suffer most from what hides a part of them.
TOLERANCE = 3 / 640


class PosedBoxes(NamedTuple):
  """N boxes in F images, sorted by image.

  Attributes:
    frame: [N] int, the image.
    category: [N] int.
    pixels: [N, 4].
    cut: [N] bool, by the border of the image.
    open: [N, 4] bool, the edges on the border.
    cameras: camera_from_map of leading axis F.
    intrinsics: [3, 3].
    image_size: (height, width).
  """

  frame: np.ndarray
  category: np.ndarray
  pixels: np.ndarray
  cut: np.ndarray
  open: np.ndarray
  cameras: rigid.Rigid
  intrinsics: np.ndarray
  image_size: tuple[int, int]

  def views(self, rows: np.ndarray) -> dual_quadric.Views:
    """The boxes of some rows, for a fit."""
    focal = self.intrinsics[[0, 1, 0, 1], [0, 1, 0, 1]]
    center = self.intrinsics[[0, 1, 0, 1], 2]
    frame, pixels = self.frame[rows], self.pixels[rows]
    tolerance = TOLERANCE * max(self.image_size)
    return dual_quadric.Views(
      rotation=np.asarray(self.cameras.rotation)[frame],
      translation=np.asarray(self.cameras.translation)[frame],
      box=(pixels - center) / focal,
      precision=np.broadcast_to(focal / tolerance, pixels.shape),
      open=self.open[rows],
      weight=np.ones(len(rows)),
    )

  def sights(self, rows: np.ndarray) -> ray_clusters.Sights:
    """The rays of some rows."""
    views = self.views(rows)
    low, high = views.box[:, :2], views.box[:, 2:]
    return ray_clusters.Sights(
      frame=self.frame[rows],
      rotation=views.rotation.astype(np.float32),
      translation=views.translation.astype(np.float32),
      middle=((low + high) / 2).astype(np.float32),
      half=((high - low) / 2).astype(np.float32),
    )

  def turned(self, turn: np.ndarray) -> 'PosedBoxes':
    """With all cameras turned by a rotation [3, 3] of their own frames."""
    cameras = rigid.Rigid(
      turn @ self.cameras.rotation, self.cameras.translation @ turn.T
    )
    return self._replace(cameras=cameras)

  def overlaps(
    self, ellipsoid: ellipsoid_lib.Ellipsoid, category: np.ndarray
  ) -> np.ndarray:
    """IoU [L, N] of L ellipsoids' own boxes with all boxes.

    Inside the image; 0 for boxes of another category.
    """
    count = len(category)
    fill = -count % _BUCKET
    padded = jax.tree.map(
      lambda leaf: np.concatenate([leaf, leaf[:1].repeat(fill, 0)]), ellipsoid
    )
    height, width = self.image_size
    bounds = np.array([0, 0, width, height], np.float32)
    seen = _projected(padded, self.cameras, self.intrinsics, bounds)
    seen = np.asarray(seen)[:count]
    overlap = np.zeros((count, len(self.frame)), np.float32)
    for i, wanted in enumerate(category):
      mine = np.flatnonzero(self.category == wanted)
      overlap[i, mine] = _iou(seen[i, self.frame[mine]], self.pixels[mine])
    return overlap

  def assigned(
    self,
    ellipsoid: ellipsoid_lib.Ellipsoid,
    category: np.ndarray,
    min_iou: float,
  ) -> tuple[np.ndarray, ...]:
    """Whose boxes are whose: one to one in every image, the best overlap first.

    Args:
      ellipsoid: leading axis L.
      category: int [L]; boxes of another one are of something else.
      min_iou: of a box with the ellipsoid's own.

    Returns:
      L arrays of rows of the boxes, ascending.
    """
    if not len(category):
      return ()
    overlap = self.overlaps(ellipsoid, category)
    pairs = np.argwhere(overlap >= min_iou)
    order = np.argsort(-overlap[tuple(pairs.T)], kind='stable')
    taken_boxes, taken_landmarks = set(), set()
    rows = [[] for _ in category]
    for i, row in pairs[order].tolist():
      showing = (i, int(self.frame[row]))
      if row not in taken_boxes and showing not in taken_landmarks:
        taken_boxes.add(row)
        taken_landmarks.add(showing)
        rows[i].append(row)
    return tuple(np.array(sorted(one), int) for one in rows)


@compilation.jit
def _projected(ellipsoid, cameras, intrinsics, bounds):
  """Boxes [L, F, 4], pixels, inside the image; flat where nothing is seen."""
  ellipsoid, cameras = jax.tree.map(
    lambda leaf: leaf.astype(np.float32), (ellipsoid, cameras)
  )
  each = ellipsoid_lib.Ellipsoid(*(leaf[:, None] for leaf in ellipsoid))
  outline = ellipsoid_lib.project(each, cameras)
  pixels = ellipsoid_lib.pixel_box(intrinsics, outline.box)
  clipped = ellipsoid_lib.clip_box(pixels, bounds)
  return clipped * outline.valid[..., None]


def _iou(a, b):
  """Intersection over union [N] of boxes [N, 4]; in numpy, as N varies."""
  low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
  both = np.maximum(high - low, 0).prod(-1)
  either = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1)
  return both / np.maximum(either - both, 1e-9)


def around_origin(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Poses from an origin near them, where float32 is enough.

  Args:
    poses: [F, 4, 4] world_from_camera, metres.

  Returns:
    poses: [F, 4, 4] float64, from the origin.
    origin: [3] float64, in the world; whole kilometres, so that nothing
      changes of what is near already.
  """
  poses = np.array(poses, np.float64)
  if poses.ndim != 3 or not len(poses) or not np.isfinite(poses).all():
    return poses, np.zeros(3)  # `lay_out` names what is wrong
  origin = _ORIGINS * np.round(poses[:, :3, 3].mean(0) / _ORIGINS)
  poses[:, :3, 3] -= origin
  return poses, origin


def lay_out(
  detections_per_frame: Sequence[detections_lib.Detections],
  poses: np.ndarray,
  intrinsics: np.ndarray,
  image_size: tuple[int, int],
) -> PosedBoxes:
  """Checks everything and lays it out by box; see `build_map`."""
  count = len(detections_per_frame)
  poses = np.asarray(poses, np.float64)
  _check_poses(poses, count)
  for i, one in enumerate(detections_per_frame):
    faults = detections_lib.box_fault(one.box)
    if (faults != '').any():
      row = int(np.argmax(faults != ''))
      raise InputError(
        f'frame {i}: box {row} is {faults[row]}: {one.box[row].tolist()}'
      )
  matrix = np.asarray(intrinsics, np.float64)
  if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
    raise InputError(f'intrinsics must be finite [3, 3], not {matrix.tolist()}')
  motions = np.linalg.inv(poses)
  edges = [
    detections_lib.cut_edges(one, image_size) for one in detections_per_frame
  ]
  columns = {
    name: np.concatenate([getattr(one, name) for one in detections_per_frame])
    if count
    else np.zeros((0, 4) if name == 'box' else 0)
    for name in ('box', 'category', 'cut')
  }
  return PosedBoxes(
    frame=np.repeat(
      np.arange(count), [len(one.box) for one in detections_per_frame]
    ),
    category=columns['category'],
    pixels=columns['box'],
    cut=columns['cut'].astype(bool),
    open=np.concatenate(edges) if count else np.zeros((0, 4), bool),
    cameras=rigid.Rigid(motions[:, :3, :3], motions[:, :3, 3]),
    intrinsics=matrix,
    image_size=image_size,
  )


def _check_poses(poses, count):
  if poses.shape != (count, 4, 4) or not np.isfinite(poses).all():
    raise InputError(
      f'poses must be finite, one [4, 4] per frame: [{count}, 4, 4], not '
      f'{list(poses.shape)}'
    )
  turn = poses[:, :3, :3]
  error = np.abs(turn @ np.swapaxes(turn, 1, 2) - np.eye(3)).max((1, 2))
  bad = (error > 1e-3) | (np.linalg.det(turn) < 0)
  if (rows := np.flatnonzero(bad)).size:
    raise InputError(
      f'{len(rows)} poses are no rigid motions, first that of frame {rows[0]}'
    )
