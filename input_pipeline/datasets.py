# SPDX-License-Identifier: Apache-2.0
"""Every dataset that there is, by its name."""

from collections.abc import Callable
import pathlib
from typing import NamedTuple

from i2ploc.errors import InputError
from input_pipeline import readings
from input_pipeline import schema
from input_pipeline.readers import kitti360
from input_pipeline.readers import kitti360_splits
from input_pipeline.readers import kitti_and_kitti360
from input_pipeline.readers import kitti_odometry
from input_pipeline.readers import kitti_odometry_splits
from input_pipeline.readers import kitti_raw
from input_pipeline.readers import mesh
from input_pipeline.readers import photos
from input_pipeline.readers import splits


def _load_synthetic_city(data_dir: str, split: str, **options):
  # Here, since TFDS takes seconds to import and recorded data do not need it.
  from input_pipeline.synthetic_city import builder

  return builder.load(data_dir, split=split, **options)


def _load_synthetic_earth(data_dir: str, split: str, **options):
  # Here, since it compiles with JAX, which readers of files do not need.
  from input_pipeline.synthetic_earth import builder

  return builder.load(data_dir, split=split, **options)


class _Reader(NamedTuple):
  """How a dataset is read.

  Attributes:
    load: `load(data_dir, split, **options)`.
    grammar: of its splits, if they can be packed; None for others.
  """

  load: Callable[..., schema.Dataset]
  grammar: splits.Grammar | None = None


_READERS = {
  'kitti360': _Reader(kitti360.load, kitti360_splits.GRAMMAR),
  'kitti_and_kitti360': _Reader(
    kitti_and_kitti360.load, kitti_and_kitti360.GRAMMAR
  ),
  'kitti_odometry': _Reader(kitti_odometry.load, kitti_odometry_splits.GRAMMAR),
  'kitti_raw': _Reader(kitti_raw.load, kitti_raw.GRAMMAR),
  'mesh': _Reader(mesh.load),
  'photos': _Reader(photos.load),
  'synthetic_city': _Reader(_load_synthetic_city),
  'synthetic_earth': _Reader(_load_synthetic_earth),
}
NAMES = tuple(_READERS)
# Options that say where something lies, not what is read.
_PLACES = ('kitti360_dir', 'maps_dir')


def load(
  name: str, *, split: str, data_dir: str, packed: str = '', **options
) -> schema.Dataset:
  """A dataset by name.

  Args:
    name: of `NAMES`.
    split: of synthetic_city and synthetic_earth 'train', 'validation' or
      'test', of the former also 'train[:8]'; of photos 'all', or towns joined
      by '+'; of mesh 'all'; of the KITTI readers sequences or drives joined by
      '+', such as '05+06[:100]', see `readers.splits`, or the name of a
      published split.
    data_dir: where the data lies (or, if it is generated, is to be made).
    packed: where to keep what is read, between runs; '' reads the raw files
      each time. See `packing`.
    **options: passed to the dataset's own `load`, such as `size`.

  Raises:
    InputError: for an unknown name, or a dataset without frames.
  """
  if name not in _READERS:
    raise InputError(f'Unknown dataset {name!r}; known: {sorted(NAMES)}.')
  if packed:
    dataset = _load_packed(name, split, data_dir, packed, options)
  else:
    dataset = _READERS[name].load(data_dir, split, **options)
  readings.check_not_empty(dataset)
  return dataset


def _load_packed(name, split, data_dir, packed, options) -> schema.Dataset:
  from input_pipeline import packing  # imports TFDS

  read, grammar = _READERS[name]
  if grammar is None:
    raise InputError(
      f'packed={packed!r} is for recorded drives; {name} is read from data_dir '
      'as it is.'
    )
  places = {key: options[key] for key in _PLACES if key in options}
  if name == 'kitti360':
    places.setdefault(
      'maps_dir', str(pathlib.Path(packed).expanduser() / 'maps')
    )
  return packing.load(
    read,
    name,
    data_dir,
    split,
    packed=packed,
    written=str(grammar.parse(split)),
    places=places,
    **{key: value for key, value in options.items() if key not in places},
  )
