# SPDX-License-Identifier: Apache-2.0
"""Training by classification: classes of place and direction, in groups.

CosPlace (Berton et al., CVPR 2022) cuts the world into cells of M metres and
alpha degrees. With position (E, N) and heading h, section 3.1:

  class = (floor(E / M), floor(N / M), floor(h / alpha))
  group = (floor(E / M) mod N, floor(N / M) mod N, floor(h / alpha) mod L)

Two classes of a group are therefore at least M (N - 1) metres or
alpha (L - 1) degrees apart, and only classes of one group are told from each
other: neighbours, which see the same, never are.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import schema
from input_pipeline.plans import planner


class Classes(NamedTuple):
  """Frames by class, classes by group.

  Attributes:
    row: [R] int64 rows of the frame table. A frame has as many entries as
      classes: one here, up to two where a place is seen in two directions.
    group: [R] int32.
    label: [R] int32, the class, counted from 0 in each group.
    num_classes: [G] int32, C_g.
    blocks: the groups of each of the equal parts of a batch; a round trains
      one group of every part.
    yaw: [R] float32 radians, where in the panorama to look, from the frame's
      own heading, positive to the left; None where images are taken whole.
  """

  row: np.ndarray
  group: np.ndarray
  label: np.ndarray
  num_classes: np.ndarray
  blocks: tuple[tuple[int, ...], ...]
  yaw: np.ndarray | None = None


def number_classes(
  cells: np.ndarray, groups: np.ndarray, min_images: int, num_groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Numbers that do not depend on the order of the frames.

  The released code of CosPlace numbers groups as it first meets them in the
  list of files and trains the first eight. Here the groups with most images
  are trained (of equal ones those that sort first), numbered as their keys
  sort; so are the classes of a group.

  Args:
    cells: [R, C] int keys of classes.
    groups: [R, D] int keys of groups; a function of the cell.
    min_images: of a class; smaller ones are left out.
    num_groups: G, at most. A group with a single class has nothing to tell it
      from and is left out.

  Returns:
    group [R] int32 and label [R] int32, both -1 for what is left out, and
    num_classes [G] int32.
  """
  _, first, cell, size = np.unique(
    cells, axis=0, return_index=True, return_inverse=True, return_counts=True
  )
  keys, group = np.unique(groups[first], axis=0, return_inverse=True)
  cell, group = cell.ravel(), group.ravel()
  full = size >= min_images
  num_classes = np.bincount(group[full], minlength=len(keys))
  images = np.bincount(group, size * full, minlength=len(keys))
  images[num_classes < 2] = 0
  best = np.argsort(-images, kind='stable')[:num_groups]
  chosen = np.sort(best[images[best] > 0])
  group_number = np.full(len(keys), -1, np.int32)
  group_number[chosen] = np.arange(len(chosen))
  of_cell = np.where(full, group_number[group], -1).astype(np.int32)
  label = np.full(len(first), -1, np.int32)
  for i in range(len(chosen)):
    members = np.flatnonzero(of_cell == i)
    label[members] = np.arange(len(members))
  return of_cell[cell], label[cell], num_classes[chosen].astype(np.int32)


def side_by_side(tables: Sequence[Classes]) -> Classes:
  """Tables as the parts of one batch; their groups are counted on.

  Args:
    tables: at least one, all with yaw or all without.

  Returns:
    The entries and the blocks of all.
  """
  groups, blocks, offset = [], [], 0
  for table in tables:
    groups.append(table.group + np.int32(offset))
    blocks += [tuple(offset + i for i in block) for block in table.blocks]
    offset += len(table.num_classes)
  yaws = [table.yaw for table in tables if table.yaw is not None]
  return Classes(
    np.concatenate([table.row for table in tables]),
    np.concatenate(groups),
    np.concatenate([table.label for table in tables]),
    np.concatenate([table.num_classes for table in tables]),
    tuple(blocks),
    np.concatenate(yaws) if yaws else None,
  )


def cell_classes(
  frames: schema.FrameTable,
  *,
  cell: float = 10.0,
  turn: float = 30.0,
  spacing: int = 5,
  turn_spacing: int = 2,
  min_images: int = 10,
  num_groups: int = 8,
) -> Classes:
  """Classes of CosPlace, with the authors' numbers as defaults.

  Headings are those of the frame table, counter-clockwise from east. Compass
  headings give other cells, but the same distances between them. A class
  belongs to one town.

  Args:
    frames: the table; frames without image, position or heading are left out.
    cell: M, metres.
    turn: alpha, degrees; divides a whole turn.
    spacing: N, cells between two classes of a group, in each direction.
    turn_spacing: L, the same for headings. The number of headings is a
      multiple of it; otherwise the first and the last heading, which are
      neighbours, would share a group.
    min_images: of a class.
    num_groups: G, at most: those with most images.

  Returns:
    The table; one part of the batch.

  Raises:
    InputError: an argument is out of range, or no group has two classes.
  """
  if min(cell, turn, spacing, turn_spacing, min_images, num_groups) <= 0:
    raise InputError(
      'Classes need positive numbers; found '
      f'cell={cell}, turn={turn}, spacing={spacing}, '
      f'turn_spacing={turn_spacing}, min_images={min_images}, '
      f'num_groups={num_groups}.'
    )
  num_turns = round(360 / turn)
  if not math.isclose(num_turns * turn, 360):
    raise InputError(f'turn={turn} degrees does not divide a turn of 360.')
  if num_turns % turn_spacing:
    raise InputError(
      f'turn={turn} gives {num_turns} headings, no multiple of turn_spacing='
      f'{turn_spacing}: the headings on both sides of 0 would share a group. '
      f'Choose turn_spacing among the divisors of {num_turns}.'
    )
  kept = planner.placed_images(frames) & np.isfinite(frames.heading)
  rows = planner.rows_by_name(frames, kept)
  place = np.floor(frames.position[rows, :2] / cell).astype(np.int64)
  heading = np.floor(np.degrees(frames.heading[rows]) / turn).astype(np.int64)
  heading %= num_turns
  town = np.unique(frames.town[rows], return_inverse=True)[1]
  group, label, num_classes = number_classes(
    np.column_stack([town, place, heading]),
    np.column_stack([place % spacing, heading % turn_spacing]),
    min_images,
    num_groups,
  )
  if not len(num_classes):
    raise InputError(
      f'{len(rows)} frames with image, position and heading give no group of '
      f'two classes with {min_images} images each. Lower min_images, or make '
      'cells larger.'
    )
  used = group >= 0
  groups = tuple(range(len(num_classes)))
  return Classes(rows[used], group[used], label[used], num_classes, (groups,))


def make_classes(
  table: Classes, *, batch_size: int, steps: int, seed: int
) -> planner.Planner:
  """Groups take turns, a round each; their classes come equally often.

  Args:
    table: who is in which class.
    batch_size: B, a multiple of the parts of a batch.
    steps: S, of a round.
    seed: of what is drawn.

  Returns:
    A planner of row, group, class and, for panoramas, yaw. In a round no class
    comes more than once more than another of its group; the images of a class
    take turns in an order drawn anew.

  Raises:
    InputError: the batch does not divide into the parts.
  """
  parts = len(table.blocks)
  planner.check_sizes(batch_size, steps, parts, 'equal parts of a batch')

  def draw(group: int, rng: np.random.Generator) -> np.ndarray:
    """[S, B / parts] entries of a group."""
    entries = np.flatnonzero(table.group == group)
    label, count = table.label[entries], table.num_classes[group]
    size = np.bincount(label, minlength=count)
    start = np.cumsum(size) - size
    shuffled = entries[np.lexsort((rng.random(len(entries)), label))]
    length = steps * batch_size // parts
    chosen = planner.shuffled_epochs(rng, count, length)
    epoch = np.arange(length) // count
    return shuffled[start[chosen] + epoch % size[chosen]].reshape(steps, -1)

  def plan(number: int, describe: planner.Describe) -> planner.Plan:
    del describe
    rng = planner.random_of_round(seed, number)
    entry = np.concatenate(
      [draw(block[number % len(block)], rng) for block in table.blocks], axis=1
    )
    result = {
      'row': table.row[entry],
      'group': table.group[entry],
      'class': table.label[entry],
    }
    if table.yaw is not None:
      result['yaw'] = table.yaw[entry]
    return result

  return plan
