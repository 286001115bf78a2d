# SPDX-License-Identifier: Apache-2.0
"""Frames as columns of encoded bytes and numbers, and files of them.

A record is a dict of one frame. Images, ranges and labels are PNG.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import io
import json
import pathlib
import zlib

import numpy as np
from PIL import Image

from i2ploc import files
from i2ploc.errors import InputError
from input_pipeline.synthetic_city import objects as objects_lib

# 80 m are 40,000 units: 16 bits do, as in the sensor's own packets.
RANGE_UNIT = 0.002
MIN_SEEN = 4  # pixels and points together; less is not seeing an object

Record = dict[str, np.ndarray | np.generic | bytes]


def _png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  # Runs are what labels consist of, and images hardly compress: files as small
  # as with a search for longer matches, in two thirds of the time.
  Image.fromarray(pixels).save(buffer, 'PNG', compress_type=zlib.Z_RLE)
  return buffer.getvalue()


def instance_from_rgb(pixels: np.ndarray) -> np.ndarray:
  """Instance numbers [H, W] int32 of a stored label image [H, W, 3]."""
  return pixels @ np.array([1, 256, 65536], np.int32)


def _rgb_from_instance(instance: np.ndarray) -> np.ndarray:
  return np.stack([instance >> shift & 255 for shift in (0, 8, 16)], -1)


def encode(
  reading: dict[str, np.ndarray], objects: objects_lib.Objects
) -> Record:
  """A rendered frame as encoded images, calibration and a list of objects.

  Args:
    reading: what `sensors.make_renderer`'s function returns.
    objects: candidates; those are listed that the sensors see.

  Returns:
    PNG of image, range (uint16, units of RANGE_UNIT metres, 0 for no return),
    intensity, and per sensor ('image', 'points') semantic and instance (see
    `instance_from_rgb`); intrinsics, camera_from_lidar; objects as JSON.
  """
  columns = {
    'image': reading['image'],
    'range': np.round(reading['scan_range'] / RANGE_UNIT).astype(np.uint16),
    'intensity': reading['scan_intensity'],
  }
  for sensor, prefix in (('image', 'image'), ('points', 'scan')):
    columns[f'{sensor}_semantic'] = reading[f'{prefix}_semantic']
    columns[f'{sensor}_instance'] = _rgb_from_instance(
      reading[f'{prefix}_instance']
    ).astype(np.uint8)
  return {name: _png(pixels) for name, pixels in columns.items()} | {
    'intrinsics': np.asarray(reading['intrinsics'], np.float64),
    'camera_from_lidar': np.asarray(reading['camera_from_lidar'], np.float64),
    'objects': _visible(objects, reading),
  }


def _visible(objects: objects_lib.Objects, reading) -> bytes:
  """JSON list of the objects that the sensors see."""
  counts = [
    dict(zip(*np.unique(reading[name], return_counts=True), strict=True))
    for name in ('image_instance', 'scan_instance')
  ]
  rows = []
  for i, instance in enumerate(objects.instance):
    pixels, points = (int(count.get(instance, 0)) for count in counts)
    if pixels + points >= MIN_SEEN:
      rows.append(
        {
          'instance': int(instance),
          'category': str(objects.category[i]),
          'caption': str(objects.caption[i]),
          'center': np.round(objects.center[i], 2).tolist(),
          'semi_axes': np.round(objects.semi_axes[i], 2).tolist(),
          'yaw': round(float(objects.yaw[i]), 3),
          'moving': bool(objects.moving[i]),
          'pixels': pixels,
          'points': points,
        }
      )
  return json.dumps(rows, separators=(',', ':')).encode()


def write(path: pathlib.Path, records: list[Record]) -> None:
  """Writes a unit whole or not at all.

  Columns of bytes become one array and the offsets at which each entry ends.
  """
  columns = {}
  for name, first in records[0].items():
    values = [record[name] for record in records]
    if isinstance(first, bytes):
      pieces = [value for value in values if isinstance(value, bytes)]
      columns[name] = np.frombuffer(b''.join(pieces), np.uint8)
      columns[name + '.end'] = np.cumsum([len(piece) for piece in pieces])
    else:
      columns[name] = np.stack(values)
  files.save_arrays(path, columns)


def read(
  path: pathlib.Path, names: Sequence[str] | None = None
) -> Iterator[Record]:
  """The records of a unit in order.

  Args:
    path: of the unit.
    names: of the columns that are wanted; None for all.

  Raises:
    InputError: if the file is not a whole unit.
  """
  try:
    with np.load(path) as archive:
      count = len(archive['frame'])
      columns = {
        name: archive[name]
        for name in archive.files
        if names is None or name.removesuffix('.end') in names
      }
  except Exception as error:
    raise InputError(
      f'{path} is damaged ({error}). Delete it; it will be rendered again.'
    ) from error
  for i in range(count):
    record = {}
    for name, values in columns.items():
      if name + '.end' in columns:
        ends = columns[name + '.end']
        start = ends[i - 1] if i else 0
        record[name] = values[start : ends[i]].tobytes()
      elif not name.endswith('.end'):
        record[name] = values[i]
    yield record
