# SPDX-License-Identifier: Apache-2.0
"""The motion of a camera that sees a plane, from its homography.

Of points on a plane the relative pose of two cameras is open to the five-point
solver's noise, while a homography is well determined. It allows one or two
motions; which one is true, other points or the vertical tell.
"""

from typing import NamedTuple

import numpy as np

from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import planar_motion
from i2ploc.geometry import rigid
from i2ploc.robust import homography as homography_lib
from i2ploc.robust import inputs
from i2ploc.robust import search as search_lib

# Rays further off the lens's axis than 80 degrees (the tangent of that) are not
# projected to a plane.
_MAX_SLOPE = 5.67


class PlaneMotion(NamedTuple):
  """A motion, and the plane that was seen.

  Attributes:
    camera1_from_camera0: its translation is in units of the plane's distance
      from camera 0.
    normal: [3], unit vector in camera 0 towards the plane; 0 where the camera
      only turns.
  """

  camera1_from_camera0: rigid.Rigid
  normal: np.ndarray


class PlaneMotions(NamedTuple):
  """What two images of a plane say about the cameras.

  Attributes:
    motions: all that are possible, none, one or two; none unless the homography
      is valid.
    homography: its evidence. The model maps directions of camera 0, on the
      plane z = 1, to those of camera 1.
  """

  motions: tuple[PlaneMotion, ...]
  homography: homography_lib.Homography


def plane_motion(
  pixels0: np.ndarray,
  pixels1: np.ndarray,
  lens0: lens_lib.Lens,
  lens1: lens_lib.Lens,
  threshold: float = 3.0,
  *,
  scores: np.ndarray | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> PlaneMotions:
  """The motions with which two cameras see most points on one plane.

  Args:
    pixels0: [N, 2] (column, row) as measured by camera 0, which looks ahead.
    pixels1: [N, 2] of their partners as measured by camera 1; many may be
      wrong.
    lens0: camera 0.
    lens1: camera 1.
    threshold: residual of an inlier, at most, pixels.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The motions, and the homography that they explain.

  Raises:
    InputError: shapes that do not fit, values that are not finite, an
      impossible lens, one that looks all around.

  Example:
    Camera 1 is a metre to the right of camera 0, along a wall that is 5 m away.

    >>> import numpy as np
    >>> from i2ploc.geometry import lens
    >>> from i2ploc.robust import plane_motion
    >>> matrix = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    >>> camera = lens.Lens('pinhole', matrix)
    >>> rng = np.random.default_rng(0)
    >>> pixels0 = rng.uniform([0, 0], [640, 480], (60, 2))
    >>> pixels1 = pixels0 - [100, 0]
    >>> found = plane_motion.plane_motion(pixels0, pixels1, camera, camera)
    >>> for motion in found.motions:
    ...   shift = 5 * motion.camera1_from_camera0.translation
    ...   if abs(motion.normal[2]) > 0.99:
    ...     print((shift.round(3) + 0).tolist())
    [-1.0, 0.0, 0.0]
  """
  threshold = inputs.check_threshold(threshold)
  pixels0, pixels1, usable = inputs.pairs(
    pixels0, pixels1, (2, 2), ('pixels0', 'pixels1')
  )
  planes = []
  for lens, pixels in ((lens0, pixels0), (lens1, pixels1)):
    plane, seen = lens_lib.plane_from_pixels(lens, pixels)
    seen &= np.abs(plane).max(axis=-1, initial=0.0) < _MAX_SLOPE
    usable = usable.but(seen, 'have pixels beyond the lens')
    planes.append(plane)
  # The rows that the lenses cannot have imaged are masked.
  masked = np.broadcast_to(~usable.mask[:, None], pixels0.shape)
  focal = (lens0.focal_length + lens1.focal_length) / 2
  found = homography_lib.homography(
    *(np.ma.MaskedArray(plane, masked) for plane in planes),
    threshold / focal,
    scores=scores,
    search=search,
  )
  if not found.valid:
    return PlaneMotions((), found)
  rays0 = np.append(planes[0], np.ones((len(pixels0), 1)), axis=1)
  motions = planar_motion.from_homography(found.model, rays0[found.inliers])
  return PlaneMotions(
    tuple(
      PlaneMotion(rigid.Rigid(rotation, translation), normal)
      for rotation, translation, normal, valid in zip(*motions, strict=True)
      if valid
    ),
    found,
  )
