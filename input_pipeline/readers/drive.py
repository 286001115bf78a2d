# SPDX-License-Identifier: Apache-2.0
"""From the files of one drive to a dataset.

Files, poses and times meet by frame number, never by their position in a
sorted list: a missing scan leaves a hole and shifts nothing. A frame is kept if
it has a pose and at least one sensor; how many were left out is logged.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import NamedTuple

from absl import logging
import numpy as np

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from input_pipeline import extrinsics
from input_pipeline import schema
from input_pipeline.readers import calibrated
from input_pipeline.readers import kitti_files
from input_pipeline.readers import splits

IMAGE_SUFFIXES = ('.png', '.jpg')

_FRAMES_PER_SECOND = 10.0


class Drive(NamedTuple):
  """One drive with one camera and one LiDAR; mappings are by frame number.

  Attributes:
    name: unique inside the dataset.
    images: image files.
    scans: scan files.
    world_from_lidar: [4, 4] poses.
    times: seconds, or None for the sensor's rate of 10 Hz; frames without an
      entry are interpolated.
    rig: its camera and where it sits.
    calibration: where the latter was read, for messages.
  """

  name: str
  images: Mapping[int, pathlib.Path]
  scans: Mapping[int, pathlib.Path]
  world_from_lidar: Mapping[int, np.ndarray]
  times: Mapping[int, float] | None
  rig: schema.Rig
  calibration: str


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
  """`schema.Dataset.read` over drives; plain data, hence picklable.

  Compared and hashed by identity, as the function that it stands for.

  Attributes:
    drives: where the files are.
    drive_index: [F] int, the drive of each row.
    frame: [F] int64, the frame number of each row.
    dropped: what scans have lost in reading.
  """

  drives: tuple[Drive, ...]
  drive_index: np.ndarray
  frame: np.ndarray
  dropped: kitti_files.Dropped

  def __call__(
    self, row: int, what: Sequence[str] = ('image', 'points')
  ) -> dict[str, np.ndarray]:
    """Reads a row's files; see `schema.Dataset`.

    Raises:
      InputError: the frame has no such sensor, or its file is damaged.
    """
    unknown = set(what) - {'image', 'points'}
    if unknown:
      raise InputError(
        f'Asked for {sorted(unknown)}; KITTI has image and points.'
      )
    drive = self.drives[self.drive_index[row]]
    frame = int(self.frame[row])
    sample = {}
    if 'image' in what:
      path = _file(drive.images, frame, drive.name, 'image')
      sample['image'] = kitti_files.read_image(path)
      calibrated.check_size(sample['image'].shape, drive.rig.image_size, path)
    if 'points' in what:
      path = _file(drive.scans, frame, drive.name, 'scan')
      sample['points'] = kitti_files.read_scan(path, self.dropped)
    return sample

  def take(self, rows: np.ndarray) -> 'Reader':
    """The reader of these rows."""
    return dataclasses.replace(
      self, drive_index=self.drive_index[rows], frame=self.frame[rows]
    )


def _file(
  files: Mapping[int, pathlib.Path], frame: int, drive: str, sensor: str
) -> pathlib.Path:
  if frame not in files:
    raise InputError(
      f'Frame {frame} of drive {drive} has no {sensor}; select rows by '
      'has_image and has_points.'
    )
  return files[frame]


def make_dataset(name: str, drives: Sequence[Drive]) -> schema.Dataset:
  """Joins drives, each a town of its own, into a dataset.

  Args:
    name: of the dataset.
    drives: at least one; frames without a pose are left out and counted.

  Raises:
    InputError: no frames, damaged scans, or drives of the same name.
  """
  if not drives:
    raise InputError(f'{name}: no drives; name one, or leave them out for all.')
  names = [drive.name for drive in drives]
  if len(set(names)) < len(names):
    raise InputError(f'{name}: a drive is listed twice in {names}.')
  tables = [_frame_table(drive) for drive in drives]
  frames = schema.concatenate(tables)
  lengths = [len(table.frame) for table in tables]
  index = np.repeat(np.arange(len(drives)), lengths)
  reader = Reader(tuple(drives), index, frames.frame, kitti_files.Dropped(name))
  rigs = {drive.name: drive.rig for drive in drives}
  return schema.Dataset(name, frames, rigs, reader)


def take_split(
  dataset: schema.Dataset, split: splits.Split, spacing: float
) -> schema.Dataset:
  """The frames of a split.

  Args:
    dataset: of `make_dataset`, a drive per part of the split.
    split: what to take.
    spacing: metres, of the rules 'spaced' and 'disjoint'.

  Raises:
    InputError: a slice is empty, or a camera and its LiDAR cannot be where the
      calibration puts them, see `extrinsics`.
  """
  rows, queries = splits.apply(dataset.frames, split, spacing)
  reader = reader_of(dataset)
  taken = dataset._replace(
    frames=dataset.frames.take(rows),
    read=reader.take(rows),
    queries=queries,
  )
  sources = {drive.name: drive.calibration for drive in reader.drives}
  extrinsics.check(taken, sources)
  return taken


def reader_of(dataset: schema.Dataset) -> Reader:
  """The reader of a dataset of `make_dataset`."""
  if not isinstance(dataset.read, Reader):
    raise TypeError(f'{dataset.name} was not made by make_dataset.')
  return dataset.read


def _frame_table(drive: Drive) -> schema.FrameTable:
  kitti_files.check_scans(list(drive.scans.values()))
  sensed = sorted(drive.images.keys() | drive.scans.keys())
  frame = np.array([i for i in sensed if i in drive.world_from_lidar], np.int64)
  if not len(frame):
    raise InputError(
      f'Drive {drive.name} has no frame with a sensor and a pose: '
      f'{len(drive.images)} images, {len(drive.scans)} scans, '
      f'{len(drive.world_from_lidar)} poses.'
    )
  has_image = np.isin(frame, list(drive.images))
  has_points = np.isin(frame, list(drive.scans))
  logging.info(
    'Drive %s: %d frames (%d with both sensors, %d image only, %d scan only).',
    drive.name,
    len(frame),
    np.sum(has_image & has_points),
    np.sum(~has_points),
    np.sum(~has_image),
  )
  if dropped := sorted(set(sensed) - set(frame.tolist())):
    logging.warning(
      'Drive %s: dropped %d of %d frames, which have no pose (first: %d).',
      drive.name,
      len(dropped),
      len(sensed),
      dropped[0],
    )
  names = np.full(len(frame), drive.name)
  return schema.FrameTable(
    town=names,
    drive=names,
    frame=frame,
    timestamp=_timestamps(drive, frame),
    world_from_body=np.stack([drive.world_from_lidar[i] for i in frame]),
    has_image=has_image,
    has_points=has_points,
    name=schema.frame_names(names, frame),
  )


def _timestamps(drive: Drive, frame: np.ndarray) -> np.ndarray:
  """[F] seconds of the frames, interpolated where there is none."""
  if drive.times is None:
    logging.info(
      'Drive %s has no timestamps; took %g Hz.', drive.name, _FRAMES_PER_SECOND
    )
    return frame / _FRAMES_PER_SECOND
  known = np.array(sorted(drive.times))
  missing = ~np.isin(frame, known)
  if missing.any():
    logging.warning(
      'Drive %s: %d of %d frames have no timestamp; interpolated.',
      drive.name,
      missing.sum(),
      len(frame),
    )
  return np.interp(frame, known, [drive.times[i] for i in known])


def log_missing(
  drive: str,
  sensor: str,
  poses: Mapping[int, np.ndarray],
  files: Mapping[int, pathlib.Path],
) -> None:
  """Warns of posed frames without a file of a sensor."""
  missing = sorted(poses.keys() - files.keys())
  if missing:
    logging.warning(
      'Drive %s: %d of %d posed frames have no %s (first: %s).',
      drive,
      len(missing),
      len(poses),
      sensor,
      ', '.join(map(str, missing[:5])),
    )


def check_other_cameras(folder: pathlib.Path, sensor: str) -> None:
  """Raises MissingFileError if only other cameras than `sensor` are there.

  A drive without any camera is a LiDAR map and allowed.
  """
  others = {path.name for path in folder.glob('image_*/')} - {sensor}
  if others:
    raise MissingFileError(
      f'{folder}: no images in {sensor}, but in {sorted(others)}; choose '
      'another camera, or download this one.'
    )


def times_by_frame(
  path: pathlib.Path, files: Mapping[int, pathlib.Path]
) -> dict[int, float]:
  """Reads the times of a sensor's frames, keyed by frame number.

  Args:
    path: a time per line; the line is the frame number. May be missing.
    files: the sensor's files by frame number.

  Returns:
    Frame number to seconds; blank lines have no entry.

  Raises:
    InputError: fewer lines than frame numbers. Blank lines may have been
      removed, and then every time after them belongs to another frame.
  """
  if not path.is_file():
    return {}
  seconds = kitti_files.read_timestamps(path)
  last = max(files, default=-1)
  if last >= len(seconds):
    raise InputError(
      f'{path}: {len(seconds)} lines, but frames up to number {last}; expected '
      'a line per frame number (blank if it has no time). Restore the file, or '
      'delete it to take 10 Hz.'
    )
  return {i: t for i, t in enumerate(seconds.tolist()) if not np.isnan(t)}
