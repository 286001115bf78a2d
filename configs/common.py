# SPDX-License-Identifier: Apache-2.0
"""What all configs share: the argument syntax, the fields, a tiny version."""

from collections.abc import Iterable
from typing import Any

import ml_collections


def parse_arg(
  arg: str | None, **defaults: str | int | float | bool
) -> ml_collections.ConfigDict:
  """Parses `key=value,key=value` after the colon of `--config=file.py:...`.

  Args:
    arg: the text after the colon, or None.
    **defaults: the keys that exist, with their default values; a value is
      read as its default's type.

  Returns:
    All keys, given or default.

  Raises:
    ValueError: an unknown key, or a value that is not of the key's type.
  """
  values = dict(defaults)
  for item in filter(None, (arg or '').split(',')):
    key, _, text = item.partition('=')
    if key not in defaults:
      raise ValueError(
        f'Unknown config argument {key!r}; known: {sorted(defaults)}'
      )
    kind = type(defaults[key])
    if kind is bool:
      if text not in ('', 'true', 'false', 'True', 'False', '0', '1'):
        raise ValueError(f'Config argument {key}={text!r} is not a boolean')
      values[key] = text in ('', 'true', 'True', '1')
      continue
    try:
      values[key] = kind(text)
    except ValueError as error:
      raise ValueError(
        f'Config argument {key}={text!r} is not of type {kind.__name__}'
      ) from error
  return ml_collections.ConfigDict(values)


def choice(name: str, value: str, known: Iterable[str]) -> str:
  """`value`, or a ValueError that lists what is known."""
  if value not in known:
    raise ValueError(f'{name}={value!r}; known: {sorted(known)}')
  return value


def image_size(text: str) -> tuple[int, int]:
  """(H, W) of 'HxW'."""
  parts = text.split('x')
  if len(parts) != 2 or not all(part.isdigit() for part in parts):
    raise ValueError(f'image_size={text!r}: expected HEIGHTxWIDTH, as 224x224')
  return int(parts[0]), int(parts[1])


def tuples(value: Any) -> Any:
  """JSON's lists as tuples, at any depth."""
  if isinstance(value, dict):
    return {name: tuples(one) for name, one in value.items()}
  return tuple(map(tuples, value)) if isinstance(value, list) else value


def defaults() -> ml_collections.ConfigDict:
  """The fields that do not depend on the method."""
  return ml_collections.ConfigDict(
    dict(
      task='places',  # what is asked, see `i2ploc.verbs`
      query_side='image',  # of the model's sides, what asks
      map_side='points',  # and what answers
      seed=0,
      checkpoint='',  # published weights, instead of the workdir's
      train=dict(
        pretrained='',  # folder or file of an image encoder to start from
        batch_size=64,
        num_steps=480,
        num_chunks=1,  # > 1: gradient cache, the same negatives in less memory
        ema_decay=0.99,
        eval_every=240,
        save_every=60,
        color_jitter=0.4,
        mirror=True,
        yaw=0.0,  # radians, largest joint turn of image and cloud
        cutout=False,  # rectangles out of images and range images
      ),
      optimizer=dict(
        learning_rate=2e-3,  # of AdamW
        matrix_learning_rate=0.04,  # of Muon; 0: AdamW moves matrices too
        warmup_steps=50,
        weight_decay=0.01,
        clip_norm=1.0,
        momentum=0.0,  # of SGD, instead of both
        accumulation=1,  # steps per update, without their mutual negatives
      ),
      evaluation=dict(
        batch_size=64,
        select='validation/cross/image_to_points/recall@1_10m',
        radii=(5.0, 10.0, 20.0),  # metres that count as found
        sequence_stride=2,  # rows between the frames of a sequence of 3
        exclude_self=False,  # a query's own scan may answer, as in the papers
        num_examples=18,
      ),
      sequence=dict(  # of images that ask together, see `retrieval.sequences`
        length=1,  # the last images of a camera; 1 for single ones
        speeds=(1.0,),  # of the queries over that of the map
        contrast=0,  # places that one is compared with; 0 for plain sums
        stride=1,  # images from one that counts to the next
      ),
      index=dict(
        views=(0.0, 3.141592653589793),  # also answer opposite headings
        radius=10.0,  # metres that count as one place in a confidence
        num_answers=5,
      ),
    )
  )


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The same experiment, small enough for a unit test."""
  config = config.copy_and_resolve_references()
  if 'size' in config.data:
    config.data.size = 'tiny'
  if 'num_points' in config.data:
    config.data.num_points = 128
    config.model.num_points = min(config.model.num_points, 1024)
  if config.model.get('projection') != 'overhead':  # which are square
    config.data.image_size = (48, 160)
  config.train.update(
    dict(batch_size=4, num_steps=2, eval_every=2, save_every=1)
  )
  config.train.num_chunks = min(config.train.num_chunks, 2)
  config.optimizer.update(dict(warmup_steps=1, accumulation=1))
  config.evaluation.update(dict(batch_size=8, num_examples=2))
  sides = (config.model.get(side) for side in ('image', 'points', 'rendering'))
  for tower in filter(None, sides):
    _shrink(tower, width=96, depth=2, num_groups=96, pointnet_features=96)
  _shrink(config.model.aggregator, num_clusters=8)
  if 'sampling' in config:
    _shrink(config.sampling, steps=1, num_negatives=2, per_step=2)
    _shrink(config.sampling, num_views=2, num_clusters=2)
  if 'trainable' in config.optimizer:
    config.optimizer.trainable = tuple(
      pattern
      for pattern in config.optimizer.trainable
      if 'blocks_' not in pattern
    )
  for path in list(config.optimizer.get('factors', {})):
    block = path.partition('blocks_')[2]
    if block and int(block) >= config.model.image.depth:
      del config.optimizer.factors[path]
  return config


def _shrink(fields: ml_collections.ConfigDict, **limits: int) -> None:
  """Lowers the fields that exist to their limits."""
  for name, limit in limits.items():
    if name in fields:
      fields[name] = min(fields[name], limit)
