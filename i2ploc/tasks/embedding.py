# SPDX-License-Identifier: Apache-2.0
"""Descriptors of the readings of a split: fitted to the map, kept in parts.

What a model learns from a map without labels, a vocabulary or a whitening, is
fitted first, to the map alone. Then readings are described part by part. Each
part lies in a file of its own as soon as it is done, so that after a kill the
same verb computes only what is missing.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import functools
import hashlib
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.evaluation import duplicates
from i2ploc.geometry import resizing
from i2ploc.models import fitting
from i2ploc.models import towers as towers_lib
from i2ploc.training import serialization

# Readings of one file.
PART_ROWS = 256
FOLDER = 'parts'
Batch = Mapping[str, np.ndarray]
Described = tuple[
  Callable[[Any, Batch], np.ndarray], Callable[[np.ndarray], Iterable[Batch]]
]


class Embedding:
  """How the readings of a split become descriptors.

  Attributes:
    towers: the model.
    map_rows: [M] of the frame table, that make the map.
    origin: what the descriptors depend on.
    variables: of the model, fitted to the map.
  """

  def __init__(
    self,
    towers: towers_lib.CompiledTowers,
    variables: Mapping[str, Any],
    split: Any,
    map_rows: np.ndarray,
    *,
    seed: int,
    batch_size: int,
    folder: pathlib.Path,
    origin: Mapping[str, Any],
  ):
    """Fits the model to the map, unless a run before has done so.

    Args:
      towers: the model.
      variables: of it.
      split: of the data, with frames and batches.
      map_rows: of the frame table, that make the map.
      seed: of what is fitted to the map.
      batch_size: B.
      folder: gets a folder of parts.
      origin: what the descriptors depend on, plain: parts of another origin are
        never mixed in.

    Raises:
      InputError: a map that the model cannot be fitted to.
    """
    digest = hashlib.sha256(json.dumps(dict(origin), sort_keys=True).encode())
    digest.update(split.frames.world_from_body.tobytes())
    digest.update('\n'.join(map(str, split.frames.name)).encode())
    digest.update(np.asarray(map_rows, np.int64).tobytes())
    self._root = folder / FOLDER
    self._folder = self._root / digest.hexdigest()[:16]
    self.towers, self._split, self._size = towers, split, batch_size
    self._seed = seed
    self.map_rows, self.origin = np.asarray(map_rows), dict(origin)
    self.variables = self._fitted(dict(variables))

  @property
  def learned(self) -> dict[str, np.ndarray]:
    """What was fitted to the map, by path in the variables."""
    fitted = self.variables.get(fitting.COLLECTION, {})
    return serialization.arrays_from_tree({fitting.COLLECTION: fitted})

  def described(
    self,
    side: str,
    views: tuple[float, ...] | None = None,
    resize: str = '',
  ) -> Described:
    """What a `retrieval.RetrievalEvaluator` embeds a side with.

    Args:
      side: of the model.
      views: radians, see `towers.CompiledTowers.embed`.
      resize: policy of images, see `resizing`; '' for that of the split.

    Returns:
      `variables, batch -> descriptors` and `rows -> batches`: of descriptors
      [B, V, D], mask [B], <side>_index [B] and, of images, image_bits, see
      `duplicates.picture_bits`. The parts hold them, or they are computed now.
    """
    embed = functools.partial(
      each_view(self.towers.embed(side, views), resize), self.variables
    )
    turned = views is not None and len(views) > 1
    name = '_'.join(filter(None, (side, resize, str(len(views or ())))))

    def batches(rows):
      return _parts(
        side,
        rows,
        embed,
        lambda part: self._split.batches(
          part, (side,), self._size, turned, resize
        ),
        self._folder / name,
      )

    return _kept, batches

  def remove(self) -> None:
    """Deletes the parts: what they were for is done."""
    shutil.rmtree(self._root, ignore_errors=True)

  def _fitted(self, variables):
    side = self.towers.map_side
    if not fitting.needs_fit(self.towers.model, side):
      return variables
    path = self._folder / 'learned.npz'
    if path.exists():
      arrays = files.load_arrays(path, 'delete it')
      return with_learned(variables, arrays)
    print('fitting the model to the map', flush=True)
    variables = fitting.fit(
      self.towers.model,
      side,
      variables,
      lambda some: self._split.batches(
        self.map_rows[some], (side,), self._size
      ),
      len(self.map_rows),
      seed=self._seed,
    )
    fitted = {fitting.COLLECTION: variables[fitting.COLLECTION]}
    files.save_arrays(path, serialization.arrays_from_tree(fitted))
    return variables


def with_learned(
  variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Variables with what the model learned from a map, by `Embedding.learned`.

  Raises:
    InputError: arrays of another model.
  """
  fitted = variables.get(fitting.COLLECTION, {})
  like = {fitting.COLLECTION: fitted}
  if wrong := serialization.differences(arrays, like):
    raise InputError(
      f'what the map taught does not fit the model. {wrong} Build the index'
      ' again with --mode=index.'
    )
  return {**variables, **serialization.tree_from_arrays(arrays, like)}


def each_view(
  embed: Callable[[Any, Any], Any], resize: str
) -> Callable[[Any, Any], Any]:
  """An `embed` of images that a policy makes several pictures of.

  Args:
    embed: `variables, batch -> [B, D]`.
    resize: policy, see `resizing`; '' and those of one picture change nothing.

  Returns:
    `variables, batch -> [B, V, D]`, for image [B, V, H, W, 3].
  """
  count = resizing.num_views(resize or resizing.STRETCH)
  if count == 1:
    return embed

  def described(variables, batch):
    flat = {
      name: value.reshape(-1, *value.shape[2:])
      if name == 'image'
      else np.repeat(value, count, axis=0)
      for name, value in batch.items()
    }
    found = np.asarray(embed(variables, flat), np.float32)
    return resizing.join_views(
      found.reshape(-1, count, found.shape[-1]), resize
    )

  return described


def _kept(variables, batch):
  """Descriptors of a batch that has nothing else."""
  del variables
  return batch['descriptors']


def _parts(
  side: str,
  rows: np.ndarray,
  embed: Callable[[Batch], np.ndarray],
  batches: Callable[[np.ndarray], Iterable[Batch]],
  folder: pathlib.Path,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches as `described` gives them; says how far it is."""
  for start in range(0, len(rows), PART_ROWS):
    part = rows[start : start + PART_ROWS]
    digest = hashlib.sha256(np.asarray(part, np.int64).tobytes())
    path = folder / f'{digest.hexdigest()[:16]}.npz'
    if path.exists():
      found = files.load_arrays(path, 'delete it')
    else:
      found = _described(side, embed, batches(part))
      files.save_arrays(path, found)
    if len(rows) > PART_ROWS:
      done = start + len(part)
      print(f'described {done} of {len(rows)} {side} readings', flush=True)
    yield found | {'mask': np.ones(len(part), bool), f'{side}_index': part}


def _described(side, embed, batches):
  """Descriptors [N, V, D] of batches and, of images, their `picture_bits`."""
  columns: dict[str, list[np.ndarray]] = {}
  for batch in batches:
    mask = np.asarray(batch['mask'])
    values = np.asarray(embed(batch), np.float32)[mask]
    part = {'descriptors': values.reshape(len(values), -1, values.shape[-1])}
    if side == 'image':
      part['image_bits'] = duplicates.picture_bits(batch['image'][mask])
    for name, value in part.items():
      columns.setdefault(name, []).append(value)
  return {name: np.concatenate(values) for name, values in columns.items()}
