# SPDX-License-Identifier: Apache-2.0
"""Published image encoders as a `vit.ViT` and its variables.

From a folder as Hugging Face saves it: ViT, DINOv2 (with or without registers,
GELU or SwiGLU) and the image side of CLIP; from a file alone: the ViTs of timm,
and DINOv2 with the names of Hugging Face (safetensors or ONNX).
"""

from collections.abc import Mapping
import json
import math
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.models.encoders import position_embedding
from i2ploc.models.encoders import vit
from i2ploc.models.weights import load
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib


class ViTNames(NamedTuple):
  """What a family of checkpoints calls the parts of a `vit.ViT`.

  Attributes:
    cls: the CLS token.
    position: all position embeddings, that of the CLS token first.
    patch: the patch projection.
    patch_bias: whether it has one.
    norm: the last LayerNorm.
    block: what precedes the names of a block's parts; {} is its number.
    qkv: its projections to queries, keys and values.
    projection: of its attended values.
    norm1: its first LayerNorm.
    norm2: its second.
    expand: the first layer of its MLP.
    contract: the last.
    gain1: LayerScale of the attention; '' for none. A gain is the same as
      another last layer in its branch, so it needs no option of ours.
    gain2: LayerScale of the MLP.
    registers: the register tokens, if there are any.
    pre_norm: the LayerNorm before the first block, if there is one.
    antialias: how position embeddings are resampled, see `position_embedding`.
    offset: the same.
    unused: patterns of tensors that the encoder does without.
  """

  cls: str
  position: str
  patch: str
  norm: str
  block: str
  qkv: tuple[str, ...]
  projection: str
  norm1: str
  norm2: str
  expand: str
  contract: str
  patch_bias: bool = True
  gain1: str = ''
  gain2: str = ''
  registers: str = ''
  pre_norm: str = ''
  antialias: bool = False
  offset: float = 0.0
  unused: tuple[str, ...] = ()


TIMM = ViTNames(
  cls='cls_token',
  position='pos_embed',
  patch='patch_embed.proj',
  norm='norm',
  block='blocks.{}.',
  qkv=('attn.qkv',),
  projection='attn.proj',
  norm1='norm1',
  norm2='norm2',
  expand='mlp.fc1',
  contract='mlp.fc2',
  antialias=True,
  unused=('head.*',),
)
# DINOv2 as its authors have it, without registers.
DINOV2 = TIMM._replace(
  gain1='ls1.gamma',
  gain2='ls2.gamma',
  antialias=False,
  offset=0.1,
  unused=('mask_token',),
)
# Tiny, small, base and large, with 64 channels a head.
_TIMM_WIDTHS = (192, 384, 768, 1024)
_HF_VIT = ViTNames(
  cls='embeddings.cls_token',
  position='embeddings.position_embeddings',
  patch='embeddings.patch_embeddings.projection',
  norm='layernorm',
  block='encoder.layer.{}.',
  qkv=tuple(f'attention.attention.{x}' for x in ('query', 'key', 'value')),
  projection='attention.output.dense',
  norm1='layernorm_before',
  norm2='layernorm_after',
  expand='intermediate.dense',
  contract='output.dense',
  unused=('embeddings.mask_token', 'pooler.*'),
)
_HF_DINOV2 = _HF_VIT._replace(
  norm1='norm1',
  norm2='norm2',
  expand='mlp.fc1',
  contract='mlp.fc2',
  gain1='layer_scale1.lambda1',
  gain2='layer_scale2.lambda1',
)
HF_CLIP = ViTNames(
  cls='embeddings.class_embedding',
  position='embeddings.position_embedding.weight',
  patch='embeddings.patch_embedding',
  patch_bias=False,
  norm='post_layernorm',
  pre_norm='pre_layrnorm',
  block='encoder.layers.{}.',
  qkv=tuple(f'self_attn.{x}_proj' for x in 'qkv'),
  projection='self_attn.out_proj',
  norm1='layer_norm1',
  norm2='layer_norm2',
  expand='mlp.fc1',
  contract='mlp.fc2',
  unused=('embeddings.position_ids',),
)

_HUGGING_FACE = {
  'vit': _HF_VIT,
  'dinov2': _HF_DINOV2,
  'dinov2_with_registers': _HF_DINOV2._replace(
    registers='embeddings.register_tokens', antialias=True
  ),
  'clip': HF_CLIP,
  'clip_vision_model': HF_CLIP,
}


# Their names tell what they are.
_TOLD = (TIMM, _HF_DINOV2)


def token_grid(model: vit.ViT, image_size: tuple[int, int]) -> tuple[int, int]:
  """(rows, columns) of a model's patches in images of (H, W)."""
  height, width = image_size
  return height // model.patch_size, width // model.patch_size


def vit_rules(
  names: ViTNames,
  model: vit.ViT,
  from_grid: tuple[int, int],
  to_grid: tuple[int, int],
  *,
  prefix: str = '',
  path: str = 'params',
) -> list[load.Rule]:
  """Rules of an image encoder.

  Args:
    names: of the checkpoint.
    model: the encoder, without a convolutional stem; all its blocks have rules,
      whichever run.
    from_grid: (rows, columns) of the checkpoint's position embeddings.
    to_grid: (rows, columns) of tokens wanted.
    prefix: in front of every name of the checkpoint, such as 'image_encoder.'.
    path: of the encoder in the variables, such as 'params/image'.
  """
  width = model.width
  cls, position = prefix + names.cls, prefix + names.position

  def resampled(position):
    position = position.reshape(-1, width)[1:]
    grids = (from_grid, to_grid)
    position = position_embedding.resample(
      position, *grids, names.antialias, names.offset
    )
    return position[None]

  def placed_cls(cls, position):
    # Ours has no position of its own: it is part of the token.
    if cls.size != width:  # numpy might spread it
      raise ValueError(f'{cls.size} numbers of a token of {width}')
    return (cls.reshape(-1) + position.reshape(-1, width)[0])[None, None]

  rules = [
    load.Rule(f'{path}/cls', (cls, position), placed_cls),
    load.Rule(f'{path}/position', (position,), resampled),
    *load.conv(f'{path}/embed', prefix + names.patch, names.patch_bias),
    *load.norm(f'{path}/norm', prefix + names.norm),
  ]
  if names.registers:
    rules.append(load.Rule(f'{path}/registers', (prefix + names.registers,)))
  if names.pre_norm:
    rules += load.norm(f'{path}/first_norm', prefix + names.pre_norm)
  for i in range(model.depth):
    start = prefix + names.block.format(i)
    blocks = f'{path}/blocks_{i}'
    rules += block_rules(names, model.qkv_bias, blocks, start)
  return rules


def block_rules(
  names: ViTNames, qkv_bias: bool, path: str, prefix: str
) -> list[load.Rule]:
  """Rules of the block at `path` from tensors whose names start `prefix`."""
  attention = f'{path}/attention'
  qkv = [prefix + name for name in names.qkv]
  projection = load.dense(f'{attention}/projection', prefix + names.projection)
  contract = load.dense(f'{path}/contract', prefix + names.contract)
  if names.gain1:
    projection = load.scaled(projection, prefix + names.gain1)
    contract = load.scaled(contract, prefix + names.gain2)
  return [
    *load.norm(f'{path}/norm1', prefix + names.norm1),
    *load.dense(f'{attention}/qkv', *qkv, bias=qkv_bias),
    *projection,
    *load.norm(f'{path}/norm2', prefix + names.norm2),
    *load.dense(f'{path}/expand', prefix + names.expand),
    *contract,
  ]


class _Description(NamedTuple):
  """What an image encoder of a checkpoint is.

  Attributes:
    names: what its tensors are called.
    attributes: of the `vit.ViT` that they fit.
    image_size: (H, W) that its position embeddings are for, None if not said.
  """

  names: ViTNames
  attributes: dict[str, Any]
  image_size: tuple[int, int] | None


def make_vit(path: str | pathlib.Path, part: str | None = None) -> vit.ViT:
  """The image encoder of a checkpoint, without its variables.

  Args:
    path: as of `load_vit`.
    part: as of `load_vit`.

  Raises:
    MissingFileError: nothing there.
    InputError: damaged or unknown checkpoints.
  """
  description = _describe_folder(path)
  if description is None:
    tensors = tensor_files.read_tensors(path)
    description, _ = _describe_tensors(path, tensors, part)
  return vit.ViT(**description.attributes)


def load_vit(
  path: str | pathlib.Path,
  image_size: tuple[int, int],
  part: str | None = None,
) -> tuple[vit.ViT, dict]:
  """The image encoder of a checkpoint.

  Args:
    path: a folder with config.json and weights, or a file of a family that its
      names tell.
    image_size: (H, W) pixels, multiples of the patch size; the position
      embeddings are resampled to it.
    part: of a file of several networks the one that is meant, see
      `tensors.choose`.

  Returns:
    model: `model.apply(variables, images)`, for images [B, H, W, 3] that are
      normalised as the checkpoint wants it (preprocessor_config.json).
    variables: {'params': ...}, numpy arrays.

  Raises:
    MissingFileError: nothing there.
    InputError: damaged, unknown or ill-fitting checkpoints, see `load.convert`.
  """
  description, tensors = _read(path, part)
  model = vit.ViT(**description.attributes)
  return model, _variables(path, description, tensors, model, image_size)


def load_vit_variables(
  path: str | pathlib.Path,
  model: vit.ViT,
  image_size: tuple[int, int],
  part: str | None = None,
) -> dict:
  """The variables of a given encoder, as `load_vit`; its adapters left out.

  Raises:
    MissingFileError: nothing there.
    InputError: as `load_vit`, and for an encoder of other attributes than the
      checkpoint's, which the message gives.
  """
  description, tensors = _read(path, part)
  wanted = dict(description.attributes, use_cls=True, stem_widths=())
  other = {k: v for k, v in wanted.items() if getattr(model, k) != v}
  if other:
    found = {k: getattr(model, k) for k in other}
    raise InputError(
      f'{path} fits an image encoder with {other}, and this one has {found}; '
      "set these fields of the config's model.image"
    )
  return _variables(path, description, tensors, model, image_size)


def _variables(path, description, tensors, model, image_size):
  """A checkpoint as variables of `model`."""
  images = jnp.zeros((1, *image_size, 3))
  # Nobody published adapters: they keep their initial values.
  bare = model.clone(adapter=0)
  shapes = jax.eval_shape(bare.init, jax.random.key(0), images)
  to_grid = token_grid(model, image_size)
  from_grid = _grid(description, tensors, model) or to_grid
  rules = vit_rules(description.names, model, from_grid, to_grid)
  ignore = description.names.unused
  if model.block:
    # Of the blocks that do not run, and of the last norm: known all the same.
    ignore += tuple(source for rule in rules for source in rule.sources)
  return load.convert(tensors, rules, shapes, ignore=ignore, name=str(path))


def _grid(description, tensors, model):
  """Grid of the position embeddings, None if nothing tells."""
  if description.image_size is not None:
    return token_grid(model, description.image_size)
  position = tensors.get(description.names.position)
  if position is None:
    return None
  count = position.size // model.width - 1
  side = math.isqrt(count)
  return (side, side) if side * side == count else None


def _read(path, part) -> tuple[_Description, tensors_lib.Tensors]:
  """What a checkpoint is, and the tensors of its image encoder."""
  description = _describe_folder(path)
  tensors = tensor_files.read_tensors(path)
  if description is None:
    description, inside = _describe_tensors(path, tensors, part)
  else:
    names = description.names
    # A damaged one is found by its patches, and what it lacks is named.
    found = _places(tensors, names) or tensors.places(f'{names.patch}.weight')
    inside = tensors_lib.pick(tensors, found, part)
  return description, _with_position(inside, description.names)


def _describe_folder(path) -> _Description | None:
  """What config.json says; None if it does not name a family."""
  file = pathlib.Path(path) / 'config.json'
  kind = None
  if file.exists():
    try:
      kind = json.loads(file.read_text()).get('model_type')
    except (ValueError, AttributeError) as error:
      raise InputError(f'{file} is no configuration ({error})') from error
  if kind is None:  # the config.json of timm has no model_type
    return None
  if kind not in _HUGGING_FACE:
    raise InputError(
      f'{file} describes a {kind!r}; known: {sorted(_HUGGING_FACE)}'
    )
  # Knows the defaults that a config.json may leave out. Imported here: it takes
  # a second, and says that torch is missing.
  from transformers import AutoConfig

  config = AutoConfig.from_pretrained(path, local_files_only=True)
  return _describe_hugging_face(kind, config)


def places(tensors: tensors_lib.Tensors) -> list[str]:
  """Where encoders begin that need no config.json, see `Tensors.places`."""
  return [place for names in _TOLD for place in _places(tensors, names)]


def _places(tensors, names):
  """Of one family; as a part of a model it is behind 'vision_model', say."""
  first = names.block.format(0)
  needed = [f'{first}{names.expand}.weight']
  if names.gain1:
    needed.append(first + names.gain1)
  found = tensors.places(f'{names.patch}.weight')
  return [
    place
    for place in found
    if all(f'{place}.{name}'.lstrip('.') in tensors for name in needed)
  ]


def _with_position(tensors, names):
  """Tensors with the position embeddings in one piece.

  An ONNX exporter folds them into two constants that have lost their name: that
  of the CLS token [1, 1, D], and the grid [1, N, D].
  """
  folder = names.position.partition('.')[0]
  parts = {
    k: v
    for k, v in tensors.items()
    if k.partition('.')[0] == folder and k != names.cls and v.ndim == 3
  }
  counts = sorted(part.shape[1] for part in parts.values())
  if names.position in tensors or len(counts) != 2 or counts[0] != 1:
    return tensors
  ordered = sorted(parts.values(), key=lambda part: part.shape[1])
  tensors.take(parts)
  rest = {k: v for k, v in tensors.items() if k not in parts}
  rest[names.position] = np.concatenate(ordered, axis=1)
  return tensors_lib.Tensors(rest, tensors.origin, tensors.start)


def _describe_hugging_face(kind, config):
  config = getattr(config, 'vision_config', config)
  names = _HUGGING_FACE[kind]
  attributes = dict(
    width=config.hidden_size,
    depth=config.num_hidden_layers,
    num_heads=config.num_attention_heads,
    patch_size=config.patch_size,
    qkv_bias=getattr(config, 'qkv_bias', True),
    epsilon=config.layer_norm_eps,
    mlp=config.hidden_act,
    num_registers=getattr(config, 'num_register_tokens', 0),
    pre_norm=bool(names.pre_norm),
    norm_cls_only=names is HF_CLIP,
  )
  if hasattr(config, 'intermediate_size'):
    hidden = config.intermediate_size
  else:
    hidden = int(config.hidden_size * config.mlp_ratio)
  if getattr(config, 'use_swiglu_ffn', False):
    # DINOv2 keeps the number of parameters, in multiples of 8.
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    attributes['mlp'] = 'swiglu'
    names = names._replace(expand='mlp.weights_in', contract='mlp.weights_out')
  attributes['mlp_ratio'] = hidden / config.hidden_size
  size = config.image_size
  height, width = (size, size) if isinstance(size, int) else size
  return _Description(names, attributes, (height, width))


def _describe_tensors(path, tensors, part):
  """What the names and shapes of a file without a config.json say.

  Returns: a description, and the tensors of the encoder.
  """
  inside = tensors_lib.pick(tensors, places(tensors), part)
  for names in _TOLD:
    if '' in _places(inside, names):
      attributes = attributes_of(path, inside, names)
      return _Description(names, attributes, None), inside
  raise InputError(
    f'{path} has no config.json, and neither the names of timm '
    '(patch_embed.proj.weight, blocks.0.mlp.fc1.weight and so on) nor those of '
    'DINOv2; give the folder of both weights and config.json'
  )


def attributes_of(
  path: str | pathlib.Path, tensors: Mapping[str, np.ndarray], names: ViTNames
) -> dict[str, Any]:
  """Attributes of a ViT of timm or DINOv2, whose heads have 64 channels each.

  Args:
    path: for the message.
    tensors: of an encoder alone, without a prefix.
    names: what they are called.

  Raises:
    InputError: of timm, and of no width that it has.
  """
  width, _, _, patch_size = tensors[f'{names.patch}.weight'].shape
  if names is TIMM and width not in _TIMM_WIDTHS:
    raise InputError(
      f'{path} is a ViT of width {width}, and its number of heads is not '
      f'written; it is known for the widths {_TIMM_WIDTHS} of timm'
    )
  start, _, end = names.block.partition('{}')
  blocks = {
    name.removeprefix(start).partition(end)[0]
    for name in tensors
    if name.startswith(start)
  }
  first = names.block.format(0)
  hidden = len(tensors[f'{first}{names.expand}.weight'])
  return dict(
    width=width,
    depth=len(blocks),
    num_heads=width // 64,
    patch_size=patch_size,
    qkv_bias=f'{first}{names.qkv[0]}.bias' in tensors,
    mlp_ratio=hidden / width,
  )
