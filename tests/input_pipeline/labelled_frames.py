# SPDX-License-Identifier: Apache-2.0
"""A labelled dataset of painted rectangles, for tests that need no renderer."""

import numpy as np

from i2ploc.geometry import lens as lens_lib
from input_pipeline import schema
from input_pipeline.synthetic_city import vehicles

SIZE = (24, 40)
# The camera is 1 m ahead of the LiDAR and looks along its x axis.
RIG = schema.Rig(
  lens_lib.Lens('pinhole', np.diag([20.0, 20, 1])),
  SIZE,
  np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, -1], [0, 0, 0, 1]]),
)
LABELS = schema.Labels(('void', 'car'), (), (1,))
CAR = vehicles.FIRST_INSTANCE
# number: (category, what it is, caption's rest, box, east of the origin)
THINGS = {
  3: ('bin', 'a green bin', ' on the left', (2, 4, 10, 20), 5.0),
  5: ('tree', 'a fir-like tree', ' ahead', (12, 0, 20, 12), 20.0),
  6: ('tree', 'a birch-like tree', ' with yellow leaves behind',
      (22, 2, 30, 20), 60.0),
  CAR: ('car', 'a red van', ' parked on the right', (30, 10, 40, 20), 6.0),
}  # fmt: skip


def instance_image(numbers=tuple(THINGS)) -> np.ndarray:
  """[H, W] of these things, each painted over those before it."""
  image = np.zeros(SIZE, np.int32)
  for number in numbers:
    left, top, right, bottom = THINGS[number][3]
    image[top:bottom, left:right] = number
  return image


def things(numbers=tuple(THINGS)) -> list[dict]:
  """What a frame says of these things."""
  image = instance_image(numbers)
  return [
    {
      'instance': number,
      'category': THINGS[number][0],
      'caption': THINGS[number][1] + THINGS[number][2],
      'center': [THINGS[number][4], 1.0, 2.0],
      'semi_axes': [1.0, 2.0, 3.0],
      'yaw': np.pi / 6,
      'moving': False,
      'pixels': int((image == number).sum()),
      'points': 9,
    }
    for number in numbers
  ]


def dataset(num_frames: int = 4) -> schema.Dataset:
  """A town with a map drive and another; frame 0 of each sees no tree."""
  drives = ('map', 'cross')
  count = len(drives) * num_frames
  frame = np.tile(np.arange(num_frames), len(drives))
  pose = np.tile(np.eye(4), (count, 1, 1))
  pose[:, 0, 3] = 2.0 * frame
  frames = schema.FrameTable(
    np.array(['town'] * count),
    np.repeat(drives, num_frames),
    frame,
    frame.astype(float),
    pose,
    np.ones(count, bool),
    np.ones(count, bool),
    schema.frame_names(np.repeat(drives, num_frames), frame),
  )

  def read(row, what):
    seen = (3, CAR) if frame[row] == 0 else tuple(THINGS)
    rng = np.random.default_rng(row)
    reading = {
      'image': rng.integers(0, 256, (*SIZE, 3), np.uint8),
      'image_instance': instance_image(seen),
      'objects': things(seen),
    }
    wanted = set(what) | ({'image_instance'} if 'labels' in what else set())
    return {name: value for name, value in reading.items() if name in wanted}

  rigs = dict.fromkeys(drives, RIG)
  return schema.Dataset('painted', frames, rigs, read, LABELS)
