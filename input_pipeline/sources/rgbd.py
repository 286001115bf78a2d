# SPDX-License-Identifier: Apache-2.0
"""A TUM RGB-D sequence with a file of detections, as one place."""

from collections.abc import Sequence
import functools
import os
import pathlib

import numpy as np

from i2ploc.errors import InputError
from input_pipeline.readers import tum_files
from input_pipeline.readers import tum_rgbd
from input_pipeline.sources import places as places_lib

# Seconds within which queries of a hand-held camera fail together.
_BLOCK_SECONDS = 5.0


class RgbdSource:
  """A TUM RGB-D sequence as one place.

  Attributes:
    name: of the sequence.
    image_size: (H, W), pixels.
  """

  def __init__(
    self,
    *,
    data_dir: str | None,
    image_size: tuple[int, int],
    mapping: str,
    queries: str,
    detections: str,
    lens: str = '',
    categories: Sequence[str] = (),
  ):
    """Reads nothing yet.

    Args:
      data_dir: folder of the sequence, see `readers.tum_rgbd`.
      image_size: (H, W) of the images, pixels.
      mapping: frames of which the map is made, as start:stop:step.
      queries: frames that ask.
      detections: file in the folder, see `localization.detection_files`.
      lens: file in the folder, see `tum_files.load_lens`; '' for the published
        lens of the camera that the folder's name tells.
      categories: names of the detector's numbers.

    Raises:
      InputError: no folder is given.
    """
    if not data_dir:
      raise InputError('Give the folder of the sequence with --data_dir=PATH.')
    self._root = pathlib.Path(os.path.expanduser(data_dir))
    self.name, self.image_size = self._root.name, tuple(image_size)
    self._frames = {'mapping': mapping, 'queries': queries}
    self._detections, self._lens = detections, lens
    self._categories = tuple(categories)

  @functools.cache  # noqa: B019  a source lives as long as the program
  def places(self, ask: object = None) -> list[places_lib.Place]:
    """The sequence.

    Args:
      ask: not used: the config says which frames ask, see `mapping`.

    Raises:
      MissingFileError: a file is missing.
      InputError: a file that is damaged, or no frames are asked for.
    """
    del ask
    lens = size = None
    if self._lens:
      lens = tum_files.load_lens(self._root / self._lens)
      size = tum_files.load_image_size(self._root / self._lens)
    recording = tum_rgbd.load(self._root, lens=lens, lens_size=size)
    if recording.rig.image_size not in (None, self.image_size):
      raise InputError(
        f'{self._root} has images of {list(recording.rig.image_size)} pixels, '
        f'but data.image_size is {list(self.image_size)}.'
      )
    return [
      places_lib.Place(
        self.name,
        self._shots(recording, 'mapping'),
        self._shots(recording, 'queries'),
        self._root / self._detections,
        self._categories,
      )
    ]

  def _shots(self, recording, use):
    count = len(recording.timestamp)
    rows = np.arange(count)[_slice(f'data.{use}', self._frames[use])]
    if not len(rows):
      raise InputError(
        f'data.{use}={self._frames[use]!r} selects none of the {count} frames'
        f' of {self.name}.'
      )
    return places_lib.Shots(
      names=tuple(recording.images[i].name for i in rows),
      world_from_camera=recording.world_from_camera[rows],
      lens=recording.rig.lens,
      image_size=self.image_size,
      blocks=(recording.timestamp[rows] // _BLOCK_SECONDS).astype(np.int64),
      has_image=recording.has_image[rows],
      read=lambda i: recording.read(int(rows[i]), ('image',))['image'],
    )


def _slice(name: str, text: str) -> slice:
  parts = text.split(':')
  try:
    numbers = [int(part) if part else None for part in parts]
    if not 2 <= len(parts) <= 3 or 0 in numbers[2:]:
      raise ValueError
  except ValueError:
    raise InputError(
      f'{name}={text!r}: expected frames as start:stop:step, such as 0::2.'
    ) from None
  return slice(*numbers)
