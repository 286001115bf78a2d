# SPDX-License-Identifier: Apache-2.0
"""The embedded town as a TFDS dataset, and as frames for the pipeline.

`load` makes what is missing of the towns that it is asked for: units are
rendered into a cache (see `generate.py`), packed into ArrayRecord files by TFDS
(without TensorFlow), and the cache is deleted. Both steps resume after a kill
at any moment. A town lies in `DATA_DIR/synthetic_city/SIZE-FINGERPRINT/SPLIT`;
other cameras, sensors and looks are named after the size, as in
`small_panorama_mesh-FINGERPRINT`. Another version of the generator makes
another directory and never mixes with this one.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
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
_DEFAULTS = ('pinhole', 'kitti', 'photo')  # go without saying in names
_COLUMNS = ('town', 'drive', 'frame', 'timestamp', 'world_from_lidar')
_CONDITION = 'weather'  # the record's name of it
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
    look: of generate.LOOKS.
  """

  size: str = ''
  camera: str = ''
  setup: str = ''
  look: str = ''


def variant(
  size: str,
  camera: str = 'pinhole',
  setup: str = 'kitti',
  look: str = 'photo',
) -> Variant:
  """The variant of a size, a camera, a setup of sensors and a look.

  Raises:
    InputError: for an unknown one, or a camera that the setup cannot have.
  """
  if size not in splits.SIZES:
    raise InputError(f'Unknown size {size!r}; known: {splits.SIZES}.')
  rig.find_setup(setup, camera)
  if look not in generate.LOOKS:
    raise InputError(f'Unknown look {look!r}; known: {generate.LOOKS}.')
  other = [name for name in (camera, setup, look) if name not in _DEFAULTS]
  return Variant(
    name='_'.join([size, *other]),
    size=size,
    camera=camera,
    setup=setup,
    look=look,
  )


def _variants() -> Iterator[Variant]:
  """Every one that there is."""
  for each in itertools.product(
    splits.SIZES, rig.CAMERAS, rig.SETUPS, generate.LOOKS
  ):
    with contextlib.suppress(ValueError):
      yield variant(*each)


class SyntheticCity(tfds.core.GeneratorBasedBuilder):
  """Drives through a generated town: camera, LiDAR, poses, labels, objects.

  Records keep the order of the specification. `data_dir` is SPLIT/TOWN, beside
  SPLIT/units, the cache that `generate.generate` makes.
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
    root = pathlib.Path(self._data_dir_root)
    units = _units(self.builder_config.size, [root.name])
    return {units[0].drive.split: self._generate_examples(root.parent, units)}

  def _generate_examples(self, root: pathlib.Path, units: list[splits.Unit]):
    paths = [root / 'units' / unit.name for unit in units]
    yield from enumerate(
      itertools.chain.from_iterable(map(records.read, paths))
    )


def _units(size: str, towns: Sequence[str]) -> list[splits.Unit]:
  """The units of these towns, in order."""
  drives = splits.specification(size)
  return splits.units(tuple(d for d in drives if d.town in towns))


def load(
  data_dir: str | os.PathLike,
  *,
  size: str,
  split: str,
  camera: str = 'pinhole',
  sensors: str = 'kitti',
  look: str = 'photo',
  renderings: bool = False,
) -> schema.Dataset:
  """The frames of a split; its towns are generated first where missing.

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
    look: 'photo'; 'mesh': what a viewer of a model of the town shows, without
      textures, weather, traffic and parked cars; 'night': every drive but a
      town's first is at night. Poses and numbers of frames are the same.
    renderings: `read` also knows 'rendering', the image of look 'mesh'.

  Returns:
    A labelled `schema.Dataset` with conditions. Beyond the schema, `read`
    understands 'objects': a list of dicts, one per visible thing.

  Raises:
    InputError: for an unknown size, split, camera, sensors or look.
  """
  chosen = variant(size, camera, sensors, look)
  name, towns = _parse(split, size)
  root = directory(data_dir, chosen) / name
  build(root, chosen, towns)
  tables = [_load_table(root / town) for town in towns]
  sources = [
    _open(root / town, chosen, name, len(table['frame']))
    for town, table in zip(towns, tables, strict=True)
  ]
  columns = {
    key: np.concatenate([table[key] for table in tables]) for key in tables[0]
  }
  conditions = columns.pop(_CONDITION)
  present = np.ones(len(conditions), bool)
  frames = schema.FrameTable(
    *columns.values(),
    present,
    present,
    schema.frame_names(columns['drive'], columns['frame']),
  )
  dataset = schema.Dataset(
    f'synthetic_city/{chosen.name}/{name}',
    frames,
    dict.fromkeys(frames.drive.tolist(), _rig(chosen)),
    _make_read(sources, frames, rig.directions(size, sensors)),
    schema.Labels(labels_lib.CLASSES, labels_lib.MOVING, labels_lib.MOVABLE),
    conditions=conditions,
  )
  if not renderings:
    return dataset
  mesh = load(
    data_dir,
    size=size,
    split=split,
    camera=camera,
    sensors=sensors,
    look='mesh',
  )
  return _with_renderings(dataset, mesh)


def _with_renderings(
  dataset: schema.Dataset, mesh: schema.Dataset
) -> schema.Dataset:
  """The dataset whose rows also read the mesh's images of the same poses."""
  frames = dataset.frames
  for name in ('drive', 'frame'):
    if not np.array_equal(getattr(frames, name), getattr(mesh.frames, name)):
      raise InputError(
        f'{mesh.name} and {dataset.name} are not of the same frames. Delete '
        'the directory of the mesh to make it anew.'
      )

  def read(row: int, what: tuple[str, ...] = ('image', 'points')) -> dict:
    reading = dataset.read(row, what)
    if 'rendering' in what:
      reading['rendering'] = mesh.read(row, ('image',))['image']
    return reading

  frames = frames._replace(has_rendering=np.ones_like(frames.has_image))
  return dataset._replace(frames=frames, read=read)


def _rig(chosen: Variant) -> schema.Rig:
  """The sensors of every drive of a variant."""
  mounted = rig.find_camera(chosen.size, chosen.camera, chosen.setup)
  model = 'equirectangular' if mounted.kind == 'panorama' else mounted.kind
  lens = lens_lib.Lens(model, mounted.intrinsics)
  return schema.Rig(lens, mounted.shape, mounted.camera_from_lidar)


def _parse(text: str, size: str) -> tuple[str, list[str]]:
  """Split and towns of 'train' or 'train[:8]'."""
  match = re.fullmatch(r'(\w+)(?:\[:(\d+)\])?', text)
  if not match or match[1] not in splits.SPLITS:
    raise InputError(
      f"Unknown split {text!r}; known: {splits.SPLITS}, and 'train[:8]' for "
      'the first 8 towns.'
    )
  drives = splits.specification(size)
  towns = list(dict.fromkeys(d.town for d in drives if d.split == match[1]))
  wanted = int(match[2]) if match[2] else len(towns)
  if not 1 <= wanted <= len(towns):
    raise InputError(
      f'synthetic_city/{size}/{match[1]} has {len(towns)} towns; the first '
      f'{wanted} were asked for.'
    )
  return match[1], towns[:wanted]


def directory(data_dir: str | os.PathLike, chosen: Variant) -> pathlib.Path:
  """Where a variant's data of this version of the generator lies."""
  name = f'{chosen.name}-{generate.fingerprint(chosen.size)}'
  return pathlib.Path(data_dir) / 'synthetic_city' / name


def build(root: pathlib.Path, chosen: Variant, towns: Sequence[str]) -> None:
  """Renders and packs whatever is missing; a second process waits.

  Args:
    root: of a split: `directory`/SPLIT.
    chosen: what to render.
    towns: of the split.

  Raises:
    InputError: called by a process that this one's caller renders with.
  """
  if all(_is_done(root, chosen.size, town) for town in towns):
    return
  root.mkdir(parents=True, exist_ok=True)
  with _locked(root / 'lock'):
    missing = [t for t in towns if not (root / t / 'frames.npz').exists()]
    if missing:
      _render_and_pack(root, chosen, missing)
    for unit in _units(chosen.size, towns):
      (root / 'units' / unit.name).unlink(missing_ok=True)
    # The units of towns that nobody has packed yet may stay.
    with contextlib.suppress(OSError):
      (root / 'units').rmdir()


def _is_done(root: pathlib.Path, size: str, town: str) -> bool:
  """Whether a town is packed and its units are deleted."""
  left = any((root / 'units' / u.name).exists() for u in _units(size, [town]))
  return (root / town / 'frames.npz').exists() and not left


def _render_and_pack(
  root: pathlib.Path, chosen: Variant, towns: list[str]
) -> None:
  name, own = chosen.name, root.parent
  others = sorted(p.name for p in own.parent.glob(f'{name}-*') if p != own)
  logging.info('Generating synthetic_city/%s in %s', name, root)
  if others:
    logging.info(
      'The generator has changed since %s was made; it may be deleted.', others
    )
  make_render = functools.partial(
    generate.make_render,
    chosen.size,
    camera=chosen.camera,
    setup=chosen.setup,
    look=chosen.look,
  )
  units = _units(chosen.size, towns)
  paths = generate.generate(root / 'units', units, make_render)
  for leftover in root.glob('**/*incomplete*'):
    shutil.rmtree(leftover, ignore_errors=True)
  logging.info('Packing %d units', len(paths))
  for town in towns:
    # TFDS announces a download of unknown size and shows bars of its own.
    with contextlib.redirect_stdout(io.StringIO()):
      tfds.disable_progress_bar()
      _builder(root / town, chosen).download_and_prepare()
      tfds.enable_progress_bar()
    _save_table(
      root / town,
      [p for u, p in zip(units, paths, strict=True) if u.drive.town == town],
    )


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


def _builder(own: pathlib.Path, chosen: Variant) -> SyntheticCity:
  """Of a town's directory."""
  return SyntheticCity(
    data_dir=own, config=chosen.name, file_format='array_record'
  )


def _open(own: pathlib.Path, chosen: Variant, split: str, count: int):
  """The records of a packed town."""
  source = _builder(own, chosen).as_data_source(
    split=split, decoders=_no_decoding()
  )
  if len(source) != count:
    raise InputError(
      f'{own}: {len(source)} records of split {split!r} but a table of '
      f'{count} frames. Delete the directory to make it anew.'
    )
  return source


def _no_decoding() -> dict:
  images = ('image', 'range', 'intensity', *_LABELS['image'])
  names = (*images, *_LABELS['points'])
  return {name: tfds.decode.SkipDecoding() for name in names}


def _save_table(own: pathlib.Path, paths: list[pathlib.Path]) -> None:
  """Writes the frame table of a town: the mark of a finished build."""
  wanted = (*_COLUMNS, _CONDITION)
  rows = itertools.chain.from_iterable(records.read(p, wanted) for p in paths)
  values = zip(*([row[name] for name in wanted] for row in rows), strict=True)
  columns = {}
  for name, column in zip(wanted, values, strict=True):
    text = isinstance(column[0], bytes)
    columns[name] = np.asarray([v.decode() for v in column] if text else column)
  files.save_arrays(own / 'frames.npz', columns)


def _load_table(own: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(own / 'frames.npz') as archive:
    return {name: archive[name] for name in (*_COLUMNS, _CONDITION)}


def _make_read(
  sources, frames: schema.FrameTable, directions: np.ndarray
) -> Callable:
  """The function that reads one row of towns, one after another."""
  ends = np.cumsum([len(source) for source in sources])

  def read(row: int, what: tuple[str, ...] = ('image', 'points')) -> dict:
    town = int(np.searchsorted(ends, row, side='right'))
    record = sources[town][row - (ends[town - 1] if town else 0)]
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
