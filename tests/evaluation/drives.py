# SPDX-License-Identifier: Apache-2.0
"""Small drives with descriptors, for the tests of the evaluator."""

import numpy as np

from i2ploc.evaluation import descriptor_files
from i2ploc.evaluation import questions
from i2ploc.evaluation import scores


def make_track(ground, axes='kitti', frames=None, headings=None, height=None):
  """A track through [N, 2] in the ground plane, a frame per second."""
  ground = np.asarray(ground, np.float64)
  positions = np.zeros((len(ground), 3))
  plane = list(questions.AXES[axes].ground)
  positions[:, plane] = ground
  if height is not None:
    positions[:, 3 - sum(plane)] = height
  frames = np.arange(len(ground)) if frames is None else np.asarray(frames)
  return questions.Track(
    frames, positions, axes, frames.astype(np.float64), headings
  )


def make_recording(track, image, points, points_track=None, name='00'):
  """A drive whose descriptors are [N, D] or [N, V, D]."""

  def side(descriptors, track):
    descriptors = np.asarray(descriptors, np.float32)
    if descriptors.ndim == 2:
      descriptors = descriptors[:, None]
    return scores.Side(descriptors, track)

  return descriptor_files.Recording(
    name, side(image, track), side(points, points_track or track), 'dot'
  )


def wander(seed, count=90, axes='kitti'):
  """A drive that crosses itself in all headings, with frames missing.

  Descriptors take few values, so that similarities tie.
  """
  rng = np.random.default_rng(seed)
  headings = np.cumsum(rng.normal(0, 0.5, count))
  steps = 3 * np.stack([np.cos(headings), np.sin(headings)], 1)
  ground = np.cumsum(steps, 0) % 60
  height = rng.normal(0, 8, count)
  tracks, descriptors = [], []
  for share in (0.9, 0.8):
    rows = np.flatnonzero(rng.random(count) < share)
    track = make_track(
      ground[rows], axes, rows, headings[rows], height=height[rows]
    )
    tracks.append(track)
    descriptors.append(rng.integers(-2, 3, size=(len(rows), 2, 2)))
  return make_recording(tracks[0], *descriptors, tracks[1], f'drive_{seed}')
