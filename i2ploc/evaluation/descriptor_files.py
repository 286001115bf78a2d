# SPDX-License-Identifier: Apache-2.0
"""Descriptors on disk: of drives with poses, and of photos for other programs.

For `retrieval.score_drives`, of any method, a folder holds one SEQUENCE.npz per
drive:

  image            [F, D] or [F, V, D]: a descriptor per image; of V views of
                   one reading the most similar counts
  points           [M, D] or [M, V, D]: a descriptor per scan
  image_frame      [F] whole numbers: readings of one instant share the number;
  points_frame     [M] without them, row r is frame r (of both sensors)
  image_pose       [F, 4, 4] world from vehicle, or image_position [F, 3], m
  points_pose      [M, 4, 4], or points_position [M, 3]
  image_time       [F] seconds (loop closure needs them), or a frame rate is
  points_time      [M] given by whoever loads the folder
  axes             'kitti': camera 0, x right, y down, z forward, ground (x, z)
                   'z_up' or 'kitti360': x forward, z up, ground (x, y)
  similarity       'dot' (of the descriptors as they are) or 'euclidean'

Every file is checked: nothing is guessed, and rows that are wrong are named.

Of photos three kinds are written, all with the names of the photos:

  FILE.npy, FILE.txt  [N, D] float32, and a name a line
  FILE.h5             as hloc reads global features: a group for every name, so
                      a name with / lies in groups of groups, and in it the
                      dataset global_descriptor [D] float32
  FILE.txt            pairs as hloc reads them, `query reference`, a pair a
                      line, the most similar reference of a query first
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.evaluation import metrics
from i2ploc.evaluation import questions
from i2ploc.evaluation import scores

SENSORS = ('image', 'points')
COLUMNS = ('frame', 'pose', 'position', 'time')
SETTINGS = ('axes', 'similarity')
KEYS = (
  *SENSORS,
  *(f'{sensor}_{column}' for sensor in SENSORS for column in COLUMNS),
  *SETTINGS,
)
# Rotations written with a few digits are still rotations.
RIGID_TOLERANCE = 1e-2


class Recording(NamedTuple):
  """One drive.

  Attributes:
    name: of the drive.
    image: its images.
    points: its scans.
    similarity: one of `metrics.SIMILARITIES`.
  """

  name: str
  image: scores.Side
  points: scores.Side
  similarity: str

  @property
  def sides(self) -> dict[str, scores.Side]:
    """The readings by sensor."""
    return {sensor: getattr(self, sensor) for sensor in SENSORS}


def load_descriptors(
  folder: str | os.PathLike,
  poses: Mapping[str, np.ndarray] | None = None,
  *,
  axes: str = '',
  similarity: str = '',
  rate: float = 0.0,
) -> Iterator[Recording]:
  """Reads a folder, one drive at a time.

  Args:
    folder: of `SEQUENCE.npz` files.
    poses: by sequence, [., 4, 4] of camera 0 in KITTI's axes with the frame
      number as row; they replace the poses and axes of the files.
    axes: of files that do not say theirs; '' if all do.
    similarity: of files that do not say theirs; '' if all do.
    rate: frames per second of files without times; 0 leaves times unknown.

  Yields:
    The recordings by name, their rows in the order of frames.

  Raises:
    MissingFileError: there is no such folder, or no npz in it.
    InputError: a file does not hold what it should; the message names it.
  """
  folder = pathlib.Path(folder)
  paths = sorted(folder.glob('*.npz'))
  if not paths:
    raise MissingFileError(
      f'{folder}: no SEQUENCE.npz there; write one file per drive.'
    )
  for path in paths:
    try:
      yield _recording(path, poses, axes, similarity, rate)
    except ValueError as error:
      raise InputError(f'{path}: {error}') from None


def save_descriptors(
  folder: str | os.PathLike,
  frames: Any,
  embedded: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> list[str]:
  """Writes what a model embedded, one file per drive with both sensors.

  Args:
    folder: made if need be; each file is written whole or not at all.
    frames: a frame table with drive, frame, timestamp, world_from_body.
    embedded: by sensor, rows [N] of the table and unit descriptors [N, D] or
      [N, V, D].

  Returns:
    The drives without a file: not both of their sensors were embedded.
  """
  left_out = []
  for drive in np.unique(frames.drive):
    arrays = {'axes': np.array('z_up'), 'similarity': np.array('dot')}
    for sensor, (rows, descriptors) in embedded.items():
      inside = frames.drive[rows] == drive
      if inside.any():
        arrays[sensor] = np.asarray(descriptors[inside], np.float32)
        arrays[f'{sensor}_frame'] = frames.frame[rows[inside]]
        arrays[f'{sensor}_pose'] = frames.world_from_body[rows[inside]]
        arrays[f'{sensor}_time'] = frames.timestamp[rows[inside]]
    if all(sensor in arrays for sensor in SENSORS):
      name = str(drive).replace('/', '_')
      files.save_arrays(pathlib.Path(folder) / f'{name}.npz', arrays)
    else:
      left_out.append(str(drive))
  return left_out


def save_npy(
  path: str | os.PathLike, names: Sequence[str], descriptors: np.ndarray
) -> None:
  """Writes descriptors, and names in a text file beside.

  Args:
    path: FILE.npy; the names go to FILE.txt.
    names: N.
    descriptors: [N, D], or [N, 1, D].

  Raises:
    InputError: several descriptors of a photo, or another number of names.
  """
  path = pathlib.Path(path)
  array = _one_each(names, descriptors)
  files.save_text(path.with_suffix('.txt'), ''.join(f'{n}\n' for n in names))
  files.save_array(path, array)


def save_hloc(
  path: str | os.PathLike, names: Sequence[str], descriptors: np.ndarray
) -> None:
  """Writes descriptors as hloc keeps global features.

  Args:
    path: FILE.h5, written whole or not at all.
    names: N paths with '/', as the image lists of hloc have them.
    descriptors: [N, D], or [N, 1, D].

  Raises:
    InputError: h5py is not installed; several descriptors of a photo, another
      number of names, or a name twice.

  Reference:
    Sarlin et al., From coarse to fine: robust hierarchical localization, CVPR
    2019; hloc's extract_features and pairs_from_retrieval read the file.
  """
  try:
    import h5py
  except ImportError as error:
    raise InputError(
      f'{path}: HDF5 files need h5py: pip install h5py, or write npy.'
    ) from error
  array = _one_each(names, descriptors)
  if len(set(names)) < len(names):
    raise InputError(f'{path}: a name comes twice.')
  with files.replacing(path) as draft, h5py.File(draft, 'w') as file:
    for name, descriptor in zip(names, array, strict=True):
      file.create_dataset(f'{name}/global_descriptor', data=descriptor)


def save_pairs(
  path: str | os.PathLike,
  queries: Sequence[str],
  ranked: Sequence[Sequence[str]],
) -> list[str]:
  """Writes pairs as hloc's matchers read them.

  Args:
    path: of the text file.
    queries: Q names.
    ranked: of each the names that answer, most similar first.

  Returns:
    Names that hold blanks, whose pairs are left out: blanks part the names of a
    pair.
  """
  lines, left_out = [], {}
  for query, answers in zip(queries, ranked, strict=True):
    for answer in answers:
      bad = [name for name in (query, answer) if len(name.split()) != 1]
      left_out |= dict.fromkeys(bad)
      if not bad:
        lines.append(f'{query} {answer}')
  files.save_text(path, '\n'.join(lines) + '\n' * bool(lines))
  return list(left_out)


def _one_each(names: Sequence[str], descriptors: np.ndarray) -> np.ndarray:
  """float32 [N, D] of names [N]."""
  array = np.asarray(descriptors, np.float32)
  if array.ndim == 3 and array.shape[1] == 1:
    array = array[:, 0]
  if array.ndim != 2 or len(array) != len(names):
    raise InputError(
      f'{len(names)} photos have descriptors {list(array.shape)}; expected one'
      ' for each. Several views of a photo are of no use to others.'
    )
  return array


def _recording(
  path: pathlib.Path,
  poses: Mapping[str, np.ndarray] | None,
  axes: str,
  similarity: str,
  rate: float,
) -> Recording:
  arrays = _load_arrays(path)
  name = path.stem
  table = None
  if poses is not None:
    if name not in poses:
      raise InputError(f'no poses of {name!r}; there are {sorted(poses)}.')
    table = poses[name]
    arrays = {
      key: value
      for key, value in arrays.items()
      if not key.endswith(('_pose', '_position'))
    }
    arrays['axes'] = np.array('kitti')
  axes = _setting(arrays, 'axes', axes, tuple(questions.AXES))
  similarity = _setting(arrays, 'similarity', similarity, metrics.SIMILARITIES)
  descriptors = {sensor: _descriptors(arrays, sensor) for sensor in SENSORS}
  widths = [x.shape[-1] for x in descriptors.values()]
  if widths[0] != widths[1]:
    raise InputError(
      f'image descriptors have {widths[0]} numbers, points {widths[1]}: they'
      ' cannot be compared.'
    )
  counts = {sensor: len(x) for sensor, x in descriptors.items()}
  sides = []
  for sensor in SENSORS:
    frames = _frames(arrays, sensor, counts)
    places = _poses(arrays, sensor, frames, table)
    track = _track(arrays, sensor, frames, places, axes, rate)
    order = np.argsort(frames)
    sides.append(scores.Side(descriptors[sensor][order], track.take(order)))
    _check_times(sensor, sides[-1].track)
  return Recording(name, *sides, similarity)


def _load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  arrays = files.load_arrays(path, 'write it again, with plain arrays')
  if unknown := sorted(set(arrays) - set(KEYS)):
    raise InputError(f'unknown keys {unknown}; expected some of {KEYS}.')
  if missing := [sensor for sensor in SENSORS if sensor not in arrays]:
    raise InputError(f'lacks {missing}; both sensors are needed.')
  return arrays


def _setting(
  arrays: dict[str, np.ndarray],
  key: str,
  default: str,
  allowed: tuple[str, ...],
) -> str:
  found = str(arrays.get(key, default))
  if not found:
    raise InputError(
      f'does not say its {key!r}; store one of {allowed} in it or give --{key}.'
    )
  if found not in allowed:
    raise InputError(f'{key} is {found!r}; expected one of {allowed}.')
  if default and found != default:
    raise InputError(f'{key} is {found!r} in the file, but {default!r} asked.')
  return found


def _descriptors(arrays: dict[str, np.ndarray], sensor: str) -> np.ndarray:
  found = arrays[sensor]
  if found.ndim not in (2, 3) or 0 in found.shape:
    raise InputError(
      f'{sensor} has shape {found.shape}; expected [N, D] or [N, V, D] with'
      ' at least one descriptor.'
    )
  found = _numbers(f'{sensor} descriptors', found).astype(np.float32)
  return found[:, None] if found.ndim == 2 else found


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
  """Finite numbers along the first axis, or an error that names the rows."""
  if values.dtype.kind not in 'fiu':
    raise InputError(f'{name}: {values.dtype}; expected numbers.')
  finite = np.isfinite(values).reshape(len(values), -1).all(1)
  if not finite.all():
    rows = np.flatnonzero(~finite)
    raise InputError(
      f'{name}: {len(rows)} rows are not finite, first {rows[:5].tolist()}.'
    )
  return values


def _column(
  arrays: dict[str, np.ndarray], key: str, shape: tuple[int, ...]
) -> np.ndarray:
  found = arrays[key]
  if found.shape != shape:
    raise InputError(
      f'{key} has shape {found.shape}; expected {shape}, a row per descriptor.'
    )
  return _numbers(key, found)


def _frames(
  arrays: dict[str, np.ndarray], sensor: str, counts: dict[str, int]
) -> np.ndarray:
  key = f'{sensor}_frame'
  if key not in arrays:
    numbered = [name for name in SENSORS if f'{name}_frame' in arrays]
    if numbered or len(set(counts.values())) > 1:
      raise InputError(
        f'lacks {key} with {counts} descriptors: which readings were taken'
        ' together? Rows are frames only if both sensors have all of them.'
      )
    return np.arange(counts[sensor])
  found = _column(arrays, key, (counts[sensor],))
  frames = found.astype(np.int64)
  if (frames != found).any() or (frames < 0).any():
    raise InputError(f'{key} holds something else than whole numbers from 0.')
  values, times = np.unique(frames, return_counts=True)
  if (times > 1).any():
    raise InputError(
      f'{key} holds {values[times > 1][:5].tolist()} more than once; several'
      f' descriptors of a reading are views: {sensor} [N, V, D].'
    )
  return frames


def _poses(
  arrays: dict[str, np.ndarray],
  sensor: str,
  frames: np.ndarray,
  table: np.ndarray | None,
) -> np.ndarray:
  """Poses [N, 4, 4], or positions [N, 3], of the rows of a file."""
  if table is not None:
    if frames.max() >= len(table):
      raise InputError(
        f'{sensor} has frames up to {frames.max()}, the pose file'
        f' {len(table)} rows; are the rows of the descriptors the frames?'
      )
    if f'{sensor}_frame' not in arrays and len(frames) != len(table):
      raise InputError(
        f'{len(frames)} {sensor} descriptors without {sensor}_frame, but'
        f' {len(table)} poses: store the frame numbers.'
      )
    return np.asarray(table, np.float64)[frames]
  keys = [f'{sensor}_pose', f'{sensor}_position']
  given = [key for key in keys if key in arrays]
  if len(given) != 1:
    raise InputError(
      f'holds {given or "neither"} of {keys}; store one of them, or give'
      ' --poses.'
    )
  if given[0].endswith('_position'):
    return _column(arrays, given[0], (len(frames), 3)).astype(np.float64)
  poses = _column(arrays, given[0], (len(frames), 4, 4)).astype(np.float64)
  rotation = poses[:, :3, :3]
  error = np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max((1, 2))
  error = np.maximum(error, np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1))
  if (error > RIGID_TOLERANCE).any():
    rows = np.flatnonzero(error > RIGID_TOLERANCE)
    raise InputError(
      f'{given[0]} is no rigid transform in {len(rows)} rows, first'
      f' {rows[:5].tolist()}.'
    )
  return poses


def _track(
  arrays: dict[str, np.ndarray],
  sensor: str,
  frames: np.ndarray,
  places: np.ndarray,
  axes: str,
  rate: float,
) -> questions.Track:
  times = None
  if f'{sensor}_time' in arrays:
    times = _column(arrays, f'{sensor}_time', frames.shape).astype(np.float64)
  elif rate > 0:
    times = frames / rate
  if places.ndim == 2:
    return questions.Track(frames, places, axes, times)
  headings = questions.headings_from_poses(places, axes)
  return questions.Track(frames, places[:, :3, 3], axes, times, headings)


def _check_times(sensor: str, track: questions.Track) -> None:
  if track.times is None:
    return
  back = np.flatnonzero(np.diff(track.times) < 0)
  if len(back):
    raise InputError(
      f'{sensor}_time goes back after frame {track.frames[back[0]]}.'
    )
