# SPDX-License-Identifier: Apache-2.0
"""A split of KITTI-360 packed once, stitched and aggregated, as TFDS datasets.

Reading a frame from the raw folders costs two images of two megapixels, or the
crop of a map; training reads every frame many times. `load` packs the frames of
a split on first use into `PACKED/<split>-<digest of the options>`, and does not
need the raw folders after that. Frames are packed in units of some hundred,
each a TFDS dataset of its own (ArrayRecord, without TensorFlow): a run that was
killed continues with the unit in which it died.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
import re
import shutil
import zlib

from absl import logging
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
import tqdm

from input_pipeline import schema
from input_pipeline.readers import kitti360
from input_pipeline.readers import kitti360_splits

# Half a unit is a tenth of the LiDAR's noise; 131 m fit into 16 bits.
POINT_UNIT = 0.004
_INTENSITY_UNIT = 1 / 32767
_ROWS_PER_UNIT = 200
_JPEG_QUALITY = 95
_VERSION = '1.0.0'


class Kitti360(tfds.core.GeneratorBasedBuilder):
  """Some frames of a dataset; see `features`."""

  VERSION = tfds.core.Version(_VERSION)

  # Nothing is downloaded; TFDS would look for checksums through a package that
  # it does not declare (importlib_resources, in 4.9.10).
  url_infos = None

  def __init__(
    self, *, dataset: schema.Dataset | None, rows: Sequence[int], **kwargs
  ):
    self._dataset, self._rows = dataset, rows
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    matrix = tfds.features.Tensor
    features = tfds.features.FeaturesDict(
      {
        # JPEG or PNG; nothing where the frame has no image.
        'image': tfds.features.Text(),
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
  root: str | os.PathLike,
  split: str,
  *,
  packed: str | os.PathLike,
  camera: str = 'perspective',
  points: str = 'scan',
  panorama_size: tuple[int, int] = (512, 1024),
  without: str = '',
  query_spacing: float = 3.0,
) -> schema.Dataset:
  """The frames of a split, packed first where they are not.

  Args:
    root: the raw folders; not touched if the split is packed.
    split: see `kitti360.load`, as all that follow.
    packed: where packed splits and maps are kept, between runs.
    camera: 'perspective' or 'panorama'.
    points: 'scan' or 'submap'.
    panorama_size: (H, W), pixels.
    without: what to drop from submaps.
    query_spacing: metres.

  Raises:
    FileNotFoundError: the raw folders lack something.
    ValueError: a file does not hold what it should; the message names it.
  """
  options = dict(
    camera=camera,
    points=points,
    panorama_size=tuple(panorama_size),
    without=without,
    query_spacing=query_spacing,
  )
  packed = pathlib.Path(packed).expanduser()
  own = directory(packed, split, options)
  if not (own / 'frames.npz').exists():
    own.mkdir(parents=True, exist_ok=True)
    with _locked(own / 'lock'):
      if not (own / 'frames.npz').exists():
        dataset = kitti360.load(
          root, split, maps_dir=packed / 'maps', **options
        )
        _pack(own, dataset)
  return _open(own, split)


def directory(
  packed: pathlib.Path, split: str, options: dict[str, object]
) -> pathlib.Path:
  """Where a split with these options is packed."""
  written = kitti360_splits.PUBLISHED.get(split, split)
  content = repr((_VERSION, written, sorted(options.items())))
  digest = hashlib.sha256(content.encode()).hexdigest()[:12]
  name = re.sub(r'\W+', '_', split).strip('_')
  return packed / f'{name}-{digest}'


@contextlib.contextmanager
def _locked(path: pathlib.Path):
  """Holds a lock that the system releases when the process dies."""
  with path.open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _pack(own: pathlib.Path, dataset: schema.Dataset) -> None:
  """Makes the units that are missing, and last the table of frames."""
  frames = dataset.frames
  units = _units(frames)
  logging.info('Packing %d frames in %s.', len(frames.frame), own)
  for leftover in own.glob('**/*incomplete*'):
    shutil.rmtree(leftover, ignore_errors=True)
  bar = tqdm.tqdm(units.items(), unit='unit', desc=f'packing {dataset.name}')
  # TFDS announces a download of unknown size and shows bars of its own.
  tfds.disable_progress_bar()
  for name, rows in bar:
    with contextlib.redirect_stdout(io.StringIO()):
      _builder(own, name, dataset, rows).download_and_prepare()
  tfds.enable_progress_bar()
  columns = frames._asdict() | {'units': np.array(list(units))}
  if dataset.queries is not None:
    columns['queries'] = dataset.queries
  temporary = own / 'frames.npz.tmp'
  with temporary.open('wb') as file:
    np.savez(file, **columns)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(own / 'frames.npz')


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


def _builder(
  own: pathlib.Path,
  unit: str,
  dataset: schema.Dataset | None = None,
  rows: Sequence[int] = (),
) -> Kitti360:
  return Kitti360(
    dataset=dataset,
    rows=rows,
    data_dir=own / unit,
    file_format='array_record',
  )


def encode(dataset: schema.Dataset, row: int) -> dict[str, object]:
  """A frame's record; see `Kitti360`."""
  frames = dataset.frames
  has = {'image': frames.has_image[row], 'points': frames.has_points[row]}
  reading = dataset.read(int(row), tuple(name for name in has if has[name]))
  return {
    'image': _jpeg(reading['image']) if has['image'] else b'',
    'intrinsics': np.asarray(reading.get('intrinsics', np.eye(3)), np.float64),
    'camera_from_lidar': reading['camera_from_lidar'].astype(np.float64),
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


def _open(own: pathlib.Path, split: str) -> schema.Dataset:
  try:
    with np.load(own / 'frames.npz') as archive:
      columns = {name: archive[name] for name in archive.files}
  except Exception as error:
    raise ValueError(
      f'{own / "frames.npz"} is damaged ({error}). Delete it; what is packed '
      'is kept.'
    ) from error
  units = columns.pop('units').tolist()
  queries = columns.pop('queries', None)
  frames = schema.FrameTable(**columns)
  read = Reader(own, frames, [_source(own, unit) for unit in units])
  return schema.Dataset(f'kitti360/{split}', frames, read, queries)


def _source(own: pathlib.Path, unit: str):
  try:
    return _builder(own, unit).as_data_source(split='frames')
  except Exception as error:
    raise ValueError(
      f'{own}: unit {unit} does not open ({error}). Delete the folder to pack '
      'it anew.'
    ) from error


class Reader:
  """`schema.Dataset.read` of packed frames."""

  def __init__(self, own: pathlib.Path, frames: schema.FrameTable, sources):
    self._own, self._frames, self._sources = own, frames, sources

  def __call__(
    self, row: int, what: tuple[str, ...] = ('image', 'points')
  ) -> dict[str, np.ndarray]:
    """Reads a row; see `schema.Dataset`.

    Raises:
      ValueError: the frame has no such sensor, or what is packed is damaged.
    """
    frames, row = self._frames, int(row)
    name = f'drive {frames.drive[row]}, frame {frames.frame[row]}'
    unknown = set(what) - {'image', 'points'}
    if unknown:
      raise ValueError(
        f'Asked for {sorted(unknown)}; KITTI-360 has image and points.'
      )
    try:
      record = self._sources[row // _ROWS_PER_UNIT][row % _ROWS_PER_UNIT]
      reading = dict(_decode(record, what))
    except Exception as error:
      raise ValueError(
        f'{name}: what is packed does not decode ({error}). Delete {self._own} '
        'to pack it anew.'
      ) from error
    if int(record['frame']) != frames.frame[row]:
      raise ValueError(
        f'{name}: found frame {record["frame"]} packed in its place. Delete '
        f'{self._own} to pack it anew.'
      )
    if missing := [sensor for sensor in what if sensor not in reading]:
      raise ValueError(
        f'{name} has no {missing}; select rows by has_image and has_points.'
      )
    return reading


def _decode(record, what: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
  yield 'camera_from_lidar', record['camera_from_lidar'].astype(np.float32)
  if 'image' in what and record['image']:
    with Image.open(io.BytesIO(record['image'])) as image:
      yield 'image', np.asarray(image.convert('RGB'))
    yield 'intrinsics', record['intrinsics'].astype(np.float32)
  if 'points' in what and record['points']:
    yield 'points', _inflate(record['points'])
