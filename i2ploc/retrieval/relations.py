# SPDX-License-Identifier: Apache-2.0
"""Who is a positive of whom: one ternary matrix for losses, miners and metrics.

+1: the same place, a right answer. -1: another place, a wrong answer. 0: in
between or unknown, ignored in losses and metrics. Distances are
horizontal, over x and y of a world frame whose z points UP: floors and heights
do not tell places apart here, and a dataset in another frame (KITTI odometry's
camera frame has y down) must be re-anchored before it comes here.
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
