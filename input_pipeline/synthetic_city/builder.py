# SPDX-License-Identifier: Apache-2.0
"""The embedded town as a TFDS dataset, and as frames for the pipeline.

`load` makes what is missing: units are rendered into a cache (see
`generate.py`), packed into ArrayRecord files by TFDS (without TensorFlow), and
the cache is deleted. Both steps resume after a kill at any moment. Everything
lies in `DATA_DIR/synthetic_city/SIZE-FINGERPRINT`, with panoramas in
`.../SIZE_panorama-FINGERPRINT`, with other sensors in `.../SIZE_SENSORS-...`:
another version of the generator makes another directory and never mixes with
this one.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import functools
import io
import itertools
import json
import os
import pathlib
import re
import shutil

from absl import logging
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from input_pipeline import schema
from input_pipeline.synthetic_city import generate
from input_pipeline.synthetic_city import labels as labels_lib
from input_pipeline.synthetic_city import records
from input_pipeline.synthetic_city import rig
from input_pipeline.synthetic_city import splits

_LABELS = {
  'image': ('image_semantic', 'image_instance'),
  'points': ('points_semantic', 'points_instance'),
}
_DEFAULTS = ('pinhole', 'kitti')  # go without saying in names
_COLUMNS = ('town', 'drive', 'frame', 'timestamp', 'world_from_lidar')
_UNGUARDED = (
  'A process that renders runs the script that started it once more: put what'
  " the script does under if __name__ == '__main__':."
)


@dataclasses.dataclass(eq=False)
class Variant(tfds.core.BuilderConfig):
  """What is rendered of the towns.

  Attributes:
    size: of splits.SIZES.
    camera: of rig.CAMERAS.
    setup: of rig.SETUPS.
  """

  size: str = ''
  camera: str = ''
  setup: str = ''


def variant(
  size: str, camera: str = 'pinhole', setup: str = 'kitti'
) -> Variant:
  """The variant of a size, a camera and a setup of sensors.

  Raises:
    InputError: for an unknown one, or a camera that the setup cannot have.
  """
  if size not in splits.SIZES:
    raise InputError(f'Unknown size {size!r}; known: {splits.SIZES}.')
  rig.find_setup(setup, camera)
  other = [name for name in (camera, setup) if name not in _DEFAULTS]
  return Variant(
    name='_'.join([size, *other]), size=size, camera=camera, setup=setup
  )


def _variants() -> Iterator[Variant]:
  """Every one that there is."""
  for size, camera, setup in itertools.product(
    splits.SIZES, rig.CAMERAS, rig.SETUPS
  ):
    with contextlib.suppress(ValueError):
      yield variant(size, camera, setup)


class SyntheticCity(tfds.core.GeneratorBasedBuilder):
  """Drives through generated towns: camera, LiDAR, poses, labels, objects.

  Records keep the order of the specification. `data_dir` holds the cache of
  units in its folder `units`, made by `generate.generate`.
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = list(_variants())

  # Nothing is downloaded; TFDS would look for checksums through a package that
  # it does not declare (importlib_resources, in 4.9.10).
  url_infos = None

  def _info(self) -> tfds.core.DatasetInfo:
    png = functools.partial(tfds.features.Image, encoding_format='png')
    text = tfds.features.Text
    features = tfds.features.FeaturesDict(
      {
        'image': png(shape=(None, None, 3)),
        'image_semantic': png(shape=(None, None, 1)),
        # Instance numbers have 24 bits: red is the lowest byte.
        'image_instance': png(shape=(None, None, 3)),
        'intrinsics': tfds.features.Tensor(shape=(3, 3), dtype=np.float64),
        'camera_from_lidar': tfds.features.Tensor(
          shape=(4, 4), dtype=np.float64
        ),
        # Rows are beams, columns firings; units of records.RANGE_UNIT metres,
        # 0 for no return.
        'range': png(shape=(None, None, 1), dtype=np.uint16),
        'intensity': png(shape=(None, None, 1)),
        'points_semantic': png(shape=(None, None, 1)),
        'points_instance': png(shape=(None, None, 3)),
        'town': text(),
        'drive': text(),
        'role': text(),
        'weather': text(),
        'frame': np.int64,
        'timestamp': np.float64,
        'world_from_lidar': tfds.features.Tensor(
          shape=(4, 4), dtype=np.float64
        ),
        # JSON list of what the sensors see: instance, category, caption,
        # moving, how many pixels and points it has, and its ellipsoid in the
        # world frame (center, semi_axes, yaw).
        'objects': text(),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self, features=features, disable_shuffling=True
    )

  def _split_generators(self, _dl_manager) -> dict:
    return {split: self._generate_examples(split) for split in splits.SPLITS}

  def _generate_examples(self, split: str):
    directory = pathlib.Path(self._data_dir_root) / 'units'
    key = 0
    for unit in splits.units(splits.specification(self.builder_config.size)):
      if unit.drive.split == split:
        for record in records.read(directory / unit.name):
          yield key, record
          key += 1


def load(
  data_dir: str | os.PathLike,
  *,
  size: str,
  split: str,
  camera: str = 'pinhole',
  sensors: str = 'kitti',
) -> schema.Dataset:
  """The frames of a split, generated first where they are missing.

  Args:
    data_dir: where generated data is kept, between runs.
    size: 'tiny' (tests), 'small' (image 64 x 208, scan 64 x 256), 'default'
      (128 x 416, 64 x 1024) or 'full' (376 x 1241, 64 x 2048).
    split: 'train', 'validation' or 'test'; 'train[:8]' is its first 8 towns.
    camera: 'pinhole', or 'panorama': images of 360 x 80 degrees, twice as wide,
      with intrinsics in pixels per radian, see `i2ploc.geometry.panorama`.
    sensors: 'kitti'; '32_beams': half the beams over 41 instead of 27 degrees;
      'wide_camera': a shorter lens and a wider image (KITTI-360's camera);
      'other_car': both. Towns, drives and weather are the same.

  Returns:
    A labelled `schema.Dataset`. Beyond the schema, `read` understands
    'objects': a list of dicts, one per visible thing.

  Raises:
    InputError: for an unknown size, split, camera or sensors.
  """
  chosen = variant(size, camera, sensors)
  split, num_towns = _parse(split)
  root = directory(data_dir, chosen)
  if not (root / 'frames.npz').exists() or (root / 'units').exists():
    build(root, chosen)
  frames = _load_frames(root, split)
  source = _builder(root, chosen).as_data_source(
    split=split, decoders=_no_decoding()
  )
  if len(source) != len(frames.town):
    raise InputError(
      f'{root}: {len(source)} records of split {split!r} but a table of '
      f'{len(frames.town)} frames. Delete the directory to make it anew.'
    )
  read = _make_read(source, frames, rig.directions(size, sensors))
  name = f'synthetic_city/{chosen.name}/{split}'
  if num_towns is not None:
    frames = _first_towns(frames, num_towns, name)
  rigs = dict.fromkeys(frames.drive.tolist(), _rig(chosen))
  labels = schema.Labels(
    labels_lib.CLASSES, labels_lib.MOVING, labels_lib.MOVABLE
  )
  return schema.Dataset(name, frames, rigs, read, labels)


def _rig(chosen: Variant) -> schema.Rig:
  """The sensors of every drive of a variant."""
  mounted = rig.find_camera(chosen.size, chosen.camera, chosen.setup)
  model = 'equirectangular' if mounted.kind == 'panorama' else mounted.kind
  lens = lens_lib.Lens(model, mounted.intrinsics)
  return schema.Rig(lens, mounted.shape, mounted.camera_from_lidar)


def _parse(text: str) -> tuple[str, int | None]:
  """Split and number of towns of 'train' or 'train[:8]'."""
  match = re.fullmatch(r'(\w+)(?:\[:(\d+)\])?', text)
  if not match or match[1] not in splits.SPLITS:
    raise InputError(
      f"Unknown split {text!r}; known: {splits.SPLITS}, and 'train[:8]' for "
      'the first 8 towns.'
    )
  return match[1], int(match[2]) if match[2] else None


def _first_towns(
  frames: schema.FrameTable, num_towns: int, name: str
) -> schema.FrameTable:
  """The rows of the first towns, which are the first rows."""
  towns = list(dict.fromkeys(frames.town))
  if not 1 <= num_towns <= len(towns):
    raise InputError(
      f'{name} has {len(towns)} towns; the first {num_towns} were asked for.'
    )
  rows = np.flatnonzero(np.isin(frames.town, towns[:num_towns]))
  if rows[-1] != len(rows) - 1:
    raise InputError(f'{name}: its towns are not one after another.')
  return frames.take(rows)


def directory(data_dir: str | os.PathLike, chosen: Variant) -> pathlib.Path:
  """Where a variant's data of this version of the generator lies."""
  name = f'{chosen.name}-{generate.fingerprint(chosen.size)}'
  return pathlib.Path(data_dir) / 'synthetic_city' / name


def build(root: pathlib.Path, chosen: Variant) -> None:
  """Renders and packs whatever `root` lacks; a second process waits.

  Raises:
    InputError: called by a process that this one's caller renders with.
  """
  root.mkdir(parents=True, exist_ok=True)
  with _locked(root / 'lock'):
    if not (root / 'frames.npz').exists():
      _render_and_pack(root, chosen)
    shutil.rmtree(root / 'units', ignore_errors=True)


def _render_and_pack(root: pathlib.Path, chosen: Variant) -> None:
  name, size = chosen.name, chosen.size
  others = sorted(p.name for p in root.parent.glob(f'{name}-*') if p != root)
  logging.info('Generating synthetic_city/%s in %s', name, root)
  if others:
    logging.info(
      'The generator has changed since %s was made; it may be deleted.', others
    )
  make_render = functools.partial(
    generate.make_render, camera=chosen.camera, setup=chosen.setup
  )
  paths = generate.generate(root / 'units', size, make_render)
  for leftover in root.glob('**/*incomplete*'):
    shutil.rmtree(leftover, ignore_errors=True)
  logging.info('Packing %d units', len(paths))
  # TFDS announces a download of unknown size and shows bars of its own.
  with contextlib.redirect_stdout(io.StringIO()):
    tfds.disable_progress_bar()
    _builder(root, chosen).download_and_prepare()
    tfds.enable_progress_bar()
  _save_frames(root, size, paths)


@contextlib.contextmanager
def _locked(path: pathlib.Path):
  """Holds a lock that the system releases when the process dies.

  Raises:
    InputError: the process that started this one holds it and waits for it.
  """
  with path.open('a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      if file.read() == str(os.getppid()):
        raise InputError(_UNGUARDED) from None
      fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield


def _builder(root: pathlib.Path, chosen: Variant) -> SyntheticCity:
  return SyntheticCity(
    data_dir=root, config=chosen.name, file_format='array_record'
  )


def _no_decoding() -> dict:
  images = ('image', 'range', 'intensity', *_LABELS['image'])
  names = (*images, *_LABELS['points'])
  return {name: tfds.decode.SkipDecoding() for name in names}


def _save_frames(root, size, paths: list[pathlib.Path]) -> None:
  """Writes the frame tables of all splits: the mark of a finished build."""
  rows = {split: [] for split in splits.SPLITS}
  every = splits.units(splits.specification(size))
  for unit, path in zip(every, paths, strict=True):
    rows[unit.drive.split].extend(
      [record[name] for name in _COLUMNS]
      for record in records.read(path, _COLUMNS)
    )
  columns = {}
  for split, table in rows.items():
    for name, values in zip(_COLUMNS, zip(*table, strict=True), strict=True):
      text = isinstance(values[0], bytes)
      column = [value.decode() for value in values] if text else values
      columns[f'{split}.{name}'] = np.asarray(column)
  files.save_arrays(root / 'frames.npz', columns)


def _load_frames(root: pathlib.Path, split: str) -> schema.FrameTable:
  with np.load(root / 'frames.npz') as archive:
    columns = [archive[f'{split}.{name}'] for name in _COLUMNS]
  present = np.ones(len(columns[0]), bool)
  names = schema.frame_names(*columns[1:3])
  return schema.FrameTable(*columns, present, present, names)


def _make_read(
  source, frames: schema.FrameTable, directions: np.ndarray
) -> Callable:
  """The function that reads one row of an opened split."""

  def read(row: int, what: tuple[str, ...] = ('image', 'points')) -> dict:
    record = source[row]
    if int(record['frame']) != frames.frame[row]:
      raise InputError(
        f'Row {row} holds frame {record["frame"]}, expected drive '
        f'{frames.drive[row]}, frame {frames.frame[row]}: the packed files '
        'and frames.npz disagree. Delete the directory to make it anew.'
      )

    def decode(name: str) -> np.ndarray:
      try:
        return np.asarray(Image.open(io.BytesIO(record[name])))
      except Exception as error:
        raise InputError(
          f'drive {frames.drive[row]}, frame {frames.frame[row]}: {name} does '
          f'not decode ({error}). Delete the directory to make it anew.'
        ) from error

    return _reading(record, decode, directions, what)

  return read


def _reading(record, decode, directions, what: tuple[str, ...]) -> dict:
  """What the schema promises, from a record of encoded columns."""
  reading = {}
  if 'image' in what:
    reading['image'] = decode('image')
  hit = None
  if 'points' in what:
    distance = decode('range')
    hit = distance > 0
    reading['points'] = rig.points_from_scan(
      distance * np.float32(records.RANGE_UNIT),
      decode('intensity'),
      directions,
    )
  if 'labels' in what:
    for sensor, names in _LABELS.items():
      if sensor in what:
        for name in names:
          label = decode(name)
          if name.endswith('instance'):
            label = records.instance_from_rgb(label)
          reading[name] = label[hit] if sensor == 'points' else label
  if 'objects' in what:
    reading['objects'] = json.loads(record['objects'])
  return reading
