# SPDX-License-Identifier: Apache-2.0
"""Pairs of points of two images: as data, and the coordinates they get."""

from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib

SIDES = problem_lib.Sides((2, 2), (0, 1))
# Extents of the data of two images whose ratio is larger have different units.
_SAME_UNIT = 8.0


class Matches(NamedTuple):
  """Pairs of points, one of either image; every leaf is [N].

  Attributes:
    x0: to the right in image 0.
    y0: down in image 0.
    x1: to the right in image 1.
    y1: down in image 1.
  """

  x0: jax.Array
  y0: jax.Array
  x1: jax.Array
  y1: jax.Array


class Frames(NamedTuple):
  """Origin and unit of the coordinates of two images.

  Attributes:
    image0: of image 0.
    image1: of image 1.
  """

  image0: inputs.Frame
  image1: inputs.Frame

  def matches(self, points0: np.ndarray, points1: np.ndarray) -> Matches:
    """Data from points [N, 2]."""
    inside0 = self.image0.inside(points0)
    return Matches(*inside0.T, *self.image1.inside(points1).T)

  def matrices(self) -> tuple[np.ndarray, np.ndarray]:
    """From points to the coordinates of either image, [3, 3]."""
    return self.image0.matrix(), self.image1.matrix()


class Pairs(NamedTuple):
  """What users give.

  Attributes:
    points0: [N, 2], image 0.
    points1: [N, 2], image 1.
    usable: of the pairs.
    scores: [N], if given.
    frames: of the points.
  """

  points0: np.ndarray
  points1: np.ndarray
  usable: inputs.Usable
  scores: np.ndarray | None
  frames: Frames

  def within(self, frames: Frames) -> tuple[Matches, inputs.Usable]:
    """The data in coordinates of these frames, and which may be used."""
    data = frames.matches(self.points0, self.points1)
    return data, inputs.near(np.stack(data, axis=-1), self.usable)


def pairs(points0: Any, points1: Any, scores: Any = None) -> Pairs:
  """Checked points of two images, and a frame around those of either.

  Both images have one unit, so that distances in them can be compared, unless
  their extents differ so much that they must be measured in different units.

  Args:
    points0: [N, 2].
    points1: [N, 2] of their partners.
    scores: [N], or None.

  Raises:
    InputError: shapes or values that are wrong.
  """
  points0, points1, usable = inputs.pairs(
    points0, points1, (2, 2), ('points0', 'points1')
  )
  scores, usable = inputs.quality(scores, usable)
  first, second = (inputs.frame(p, usable) for p in (points0, points1))
  frames = Frames(first, second)
  if 1 / _SAME_UNIT < first.unit / second.unit < _SAME_UNIT:
    unit = float(np.sqrt(first.unit * second.unit))
    frames = Frames(first._replace(unit=unit), second._replace(unit=unit))
  return Pairs(points0, points1, usable, scores, frames)


def with_unit(frames: Frames, unit: float) -> Frames:
  """Frames with this unit in image 1, and image 0 too if it had the same."""
  same = frames.image0.unit == frames.image1.unit
  return Frames(
    frames.image0._replace(unit=unit) if same else frames.image0,
    frames.image1._replace(unit=unit),
  )
