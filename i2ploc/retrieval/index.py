# SPDX-License-Identifier: Apache-2.0
"""A map as descriptors with poses: searched, saved, loaded, refused.

A row of an index is one view of one place. Rows that share a key are views of
the same place (a LiDAR scan embedded as a vehicle turned by 0 and by 180
degrees would see it); a search answers with distinct places, each by its best
view. The file is one npz that carries where it came from: descriptors of
another model have the same shape and no meaning, so `load_index` compares
fingerprints instead of trusting the caller.
"""

from collections.abc import Mapping
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib

FORMAT = 'i2ploc.index.2'
# Had no names, and its rig was a pinhole with a LiDAR.
FORMAT_1 = 'i2ploc.index.1'
PROVENANCE = ('model', 'config', 'dataset', 'software')
SIMILARITIES = ('cosine', 'dot')
METRES = 'm'
# float32 entries of one block of similarities, about 1 MB: XLA on CPU does not
# fuse the reduction, and a block should stay in the cache.
BLOCK_ENTRIES = 2**18
MIN_QUERIES = 16
# bfloat16 towers end in norms that are off by up to 4e-3.
NORM_TOLERANCE = 2e-2
_REMEDY = 'build it with --mode=index'
# What begins the names of arrays that a model learned from the map.
_LEARNED = 'learned/'


class Rig(NamedTuple):
  """The sensors that the map was recorded with.

  Attributes:
    lens: of images of `image_size`; None without a camera or if unknown.
    image_size: (height, width), pixels; None without images.
    camera_from_body: float64 [4, 4], metres. The body is what poses are of: the
      LiDAR where there is one, else the camera itself.
  """

  lens: lens_lib.Lens | None
  image_size: tuple[int, int] | None
  camera_from_body: np.ndarray


class Found(NamedTuple):
  """The k most similar places of each query, best first.

  Attributes:
    similarities: float32 [Q, k], not increasing.
    rows: int32 [Q, k] of the index, of distinct keys; -1, with a similarity of
      -inf, where fewer places may answer.
    log_sum: float32 [Q], the logarithm of the sum over all places that may
      answer of exp(scale * (similarity - the first one)): what normalises a
      posterior. -inf where none may.
  """

  similarities: np.ndarray
  rows: np.ndarray
  log_sum: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """Descriptors, poses and origin of a map of M rows.

  What a search needs beside the queries is prepared at the first one and kept:
  the rows of each place, and the descriptors on the device.

  Attributes:
    descriptors: float32 [M, D], unit norm unless `similarity` is 'dot'.
    keys: int64 [M], the place of a row; equal keys are views of one place.
    poses: float64 [M, 4, 4], world_from_body of the reading, metres (see
      `unit`), z up; NaN where it is not known.
    towns: [M] str, positions of different towns are not comparable.
    frames: int64 [M], the number in the dataset's own file names.
    names: [M] str, of the reading: the file of a photo, drive and number of a
      frame; '' if unknown.
    views: float64 [M], radians: the descriptor is what a vehicle at `poses`
      turned to the left by `views` about its own z axis would see.
    provenance: at least 'model' (fingerprint of the parameters), 'config'
      (digest), 'dataset' and 'software'; strings. 'similarity' too, if it is
      not cosine but the dot product of what a model gives, and 'unit', if
      positions are no metres.
    rig: the camera and its mounting.
    learned: what the model took from the map's own readings, such as a
      vocabulary or a whitening: arrays by their path in the model's variables.
      The queries are described with them.
    calibration: how confidences follow from similarities on this map, see
      `retrieval.calibration`; empty if they do not.
  """

  descriptors: np.ndarray
  keys: np.ndarray
  poses: np.ndarray
  towns: np.ndarray
  frames: np.ndarray
  names: np.ndarray
  views: np.ndarray
  provenance: Mapping[str, str]
  rig: Rig
  learned: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def num_places(self) -> int:
    """Number of distinct keys."""
    return len(self._table)

  @property
  def similarity(self) -> str:
    """'cosine', or 'dot' of descriptors of any length."""
    return self.provenance.get('similarity', SIMILARITIES[0])

  @property
  def unit(self) -> str:
    """Of positions: 'm', or what they are instead, such as 'frames'."""
    return self.provenance.get('unit', METRES)

  @functools.cached_property
  def _table(self) -> np.ndarray:
    """int32 [K, V], see `_rows_of_places`."""
    return _rows_of_places(np.asarray(self.keys))

  @functools.cached_property
  def _on_device(self) -> tuple[jax.Array, jax.Array]:
    """Descriptors and table."""
    return jnp.asarray(self.descriptors, jnp.float32), jnp.asarray(self._table)

  @functools.cached_property
  def _ground(self) -> tuple[np.ndarray, np.ndarray]:
    """Horizontal position [M, 2] and number of the town [M] of each row."""
    towns = np.unique(np.asarray(self.towns), return_inverse=True)[1]
    return np.asarray(self.poses, np.float64)[:, :2, 3], towns

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

  def distances(self, row: int, rows: np.ndarray) -> np.ndarray:
    """Horizontal metres from a row to rows.

    Args:
      row: of this index.
      rows: int [...].

    Returns:
      float64 [...]; infinite between towns, and NaN where a pose is unknown.
    """
    position, town = self._ground
    step = position[rows] - position[row]
    same = town[rows] == town[row]
    return np.where(same, np.hypot(step[..., 0], step[..., 1]), np.inf)

  def near(self, row: int, radius: float) -> np.ndarray:
    """Places within `radius` metres of the place of a row, itself included.

    Returns:
      int [N] for `similarities_to`.
    """
    first = self._table[:, 0]
    itself = np.asarray(self.keys)[first] == self.keys[row]
    return np.flatnonzero(itself | (self.distances(row, first) <= radius))

  def around(self, positions: np.ndarray, radius: float) -> np.ndarray:
    """Places within `radius` metres of where queries roughly are.

    Args:
      positions: [Q, 2] metres east and north; NaN is unknown, and keeps all.
      radius: metres.

    Returns:
      bool [Q, K] for `search`. Places of unknown position are around nothing.

    Raises:
      InputError: a map of several towns, whose metres cannot be compared, or of
        positions that are no metres.
    """
    ground, towns = self._ground
    if towns.any() or self.unit != METRES:
      raise InputError(
        'A rough position is in metres, of one town; the map has'
        f' {towns.max() + 1} towns, and positions in {self.unit!r}.'
      )
    positions = np.asarray(positions, np.float64).reshape(-1, 1, 2)
    away = positions - ground[self._table[:, 0]]
    near = np.hypot(away[..., 0], away[..., 1]) <= radius
    return near | ~np.isfinite(positions).all(-1)

  def similarities_to(
    self, query: np.ndarray, places: np.ndarray
  ) -> np.ndarray:
    """Similarity [N] of a query to the best view of some places [N].

    Args:
      query: [D], or [V, D] of which the most similar view counts.
      places: int [N], see `near`.
    """
    rows = self._table[places]
    views = np.atleast_2d(query)
    seen = np.asarray(self.descriptors, np.float32)[rows] @ views.T
    return np.where(rows >= 0, seen.max(-1), -np.inf).max(-1)

  def similarities_to_all(self, query: np.ndarray) -> np.ndarray:
    """Similarity [K] of a query to the best view of every place.

    Args:
      query: see `similarities_to`.
    """
    views = np.atleast_2d(np.asarray(query, np.float32))
    seen = (np.asarray(self.descriptors, np.float32) @ views.T).max(-1)
    return np.where(self._table >= 0, seen[self._table], -np.inf).max(-1)

  def search(
    self,
    queries: np.ndarray,
    k: int,
    scale: float = 1.0,
    within: np.ndarray | None = None,
  ) -> Found:
    """The k most similar places of each query, exactly, best first.

    Equal similarities are ordered by where the key first appears in the map,
    and inside a key the earlier row is taken. Memory is bounded by blocks of
    queries; the compiled function is shared by all query counts of one power
    of two.

    Args:
      queries: [Q, D], unit norm unless `similarity` is 'dot'; or [Q, V, D] of V
        views of each query, of which the most similar counts.
      k: how many places; a map of fewer gives all of them.
      scale: inverse temperature of `Found.log_sum`.
      within: bool [Q, K], the places that may answer each query, in the order
        in which their keys first appear, see `around`; None for all.

    Raises:
      InputError: no query, another width than the map's, a descriptor that is
        not finite or not of the norm it should have, k < 1, or `within` of
        another shape.
    """
    queries = np.asarray(queries, np.float32)
    if queries.ndim == 2:
      queries = queries[:, None]
    _check_queries(queries, self.descriptors.shape[1], self.similarity)
    if k < 1:
      raise InputError(f'k={k} places were asked for; ask for at least 1.')
    bucket = _power_of_two(max(len(queries), MIN_QUERIES))
    block = max(
      MIN_QUERIES, _power_of_two(BLOCK_ENTRIES // self._table.size + 1) // 2
    )
    padded = np.zeros((bucket, *queries.shape[1:]), np.float32)
    padded[: len(queries)] = queries
    allowed = None
    if within is not None:
      shape = len(queries), self.num_places
      if np.shape(within) != shape:
        raise InputError(
          f'within has shape {np.shape(within)}; expected {shape}, of queries'
          ' and places.'
        )
      allowed = np.ones((bucket, self.num_places), bool)
      allowed[: len(queries)] = within
    found = _search(
      padded,
      allowed,
      *self._on_device,
      np.float32(scale),
      k=min(k, self.num_places),
      block=min(block, bucket),
    )
    return Found(*(np.asarray(column)[: len(queries)] for column in found))


@functools.partial(jax.jit, static_argnames=('k', 'block'))
def _search(
  queries: jax.Array,
  allowed: jax.Array | None,
  descriptors: jax.Array,
  table: jax.Array,
  scale: jax.Array,
  *,
  k: int,
  block: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """See `Found`; `table` [K, V] holds the rows of each place, -1 unused."""

  def search_block(
    asked: tuple[jax.Array, jax.Array | None],
  ) -> tuple[jax.Array, ...]:
    queries, allowed = asked
    similarities = jnp.matmul(
      queries.reshape(-1, queries.shape[-1]),
      descriptors.T,
      precision=jax.lax.Precision.HIGHEST,
    )
    similarities = similarities.reshape(*queries.shape[:2], -1).max(1)
    views = jnp.where(table >= 0, similarities[:, table], -jnp.inf)
    places = views.max(-1)
    if allowed is not None:
      places = jnp.where(allowed, places, -jnp.inf)
    best, first = jax.lax.top_k(places, k)
    view = jnp.take_along_axis(views.argmax(-1), first, axis=1)
    rows = jnp.where(jnp.isneginf(best), -1, table[first, view])
    # Where nothing may answer, -inf less itself would be no number.
    top = jnp.where(rows[:, :1] < 0, 0.0, best[:, :1])
    weights = jnp.exp(scale * (places - top))
    return best, rows, jnp.log(weights.sum(-1))

  blocks = jax.tree.map(
    lambda x: x.reshape(-1, block, *x.shape[1:]), (queries, allowed)
  )
  best, rows, log_sum = jax.lax.map(search_block, blocks)
  return best.reshape(-1, k), rows.reshape(-1, k), log_sum.reshape(-1)


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
  if queries.ndim != 3 or not queries.size:
    raise InputError(
      f'Query descriptors have shape {queries.shape}; expected [Q, {width}] or'
      f' [Q, V, {width}] with at least one query.'
    )
  if queries.shape[2] != width:
    raise InputError(
      f'Query descriptors have {queries.shape[2]} numbers, the map has {width}:'
      ' they come from different models. Build the index again with the model'
      ' that embeds the queries.'
    )
  _check_descriptors('query', queries.reshape(-1, width), similarity)


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
  """Raises InputError, with `name` in front, for anything but a sound index."""
  try:
    _check_columns(index)
    _check_origin(index)
    _check_descriptors('map', np.asarray(index.descriptors), index.similarity)
  except InputError as error:
    raise InputError(f'{name}: {error}') from None


def _check_columns(index: Index) -> None:
  shape = np.shape(index.descriptors)
  if len(shape) != 2 or 0 in shape:
    raise InputError(
      f'descriptors have shape {shape}; expected [M, D] with at least one map'
      ' entry. An empty map answers nothing: index a drive with readings.'
    )
  columns = ('keys', 'poses', 'towns', 'frames', 'names', 'views')
  for column in columns:
    size = (shape[0], 4, 4) if column == 'poses' else shape[:1]
    found = np.shape(getattr(index, column))
    if found != size:
      raise InputError(
        f'{column} has shape {found}, expected {size} beside descriptors'
        f' {shape}.'
      )
  bad = [k for k, v in index.learned.items() if not np.isfinite(v).all()]
  if bad:
    raise InputError(
      f'{", ".join(bad)}, learned from the map, hold numbers that are not'
      ' finite.'
    )
  # A pose may be unknown (NaN), but not infinite.
  if np.isinf(np.asarray(index.poses, np.float64)).any():
    raise InputError('poses holds numbers that are not finite.')
  if not np.isfinite(np.asarray(index.views, np.float64)).all():
    raise InputError('views holds numbers that are not finite.')


def _check_origin(index: Index) -> None:
  missing = [key for key in PROVENANCE if not index.provenance.get(key)]
  if missing:
    raise InputError(f'provenance lacks {missing}; expected {PROVENANCE}.')
  if index.similarity not in SIMILARITIES:
    raise InputError(
      f'similarity is {index.similarity!r}; known: {SIMILARITIES}.'
    )
  lens, size, motion = index.rig
  if lens is not None:
    try:
      lens_lib.check_lens(lens)
    except InputError as error:
      raise InputError(f'rig: {error}') from None
  if (lens is not None and size is None) or np.shape(motion) != (4, 4):
    raise InputError(
      f'rig has {"no" if lens is None else "a"} lens, images of size {size} and'
      f' a mounting {list(np.shape(motion))}; expected a lens of images of some'
      ' size, or none, and [4, 4].'
    )
  if size is not None and (np.shape(size) != (2,) or min(size) < 1):
    raise InputError(f'rig has images of {size}; expected (height, width).')
  if not np.isfinite(np.asarray(motion, np.float64)).all():
    raise InputError('rig holds numbers that are not finite.')


def save_index(index: Index, path: str | os.PathLike) -> None:
  """Writes a sound index as one npz, atomically.

  Raises:
    InputError: it is not sound, see `check_index`.
  """
  check_index(index)
  lens, size, motion = index.rig
  arrays = {
    'descriptors': np.asarray(index.descriptors, np.float32),
    'keys': np.asarray(index.keys, np.int64),
    'poses': np.asarray(index.poses, np.float64),
    'towns': np.asarray(index.towns, np.str_),
    'frames': np.asarray(index.frames, np.int64),
    'names': np.asarray(index.names, np.str_),
    'views': np.asarray(index.views, np.float64),
    'provenance': np.array(json.dumps(dict(index.provenance))),
    'camera_from_body': np.asarray(motion, np.float64),
  }
  if lens is not None:
    arrays |= {
      'lens_model': np.array(lens.model),
      'intrinsics': np.asarray(lens.intrinsics, np.float64),
      'distortion': lens.coefficients,
    }
  if size is not None:
    arrays['image_size'] = np.asarray(size, np.int64)
  if index.calibration:
    arrays['calibration'] = np.array(json.dumps(dict(index.calibration)))
  arrays |= {_LEARNED + name: value for name, value in index.learned.items()}
  files.save_arrays(path, arrays, FORMAT)


def load_index(
  path: str | os.PathLike, expected_fingerprint: str | None = None
) -> Index:
  """Reads an index and refuses one that cannot answer.

  Args:
    path: a file that `save_index` wrote, also of format 1.
    expected_fingerprint: of the model that will embed the queries; None skips
      the comparison (to look into a file without a model).

  Raises:
    MissingFileError: there is no such file.
    InputError: the file is truncated or something else, the map is empty or
      broken, or it was made by another model.
  """
  path = pathlib.Path(path)
  arrays = files.load_arrays(path, _REMEDY)
  found = str(arrays.pop('format', 'none'))
  if found == FORMAT_1:
    arrays = _from_format_1(arrays)
  elif found != FORMAT:
    raise InputError(
      f'{path} has format {found!r}, expected {FORMAT!r}: {_REMEDY}.'
    )
  index = _index_from_arrays(arrays, path)
  check_index(index, str(path))
  made_by = index.provenance['model']
  if expected_fingerprint is not None and made_by != expected_fingerprint:
    raise InputError(
      f'{path} was made by model {made_by}, the queries are embedded by model'
      f' {expected_fingerprint}: their descriptors cannot be compared. Build'
      ' the index again with --mode=index.'
    )
  return index


def load_provenance(path: str | os.PathLike) -> dict[str, str]:
  """Where an index comes from, without its descriptors.

  Raises:
    MissingFileError: there is no such file.
    InputError: it is no index.
  """
  arrays = files.load_arrays(path, _REMEDY, names=('provenance',))
  if 'provenance' not in arrays:
    raise InputError(f'{path} lacks its provenance; {_REMEDY}.')
  return json.loads(str(arrays['provenance']))


def _from_format_1(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  arrays = dict(arrays)
  if 'camera_from_lidar' in arrays:
    arrays['camera_from_body'] = arrays.pop('camera_from_lidar')
  if 'towns' in arrays:
    arrays['names'] = np.full(np.shape(arrays['towns']), '')
  return arrays | {
    'lens_model': np.array('pinhole'),
    'distortion': np.zeros(0),
  }


def _index_from_arrays(
  arrays: dict[str, np.ndarray], path: pathlib.Path
) -> Index:
  columns = [
    field.name
    for field in dataclasses.fields(Index)
    if field.name not in ('rig', 'learned', 'calibration')
  ]
  names = [*columns, 'camera_from_body']
  if 'lens_model' in arrays:
    names += ['intrinsics', 'distortion', 'image_size']
  missing = [name for name in names if name not in arrays]
  if missing:
    raise InputError(f'{path} lacks {missing}; build it again.')
  lens = size = None
  if 'image_size' in arrays:
    height, width = arrays['image_size'].tolist()
    size = height, width
  if 'lens_model' in arrays:
    lens = lens_lib.Lens(
      str(arrays['lens_model']), arrays['intrinsics'], arrays['distortion']
    )
  provenance = json.loads(str(arrays['provenance']))
  return Index(
    **{name: arrays[name] for name in columns if name != 'provenance'},
    provenance=provenance,
    rig=Rig(lens, size, arrays['camera_from_body']),
    learned={
      name.removeprefix(_LEARNED): value
      for name, value in arrays.items()
      if name.startswith(_LEARNED)
    },
    calibration=json.loads(str(arrays.get('calibration', '{}'))),
  )
