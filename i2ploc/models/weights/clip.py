# SPDX-License-Identifier: Apache-2.0
"""Published CLIP checkpoints, as Hugging Face saves them.

Both towers, the tokenizer (through transformers, which needs no torch for it)
and the way images are prepared. Checkpoints are named as `sources.find` takes
them.
"""

import functools
import json
import pathlib
from typing import Any
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.models import image_text
from i2ploc.models import towers
from i2ploc.models import views
from i2ploc.models.encoders import text as text_lib
from i2ploc.models.encoders import vocabulary
from i2ploc.models.weights import load
from i2ploc.models.weights import sources
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib
from i2ploc.models.weights import vit

# Of the images that CLIP was trained on.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
# One of these sets of files makes a tokenizer.
TOKENIZER_FILES = (('tokenizer.json',), ('vocab.json', 'merges.txt'))
# Checkpoints of that time name the wrong end token, and mean the highest one.
_LEGACY_END = 2
# Context around a box, as a part of its longer side: published models were
# trained on pictures, whose subject does not touch the frame.
MARGIN = 0.15


class Preparation(NamedTuple):
  """How images are made ready; the defaults are those of OpenAI.

  Attributes:
    short_side: pixels to which an image's shorter side is scaled.
    size: (H, W) that is cut out of its middle.
    mean: per channel, of images in 0..1.
    std: per channel.
  """

  short_side: int
  size: tuple[int, int]
  mean: tuple[float, float, float] = IMAGE_MEAN
  std: tuple[float, float, float] = IMAGE_STD


@tensors_lib.telling_unused()
def load_clip(
  path: str | pathlib.Path,
  image_size: tuple[int, int] | None = None,
  dtype: str = 'float32',
) -> tuple[towers.Towers, dict]:
  """Both towers of a checkpoint.

  Args:
    path: a folder, a name of `sources.SOURCES` or of the Hugging Face hub.
    image_size: (H, W) pixels, multiples of the patch size, to which the
      position embeddings are resampled; None for the checkpoint's own.
    dtype: of the computation, 'float32' or 'bfloat16'.

  Returns:
    model: the towers, with the mean and deviation of the checkpoint's images.
    variables: {'params': ...}, numpy arrays.

  Raises:
    MissingFileError: nothing there.
    InputError: damaged or ill-fitting checkpoints, or not of CLIP.
  """
  folder = sources.find(path)
  config = _read_config(folder)
  prepared = read_preparation(folder, config.vision_config.image_size)
  image_size = tuple(image_size or prepared.size)
  compute = jnp.dtype(dtype)
  image, image_variables = vit.load_vit(folder, image_size)
  text = text_lib.TextTransformer(**_text_attributes(config), dtype=compute)
  model = towers.image_and_text(
    image.clone(dtype=compute),
    text,
    views.Image(image_size, mean=prepared.mean, std=prepared.std),
    config.projection_dim,
  )
  params = dict(towers.shapes(model)['params'])
  del params['image']
  variables = load.convert(
    tensor_files.read_tensors(folder),
    clip_rules(text.depth),
    {'params': params},
    ignore=('vision_model.*', '*.position_ids'),
    name=str(folder),
  )
  params = variables['params'] | {'image': image_variables['params']}
  return model, {'params': params}


def load_encoder(
  path: str | pathlib.Path, dtype: str = 'float32', batch_size: int = 64
) -> image_text.ImageTextEncoder:
  """A checkpoint with its tokenizer, ready for texts and crops.

  Raises:
    MissingFileError: nothing there, or no tokenizer.
    InputError: see `load_clip`.
  """
  folder = sources.find(path)
  model, variables = load_clip(folder, dtype=dtype)
  config = _read_config(folder)
  prepared = read_preparation(folder, config.vision_config.image_size)
  text = model.towers['text'].encoder
  return image_text.ImageTextEncoder(
    model,
    variables,
    load_tokenize(folder, text.max_length),
    name=str(path),
    margin=MARGIN,
    prepare=functools.partial(
      image_text.cover, short_side=prepared.short_side, size=prepared.size
    ),
    batch_size=batch_size,
  )


def clip_rules(depth: int) -> list[load.Rule]:
  """Rules of all but the image encoder; `depth` is the text encoder's."""
  text = 'text_model.embeddings'
  rules = [
    load.Rule(
      'params/text/embed/embedding', (f'{text}.token_embedding.weight',)
    ),
    load.Rule('params/text/position', (f'{text}.position_embedding.weight',)),
    *load.norm('params/text/norm', 'text_model.final_layer_norm'),
    load.Rule('params/log_scale', ('logit_scale',), lambda x: x.reshape(())),
  ]
  for ours, theirs in (('image', 'visual'), ('text', 'text')):
    rules += load.dense(
      f'params/{ours}_projection', f'{theirs}_projection', bias=False
    )
  for i in range(depth):
    rules += vit.block_rules(
      vit.HF_CLIP,
      True,
      f'params/text/blocks_{i}',
      f'text_model.encoder.layers.{i}.',
    )
  return rules


def load_tokenize(folder: pathlib.Path, max_length: int) -> vocabulary.Tokenize:
  """The function that numbers texts: `texts -> [B, max_length] int32`.

  Longer texts are cut off, and end there.

  Raises:
    MissingFileError: the folder has no tokenizer.
  """
  if not any(
    all((folder / name).exists() for name in names) for names in TOKENIZER_FILES
  ):
    names = ' or '.join(' and '.join(names) for names in TOKENIZER_FILES)
    raise MissingFileError(
      f'{folder} has no tokenizer: put {names} of the same checkpoint there'
    )
  # Imported here: it takes a second, and says that torch is missing.
  from transformers import AutoTokenizer

  tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)

  def tokenize(texts):
    rows = tokenizer(
      list(texts),
      padding='max_length',
      truncation=True,
      max_length=max_length,
    )
    return np.asarray(rows['input_ids'], np.int32)

  return tokenize


def read_preparation(folder: pathlib.Path, image_size: int) -> Preparation:
  """How preprocessor_config.json wants images; without one as OpenAI does.

  Args:
    folder: of the checkpoint.
    image_size: pixels, of the square images of the image tower.

  Raises:
    InputError: the file is damaged.
  """
  square = (image_size, image_size)
  file = folder / 'preprocessor_config.json'
  if not file.exists():
    return Preparation(image_size, square)
  try:
    fields = json.loads(file.read_text())
    side = fields.get('size', image_size)
    side = side['shortest_edge'] if isinstance(side, dict) else side
    size = fields.get('crop_size', square)
    if isinstance(size, dict):
      size = size['height'], size['width']
    size = (size, size) if isinstance(size, int) else tuple(size)
    mean, std = (
      fields.get(name, default)
      for name, default in (
        ('image_mean', IMAGE_MEAN),
        ('image_std', IMAGE_STD),
      )
    )
    (red, green, blue), (red_std, green_std, blue_std) = mean, std
    return Preparation(
      int(side), size, (red, green, blue), (red_std, green_std, blue_std)
    )
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(
      f'{file} does not say how CLIP prepares images ({error!r}): expected '
      'size, crop_size, image_mean and image_std'
    ) from error


def _read_config(folder: pathlib.Path) -> Any:
  file = folder / 'config.json'
  try:
    kind = json.loads(file.read_text())['model_type']
  except FileNotFoundError as error:
    raise MissingFileError(
      f'{file} does not exist: put the config.json of the checkpoint there'
    ) from error
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f'{file} is no configuration ({error!r})') from error
  if kind != 'clip':
    raise InputError(f"{file} describes a {kind!r}; expected 'clip'")
  from transformers import AutoConfig

  return AutoConfig.from_pretrained(folder, local_files_only=True)


def _text_attributes(config) -> dict[str, Any]:
  text = config.text_config
  end = text.eos_token_id
  return dict(
    vocabulary_size=text.vocab_size,
    width=text.hidden_size,
    depth=text.num_hidden_layers,
    num_heads=text.num_attention_heads,
    max_length=text.max_position_embeddings,
    end=None if end in (None, _LEGACY_END) else end,
    mlp_ratio=text.intermediate_size / text.hidden_size,
    mlp=text.hidden_act,
    epsilon=text.layer_norm_eps,
  )
