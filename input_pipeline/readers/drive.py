# SPDX-License-Identifier: Apache-2.0
"""From the files of one drive to a dataset.

Files, poses and times meet by frame number, never by their position in a
sorted list: a missing scan leaves a hole and shifts nothing. A frame is kept if
it has a pose and at least one sensor. One line at the end of reading counts
what is there, what is missing and what was passed over.
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
from i2ploc.geometry import trajectories
from input_pipeline import extrinsics
from input_pipeline import schema
from input_pipeline.readers import calibrated
from input_pipeline.readers import clocks
from input_pipeline.readers import kitti_files
from input_pipeline.readers import scan_files
from input_pipeline.readers import sensor_folders
from input_pipeline.readers import splits

_FRAMES_PER_SECOND = 10.0
# Of frames in a row without gaps, that end without poses: more are a file that
# counts other frames.
_MOST_UNPOSED = 0.1


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
    poses: file or folder of the poses, for messages.
    whole: frames of the published drive; 0 where there is none.
  """

  name: str
  images: Mapping[int, pathlib.Path]
  scans: Mapping[int, pathlib.Path]
  world_from_lidar: Mapping[int, np.ndarray]
  times: Mapping[int, float] | None
  rig: schema.Rig
  calibration: str
  poses: str
  whole: int = 0


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
  dropped: scan_files.Dropped

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
      sample['points'] = scan_files.read_scan(path, self.dropped)
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
  reader = Reader(tuple(drives), index, frames.frame, scan_files.Dropped(name))
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
  scan_files.check_scans(list(drive.scans.values()))
  sensed = sorted(drive.images.keys() | drive.scans.keys())
  frame = np.array([i for i in sensed if i in drive.world_from_lidar], np.int64)
  if not len(frame):
    raise InputError(
      f'Drive {drive.name} has no frame with a sensor and a pose: '
      f'{len(drive.images)} images, {len(drive.scans)} scans, '
      f'{len(drive.world_from_lidar)} poses.'
    )
  if drive.images and drive.scans and not drive.images.keys() & drive.scans:
    raise InputError(
      f'Drive {drive.name}: images {_span(drive.images)} and scans '
      f'{_span(drive.scans)} have no frame number in common. Give both the '
      'number of their frame.'
    )
  _check_poses(drive)
  has_image = np.isin(frame, list(drive.images))
  has_points = np.isin(frame, list(drive.scans))
  remarks = _remarks(drive, frame, sensed)
  logging.log(
    logging.WARNING if remarks else logging.INFO,
    'Drive %s: %d frames (%d with both sensors, %d image only, %d scan only)%s',
    drive.name,
    len(frame),
    np.sum(has_image & has_points),
    np.sum(~has_points),
    np.sum(~has_image),
    ''.join(f'; {remark}' for remark in remarks) + '.',
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


def _span(files: Mapping[int, pathlib.Path]) -> str:
  return f'{min(files)} to {max(files)}'


def _remarks(
  drive: Drive, frame: np.ndarray, sensed: Sequence[int]
) -> list[str]:
  """What a user may miss, counted."""
  remarks = []
  if unposed := sorted(set(sensed) - set(frame.tolist())):
    remarks.append(
      f'dropped {len(unposed)} of {len(sensed)} frames, which have no pose '
      f'(first: {unposed[0]})'
    )
  for sensor, files in ('image', drive.images), ('scan', drive.scans):
    missing = sorted(set(frame.tolist()) - files.keys()) if files else []
    if missing:
      remarks.append(f'{len(missing)} have no {sensor} (first: {missing[0]})')
  if untimed := _untimed(drive, frame).sum():
    remarks.append(f'{untimed} have no timestamp, interpolated')
  counts = len(drive.images), len(drive.scans), len(drive.world_from_lidar)
  if drive.whole and set(counts) != {drive.whole}:
    remarks.append(
      f'not whole: {counts[0]} images, {counts[1]} scans and {counts[2]} poses '
      f'of {drive.whole}'
    )
  elif unseen := len(drive.world_from_lidar.keys() - set(sensed)):
    remarks.append(f'no file for {unseen} of their poses')
  if gaps := sensor_folders.gaps(sensed):
    remarks.append(f'no file for {gaps} numbers between the first and the last')
  others = sensor_folders.passed_over(
    [*drive.images.values(), *drive.scans.values()]
  )
  if others:
    remarks.append(f'passed over {sensor_folders.counted(others)}')
  return remarks


def _check_poses(drive: Drive) -> None:
  """Refuses poses that are not those of a drive in metres and seconds."""
  frames = sorted(drive.world_from_lidar)
  poses = np.stack([drive.world_from_lidar[i] for i in frames])
  position = poses[:, :3, 3]
  trajectories.check_places(position, drive.poses)
  if drive.times is not None:
    known = np.array([i in drive.times for i in frames])
    times = np.array([drive.times[i] for i in frames if i in drive.times])
    trajectories.check_speed(position[known], times, drive.poses)
  heading = np.arctan2(poses[:, 1, 0], poses[:, 0, 0])
  trajectories.check_heading(position, heading, drive.poses)


def _untimed(drive: Drive, frame: np.ndarray) -> np.ndarray:
  """[F] bool, frames without a time of their own, where there are times."""
  if drive.times is None:
    return np.zeros(len(frame), bool)
  return ~np.isin(frame, list(drive.times))


def _timestamps(drive: Drive, frame: np.ndarray) -> np.ndarray:
  """[F] seconds of the frames, interpolated where there is none."""
  if drive.times is None:
    logging.info(
      'Drive %s has no timestamps; took %g Hz.', drive.name, _FRAMES_PER_SECOND
    )
    return frame / _FRAMES_PER_SECOND
  known = np.array(sorted(drive.times))
  return np.interp(frame, known, [drive.times[i] for i in known])


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
    Frame number to seconds; blank lines, and times that stand there already,
    have no entry.

  Raises:
    InputError: fewer lines than frame numbers. Blank lines may have been
      removed, and then every time after them belongs to another frame. Times
      that are not in order, or not in seconds, see `clocks`.
  """
  if not path.is_file():
    return {}
  seconds = clocks.seconds(kitti_files.read_timestamps(path), str(path))
  last = max(files, default=-1)
  if last >= len(seconds):
    raise InputError(
      f'{path}: {len(seconds)} lines, but frames up to number {last}; expected '
      'a line per frame number (blank if it has no time). Restore the file, or '
      'delete it to take 10 Hz.'
    )
  clocks.check_order(seconds, str(path))
  again = clocks.doubled(seconds, str(path), 'interpolated')
  seconds[again] = np.nan
  return {i: t for i, t in enumerate(seconds.tolist()) if not np.isnan(t)}


def times_of_both(
  lidar: tuple[pathlib.Path, Mapping[int, pathlib.Path]],
  camera: tuple[pathlib.Path, Mapping[int, pathlib.Path]],
) -> dict[int, float] | None:
  """Times of frames of two sensors; the camera's where both have one.

  Args:
    lidar: its file of times, and its files by frame number.
    camera: the same.

  Returns:
    Frame number to seconds; None if no frame has a time.

  Raises:
    InputError: see `times_by_frame`; or the two have other clocks.
  """
  first, second = times_by_frame(*lidar), times_by_frame(*camera)
  clocks.check_same(first, second, (str(lidar[0]), str(camera[0])))
  return first | second or None


def poses_by_row(
  path: pathlib.Path,
  files: Mapping[int, pathlib.Path],
  upright_from_file: np.ndarray,
) -> np.ndarray:
  """Reads a pose file [F, 4, 4] whose row is the frame number.

  Args:
    path: see `kitti_files.read_poses`.
    files: of the sensors by frame number.
    upright_from_file: [3, 3], from the file's axes to x, y and z up.

  Raises:
    InputError: see `kitti_files.read_poses`; positions that are no metres, see
      `trajectories`; or frames 0, 1, 2, ... of which
      many at the end have no row: rows of other frames, probably.
  """
  poses = kitti_files.read_poses(path)
  # As they are written, before an arm from sensor to sensor adds its metres.
  position = poses[:, :3, 3] @ upright_from_file.T
  trajectories.check_places(position, str(path))
  trajectories.check_speed(position, None, str(path))
  beyond = sum(frame >= len(poses) for frame in files)
  whole = len(files) and max(files) == len(files) - 1
  if whole and beyond > max(1, _MOST_UNPOSED * len(files)):
    raise InputError(
      f'{path}: {len(poses)} rows, but frames 0 to {max(files)}; the row is '
      'the frame number. Give a row per frame, or take away the frames without.'
    )
  return poses
