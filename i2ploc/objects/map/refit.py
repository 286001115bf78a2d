# SPDX-License-Identifier: Apache-2.0
"""A given map, fitted to the boxes of a detector.

The extent of an object in a survey or a model is not that of a detector's box:
the trunk of a distant tree is thinner than a pixel, a hedge hides part of a
house, and a house is not an ellipsoid. Ellipsoids are fitted again, to the
boxes of posed images; their overlap decides which box shows which landmark.
"""

from collections.abc import Sequence

import jax
import numpy as np

from i2ploc.objects import detections as detections_lib
from i2ploc.objects.map import ellipsoid_fit
from i2ploc.objects.map import landmarks
from i2ploc.objects.map import posed_boxes

# Boxes that a fit needs, and what a box shares with a landmark's own.
_MIN_VIEWS, _MIN_IOU = 4, 0.3
# Of deciding and fitting; tolerances beyond which errors count linearly.
_ROUNDS, _SOFT = 2, 1.0
_SHAPE = ('center', 'semi_axes', 'rotation')


def refit(
  objects: landmarks.ObjectMap,
  detections_per_frame: Sequence[detections_lib.Detections],
  poses: np.ndarray,
  intrinsics: np.ndarray,
  image_size: tuple[int, int],
) -> landmarks.ObjectMap:
  """The same landmarks with ellipsoids that agree with boxes.

  Args:
    objects: of L landmarks, with the detector's categories.
    detections_per_frame: F detections, of images without distortion.
    poses: [F, 4, 4] world_from_camera, metres; the world is the map frame.
    intrinsics: [3, 3], pixels, without skew.
    image_size: (height, width), pixels.

  Returns:
    The map; landmarks that few boxes show stay as they are.

  Raises:
    InputError: broken boxes, or poses that are not rigid motions.
  """
  poses, origin = posed_boxes.around_origin(poses)
  objects = objects.moved(-origin)
  boxes = posed_boxes.lay_out(
    detections_per_frame, poses, intrinsics, image_size
  )
  for _ in range(_ROUNDS):
    rows = boxes.assigned(objects.ellipsoid, objects.category, _MIN_IOU)
    seen = [i for i, own in enumerate(rows) if len(own) >= _MIN_VIEWS]
    fit = ellipsoid_fit.fit_ellipsoids(
      [jax.tree.map(lambda x, i=i: x[i], objects.ellipsoid) for i in seen],
      [boxes.views(rows[i]) for i in seen],
      _SOFT,
    )
    changed = {name: getattr(objects, name).copy() for name in _SHAPE}
    good = np.array(seen, int)[fit.valid]
    for name, column in changed.items():
      column[good] = getattr(fit.ellipsoid, name)[fit.valid]
    objects = objects._replace(**changed)
  return objects.moved(origin)
