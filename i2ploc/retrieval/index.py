# SPDX-License-Identifier: Apache-2.0
"""A map as descriptors with poses: searched, saved, loaded, refused.

A row of an index is one view of one place. Rows that share a key are views of
the same place (a LiDAR scan embedded as a vehicle turned by 0 and by 180
degrees would see it); a search answers with distinct places, each by its best
view. The file is one npz that carries where it came from: descriptors of
another model are numbers of the same shape and no meaning, so `load_index`
compares fingerprints instead of trusting the caller.
"""

from collections.abc import Mapping
import functools
import json
import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import files
from i2ploc.errors import InputError

FORMAT = 'i2ploc.index.1'
PROVENANCE = ('model', 'config', 'dataset', 'software')
SIMILARITIES = ('cosine', 'dot')
# float32 entries of one block of similarities: about 1 MB, see design.md 6.
BLOCK_ENTRIES = 2**18
MIN_QUERIES = 16
# bfloat16 towers end in norms that are off by up to 4e-3.
NORM_TOLERANCE = 2e-2


class Rig(NamedTuple):
  """The sensors that the map was recorded for.

  Attributes:
    intrinsics: float64 [3, 3], pixels, for images of `image_size`.
    image_size: (height, width), pixels.
    camera_from_lidar: float64 [4, 4], metres.
  """

  intrinsics: np.ndarray
  image_size: tuple[int, int]
  camera_from_lidar: np.ndarray


class Index(NamedTuple):
  """Descriptors, poses and origin of a map of M rows.

  Attributes:
    descriptors: float32 [M, D], unit norm unless `similarity` is 'dot'.
    keys: int64 [M], the place of a row; equal keys are views of one place.
    poses: float64 [M, 4, 4], world_from_body of the reading, metres, z up.
    towns: [M] str, positions of different towns are not comparable.
    frames: int64 [M], the number in the dataset's own file names.
    views: float64 [M], radians: the descriptor is what a vehicle at `poses`
      turned to the left by `views` about its own z axis would see.
    provenance: at least 'model' (fingerprint of the parameters), 'config'
      (digest), 'dataset' and 'software'; strings. 'similarity' too, if it is
      not cosine but the dot product of what a model gives.
    rig: the camera and its mounting.
  """

  descriptors: np.ndarray
  keys: np.ndarray
  poses: np.ndarray
  towns: np.ndarray
  frames: np.ndarray
  views: np.ndarray
  provenance: Mapping[str, str]
  rig: Rig

  @property
  def num_places(self) -> int:
    """Number of distinct keys."""
    return len(np.unique(self.keys))

  @property
  def similarity(self) -> str:
    """'cosine', or 'dot' of descriptors of any length."""
    return self.provenance.get('similarity', SIMILARITIES[0])

  def world_from_view(self, rows: np.ndarray) -> np.ndarray:
    """The pose that each row's descriptor shows: its reading, turned.

    Args:
      rows: int [...].

    Returns:
      float64 [..., 4, 4], world_from_body of the turned vehicle.
    """
    yaw = np.asarray(self.views, np.float64)[rows]
    reading_from_view = np.zeros((*yaw.shape, 4, 4))
    reading_from_view[..., 0, 0] = reading_from_view[..., 1, 1] = np.cos(yaw)
    reading_from_view[..., 1, 0] = np.sin(yaw)
    reading_from_view[..., 0, 1] = -np.sin(yaw)
    reading_from_view[..., 2, 2] = reading_from_view[..., 3, 3] = 1.0
    return np.asarray(self.poses, np.float64)[rows] @ reading_from_view

  def search(
    self, queries: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar places of each query, exactly, best first.

    Equal similarities are ordered by where the key first appears in the map,
    and inside a key the earlier row is taken. Memory is bounded by blocks of
    queries; the compiled function is shared by all query counts of one power
    of two.

    Args:
      queries: [Q, D], unit norm unless `similarity` is 'dot'.
      k: how many places; a map of fewer gives all of them.

    Returns:
      similarities: float32 [Q, min(k, places)], not increasing.
      rows: int32, the same shape; rows of this index with distinct keys.

    Raises:
      InputError: no query, another width than the map's, a descriptor that is
        not finite or not of the norm it should have, or k < 1.
    """
    queries = np.asarray(queries, np.float32)
    _check_queries(queries, self.descriptors.shape[1], self.similarity)
    if k < 1:
      raise InputError(f'k={k} places were asked for; ask for at least 1.')
    table = _rows_of_places(np.asarray(self.keys))
    bucket = _power_of_two(max(len(queries), MIN_QUERIES))
    block = max(
      MIN_QUERIES, _power_of_two(BLOCK_ENTRIES // table.size + 1) // 2
    )
    padded = np.zeros((bucket, queries.shape[1]), np.float32)
    padded[: len(queries)] = queries
    similarities, rows = _search(
      padded,
      jnp.asarray(self.descriptors, jnp.float32),
      table,
      k=min(k, len(table)),
      block=min(block, bucket),
    )
    count = len(queries)
    return np.asarray(similarities)[:count], np.asarray(rows)[:count]


@functools.partial(jax.jit, static_argnames=('k', 'block'))
def _search(
  queries: jax.Array,
  descriptors: jax.Array,
  table: jax.Array,
  *,
  k: int,
  block: int,
) -> tuple[jax.Array, jax.Array]:
  """Top k places; `table` [K, V] holds the rows of each place, -1 unused."""

  def search_block(queries: jax.Array) -> tuple[jax.Array, jax.Array]:
    similarities = jnp.matmul(
      queries, descriptors.T, precision=jax.lax.Precision.HIGHEST
    )
    views = jnp.where(table >= 0, similarities[:, table], -jnp.inf)
    best, places = jax.lax.top_k(views.max(-1), k)
    view = jnp.take_along_axis(views.argmax(-1), places, axis=1)
    return best, table[places, view]

  blocks = queries.reshape(-1, block, queries.shape[-1])
  best, rows = jax.lax.map(search_block, blocks)
  return best.reshape(-1, k), rows.reshape(-1, k)


def _rows_of_places(keys: np.ndarray) -> np.ndarray:
  """int32 [K, V]: rows per key, keys in order of appearance, -1 unused."""
  _, first, place, counts = np.unique(
    keys, return_index=True, return_inverse=True, return_counts=True
  )
  order_of = np.empty_like(first)
  order_of[np.argsort(first)] = np.arange(len(first))
  place = order_of[place]
  rows = np.argsort(place, kind='stable')
  starts = np.searchsorted(place[rows], np.arange(len(first)))
  table = np.full((len(first), counts.max()), -1, np.int32)
  table[place[rows], np.arange(len(rows)) - starts[place[rows]]] = rows
  return table


def _power_of_two(n: int) -> int:
  """The smallest power of two that is not below n."""
  return 1 << (int(n) - 1).bit_length()


def _check_queries(queries: np.ndarray, width: int, similarity: str) -> None:
  if queries.ndim != 2 or not len(queries):
    raise InputError(
      f'Query descriptors have shape {queries.shape}; expected [Q, {width}]'
      ' with at least one query.'
    )
  if queries.shape[1] != width:
    raise InputError(
      f'Query descriptors have {queries.shape[1]} numbers, the map has {width}:'
      ' they come from different models. Build the index again with the model'
      ' that embeds the queries.'
    )
  _check_descriptors('query', queries, similarity)


def _check_descriptors(
  name: str, descriptors: np.ndarray, similarity: str
) -> None:
  bad = np.flatnonzero(~np.isfinite(descriptors).all(1))
  if len(bad):
    raise InputError(
      f'{len(bad)} of {len(descriptors)} {name} descriptors are not finite,'
      f' first rows {bad[:5].tolist()}; check the readings they come from.'
    )
  if similarity == 'dot':
    return
  norms = np.linalg.norm(descriptors, axis=1)
  bad = np.flatnonzero(np.abs(norms - 1) > NORM_TOLERANCE)
  if len(bad):
    raise InputError(
      f'{len(bad)} of {len(descriptors)} {name} descriptors do not have unit'
      f' norm, first rows {bad[:5].tolist()} with {norms[bad[:5]].tolist()}.'
    )


def check_index(index: Index, name: str = 'index') -> None:
  """Raises ValueError, with `name` in front, for anything but a sound index."""
  try:
    _check_columns(index)
    _check_origin(index)
    _check_descriptors('map', np.asarray(index.descriptors), index.similarity)
  except ValueError as error:
    raise InputError(f'{name}: {error}') from None


def _check_columns(index: Index) -> None:
  shape = np.shape(index.descriptors)
  if len(shape) != 2 or 0 in shape:
    raise InputError(
      f'descriptors have shape {shape}; expected [M, D] with at least one map'
      ' entry. An empty map answers nothing: index a drive that has scans.'
    )
  expected = {
    'keys': shape[:1],
    'poses': (shape[0], 4, 4),
    'towns': shape[:1],
    'frames': shape[:1],
    'views': shape[:1],
  }
  for column, size in expected.items():
    found = np.shape(getattr(index, column))
    if found != size:
      raise InputError(
        f'{column} has shape {found}, expected {size} beside descriptors'
        f' {shape}.'
      )
  for column in ('poses', 'views'):
    if not np.isfinite(np.asarray(getattr(index, column), np.float64)).all():
      raise InputError(f'{column} holds numbers that are not finite.')


def _check_origin(index: Index) -> None:
  missing = [key for key in PROVENANCE if not index.provenance.get(key)]
  if missing:
    raise InputError(f'provenance lacks {missing}; expected {PROVENANCE}.')
  if index.similarity not in SIMILARITIES:
    raise InputError(
      f'similarity is {index.similarity!r}; known: {SIMILARITIES}.'
    )
  rig = index.rig
  shapes = tuple(np.shape(part) for part in rig)
  if shapes != ((3, 3), (2,), (4, 4)):
    raise InputError(
      f'rig has shapes {shapes}; expected intrinsics [3, 3], image_size [2],'
      ' camera_from_lidar [4, 4].'
    )
  if not all(np.isfinite(np.asarray(part, np.float64)).all() for part in rig):
    raise InputError('rig holds numbers that are not finite.')


def save_index(index: Index, path: str | os.PathLike) -> None:
  """Writes the index as one npz, atomically; ValueError if it is not sound."""
  check_index(index)
  files.save_arrays(
    path,
    {
      'descriptors': np.asarray(index.descriptors, np.float32),
      'keys': np.asarray(index.keys, np.int64),
      'poses': np.asarray(index.poses, np.float64),
      'towns': np.asarray(index.towns, np.str_),
      'frames': np.asarray(index.frames, np.int64),
      'views': np.asarray(index.views, np.float64),
      'provenance': np.array(json.dumps(dict(index.provenance))),
      'intrinsics': np.asarray(index.rig.intrinsics, np.float64),
      'image_size': np.asarray(index.rig.image_size, np.int64),
      'camera_from_lidar': np.asarray(index.rig.camera_from_lidar, np.float64),
    },
    FORMAT,
  )


def load_index(
  path: str | os.PathLike, expected_fingerprint: str | None = None
) -> Index:
  """Reads an index and refuses one that cannot answer.

  Args:
    path: a file that `save_index` wrote.
    expected_fingerprint: of the model that will embed the queries; None skips
      the comparison (to look into a file without a model).

  Raises:
    MissingFileError: there is no such file.
    InputError: the file is truncated or something else, the map is empty or
      broken, or it was made by another model.
  """
  arrays = files.load_arrays(path, 'build it with --mode=index', FORMAT)
  index = _index_from_arrays(arrays, pathlib.Path(path))
  check_index(index, str(path))
  made_by = index.provenance['model']
  if expected_fingerprint is not None and made_by != expected_fingerprint:
    raise InputError(
      f'{path} was made by model {made_by}, the queries are embedded by model'
      f' {expected_fingerprint}: their descriptors cannot be compared. Build'
      ' the index again with --mode=index.'
    )
  return index


def _index_from_arrays(
  arrays: dict[str, np.ndarray], path: pathlib.Path
) -> Index:
  names = (*Index._fields[:-1], *Rig._fields)
  missing = [name for name in names if name not in arrays]
  if missing:
    raise InputError(f'{path} lacks {missing}; build it again.')
  size = tuple(int(x) for x in arrays['image_size'])
  return Index(
    **{name: arrays[name] for name in Index._fields[:-2]},
    provenance=json.loads(str(arrays['provenance'])),
    rig=Rig(arrays['intrinsics'], size, arrays['camera_from_lidar']),
  )
