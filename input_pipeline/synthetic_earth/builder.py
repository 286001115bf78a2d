# SPDX-License-Identifier: Apache-2.0
"""The embedded earth as a dataset: made once, kept in files, read by row.

Everything lies in `DATA_DIR/synthetic_earth/SIZE-FINGERPRINT`: of each region
REGION.npy, the images, and REGION.npz, all else, which is written last and
marks a region as finished. A run that is killed goes on with the next region,
and another version of the generator makes another folder.
"""

from collections.abc import Sequence
import dataclasses
import fcntl
import functools
import hashlib
import os
import pathlib

from absl import logging
import numpy as np

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.photos import truth as truth_lib
from input_pipeline import schema
from input_pipeline.synthetic_city import generate as city
from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_earth import photograph as photograph_lib
from input_pipeline.synthetic_earth import splits

FORMAT = 'i2ploc.synthetic_earth.1'


def load(
  data_dir: str | os.PathLike, *, size: str, split: str
) -> schema.Dataset:
  """The tiles and photos of a split, made first where they are missing.

  A region is a town. Its tiles of a year are a drive, 'train00_2018', and a
  tile has the same number in all years. Training has four years of tiles and no
  photo; validation and test have one year, the map, and photos that ask, the
  drive 'test00_astronaut'. Positions are metres east and north of the region's
  corner, headings where the top of a picture points to. An answer is right if
  its footprint overlaps that of the photo.

  Args:
    data_dir: where generated data is kept, between runs.
    size: 'tiny' (tests), 'small' (64 x 64 pixels, 6 regions to train on and 3
      to test) or 'default' (128 x 128, 12 and 4 larger ones).
    split: 'train', 'validation' or 'test'.

  Raises:
    InputError: for an unknown size or split, or damaged files.
  """
  if split not in splits.SPLITS:
    raise InputError(f'Unknown split {split!r}; known: {splits.SPLITS}.')
  root = directory(data_dir, size)
  regions = [one for one in splits.regions(size) if one.split == split]
  build(root, regions)
  tables = [_load_table(root, region) for region in regions]
  counts = [len(table['frame']) for table in tables]

  def column(name: str) -> np.ndarray:
    return np.concatenate([table[name] for table in tables])

  town = np.repeat([region.name for region in regions], counts)
  condition = column('condition')
  drive = np.array([f'{a}_{b}' for a, b in zip(town, condition, strict=True)])
  corners = [
    region.degrees(table['footprint'])
    for region, table in zip(regions, tables, strict=True)
  ]
  number = column('frame')
  present = np.ones(len(town), bool)
  frames = schema.FrameTable(
    town=town,
    drive=drive,
    frame=number,
    timestamp=np.full(len(town), np.nan),
    world_from_body=_poses(column('position'), column('heading')),
    has_image=present,
    has_points=~present,
    name=schema.frame_names(drive, number),
  )
  asks = condition == photograph_lib.ASTRONAUT
  pixels = regions[0].pixels
  rig = schema.Rig(None, (pixels, pixels))
  return schema.Dataset(
    name=f'synthetic_earth/{size}/{split}',
    frames=frames,
    rigs=dict.fromkeys(drive.tolist(), rig),
    read=Reader(
      tuple(str(_images(root, region)) for region in regions), tuple(counts)
    ),
    queries=asks if asks.any() else None,
    truth=truth_lib.Truth(
      truth_lib.OVERLAP, footprints=np.concatenate(corners)
    ),
    conditions=condition,
    rough=column('rough'),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
  """`schema.Dataset.read` over files of images; plain data, hence picklable.

  Compared and hashed by identity, as the function that it stands for.

  Attributes:
    paths: of each region's images.
    counts: how many each has.
  """

  paths: tuple[str, ...]
  counts: tuple[int, ...]

  def __call__(
    self, row: int, what: Sequence[str] = ('image',)
  ) -> dict[str, np.ndarray]:
    """Reads an image; see `schema.Dataset`.

    Raises:
      InputError: something else is asked for, or the file is damaged.
    """
    if unknown := sorted(set(what) - {'image'}):
      raise InputError(f'Asked for {unknown}; synthetic_earth has image alone.')
    if 'image' not in what:
      return {}
    starts = np.cumsum((0, *self.counts))
    region = int(np.searchsorted(starts, row, side='right')) - 1
    images = _open_images(self.paths[region], self.counts[region])
    return {'image': np.array(images[row - starts[region]])}


@functools.lru_cache(maxsize=64)
def _open_images(path: str, count: int) -> np.ndarray:
  """Images of a region; pages of the file come when they are read."""
  try:
    images = np.load(path, mmap_mode='r')
  except (OSError, ValueError, EOFError) as error:
    raise InputError(
      f'{path} is damaged ({error}). Delete its folder to make it anew.'
    ) from error
  if len(images) != count:
    raise InputError(
      f'{path} has {len(images)} images, its table {count}. Delete its folder'
      ' to make it anew.'
    )
  return images


def directory(data_dir: str | os.PathLike, size: str) -> pathlib.Path:
  """Where the data of a size and of this version of the generator lies."""
  name = f'{size}-{fingerprint(size)}'
  return pathlib.Path(data_dir) / 'synthetic_earth' / name


def fingerprint(size: str) -> str:
  """Names the code and the specification that the data follows from.

  Comments, docstrings and layout of the source do not count.
  """
  text = repr((size, splits.regions(size), _code()))
  return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _code() -> str:
  here, digest = pathlib.Path(__file__), hashlib.sha256()
  for path in (
    pathlib.Path(patterns.__file__),
    *sorted(here.parent.glob('*.py')),
  ):
    if path != here:
      digest.update(city.essence(path.read_text()).encode())
  return digest.hexdigest()


def build(root: pathlib.Path, regions: Sequence[splits.Region]) -> None:
  """Makes the regions that are not there; a second process waits."""
  if all(_table(root, region).exists() for region in regions):
    return
  root.mkdir(parents=True, exist_ok=True)
  with (root / 'lock').open('a') as lock:
    # The system takes it back when the process dies.
    fcntl.flock(lock, fcntl.LOCK_EX)
    for leftover in root.glob('.*.tmp.*'):
      leftover.unlink()
    for region in regions:
      if not _table(root, region).exists():
        logging.info('Making synthetic_earth/%s in %s', region.name, root)
        made = photograph_lib.photograph(region)._asdict()
        files.save_array(_images(root, region), made.pop('images'))
        files.save_arrays(_table(root, region), made, FORMAT)


def _images(root, region) -> pathlib.Path:
  return root / f'{region.name}.npy'


def _table(root, region) -> pathlib.Path:
  return root / f'{region.name}.npz'


def _load_table(root, region) -> dict[str, np.ndarray]:
  remedy = f'delete {root} to make it anew'
  return files.load_arrays(_table(root, region), remedy, FORMAT)


def _poses(position: np.ndarray, heading: np.ndarray) -> np.ndarray:
  """world_from_body [N, 4, 4] on the ground, with x where the top points to."""
  poses = np.tile(np.eye(4), (len(heading), 1, 1))
  cos, sin = np.cos(heading), np.sin(heading)
  poses[:, 0, 0] = poses[:, 1, 1] = cos
  poses[:, 0, 1], poses[:, 1, 0] = -sin, sin
  poses[:, :2, 3] = position
  return poses
