# SPDX-License-Identifier: Apache-2.0
"""Splits packed once, as TFDS datasets that need the raw folders no more.

Reading a frame from the raw folders costs two images of two megapixels, or the
crop of a map; training reads every frame many times. `load` packs the frames of
a split on first use into `PACKED/<dataset>_<split>-<digest of the options>`.
They are packed in units of some hundred, each a TFDS dataset of its own
(ArrayRecord, without TensorFlow): a run that was killed continues with the unit
in which it died.

What is packed is also open to other programs, as one TFDS data source,

  units = sorted(pathlib.Path(FOLDER).glob('*/packed_frames/*'))
  builder = tfds.builder_from_directories(units)
  source = builder.as_data_source('frames')  # or 'frames[:100]'
  reading = dict(packing.decode(source[0], ('image', 'points')))

with the calibration beside image and points, and the columns of
`schema.FrameTable` in FOLDER/frames.npz, row by row (the body of a packed drive
is its LiDAR). Images are kept as JPEG, points in units of 4 mm.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import contextlib
import fcntl
import hashlib
import inspect
import io
import os
import pathlib
import re
import shutil
from typing import Any
import zlib

from absl import logging
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
import tqdm

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import panorama
from input_pipeline import extrinsics
from input_pipeline import schema

# Half a unit is a tenth of the LiDAR's noise; 131 m fit into 16 bits.
POINT_UNIT = 0.004
SENSORS = ('image', 'points')
_INTENSITY_UNIT = 1 / 32767
_ROWS_PER_UNIT = 200
_JPEG_QUALITY = 95
_VERSION = '2.0.0'


class PackedFrames(tfds.core.GeneratorBasedBuilder):
  """Some frames of a dataset; see `features`."""

  VERSION = tfds.core.Version(_VERSION)

  # Nothing is downloaded; TFDS would look for checksums through a package that
  # it does not declare (importlib_resources, in 4.9.10).
  url_infos = None

  def __init__(self, *, dataset: schema.Dataset, rows: Sequence[int], **kwargs):
    self._dataset, self._rows = dataset, rows
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    matrix = tfds.features.Tensor
    features = tfds.features.FeaturesDict(
      {
        # JPEG; nothing where the frame has no image.
        'image': tfds.features.Text(),
        # TFDS stores them as float32.
        'intrinsics': matrix(shape=(3, 3), dtype=np.float64),
        'camera_from_lidar': matrix(shape=(4, 4), dtype=np.float64),
        # zlib of int16 x, y, z in units of POINT_UNIT metres and intensity in
        # units of 1 / 32767, each of all points after the other.
        'points': tfds.features.Text(),
        'drive': tfds.features.Text(),
        'frame': np.int64,
      }
    )
    return tfds.core.DatasetInfo(
      builder=self, features=features, disable_shuffling=True
    )

  def _split_generators(self, _dl_manager) -> dict:
    return {'frames': self._generate_examples()}

  def _generate_examples(self):
    with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
      records = pool.map(lambda row: encode(self._dataset, row), self._rows)
      yield from enumerate(records)


def load(
  reader: Callable[..., schema.Dataset],
  name: str,
  root: str | os.PathLike,
  split: str,
  *,
  packed: str | os.PathLike,
  written: str,
  places: Mapping[str, object] | None = None,
  **options,
) -> schema.Dataset:
  """The frames of a split, packed first where they are not.

  Args:
    reader: `reader(root, split, **options)` loads the raw folders.
    name: of the dataset.
    root: the raw folders; not touched if the split is packed.
    split: as the reader takes it.
    packed: where packed splits are kept, between runs.
    written: the split in full, whatever `split` names; part of the key.
    places: options of the reader that do not decide what it reads, such as
      where it keeps its maps.
    **options: of the reader.

  Raises:
    MissingFileError: the raw folders lack something.
    InputError: a file does not hold what it should; the message names it.
  """
  root, packed = pathlib.Path(root), pathlib.Path(packed).expanduser()
  own = directory(packed, name, split, _content(reader, written, options))
  if not (own / 'frames.npz').exists():
    own.mkdir(parents=True, exist_ok=True)
    with _locked(own / 'lock'):
      if not (own / 'frames.npz').exists():
        dataset = reader(root, split, **options, **(places or {}))
        _pack(own, dataset, root)
  return _open(own, f'{name}/{split}', root)


def _content(reader, split: str, options: dict[str, object]) -> str:
  """What decides which readings are packed: every option, given or default."""
  given = inspect.signature(reader).bind(None, split, **options)
  given.apply_defaults()
  _, *chosen = given.arguments.items()  # all but the root
  return repr([(key, _plain(value)) for key, value in sorted(chosen)])


def _plain(value):
  """A config's lists are a signature's tuples, its paths strings."""
  if isinstance(value, list | tuple):
    return tuple(value)
  return str(value) if isinstance(value, os.PathLike) else value


def directory(
  packed: pathlib.Path, name: str, split: str, content: str
) -> pathlib.Path:
  """Where a split of this content is packed."""
  digest = hashlib.sha256(repr((_VERSION, content)).encode()).hexdigest()[:12]
  written = re.sub(r'\W+', '_', f'{name}_{split}').strip('_')
  return packed / f'{written[:80]}-{digest}'


@contextlib.contextmanager
def _locked(path: pathlib.Path):
  """Holds a lock that the system releases when the process dies."""
  with path.open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _pack(own: pathlib.Path, dataset: schema.Dataset, root) -> None:
  """Makes the units that are missing, and last the table of frames."""
  frames = dataset.frames
  units = _units(frames)
  logging.info('Packing %d frames in %s.', len(frames.frame), own)
  for leftover in own.glob('**/*incomplete*'):
    shutil.rmtree(leftover, ignore_errors=True)
  for stale in {path.name for path in own.glob('*/')} - units.keys():
    shutil.rmtree(own / stale)
  # TFDS announces a download of unknown size and shows bars of its own.
  tfds.disable_progress_bar()
  bar = tqdm.tqdm(units.items(), unit='unit', desc=f'packing {dataset.name}')
  for unit, rows in bar:
    builder = PackedFrames(
      dataset=dataset,
      rows=rows,
      data_dir=own / unit,
      file_format='array_record',
    )
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  tfds.enable_progress_bar()
  columns = {
    'town': frames.town,
    'drive': frames.drive,
    'frame': frames.frame,
    'timestamp': frames.timestamp,
    'world_from_lidar': frames.world_from_body,
    'has_image': frames.has_image,
    'has_points': frames.has_points,
    'units': np.array(list(units)),
    'root': str(root.resolve()),
  }
  if dataset.queries is not None:
    columns['queries'] = dataset.queries
  files.save_arrays(own / 'frames.npz', columns)


def _units(frames: schema.FrameTable) -> dict[str, np.ndarray]:
  """Rows by unit; the name tells its frames, so that a change remakes it."""
  units = {}
  for start in range(0, len(frames.frame), _ROWS_PER_UNIT):
    rows = np.arange(start, min(start + _ROWS_PER_UNIT, len(frames.frame)))
    table = frames.take(rows)
    content = [column.tolist() for column in (table.drive, table.frame)]
    content += [table.has_image.tolist(), table.has_points.tolist()]
    digest = hashlib.sha256(repr(content).encode()).hexdigest()[:8]
    units[f'{start:07d}_{digest}'] = rows
  return units


def encode(dataset: schema.Dataset, row: int) -> dict[str, object]:
  """A frame's record; see `PackedFrames`."""
  frames = dataset.frames
  rig = dataset.rigs[frames.drive[row]]
  try:
    if rig.lens is None:
      raise InputError('the camera is not known')
    matrix = lens_lib.plain_intrinsics(rig.lens)
  except InputError as error:
    raise InputError(
      f'{dataset.name}: drive {frames.drive[row]} has a lens that cannot be '
      f'packed: {error}. Leave data.packed empty.'
    ) from None
  has = {'image': frames.has_image[row], 'points': frames.has_points[row]}
  reading = dataset.read(int(row), tuple(name for name in has if has[name]))
  return {
    'image': _jpeg(reading['image']) if has['image'] else b'',
    'intrinsics': matrix,
    'camera_from_lidar': np.asarray(rig.camera_from_body, np.float64),
    'points': _deflate(reading['points']) if has['points'] else b'',
    'drive': str(frames.drive[row]),
    'frame': np.int64(frames.frame[row]),
  }


def _jpeg(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image).save(
    buffer, 'JPEG', quality=_JPEG_QUALITY, subsampling=0
  )
  return buffer.getvalue()


def _deflate(points: np.ndarray) -> bytes:
  units = np.rint(points[:, :3] / POINT_UNIT)
  fits = (np.abs(units) <= 32767).all(1)
  intensity = np.rint(points[fits, 3] / _INTENSITY_UNIT)
  columns = np.vstack([units[fits].T, intensity]).astype('<i2')
  return zlib.compress(columns.tobytes(), 1)


def _inflate(data: bytes) -> np.ndarray:
  columns = np.frombuffer(zlib.decompress(data), '<i2').reshape(4, -1)
  scale = np.array([POINT_UNIT] * 3 + [_INTENSITY_UNIT], np.float32)
  return np.ascontiguousarray(columns.T * scale)


def _open(own: pathlib.Path, name: str, root: pathlib.Path) -> schema.Dataset:
  try:
    with np.load(own / 'frames.npz') as archive:
      columns = {key: archive[key] for key in archive.files}
  except Exception as error:
    raise InputError(
      f'{own / "frames.npz"} is damaged ({error}). Delete it; what is packed '
      'is kept.'
    ) from error
  units = columns.pop('units').tolist()
  queries = columns.pop('queries', None)
  source = str(columns.pop('root'))
  if root.exists() and str(root.resolve()) != source:
    logging.warning(
      '%s was packed from %s and is taken for %s. If that is other data, '
      'delete the folder or pack elsewhere.',
      own,
      source,
      root,
    )
  frames = schema.FrameTable(
    world_from_body=columns.pop('world_from_lidar'),
    name=schema.frame_names(columns['drive'], columns['frame']),
    **columns,
  )
  reader = Reader(own, frames, _source(own, units))
  dataset = schema.Dataset(name, frames, reader.rigs(), reader, queries=queries)
  # Packed before this was checked, perhaps.
  sources = dict.fromkeys(dataset.rigs, f'{own}, packed from {source}')
  extrinsics.check(dataset, sources)
  return dataset


def _source(own: pathlib.Path, units: list[str]):
  """The records of all units, by row."""
  folders = [own / unit / 'packed_frames' / _VERSION for unit in units]
  try:
    builder: Any = tfds.builder_from_directories(folders)
    return builder.as_data_source('frames')
  except Exception as error:
    raise InputError(
      f'{own}: what is packed does not open ({error}). Delete the folder to '
      'pack it anew.'
    ) from error


class Reader:
  """`schema.Dataset.read` of packed frames."""

  def __init__(self, own: pathlib.Path, frames: schema.FrameTable, source):
    self._own, self._frames, self._source = own, frames, source

  def __call__(
    self, row: int, what: tuple[str, ...] = SENSORS
  ) -> dict[str, np.ndarray]:
    """Reads a row; see `schema.Dataset`.

    Raises:
      InputError: the frame has no such sensor, or what is packed is damaged.
    """
    if unknown := sorted(set(what) - set(SENSORS)):
      raise InputError(f'Asked for {unknown}; packed are {list(SENSORS)}.')
    reading = self._decoded(int(row), lambda record: dict(decode(record, what)))
    if missing := [sensor for sensor in what if sensor not in reading]:
      raise InputError(
        f'{self._frame(int(row))} has no {missing}; select rows by has_image '
        'and has_points.'
      )
    return {sensor: reading[sensor] for sensor in what}

  def rigs(self) -> dict[str, schema.Rig]:
    """The rig of each drive, out of the record of one of its frames."""
    frames = self._frames
    # With an image, if there is one: it tells the size.
    order = np.argsort(~frames.has_image, kind='stable')
    drives, first = np.unique(frames.drive[order], return_index=True)
    return {
      drive: self._decoded(row, _rig)
      for drive, row in zip(drives.tolist(), order[first].tolist(), strict=True)
    }

  def _frame(self, row: int) -> str:
    return f'drive {self._frames.drive[row]}, frame {self._frames.frame[row]}'

  def _decoded(self, row: int, decode_record):
    """What a function makes of the record of a row."""
    name = self._frame(row)
    try:
      record = self._source[row]
      found = int(record['frame'])
      decoded = decode_record(record)
    except Exception as error:
      raise InputError(
        f'{name}: what is packed does not decode ({error}). Delete {self._own} '
        'to pack it anew.'
      ) from error
    if found != self._frames.frame[row]:
      raise InputError(
        f'{name}: found frame {found} packed in its place. Delete {self._own} '
        'to pack it anew.'
      )
    return decoded


def _rig(record: Mapping[str, Any]) -> schema.Rig:
  """The rig of a record; only the header of its image is read."""
  camera_from_lidar = record['camera_from_lidar']
  if not record['image']:
    return schema.Rig(None, None, camera_from_lidar)
  with Image.open(io.BytesIO(record['image'])) as image:
    size = image.height, image.width
  # No pinhole has the focal lengths of a panorama of its size.
  sphere = panorama.sphere_intrinsics(size)
  is_sphere = np.array_equal(record['intrinsics'], sphere)
  model = 'equirectangular' if is_sphere else 'pinhole'
  lens = lens_lib.Lens(model, record['intrinsics'])
  return schema.Rig(lens, size, camera_from_lidar)


def decode(
  record: Mapping[str, Any], what: tuple[str, ...]
) -> Iterator[tuple[str, np.ndarray]]:
  """Names and values of a record's reading; absent sensors are left out."""
  yield 'camera_from_lidar', record['camera_from_lidar'].astype(np.float32)
  if 'image' in what and record['image']:
    with Image.open(io.BytesIO(record['image'])) as image:
      yield 'image', np.asarray(image.convert('RGB'))
    yield 'intrinsics', record['intrinsics'].astype(np.float32)
  if 'points' in what and record['points']:
    yield 'points', _inflate(record['points'])
