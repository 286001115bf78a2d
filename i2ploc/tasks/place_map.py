# SPDX-License-Identifier: Apache-2.0
"""The map of a model of places: made of what it embeds, and asked.

The file carries what the model learned from the map and how confidences follow
from similarities there, see `retrieval.index`.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from i2ploc.errors import InputError
from i2ploc.localization import query_files
from i2ploc.localization import retrieve
from i2ploc.localization import sequences as sequence_stage
from i2ploc.losses import contrastive
from i2ploc.models import towers as towers_lib
from i2ploc.models import views
from i2ploc.photos import truth as truth_lib
from i2ploc.retrieval import calibration as calibration_lib
from i2ploc.retrieval import index as index_lib
from i2ploc.retrieval import sequences
from i2ploc.tasks import embedding as embedding_lib
from i2ploc.tasks import task as task_lib
from i2ploc.training import serialization

FILE = 'index.npz'


def scale(towers: towers_lib.CompiledTowers, variables: Any) -> float | None:
  """The learned inverse temperature of similarities; None if there is none.

  Towers of images alone learn to compare images by many losses, and most of
  them have no temperature; nor do published encoders.
  """
  parts = towers.model.towers.values()
  if all(isinstance(one.view, views.Image) for one in parts):
    return None
  return float(contrastive.clamped_scale(variables['params']['log_scale']))


def provenance(
  config: Any, data: Any, towers: towers_lib.CompiledTowers, variables: Any
) -> dict[str, str]:
  """Where an index comes from, see `index.PROVENANCE`."""
  digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
  return {
    'method': config.name,
    'model': serialization.fingerprint(variables['params']),
    'config': digest.hexdigest(),
    'dataset': data.name,
    'software': f'jax {jax.__version__}',
    'similarity': 'cosine' if towers.has_unit_descriptors else 'dot',
  }


def index_of(
  config: Any,
  split: Any,
  descriptors: np.ndarray,
  embedding: embedding_lib.Embedding,
) -> index_lib.Index:
  """The index of a map, with a row per reading and view.

  Args:
    config: of the task.
    split: of the data.
    descriptors: [N, V, D] of the map's rows and the model's views.
    embedding: that made them.
  """
  rows, towers = embedding.map_rows, embedding.towers
  num_views = len(towers.views)
  frames = split.frames.take(np.repeat(rows, num_views))
  origin = dict(embedding.origin)
  if split.truth is not None and split.truth.unit == truth_lib.FRAMES:
    origin['unit'] = truth_lib.FRAMES
  index = index_lib.Index(
    descriptors=descriptors.reshape(len(rows) * num_views, -1),
    keys=np.repeat(np.arange(len(rows)), num_views),
    poses=frames.world_from_body,
    towns=frames.town,
    frames=frames.frame,
    names=frames.name,
    views=np.tile(np.asarray(towers.views), len(rows)),
    provenance=origin,
    rig=index_lib.Rig(*split.rig(rows[0])),
    learned=embedding.learned,
  )
  if scale(towers, embedding.variables) is not None:
    return index
  unsure = ''
  if config.query_side != config.map_side:
    unsure = (
      f'the map is of {config.map_side!r}, which does not tell how sure an'
      f' answer to {config.query_side!r} is'
    )
  elif split.sequence['num_frames'] > 1:
    unsure = (
      'sequences of the map share images with their neighbours, which does not'
      ' tell how sure an answer to another drive is'
    )
  radius = config.index.radius
  if unsure:
    calibration = calibration_lib.unknown(unsure, radius)
  else:
    calibration = calibration_lib.fit(index, radius)
  return dataclasses.replace(index, calibration=calibration.to_dict())


def localizer(
  config: Any,
  data: Any,
  towers: towers_lib.CompiledTowers,
  variables: Any,
  workdir: pathlib.Path,
) -> task_lib.Localizer:
  """Retrieval in index.npz, and of the last images where they ask together.

  A model of sequences describes each image with those before it.
  """
  if config.query_side != 'image':
    raise InputError(
      f'{config.name} asks with {config.query_side!r}, and localize reads image'
      ' files.'
    )
  index = index_lib.load_index(
    workdir / FILE,
    expected_fingerprint=serialization.fingerprint(variables['params']),
  )
  policy = data.query_resize or data.resize
  embed = embedding_lib.each_view(towers.embed(config.query_side), policy)
  variables = embedding_lib.with_learned(variables, index.learned)
  embed = functools.partial(embed, variables)
  size = towers.model.image_view.size
  sequence = sequences.Sequence(**config.sequence)
  frames = retrieve.ONE_FRAME
  if data.num_frames > 1:
    frames = retrieve.Frames(data.num_frames, data.frame_stride)
  calibration = None
  if index.calibration:
    calibration = calibration_lib.from_dict(index.calibration)
  stages = (
    retrieve.make_stage(
      index,
      embed,
      size,
      scale=scale(towers, variables),
      radius=config.index.radius,
      k=config.index.num_answers,
      folder=data.folder,
      calibration=calibration,
      resize=policy,
      frames=frames,
    ),
    sequence_stage.make_stage(
      index,
      lambda query: retrieve.describe(query, embed, size, policy, frames),
      sequence,
      k=config.index.num_answers,
      direction=0 if len(towers.views) > 1 else 1,
      folder=data.folder,
    ),
  )
  lens, image_size, _ = index.rig
  camera = None
  if lens is not None and image_size is not None:
    camera = query_files.Camera(lens, image_size)
  num_images = sequence_stage.span(sequence) + frames.span - 1
  return task_lib.Localizer(stages, camera, num_images=num_images)
