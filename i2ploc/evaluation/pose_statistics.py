# SPDX-License-Identifier: Apache-2.0
"""What the poses of a drive alone say about a protocol: chance and revisits.

A random pair is a query and a place drawn independently and uniformly from all
frames of the drive: ordered, the pair of a frame with itself included, because
the database of such a protocol holds the query's own instant. Within a radius
means strictly nearer.
"""

from typing import NamedTuple

import numpy as np

from i2ploc.evaluation import protocols
from i2ploc.evaluation import questions

# Without products of descriptors, blocks that fit the cache are twice as fast.
BLOCK = 32


class RandomPairs(NamedTuple):
  """Random pairs of frames of one drive.

  Attributes:
    frames: how many.
    path: metres driven, in all three dimensions.
    rate: share of the pairs nearer than the radius on the ground.
    rate_on_axes: the same in the plane of the other two components.
    rate_when_wrong: of the pairs not nearer on the ground, the share that are
      in the plane of the other components: how often a wrong answer passes.
    neighbors: mean number of frames nearer than the radius, itself included.
  """

  frames: int
  path: float
  rate: float
  rate_on_axes: float
  rate_when_wrong: float
  neighbors: float


def random_pairs(
  track: questions.Track, radius: float, components: tuple[int, int]
) -> RandomPairs:
  """Counts all pairs of a drive.

  Args:
    track: the drive.
    radius: metres.
    components: the two coordinates to compare the ground with.
  """
  rows = np.arange(len(track.frames))
  ground = questions.Question(
    'ground', '', 'image', 'points', rows, rows, (radius,), strict=True
  )
  other = ground._replace(components=components)
  near = near_other = both = 0
  for truth, seen in zip(
    questions.blocks_from_question(ground, track, track, BLOCK),
    questions.blocks_from_question(other, track, track, BLOCK),
    strict=True,
  ):
    hit, passes = truth.distances < radius, seen.distances < radius
    near += int(hit.sum())
    near_other += int(passes.sum())
    both += int((hit & passes).sum())
  count = len(track.frames)
  steps = np.linalg.norm(np.diff(track.positions, axis=0), axis=1)
  return RandomPairs(
    frames=count,
    path=float(steps.sum()),
    rate=near / count**2,
    rate_on_axes=near_other / count**2,
    rate_when_wrong=(near_other - both) / max(count**2 - near, 1),
    neighbors=near / count,
  )


class Revisits(NamedTuple):
  """Frames from which an earlier part of the drive is seen again.

  Attributes:
    radius: metres.
    share: of all frames.
    opposite: of the revisits, the share that meet the place in the opposite
      heading only (turned by more than 135 degrees, none by less than 45); not
      a number without headings or revisits.
  """

  radius: float
  share: float
  opposite: float


def revisits(
  track: questions.Track,
  radii: tuple[float, ...],
  exclude_recent: float = 30.0,
) -> list[Revisits]:
  """Share of frames with a place nearer than each radius, long enough ago.

  Args:
    track: the drive, with times.
    radii: metres.
    exclude_recent: seconds before a frame that do not count.
  """
  protocol = protocols.PROTOCOLS['loop_closure']._replace(
    exclude_recent=exclude_recent
  )
  question = protocols.question_from_tracks(
    protocol, {'image': track, 'points': track}, 'image', 'points'
  )
  seen = np.zeros(len(radii))
  reversed_ = np.zeros(len(radii))
  for block in questions.blocks_from_question(question, track, track, BLOCK):
    for i, radius in enumerate(radii):
      positives = block.candidates & (block.distances < radius)
      seen[i] += positives.any(1).sum()
      if block.alignments is not None:
        reversed_[i] += questions.headings_of_positives(
          positives, block.alignments
        )[1].sum()
  known = track.headings is not None
  return [
    Revisits(
      radius,
      float(seen[i] / len(track.frames)),
      float(reversed_[i] / seen[i]) if known and seen[i] else float('nan'),
    )
    for i, radius in enumerate(radii)
  ]
