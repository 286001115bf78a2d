# SPDX-License-Identifier: Apache-2.0
"""Classes whose images look at one point: EigenPlaces.

The frames of a cell lie along a road. Its direction is the first principal
axis of their positions; the second, v, points to the side. The focal point of
the cell (Berton et al., EigenPlaces, ICCV 2023, section 3) is

  f = mu + D R(angle) v

with the mean mu of the positions: at 0 degrees beside the road (lateral), at
90 ahead on it (frontal). Every frame looks at f, out of its panorama, so that
a class shows one thing from several sides.

The authors' code takes v from a row of the matrix of axes, which are its
columns: right only where that matrix is symmetric. Here is no matrix.
"""

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import schema
from input_pipeline.plans import classes
from input_pipeline.plans import planner

# Quarter turns from v: beside the road and ahead on it.
_LATERAL = np.array([[1.0, 0.0], [0.0, 1.0]])
_FRONTAL = np.array([[0.0, -1.0], [1.0, 0.0]])


def across(
  position: np.ndarray, cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and second principal axis of the positions of every cell.

  The first axis has the angle atan2(2 s_xy, s_xx - s_yy) / 2, from the sums s
  of squares and products about the mean.

  Args:
    position: [R, 2] metres.
    cell: [R] int, numbers 0..C-1.

  Returns:
    mu [C, 2] and unit vectors v [C, 2]. Of the two directions of an axis the
    one to the north (y >= 0); north where all directions are alike.
  """
  count = np.bincount(cell)[:, None]
  mean = np.stack([np.bincount(cell, x) for x in position.T], 1) / count
  x, y = (position - mean[cell]).T
  angle = 0.5 * np.arctan2(
    np.bincount(cell, 2 * x * y), np.bincount(cell, x**2 - y**2)
  )
  return mean, np.stack([-np.sin(angle), np.cos(angle)], axis=1)


def focal_classes(
  frames: schema.FrameTable,
  *,
  cell: float = 15.0,
  spacing: int = 3,
  distance: float = 10.0,
  min_images: int = 10,
  num_groups: int = 9,
  field: float | None = None,
) -> classes.Classes:
  """Classes of EigenPlaces, with the authors' numbers as defaults.

  Args:
    frames: the table; frames without image, position or heading are left out.
    cell: M, metres. A cell belongs to one town.
    spacing: N, cells between two classes of a group, in each direction.
    distance: D, metres from the mean position to the focal point.
    min_images: of a class.
    num_groups: lateral groups, and frontal ones, at most: those with most
      images.
    field: None for panoramas, which look anywhere. For a camera, its
      horizontal field of view in radians: a frame is in a class only if it has
      the focal point in view, and the focal point lies on that side of the
      mean which more of the frames see.

  Returns:
    The table: lateral groups first, then frontal ones, a part of the batch
    for each; one part alone where no two classes of the other kind are seen,
    as from a narrow camera that looks ahead.

  Raises:
    InputError: an argument is out of range, or no group has two classes.
  """
  if min(cell, spacing, distance, min_images, num_groups) <= 0:
    raise InputError(
      'Classes need positive numbers; found '
      f'cell={cell}, spacing={spacing}, distance={distance}, '
      f'min_images={min_images}, num_groups={num_groups}.'
    )
  if field is not None and not 0 < field <= 2 * np.pi:
    raise InputError(f'field={field} is no angle between 0 and 2 pi radians.')
  kept = planner.placed_images(frames) & np.isfinite(frames.heading)
  rows = planner.rows_by_name(frames, kept)
  position = frames.position[rows, :2]
  place = np.floor(position / cell).astype(np.int64)
  town = np.unique(frames.town[rows], return_inverse=True)[1]
  key = np.column_stack([town, place])
  of_row = np.unique(key, axis=0, return_inverse=True)[1].ravel()
  mean, axis = across(position, of_row)
  tables = []
  for rotation in (_LATERAL, _FRONTAL):
    way = distance * axis @ rotation.T
    yaw = _look(position, frames.heading[rows], (mean + way)[of_row])
    seen = np.ones(len(rows), bool)
    if field is not None:
      behind = _look(position, frames.heading[rows], (mean - way)[of_row])
      sees = np.abs(np.stack([yaw, behind])) <= field / 2
      votes = np.stack([np.bincount(of_row, x) for x in sees])
      seen = np.where((votes[0] >= votes[1])[of_row], *sees)
      yaw = np.zeros(len(rows))
    group, label, num_classes = classes.number_classes(
      key[seen], place[seen] % spacing, min_images, num_groups
    )
    used = group >= 0
    tables.append(
      classes.Classes(
        rows[seen][used],
        group[used],
        label[used],
        num_classes,
        (tuple(range(len(num_classes))),),
        yaw[seen][used].astype(np.float32),
      )
    )
  tables = [table for table in tables if len(table.num_classes)]
  if not tables:
    raise InputError(
      f'{len(rows)} frames with image, position and heading give no group of '
      f'two classes with {min_images} images each. Lower min_images, or make '
      'cells larger.'
    )
  return classes.side_by_side(tables)


def _look(
  position: np.ndarray, heading: np.ndarray, target: np.ndarray
) -> np.ndarray:
  """Yaw [R] from headings to targets, radians in [-pi, pi), left positive."""
  step = target - position
  turn = np.arctan2(step[:, 1], step[:, 0]) - heading
  return (turn + np.pi) % (2 * np.pi) - np.pi
