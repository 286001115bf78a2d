# SPDX-License-Identifier: Apache-2.0
"""Published image encoders against what transformers and torch computed."""

from collections.abc import Iterator
import functools
import pathlib
from typing import NamedTuple

from flax import linen as nn
import jax
import numpy as np

from benchmarks.parity_rows import comparison
from i2ploc.models.encoders import efficientnet
from i2ploc.models.encoders import position_embedding
from i2ploc.models.encoders import vit
from i2ploc.models.weights import efficientnet as efficientnet_lib
from i2ploc.models.weights import load
from i2ploc.models.weights import sources
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import vit as vit_lib

Comparison = comparison.Comparison


class Run(NamedTuple):
  """What the original encoder gave for a batch.

  Attributes:
    images: [B, H, W, 3].
    hidden: [B, N, D] each: the first block's input and all blocks' outputs.
    sequence: [B, 1 + N, D] after the last norm, without registers.
  """

  images: np.ndarray
  hidden: list[np.ndarray]
  sequence: np.ndarray


def encoder(path):
  """The encoder in a folder, loaded for every size that has outputs."""
  for run in stored_runs(path):
    model, variables = vit_lib.load_vit(path, run.images.shape[1:3])
    apply = jax.jit(lambda *args, model=model: hidden_states(model, *args))
    hidden, out = apply(variables, run.images)
    if run.hidden:
      yield Comparison('hidden states', hidden, run.hidden, 1e-5)
    yield Comparison('output', out['sequence'], run.sequence, 1e-5)


def published_encoder(path):
  """The DINOv2 that was tuned for saliency, on a photo of 7 x 9 patches."""
  weights = sources.find('focus_vit_s14', fetch=False)
  golden = np.load(path / 'golden.npz')
  images = golden['input'][None]
  model, variables = vit_lib.load_vit(weights, images.shape[1:3])
  apply = jax.jit(lambda *args: hidden_states(model, *args))
  hidden, out = apply(variables, images)
  for i in (0, 1, 6, 9, 10, 11, 12):
    expected = golden[f'hidden_{i}']
    yield Comparison('hidden states', hidden[i][0], expected, 1e-5)
  expected = golden['last_hidden_state']
  yield Comparison('output', out['sequence'][0], expected, 1e-5)
  expected = golden['cls_attention_last']
  yield Comparison('attention', out['attention'][0], expected, 1e-5)
  # As a config asks for them; the reference counts blocks from 0.
  for quantity, facet, block, name in (
    ('tokens of a block', 'token', 9, 'hidden_9'),
    ('tokens of a block', 'token', 12, 'hidden_12'),
    *((f'{x} of a block', x, i + 1, f'{x}_{i}') for x, i in _FACETS),
  ):
    part = model.clone(block=block, facet=facet)
    variables = vit_lib.load_vit_variables(weights, part, images.shape[1:3])
    _, out = jax.jit(part.apply)(variables, images)
    yield Comparison(quantity, out['sequence'][0], golden[name], 1e-5)


_FACETS = tuple(
  (facet, i) for facet in ('query', 'key', 'value') for i in (9, 11)
)


def published_efficientnet(path):
  """An EfficientNet-Lite0 with weights that were published, both paddings."""
  weights = sources.find('efficientnet_lite0', fetch=False)
  golden = np.load(path / 'golden.npz')
  images = golden['input'][None]
  for padding, name in (('same', 'same'), ('symmetric', 'torch')):
    model = efficientnet.EfficientNetLite0(padding=padding)
    variables = efficientnet_lib.load_efficientnet_variables(weights, model)
    apply = jax.jit(functools.partial(model.apply, capture_intermediates=True))
    (tokens, _), seen = apply(variables, images)
    seen = {
      k: v['__call__'][0]
      for k, v in seen['intermediates'].items()
      if '__call__' in v
    }
    yield Comparison(
      f'stem, {padding}', seen['stem_norm'][0], golden[f'{name}/stem'], 1e-5
    )
    for i, stage in enumerate(efficientnet.LITE0, 1):
      if f'{name}/stage{i}' in golden:
        found = seen[f'stage{i}_block{stage.depth - 1}'][0]
        expected = golden[f'{name}/stage{i}']
        yield Comparison(f'stages, {padding}', found, expected, 1e-5)
    expected = golden[f'{name}/features']
    found = tokens[0].reshape(expected.shape)
    yield Comparison(f'features, {padding}', found, expected, 1e-5)


def timm_encoder(path):
  """The image encoder inside of SaliencyI2PLoc's checkpoint."""
  golden = np.load(path.with_suffix('.npz'))
  images = golden['image'][:, 0].transpose(0, 2, 3, 1)
  model = vit.ViT(width=96, depth=3, num_heads=6)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  grid = tuple(size // model.patch_size for size in images.shape[1:3])
  variables = load.convert(
    tensor_files.read_tensors(path, 'image_encoder'),
    vit_lib.vit_rules(vit_lib.TIMM, model, grid, grid),
    shapes,
  )
  apply = jax.jit(lambda *args: hidden_states(model, *args))
  hidden, out = apply(variables, images)
  expected = [golden[f'eval_w/img_block{i}'] for i in range(model.depth)]
  yield Comparison('hidden states', hidden[1:], expected, 1e-5)
  yield Comparison('output', out['sequence'], golden['eval_w/img_tokens'], 1e-5)


def stored_runs(folder: pathlib.Path) -> Iterator[Run]:
  """Every stored run of the encoder in `folder`."""
  with np.load(folder / 'io.npz') as file:
    io = dict(file)
  if folder.name == 'clip_tiny':
    yield _clip_run(io, 'pixel_values', 'vision')
    yield _clip_run(io, 'pixel_values_nonsquare', 'vision_nonsquare')
    return
  for size in sorted({name.split('/')[0] for name in io}):
    sequence = io[f'{size}/last_hidden_state']
    if folder.name == 'dinov2_reg_tiny':
      sequence = np.delete(sequence, slice(1, 5), axis=1)
    images = io[f'{size}/pixel_values'].transpose(0, 2, 3, 1)
    yield Run(images, _numbered(io, f'{size}/hidden'), sequence)


def _clip_run(io, images, name):
  # The last norm is the CLS token's alone, and stored apart.
  tokens = io[f'{name}_last_hidden'][:, 1:]
  sequence = np.concatenate([io[f'{name}_pooled'][:, None], tokens], axis=1)
  images = io[images].transpose(0, 2, 3, 1)
  return Run(images, _numbered(io, f'{name}_hidden'), sequence)


def _numbered(io, name):
  count = sum(key.startswith(f'{name}_') for key in io)
  return [io[f'{name}_{i}'] for i in range(count)]


def hidden_states(
  model: vit.ViT, variables: dict, images: np.ndarray
) -> tuple[list[jax.Array], dict]:
  """The first block's input and all blocks' outputs, and `out`."""
  states = []

  def record(call, args, kwargs, context):
    y = call(*args, **kwargs)
    if isinstance(context.module, vit.Block):
      if context.method_name == '__call__':
        states.extend([y[0]] if states else [args[0], y[0]])
    return y

  with nn.intercept_methods(record):
    _, out = model.apply(variables, images)
  return states, out


def resampled_positions(path):
  """Both filters, from the grids of ViT and of DINOv2."""
  golden = np.load(path)
  sources = {
    'bicubic': golden['pos_embed_1x197x6'][0, 1:],
    'dino37': golden['pos_embed_37'][0],
  }
  for name, expected in golden.items():
    source, _, rest = name.partition('_aa')
    if source not in sources or name.endswith('_float64'):
      continue
    position, antialias = sources[source], rest[0] == '1'
    side = round(len(position) ** 0.5)
    found = position_embedding.resample(
      position, (side, side), expected.shape[1:3], antialias
    )
    yield Comparison(
      f'bicubic, antialias={antialias}',
      found.reshape(expected.shape),
      expected,
      3e-6,
    )


MODULES = (
  comparison.Module('ViT', 'vit_tiny', encoder),
  comparison.Module('ViT of timm', 'saliency_full.safetensors', timm_encoder),
  comparison.Module('DINOv2', 'dinov2_tiny', encoder),
  comparison.Module('DINOv2, SwiGLU', 'dinov2_swiglu_tiny', encoder),
  comparison.Module('DINOv2, registers', 'dinov2_reg_tiny', encoder),
  comparison.Module(
    'focus_vit_s14', 'published/dinov2_small', published_encoder
  ),
  comparison.Module(
    'EfficientNet-Lite0, published',
    'published/efficientnet_lite0',
    published_efficientnet,
  ),
  comparison.Module('CLIP, image side', 'clip_tiny', encoder),
  comparison.Module(
    'position embeddings', 'torch_bicubic.npz', resampled_positions
  ),
)
