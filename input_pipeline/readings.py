# SPDX-License-Identifier: Apache-2.0
"""A dataset's readings in the form in which batches hold them.

What is derived from the sensors by geometry (range images, point groups,
bearings) is derived on the device by `i2ploc.geometry`. The host only decodes,
resizes the image together with its intrinsics, and draws as many points as the
batch holds. Its one geometric act is `frustum`: a crop that drops points far
from the camera's view before the draw, so that `num_points` are spent where
the camera looks.

Prepared readings are kept in memory, up to `CACHE_BYTES` per dataset, so that
every epoch after the first costs almost nothing.
"""

from collections.abc import Callable
from collections.abc import Hashable
import functools
import threading
from typing import Any
from typing import NamedTuple
import weakref

import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import resizing
from input_pipeline import pairing
from input_pipeline import schema
from input_pipeline.plans import sequences

CACHE_BYTES = 1 << 30
Batch = dict[str, np.ndarray]
Entry = dict[str, np.ndarray | np.generic]  # of a batch, or a part of it


class _Form(NamedTuple):
  """How a reading is prepared; readings of one form are cached together."""

  image_size: tuple[int, int]
  frustum: float | None
  labels: bool
  resize: str


class Memory:
  """Prepared readings by key, up to `CACHE_BYTES`.

  Nothing is ever thrown out: a shuffled epoch touches every reading once, and
  then the oldest is exactly the wrong one to forget.
  """

  def __init__(self):
    self._entries = {}
    self._bytes = 0
    self._lock = threading.Lock()

  def get(self, key: Hashable, prepare: Callable[[], Any]) -> Any:
    """The arrays by name of a key, prepared if they are not kept."""
    if key in self._entries:
      return self._entries[key]
    entry = prepare()
    size = sum(value.nbytes for value in entry.values())
    with self._lock:
      if key not in self._entries and self._bytes + size <= CACHE_BYTES:
        self._entries[key] = entry
        self._bytes += size
    return entry


# Keyed by the function that reads, so that evaluators which ask for the same
# dataset again and again share what was decoded, and it dies with the dataset.
_MEMORIES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def memory(dataset: schema.Dataset) -> Memory:
  """What is kept of a dataset's readings."""
  return _MEMORIES.setdefault(dataset.read, Memory())


def check_not_empty(dataset: schema.Dataset) -> None:
  """Raises a ValueError that names a dataset without frames."""
  if not len(dataset.frames.town):
    raise InputError(
      f'{dataset.name} has no frames. Check the split and the data directory.'
    )


def matching_rig(dataset: schema.Dataset, drive: str) -> schema.Rig:
  """The rig with which a drive's scans are compared with images.

  Its own; with the camera of the first drive that has images, where it has none
  itself.

  Raises:
    InputError: no drive has images.
  """
  frames, rig = dataset.frames, dataset.rigs[drive]
  seeing = frames.drive[frames.has_image]
  if drive in seeing:
    return rig
  if not len(seeing):
    raise InputError(
      f'{dataset.name} has no image, so no camera: a LiDAR tower needs to know'
      ' what the queries will see.'
    )
  camera = dataset.rigs[seeing[0]]
  return rig._replace(lens=camera.lens, image_size=camera.image_size)


def _name(frames: schema.FrameTable, row: int) -> str:
  return f'drive {frames.drive[row]}, frame {frames.frame[row]}'


class Readings:
  """A dataset's readings, prepared for batches."""

  def __init__(
    self,
    dataset: schema.Dataset,
    image_size: tuple[int, int],
    num_points: int,
    frustum: float | None,
    labels: bool = False,
    resize: str = resizing.STRETCH,
    num_frames: int = 1,
    frame_stride: int = 1,
  ):
    check_not_empty(dataset)
    if num_points < 1:
      raise InputError(f'num_points must be at least 1, not {num_points}.')
    if len(image_size) != 2 or min(image_size) < 1:
      raise InputError(
        f'image_size must be (height, width) in pixels, not {image_size}.'
      )
    self._dataset = dataset
    self._num_points = num_points
    if num_frames < 1 or frame_stride < 1:
      raise InputError(
        f'num_frames={num_frames}, frame_stride={frame_stride}: expected 1 or'
        ' more.'
      )
    self._form = _Form(tuple(image_size), frustum, labels, resize)
    self._history = None
    if num_frames > 1:
      self._history = sequences.sequence_rows(
        dataset.frames, num_frames, frame_stride
      )
    self._memory = memory(dataset)
    self._place = _places(dataset.frames)
    self._matching_rig = functools.cache(
      functools.partial(matching_rig, dataset)
    )

  def image(self, row: int) -> Entry:
    """The part of a batch's entry that a camera sees.

    Of a sequence: image [T, H, W, 3] ([V, T, H, W, 3] of a policy of V
    pictures), image_position [T, 3] and image_heading [T], the oldest first, of
    the rows before this one and of this one. Where there are too few, the
    oldest stands for those that are missing. Calibration and labels are of this
    row alone.

    Raises:
      InputError: a sequence is asked for of a row without image, or the image
        is not what the rig says.
    """
    return self._picture('image', row)

  def rendering(self, row: int) -> Entry:
    """The same of what a renderer shows from there."""
    return self._picture('rendering', row)

  def _picture(self, sensor: str, row: int) -> Entry:
    form, place = self._form._replace(frustum=None), self._place

    def at(row):
      prepared = self._memory.get(
        (sensor, form, row), lambda: self._prepare_picture(sensor, row)
      )
      return prepared | {
        f'{sensor}_position': place.position[row],
        f'{sensor}_heading': place.heading[row],
      }

    entry = at(row)
    if self._history is not None:
      known = self._history[row][self._history[row] >= 0]
      if not len(known):
        raise InputError(
          f'{_name(self._dataset.frames, row)}: no image, so no sequence ends '
          'there. Take rows by has_image, or num_frames=1.'
        )
      missing = self._history.shape[1] - len(known)
      frames = [at(int(r)) for r in [*known[:1]] * missing + [*known]]
      for name in (f'{sensor}_position', f'{sensor}_heading'):
        entry[name] = np.stack([frame[name] for frame in frames])
      entry[sensor] = np.stack([frame[sensor] for frame in frames], axis=-4)
    return entry | {
      f'{sensor}_town': place.town[row],
      f'{sensor}_index': np.int32(row),
    }

  def points(self, row: int, rng: np.random.Generator) -> Entry:
    """The scan half of a batch's entry; `rng` draws the points."""
    form = self._form._replace(image_size=(0, 0))
    prepared = self._memory.get(
      ('points', form, row), lambda: self._prepare_points(row)
    )
    per_point = {k: v for k, v in prepared.items() if k.startswith('points')}
    count = len(prepared['points'])
    kept = min(count, self._num_points)
    if count > kept:
      chosen = rng.choice(count, kept, replace=False, shuffle=False)
      per_point = {name: value[chosen] for name, value in per_point.items()}
    place = self._place
    return {
      name: _pad(value, self._num_points) for name, value in per_point.items()
    } | {
      'camera_from_lidar': prepared['camera_from_lidar'],
      'points_mask': np.arange(self._num_points) < kept,
      'points_position': place.position[row],
      'points_heading': place.heading[row],
      'points_town': place.town[row],
      'points_index': np.int32(row),
    }

  def camera(self, row: int) -> Entry:
    """Calibration of the camera with which the scan of a row is compared."""
    drive = str(self._dataset.frames.drive[row])
    return _camera(
      self._matching_rig(drive), self._form.image_size, self._form.resize
    )

  def _read(self, row: int, sensor: str) -> dict[str, Any]:
    what = (sensor, 'labels') if self._form.labels else (sensor,)
    return self._dataset.read(int(row), what)

  def _prepare_picture(self, sensor: str, row: int) -> Entry:
    reading = self._read(row, sensor)
    size, policy = self._form.image_size, self._form.resize
    frames = self._dataset.frames
    rig = self._dataset.rigs[frames.drive[row]]
    image = np.asarray(reading[sensor])
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
      raise InputError(
        f'{_name(frames, row)}: expected an image uint8 [H, W, 3], found '
        f'{image.dtype} {list(image.shape)}.'
      )
    if rig.image_size not in (None, image.shape[:2]):
      raise InputError(
        f'{_name(frames, row)}: an image of {image.shape[1]}x{image.shape[0]}, '
        f'but the camera of its drive has {rig.image_size[1]}x'
        f'{rig.image_size[0]}. Use the original images.'
      )
    entry: Entry = {sensor: resizing.resize_image(image, size, policy)}
    entry |= _camera(rig, size, policy)
    if self._form.labels and sensor == 'image':
      entry['image_semantic'] = resizing.resize_labels(
        reading['image_semantic'], size, policy
      )
    return entry

  def _prepare_points(self, row: int) -> Entry:
    reading = self._read(row, 'points')
    frames = self._dataset.frames
    points = np.asarray(reading['points'], np.float32)
    bad = np.count_nonzero(~np.isfinite(points).all(1))
    if bad:
      raise InputError(
        f'{_name(frames, row)}: {bad} of {len(points)} points are not finite. '
        'Repair or remove the scan.'
      )
    rig = self._dataset.rigs[frames.drive[row]]
    motion = np.asarray(rig.camera_from_body, np.float32)
    kept = np.ones(len(points), bool)
    if self._form.frustum is not None:
      seen = points[:, :3] @ motion[:3, :3].T + motion[:3, 3]
      azimuth = np.arctan2(seen[:, 0], seen[:, 2])
      kept = np.abs(azimuth) <= self._form.frustum
    entry: Entry = {'points': points[kept], 'camera_from_lidar': motion}
    if self._form.labels:
      entry['points_semantic'] = np.asarray(reading['points_semantic'])[kept]
    return entry


def _camera(rig: schema.Rig, size: tuple[int, int], policy: str) -> Entry:
  """The calibration in a batch's entry; nothing of an unknown camera."""
  if rig.lens is None or rig.image_size is None:
    return {}
  matrix = np.asarray(rig.lens.intrinsics, np.float32)
  return {
    'intrinsics': resizing.resize_intrinsics(
      matrix, rig.image_size, size, policy
    ),
    'camera_from_lidar': np.asarray(rig.camera_from_body, np.float32),
  }


class _Places(NamedTuple):
  position: np.ndarray  # [F, 3] float32, from the first known of the town
  heading: np.ndarray  # [F] float32
  town: np.ndarray  # [F] int32


def _places(frames: schema.FrameTable) -> _Places:
  names = pairing.unique_in_order(frames.town)
  town = np.asarray([names.index(name) for name in frames.town], np.int32)
  known = np.isfinite(frames.position[:, :2]).all(1)
  first = [np.argmax((town == i) & known) for i in range(len(names))]
  origin = np.nan_to_num(frames.position[first])
  position = frames.position - origin[town]
  return _Places(
    position.astype(np.float32), frames.heading.astype(np.float32), town
  )


def _pad(values: np.ndarray, length: int) -> np.ndarray:
  if len(values) == length:
    return values
  padded = np.zeros((length, *values.shape[1:]), values.dtype)
  padded[: len(values)] = values
  return padded
