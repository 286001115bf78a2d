# SPDX-License-Identifier: Apache-2.0
"""Published encoders and poolings in plain torch, to be timed and compared.

Written from the papers; they take the tensors of the checkpoints by their own
names.
"""

from collections.abc import Mapping
import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from i2ploc.models.encoders import efficientnet
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import vit as vit_lib


class DINOv2(nn.Module):
  """A ViT of the names that Hugging Face's DINOv2 has.

  Args:
    tensors: by name, 'embeddings.cls_token' and so on.
    position: [1, 1 + N, D] of the grid of its images, the CLS token's first.
  """

  def __init__(self, tensors: Mapping[str, np.ndarray], position: np.ndarray):
    super().__init__()
    self.w = {
      name: torch.tensor(np.asarray(tensor, np.float32))
      for name, tensor in tensors.items()
    }
    self.position = torch.tensor(np.asarray(position, np.float32))
    starts = {
      name.split('.')[2] for name in tensors if name.startswith('encoder.layer')
    }
    self.depth = len(starts)
    self.heads = self.w['embeddings.cls_token'].shape[-1] // 64
    for i in range(self.depth):  # one product for all three, as authors have it
      start = f'encoder.layer.{i}.attention.attention.'
      for part in ('weight', 'bias'):
        self.w[f'{start}{part}'] = torch.cat(
          [self.w[f'{start}{x}.{part}'] for x in ('query', 'key', 'value')]
        )

  def _linear(self, x, name):
    return functional.linear(
      x, self.w[f'{name}.weight'], self.w[f'{name}.bias']
    )

  def _norm(self, x, name):
    return functional.layer_norm(
      x, x.shape[-1:], self.w[f'{name}.weight'], self.w[f'{name}.bias'], 1e-6
    )

  def forward(
    self, images: torch.Tensor, block: int | None = None, facet: str = ''
  ) -> torch.Tensor:
    """Maps [B, 3, H, W] to tokens [B, 1 + N, D], CLS first.

    They are those after the last norm, of a block, counted from 1, or its
    query, key or value.
    """
    patch = 'embeddings.patch_embeddings.projection'
    kernel = self.w[f'{patch}.weight']
    x = functional.conv2d(
      images, kernel, self.w[f'{patch}.bias'], stride=kernel.shape[-1]
    )
    x = x.flatten(2).transpose(1, 2)
    cls = self.w['embeddings.cls_token'].expand(len(x), -1, -1)
    x = torch.cat([cls, x], dim=1) + self.position
    for i in range(block or self.depth):
      start = f'encoder.layer.{i}.'
      if facet and i == block - 1:
        rows = slice(
          *[
            ('query', 'key', 'value').index(facet) * x.shape[-1] + width
            for width in (0, x.shape[-1])
          ]
        )
        name = f'{start}attention.attention'
        return functional.linear(
          self._norm(x, f'{start}norm1'),
          self.w[f'{name}.weight'][rows],
          self.w[f'{name}.bias'][rows],
        )
      y = self._linear(
        self._norm(x, f'{start}norm1'), f'{start}attention.attention'
      )
      query, key, value = y.reshape(*x.shape[:2], 3, self.heads, 64).permute(
        2, 0, 3, 1, 4
      )
      y = functional.scaled_dot_product_attention(query, key, value)
      y = y.transpose(1, 2).reshape(x.shape)
      y = self._linear(y, f'{start}attention.output.dense')
      x = x + y * self.w[f'{start}layer_scale1.lambda1']
      y = self._linear(self._norm(x, f'{start}norm2'), f'{start}mlp.fc1')
      y = self._linear(functional.gelu(y), f'{start}mlp.fc2')
      x = x + y * self.w[f'{start}layer_scale2.lambda1']
    return x if block else self._norm(x, 'layernorm')


class EfficientNetLite0(nn.Module):
  """The network of `efficientnet`, with the padding of torch.

  Args:
    tensors: by name, '_conv_stem.weight' and so on.
  """

  def __init__(self, tensors: Mapping[str, np.ndarray]):
    super().__init__()
    self.w = {
      name: torch.tensor(np.asarray(tensor, np.float32))
      for name, tensor in tensors.items()
    }

  def channels_last(self) -> 'EfficientNetLite0':
    """Kernels in the other layout of torch."""
    for name, tensor in self.w.items():
      if tensor.ndim == 4:
        self.w[name] = tensor.to(memory_format=torch.channels_last)
    return self

  def _conv_norm(self, x, conv, norm, stride=1, groups=1, activate=True):
    kernel = self.w[f'{conv}.weight']
    x = functional.conv2d(
      x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups
    )
    x = functional.batch_norm(
      x,
      self.w[f'{norm}.running_mean'],
      self.w[f'{norm}.running_var'],
      self.w[f'{norm}.weight'],
      self.w[f'{norm}.bias'],
      eps=1e-3,
    )
    return functional.relu6(x) if activate else x

  def forward(
    self, images: torch.Tensor, last: int | None = None
  ) -> torch.Tensor:
    """Maps [B, 3, H, W] to features [B, C, h, w].

    They are those of the head's 1280 channels, h = H / 32, or of the stage
    `last`, counted from 1.
    """
    x = self._conv_norm(images, '_conv_stem', '_bn0', stride=2)
    i = 0
    for stage in efficientnet.LITE0[:last]:
      for j in range(stage.depth):
        start, given, stride = f'_blocks.{i}.', x, 1 if j else stage.stride
        if stage.expansion > 1:
          x = self._conv_norm(x, f'{start}_expand_conv', f'{start}_bn0')
        x = self._conv_norm(
          x, f'{start}_depthwise_conv', f'{start}_bn1', stride, x.shape[1]
        )
        x = self._conv_norm(
          x, f'{start}_project_conv', f'{start}_bn2', activate=False
        )
        if stride == 1 and x.shape == given.shape:
          x = x + given
        i += 1
    return x if last else self._conv_norm(x, '_conv_head', '_bn1')


def load_dinov2(path: str | os.PathLike, image_size: tuple[int, int]) -> DINOv2:
  """The DINOv2 of a file for images of (H, W)."""
  tensors = tensor_files.read_tensors(path)
  patch = 'embeddings.patch_embeddings.projection.weight'
  (start,) = (x.removesuffix(patch) for x in tensors if x.endswith(patch))
  tensors = {
    name.removeprefix(start): tensor
    for name, tensor in tensors.items()
    if name.startswith(start)
  }
  # Resampled positions are ours, which has the CLS token's added to the token.
  params = vit_lib.load_vit(path, image_size)[1]['params']
  position = np.concatenate([params['cls'], params['position']], axis=1)
  tensors['embeddings.cls_token'] = np.zeros_like(params['cls'])
  return DINOv2(tensors, position)


def gem(tokens: torch.Tensor, power: float = 3.0) -> torch.Tensor:
  """The generalised mean [B, D] of [B, N, D], at unit length."""
  mean = tokens.clamp(min=1e-6).pow(power).mean(1).pow(1 / power)
  return functional.normalize(mean, dim=-1)


def vlad(tokens: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
  """Sums of differences to the nearest of words [K, D], one unit vector."""
  x = functional.normalize(tokens, dim=-1)
  nearest = torch.cdist(x, words[None]).argmin(-1)
  assignment = functional.one_hot(nearest, len(words)).to(x.dtype)
  sums = assignment.transpose(1, 2) @ x
  sums = sums - assignment.sum(1)[..., None] * words
  return functional.normalize(functional.normalize(sums, dim=-1).flatten(1))
