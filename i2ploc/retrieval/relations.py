# SPDX-License-Identifier: Apache-2.0
"""Who is a positive of whom: one ternary matrix for losses, miners and metrics.

+1: the same place, a right answer. -1: another place, a wrong answer. 0: in
between or unknown, ignored in losses and metrics. Distances are
horizontal, over x and y of a world frame whose z points UP: floors and heights
do not tell places apart here, and a dataset in another frame (KITTI odometry's
camera frame has y down) must be re-anchored before it comes here.

Positions, texts or footprints say who is near whom. `any_frame` makes relations
of sequences from those of their frames, and `of_one_side` those that a batch of
a single side trains with.
"""

from typing import Any
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError

Array = TypeVar('Array', np.ndarray, jax.Array)

POSITIVE, IGNORE, NEGATIVE = 1, 0, -1


def from_positions(
  query_position: Array,
  query_town: Array,
  map_position: Array,
  map_town: Array,
  *,
  positive_radius: float,
  ignore_radius: float,
  query_heading: Array | None = None,
  map_heading: Array | None = None,
  max_heading: float | None = None,
  paired: bool = False,
) -> Array:
  """Relations of queries to map entries, from where they were taken.

  Positive within `positive_radius` (inclusive), negative beyond
  `ignore_radius` or in another town, else ignored. So is a pair of one town
  with a position that is not finite.

  Args:
    query_position: [Q, 3] metres, world frame, z up; numpy or jax.
    query_town: [Q] names (numpy only) or ids.
    map_position: [M, 3].
    map_town: [M].
    positive_radius: metres.
    ignore_radius: metres, at least `positive_radius`.
    query_heading: [Q] radians about world z; only with `max_heading`.
    map_heading: [M].
    max_heading: radians; pairs within `positive_radius` that look in directions
      further apart than this see different things of one place and are
      ignored.
    paired: entry i of both was put together on purpose, as in a training batch
      (Q = M): the diagonal is positive for any poses.

  Returns:
    [Q, M] int8 in {+1, 0, -1}.

  Raises:
    InputError: radii in the wrong order, headings missing, or not square.
  """
  _check(query_position, map_position, positive_radius, ignore_radius, paired)
  arrays = (query_position, map_position, query_town, map_town)
  xp: Any = jnp if any(isinstance(a, jax.Array) for a in arrays) else np
  east, north = (
    query_position[:, None, axis] - map_position[None, :, axis]
    for axis in (0, 1)
  )
  separation = xp.hypot(east, north)
  same_town = query_town[:, None] == map_town[None, :]
  positive = same_town & (separation <= positive_radius)
  negative = ~same_town | (separation > ignore_radius)
  if max_heading is not None:
    if query_heading is None or map_heading is None:
      raise InputError(
        'max_heading is set but a heading is missing: pass query_heading and '
        'map_heading, or leave max_heading out.'
      )
    turn = query_heading[:, None] - map_heading[None, :]
    turn = xp.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    positive &= turn <= max_heading
  if paired:
    positive |= xp.eye(len(query_position), dtype=bool)
  ternary = xp.where(positive, POSITIVE, xp.where(negative, NEGATIVE, IGNORE))
  return ternary.astype(xp.int8)


def from_texts(
  query_tokens: Array, query_mask: Array, map_tokens: Array, map_mask: Array
) -> Array:
  """Relations of things to texts, from the texts that belong to the things.

  Positive for equal texts, also of different things, negative for different
  texts, ignored where one of them is padding.

  Args:
    query_tokens: [Q, L] numbered words of the text of each thing; numpy or jax.
    query_mask: [Q] bool, things that are no padding.
    map_tokens: [M, L].
    map_mask: [M] bool.

  Returns:
    [Q, M] int8 in {+1, 0, -1}.
  """
  arrays = query_tokens, query_mask, map_tokens, map_mask
  xp: Any = jnp if any(isinstance(a, jax.Array) for a in arrays) else np
  equal = (query_tokens[:, None] == map_tokens[None]).all(-1)
  real = query_mask[:, None] & map_mask[None]
  related = xp.where(equal, POSITIVE, NEGATIVE)
  return xp.where(real, related, IGNORE).astype(xp.int8)


def overlapping(a: Array, b: Array) -> Array:
  """Which convex quadrilaterals overlap; those that touch do.

  Two convex shapes are apart if their shadows on some line are, and lines
  across their sides are enough to try (the separating axis theorem). The two
  axes of the ground are tried as well, without which shapes that have shrunk to
  a line or a point, whose sides lack directions, would overlap too often.

  >>> square = np.array([[0.0, 0], [2, 0], [2, 2], [0, 2]])
  >>> overlapping(square[None], np.stack([square + 1, square + 3]))
  array([[ True, False]])

  Args:
    a: [B, 4, 2] corners in turn, either way round, metres (x east, y north);
      numpy or jax.
    b: [M, 4, 2].

  Returns:
    [B, M] bool; False for a shape with a corner that is not finite.

  Raises:
    InputError: other shapes.
  """
  for shape in (a, b):
    if shape.ndim != 3 or shape.shape[1:] != (4, 2):
      raise InputError(
        f'footprints of shape {shape.shape}: expected [N, 4, 2], the corners '
        'in turn (x east, y north) in metres'
      )
  xp: Any = jnp if any(isinstance(x, jax.Array) for x in (a, b)) else np
  known = _known(xp, a, b)
  a, b = (xp.where(xp.isfinite(x), x, 0) for x in (a, b))
  apart = _apart(xp, a, b) | _apart(xp, b, a).T
  return known & ~apart


def _known(xp, a, b):
  """[B, M]: whether all corners of both are finite."""
  a_known, b_known = (xp.isfinite(x).all((1, 2)) for x in (a, b))
  return a_known[:, None] & b_known[None, :]


def _apart(xp, a, b):
  """[B, M]: whether shadows on a line across a side of a, or an axis, are."""
  side = xp.roll(a, -1, 1) - a
  across = xp.stack([side[..., 1], -side[..., 0]], -1)
  axes = xp.broadcast_to(xp.eye(2, dtype=a.dtype), (len(a), 2, 2))
  lines = xp.concatenate([across, axes], 1)  # [B, 6, 2]

  def shadow(lines, corners):
    # Not a matrix product, whose precision on a GPU makes neighbours overlap.
    return lines[..., 0] * corners[..., 0] + lines[..., 1] * corners[..., 1]

  own = shadow(lines[:, :, None], a[:, None])  # [B, 6, 4]
  other = shadow(lines[:, None, :, None], b[:, None])  # [B, M, 6, 4]
  beyond = other.min(-1) > own.max(-1)[:, None]
  before = other.max(-1) < own.min(-1)[:, None]
  return (beyond | before).any(-1)


def from_footprints(
  query_footprint: Array,
  query_town: Array,
  map_footprint: Array,
  map_town: Array,
  *,
  overlap: int,
) -> Array:
  """Relations of images from above, from what they show of the ground.

  Args:
    query_footprint: [Q, 4, 2], see `overlapping`; numpy or jax.
    query_town: [Q] names (numpy only) or ids; metres of two towns have nothing
      to do with each other.
    map_footprint: [M, 4, 2].
    map_town: [M].
    overlap: what a pair of one town is whose footprints overlap: 1, an answer,
      as in the evaluation of EarthLoc; 0, neutral, as in its training, where
      images of one place are put together on purpose (`of_one_side`); -1,
      another place.

  Returns:
    [Q, M] int8 in {+1, 0, -1}: `overlap` where footprints overlap, -1
    elsewhere, and 0 for a pair of one town with a footprint that is not finite.

  Raises:
    InputError: another `overlap`, or shapes that do not fit.
  """
  if overlap not in (POSITIVE, IGNORE, NEGATIVE):
    raise InputError(f'overlap={overlap}: expected 1, 0 or -1')
  arrays = query_footprint, map_footprint, query_town, map_town
  xp: Any = jnp if any(isinstance(a, jax.Array) for a in arrays) else np
  related = xp.where(
    overlapping(query_footprint, map_footprint), overlap, NEGATIVE
  )
  known = _known(xp, query_footprint, map_footprint)
  related = xp.where(known, related, IGNORE)
  same_town = query_town[:, None] == map_town[None, :]
  return xp.where(same_town, related, NEGATIVE).astype(xp.int8)


def any_frame(
  relations: Array, query_frames: int, map_frames: int | None = None
) -> Array:
  """Relations of sequences, from those of their frames.

  Positive if any frame of one is a positive of any frame of the other, negative
  only if all are negatives, else ignored.

  >>> frames = np.array([[-1, -1, 0, -1], [-1, -1, -1, 1]], np.int8)
  >>> any_frame(frames, query_frames=2)
  array([[-1,  1]], dtype=int8)

  Args:
    relations: [Q T, M S] in {+1, 0, -1}, the frames of a sequence one after the
      other; numpy or jax.
    query_frames: T.
    map_frames: S; None: T.

  Returns:
    [Q, M] in {+1, 0, -1}.

  Raises:
    InputError: frames that make no whole sequences.
  """
  map_frames = query_frames if map_frames is None else map_frames
  size = relations.shape
  if min(query_frames, map_frames) < 1 or (
    size[0] % query_frames or size[1] % map_frames
  ):
    raise InputError(
      f'relations {size} of frames: expected whole sequences of '
      f'{query_frames} and {map_frames} frames'
    )
  frames: Any = relations.reshape(
    size[0] // query_frames, query_frames, size[1] // map_frames, map_frames
  )
  # In the order -1 < 0 < 1, the rule is the largest.
  return frames.max((1, 3))


def of_one_side(
  relations: Array, place: Array | None = None, labelled: Array | None = None
) -> Array:
  """Relations of a batch to itself, as losses of a model of one side want them.

  The later of these rules wins: readings of an equal place are positives,
  however far apart; a reading that is not labelled is ignored; so is the pair
  of a reading with itself, which is no answer.

  >>> far = np.full((3, 3), -1, np.int8)
  >>> of_one_side(far, np.array([7, 7, -1]))
  array([[ 0,  1, -1],
         [ 1,  0, -1],
         [-1, -1,  0]], dtype=int8)

  Args:
    relations: [B, B] in {+1, 0, -1}, what poses or footprints say; numpy or
      jax.
    place: [B] ids of what was put together on purpose, -1 for none; None: for
      no reading.
    labelled: [B] bool, readings of which it is known where they are; None: all.

  Returns:
    [B, B] in {+1, 0, -1}.

  Raises:
    InputError: shapes that do not fit.
  """
  size = len(relations)
  if relations.shape != (size, size):
    raise InputError(
      f'relations {relations.shape}: expected [B, B], a batch to itself'
    )
  for name, rows in ('place', place), ('labelled', labelled):
    if rows is not None and rows.shape != (size,):
      raise InputError(f'{name} {rows.shape}: expected {(size,)}')
  arrays = relations, place, labelled
  xp: Any = jnp if any(isinstance(a, jax.Array) for a in arrays) else np
  related = relations
  if place is not None:
    together = (place[:, None] == place[None, :]) & (place >= 0)
    related = xp.where(together, POSITIVE, related)
  ignored = xp.eye(size, dtype=bool)
  if labelled is not None:
    ignored |= ~(labelled[:, None] & labelled[None, :])
  return xp.where(ignored, IGNORE, related).astype(xp.int8)


def _check(
  query_position, map_position, positive_radius, ignore_radius, paired
):
  """Raises ValueError for what shapes and numbers alone can tell."""
  for name, position in ('query', query_position), ('map', map_position):
    if position.ndim != 2 or position.shape[1] != 3:
      raise InputError(
        f'{name}_position has shape {position.shape}, expected [N, 3] (x, y, '
        'z of a world frame with z up).'
      )
  if not 0 <= positive_radius <= ignore_radius:
    raise InputError(
      f'positive_radius {positive_radius} and ignore_radius {ignore_radius}: '
      'expected 0 <= positive_radius <= ignore_radius, in metres.'
    )
  if paired and len(query_position) != len(map_position):
    raise InputError(
      f'paired needs as many queries as map entries, got '
      f'{len(query_position)} and {len(map_position)}.'
    )
