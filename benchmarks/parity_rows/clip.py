# SPDX-License-Identifier: Apache-2.0
"""Both towers of CLIP against what transformers and torch computed."""

import functools

import jax
import numpy as np

from benchmarks.parity_rows import comparison
from benchmarks.parity_rows import encoders
from i2ploc.losses import contrastive
from i2ploc.models.weights import clip

Comparison = comparison.Comparison


def _load(path, images):
  """The towers for images that are normalised already."""
  model, variables = clip.load_clip(path, images.shape[1:3])
  tower = model.towers['image']
  identity = tower.view._replace(mean=(0.0,) * 3, std=(1.0,) * 3)
  towers = {**model.towers, 'image': tower._replace(view=identity)}
  return model.clone(towers=towers), variables


def _images(io, name):
  return io[name].transpose(0, 2, 3, 1)


def joint(path):
  """Descriptors and similarities of images and texts."""
  io = np.load(path / 'io.npz')
  wide = _images(io, 'pixel_values_nonsquare')
  model, variables = _load(path, wide)
  _, out = model.apply(variables, {'image': wide}, side='image')
  yield Comparison(
    'CLS tokens', out['cls'], io['vision_nonsquare_pooled'], 1e-5
  )
  images = _images(io, 'pixel_values')
  model, variables = _load(path, images)
  batch = {'image': images, 'tokens': io['input_ids']}
  found = {}
  for side in ('image', 'text'):
    apply = jax.jit(functools.partial(model.apply, side=side))
    found[side], out = apply(variables, batch)
    yield Comparison('descriptors', found[side], io[f'{side}_embeds'], 1e-5)
    expected = io[f'{side}_features_unnormalised']
    yield Comparison('features', out['pooled'], expected, 1e-5)
  scale = contrastive.clamped_scale(variables['params']['log_scale'])
  logits = scale * found['image'] @ found['text'].T
  yield Comparison('similarities', logits, io['logits_per_image'], 1e-5)


def text_tower(path):
  """Hidden states, pooled features, and rows of other lengths."""
  io = np.load(path / 'io.npz')
  model, variables = clip.load_clip(path)
  params = {'params': variables['params']['text']}
  text = model.towers['text'].encoder.clone(name=None)
  tokens = io['input_ids']
  hidden, out = encoders.hidden_states(text, params, tokens)
  # Behind the end of a text the reference masks tokens, and ours does not.
  read = io['attention_mask'][..., None]
  for i, found in enumerate(hidden):
    expected = io[f'text_hidden_{i}']
    yield Comparison('hidden states', found * read, expected * read, 1e-5)
  expected = io['text_last_hidden']
  yield Comparison('output', out['sequence'] * read, expected * read, 1e-5)
  for end, name in (
    (text.end, 'text_pooled'),
    (None, 'text_pooled_config_eos2'),
  ):
    pooled, _ = text.clone(end=end).apply(params, tokens)
    yield Comparison('pooled', pooled, io[name], 1e-5)


def tokens(path):
  """Texts as numbers: equal or not."""
  io = np.load(path / 'io.npz')
  expected = io['input_ids']
  tokenize = clip.load_tokenize(path, expected.shape[1])
  found = tokenize([str(text) for text in io['texts']])
  yield Comparison('numbers', found, expected, 0.0)


MODULES = (
  comparison.Module('CLIP', 'clip_tiny', joint),
  comparison.Module('CLIP, text side', 'clip_tiny', text_tower),
  comparison.Module('CLIP, tokenizer', 'clip_tiny', tokens),
)
