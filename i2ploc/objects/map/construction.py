# SPDX-License-Identifier: Apache-2.0
"""A map of ellipsoids from detections in posed images, without manual work.

  1. Rays of one category that meet propose objects (`ray_clusters`).
  2. An ellipsoid is fitted to the boxes of each (`ellipsoid_fit`).
  3. Every box is given to the ellipsoid of its category whose own box in that
     image overlaps it most, one to one; ellipsoids are fitted again.
  4. What are two ellipsoids of one object become one. The rotation between the
     camera and what the poses are of is corrected, the same in all images:
     half a degree, which is good for a motion capture, is five pixels.
  5. Boxes that nothing explains propose more objects; again from 2.
  6. Objects with too few views or too little parallax, whose place their boxes
     do not determine, or which boxes contradict are left out.

An object that a detector calls by two names becomes a landmark for each: a
query's detector will do the same.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple

from absl import logging
import jax
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.objects import detections as detections_lib
from i2ploc.objects.map import dual_quadric
from i2ploc.objects.map import ellipsoid_fit
from i2ploc.objects.map import landmarks as landmarks_lib
from i2ploc.objects.map import posed_boxes
from i2ploc.objects.map import ray_clusters


class Settings(NamedTuple):
  """What makes a landmark.

  Attributes:
    min_views: images that show it.
    min_parallax: radians between the outermost of its rays.
    soft: of edges, in their tolerances; larger errors count linearly.
    min_iou: of a box with the landmark's own, to belong to it.
    min_median_iou: of all its boxes.
    max_deviation: of its centre, relative to its size.
    calibrate: correct a rotation common to all cameras.
    rounds: of proposing and fitting.
    seed: of the pairs of rays that are tried.
  """

  min_views: int = 6
  min_parallax: float = math.radians(8.0)
  soft: float = 1.0
  min_iou: float = 0.3
  min_median_iou: float = 0.5
  max_deviation: float = 0.5
  calibrate: bool = True
  rounds: int = 3
  seed: int = 0


DEFAULT = Settings()
# Steps of a fit from closed form, and of one that starts at another's result.
_FIT, _REFINE = 25, 8
# Steps of the common turn, in each round; and the cost that must remain.
_NUM_TURNS, _AGREES = 3, 0.99
# Two landmarks of which images show both, each by a box of its own, in at least
# this share of the views of the rarer one are two objects.
_TOGETHER = 0.2
# Squared radius, in one ellipsoid, within which another's centre is inside.
_INSIDE = 1.0


class _Landmarks(NamedTuple):
  """L landmarks that are being made, and which boxes belong to them."""

  category: np.ndarray
  ellipsoid: ellipsoid_lib.Ellipsoid
  rows: tuple[np.ndarray, ...]
  covariance: np.ndarray
  cost: np.ndarray

  def take(self, keep):
    keep = np.asarray(keep, int)
    return _Landmarks(
      self.category[keep],
      _take(self.ellipsoid, keep),
      tuple(self.rows[i] for i in keep),
      self.covariance[keep],
      self.cost[keep],
    )


def _take(ellipsoid, rows):
  return ellipsoid_lib.Ellipsoid(*(leaf[rows] for leaf in ellipsoid))


def _list(ellipsoid):
  return [_take(ellipsoid, i) for i in range(len(ellipsoid.center))]


def build_map(
  detections_per_frame: Sequence[detections_lib.Detections],
  poses: np.ndarray,
  intrinsics: np.ndarray,
  image_size: tuple[int, int],
  *,
  names: Mapping[int, str] | None = None,
  settings: Settings = DEFAULT,
) -> landmarks_lib.ObjectMap:
  """Builds an object map.

  Args:
    detections_per_frame: F detections, of images without distortion (see
      `detections.undistort`).
    poses: [F, 4, 4] world_from_camera, metres; the world becomes the map frame.
    intrinsics: [3, 3], pixels, without skew.
    image_size: (height, width), pixels.
    names: of categories: the labels of the map.
    settings: what makes a landmark.

  Returns:
    The map, by category and then the number of views; possibly empty. Its
    covariances take errors of boxes for independent, which those of successive
    images are not. If cameras were turned, poses found with the map differ from
    the given ones by that turn, but not in position.

  Raises:
    InputError: poses that are not rigid motions, one per frame.
  """
  # The device computes in float32, which UTM eastings do not fit.
  poses, origin = posed_boxes.around_origin(poses)
  boxes = posed_boxes.lay_out(
    detections_per_frame, poses, intrinsics, image_size
  )
  rng = np.random.default_rng(settings.seed)
  landmarks = _none()
  for _ in range(settings.rounds):
    free = np.setdiff1d(np.arange(len(boxes.frame)), _all_rows(landmarks))
    proposed = _proposed(boxes, free, settings, rng)
    proposed = _fitted(boxes, proposed, settings, _FIT)
    landmarks = _settled(boxes, _joined(landmarks, proposed), settings)
    landmarks = _merged(boxes, landmarks)
    boxes, landmarks = _calibrated(boxes, landmarks, settings)
    landmarks = _assigned(boxes, landmarks, settings.min_iou)
  landmarks = _settled(boxes, landmarks, settings)
  landmarks = _trusted(boxes, landmarks, settings)
  landmarks = _assigned(boxes, landmarks, settings.min_iou)
  explained = len(_all_rows(landmarks))
  logging.info(
    'Object map of %d landmarks; they explain %d of %d boxes in %d images.',
    len(landmarks.category),
    explained,
    len(boxes.frame),
    len(detections_per_frame),
  )
  return _object_map(landmarks, names or {}).moved(origin)


def _none():
  ellipsoid = ellipsoid_lib.Ellipsoid(*np.zeros((2, 0, 3)), np.zeros((0, 3, 3)))
  return _Landmarks(
    np.zeros(0, int), ellipsoid, (), np.zeros((0, 3, 3)), np.zeros(0)
  )


def _all_rows(landmarks):
  return np.concatenate([np.zeros(0, int), *landmarks.rows])


def _joined(first, second):
  return _Landmarks(
    np.concatenate([first.category, second.category]),
    jax.tree.map(
      lambda *leaves: np.concatenate(leaves), first.ellipsoid, second.ellipsoid
    ),
    first.rows + second.rows,
    np.concatenate([first.covariance, second.covariance]),
    np.concatenate([first.cost, second.cost]),
  )


def _proposed(boxes, free, settings, rng):
  """Landmarks of closed form from boxes that belong to none."""
  categories, starts, rows = [], [], []
  for category in np.unique(boxes.category[free]):
    usable = (boxes.category[free] == category) & ~boxes.cut[free]
    mine = free[usable]
    found = ray_clusters.find_clusters(
      boxes.sights(mine),
      min_views=settings.min_views,
      min_parallax=settings.min_parallax,
      rng=rng,
    )
    for one in found:
      rows.append(mine[one.rows])
      views = boxes.views(rows[-1])
      starts.append(dual_quadric.start(views, one.center, one.radius))
      categories.append(category)
  if not starts:
    return _none()
  return _Landmarks(
    np.array(categories),
    jax.tree.map(lambda *leaves: np.stack(leaves), *starts),
    tuple(rows),
    np.full((len(rows), 3, 3), np.inf),
    np.full(len(rows), np.inf),
  )


def _fitted(boxes, landmarks, settings, num_steps):
  """The landmarks fitted to their boxes; those that diverge are left out."""
  fit = _fit(boxes, landmarks, settings, num_steps)
  return _with_fit(landmarks, fit).take(np.flatnonzero(fit.valid))


def _fit(boxes, landmarks, settings, num_steps):
  return ellipsoid_fit.fit_ellipsoids(
    _list(landmarks.ellipsoid),
    [boxes.views(rows) for rows in landmarks.rows],
    settings.soft,
    num_steps,
  )


def _with_fit(landmarks, fit):
  return landmarks._replace(
    ellipsoid=fit.ellipsoid, covariance=fit.covariance, cost=fit.cost
  )


def _settled(boxes, landmarks, settings):
  """The landmarks fitted to the boxes that are theirs, if enough are."""
  landmarks = _assigned(boxes, landmarks, settings.min_iou)
  landmarks = _enough(boxes, landmarks, settings)
  return _fitted(boxes, landmarks, settings, _REFINE)


def _calibrated(boxes, landmarks, settings):
  """Turns all cameras to where the boxes want them, if these agree better."""
  if not settings.calibrate or not len(landmarks.rows):
    return boxes, landmarks
  turned, total = boxes, transform.Rotation.identity()
  fit = _fit(boxes, landmarks, settings, 0)
  for _ in range(_NUM_TURNS):
    step = ellipsoid_fit.common_turn(fit, settings.soft)
    total = transform.Rotation.from_rotvec(step) * total
    turned = boxes.turned(total.as_matrix())
    fitted = _with_fit(landmarks, fit)
    fit = _fit(turned, fitted, settings, _REFINE)
  fitted = _with_fit(landmarks, fit)
  if _mean_cost(fitted) >= _AGREES * _mean_cost(landmarks):
    return boxes, landmarks
  logging.info(
    'Turned all cameras by %.2f degrees; the cost fell from %.3f to %.3f.',
    math.degrees(total.magnitude()),
    _mean_cost(landmarks),
    _mean_cost(fitted),
  )
  return turned, fitted.take(np.flatnonzero(fit.valid))


def _mean_cost(landmarks):
  return np.average(landmarks.cost, weights=[len(x) for x in landmarks.rows])


def _assigned(boxes, landmarks, min_iou):
  """Boxes to landmarks one to one in every image, the best overlap first."""
  rows = boxes.assigned(landmarks.ellipsoid, landmarks.category, min_iou)
  return landmarks._replace(rows=rows)


def _enough(boxes, landmarks, settings):
  """Landmarks with enough views and parallax."""
  keep = [
    i
    for i, rows in enumerate(landmarks.rows)
    if len(rows) >= settings.min_views
    and ray_clusters.parallax(boxes.sights(rows).direction)
    >= settings.min_parallax
  ]
  return landmarks.take(keep)


def _merged(boxes, landmarks):
  """Joins landmarks of a category if one has the other's centre inside."""
  order = np.argsort([-len(rows) for rows in landmarks.rows], kind='stable')
  kept: list[int] = []
  rows = list(landmarks.rows)
  for i in order:
    for j in kept:
      if _same_object(boxes, landmarks, rows, i, j):
        rows[j] = np.union1d(rows[j], rows[i])
        break
    else:
      kept.append(i)
  return landmarks._replace(rows=tuple(rows)).take(sorted(kept))


def _same_object(boxes, landmarks, rows, i, j):
  if landmarks.category[i] != landmarks.category[j]:
    return False
  one, other = (_take(landmarks.ellipsoid, k) for k in (i, j))
  if min(_radius_squared(one, other), _radius_squared(other, one)) > _INSIDE:
    return False
  frames = [set(boxes.frame[rows[k]].tolist()) for k in (i, j)]
  rarer = min(len(frames[0]), len(frames[1]))
  return len(frames[0] & frames[1]) <= _TOGETHER * rarer


def _radius_squared(ellipsoid, other):
  """Of the centre of `other` in an ellipsoid, whose surface has 1."""
  away = (other.center - ellipsoid.center) @ ellipsoid.rotation
  return np.sum((away / ellipsoid.semi_axes) ** 2)


def _trusted(boxes, landmarks, settings):
  """Landmarks that their boxes determine and agree with."""
  landmarks = _enough(
    boxes,
    _assigned(boxes, landmarks, settings.min_iou),
    settings,
  )
  if not len(landmarks.category):
    return landmarks
  overlap = boxes.overlaps(landmarks.ellipsoid, landmarks.category)
  keep = []
  for i, rows in enumerate(landmarks.rows):
    size = np.exp(np.log(landmarks.ellipsoid.semi_axes[i]).mean())
    deviation = _deviation(landmarks.covariance[i])
    agrees = np.median(overlap[i, rows]) >= settings.min_median_iou
    if agrees and deviation <= settings.max_deviation * size:
      keep.append(i)
  return landmarks.take(keep)


def _deviation(covariance):
  """The largest of any direction; infinite where nothing is determined."""
  if not np.isfinite(covariance).all():
    return np.inf
  return np.sqrt(np.linalg.eigvalsh(covariance).max())


def _object_map(landmarks, names):
  num_views = np.array([len(rows) for rows in landmarks.rows], int)
  order = np.lexsort([-num_views, landmarks.category])
  landmarks = landmarks.take(order)
  categories = landmarks.category.tolist()
  return landmarks_lib.make_map(
    *landmarks.ellipsoid,
    category=landmarks.category,
    labels=[(names[c],) if c in names else () for c in categories],
    covariance=landmarks.covariance,
    num_views=num_views[order],
  )
