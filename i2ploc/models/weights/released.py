# SPDX-License-Identifier: Apache-2.0
"""What released place-recognition models have in common.

Their checkpoints hold an encoder and an aggregator under different prefixes. A
`Release` says how one method names both, so that `published` finds out by the
tensors' names what a file is, whatever it is called. Only the names, shapes and
order of operations are the authors'.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.models.encoders import resnet
from i2ploc.models.encoders import vgg
from i2ploc.models.encoders import vit
from i2ploc.models.weights import load
from i2ploc.models.weights import resnet as resnet_lib
from i2ploc.models.weights import tensors as tensors_lib
from i2ploc.models.weights import vgg as vgg_lib
from i2ploc.models.weights import vit as vit_lib

Tensors = Mapping[str, np.ndarray]

# The layers of a ResNet of torchvision by their number, as it happens to those
# that are put into an nn.Sequential.
NUMBERED = resnet_lib.TORCHVISION._replace(
  stem=('0', '1'), block='{stage}.{i}.', first_stage=4
)
# Parts of names that training scripts put in front: 'state_dict.model'.
_MOST_AROUND = 2
_UNUSED = ('*.num_batches_tracked', '*.mask_token')


class Backbone(NamedTuple):
  """The encoder's half of a checkpoint.

  Attributes:
    prefix: in front of its tensors.
    names: what they are called behind it; None for the numbers of a VGG.
    last_norm: of a ViT: whether tokens pass through the last norm.
  """

  prefix: str
  names: resnet_lib.ResNetNames | vit_lib.ViTNames | None
  last_norm: bool = True

  def inside(self, tensors: Tensors) -> dict[str, np.ndarray]:
    """Its tensors, without the prefix."""
    return {
      name.removeprefix(self.prefix): tensor
      for name, tensor in tensors.items()
      if name.startswith(self.prefix)
    }

  def make(self, tensors: Tensors) -> nn.Module:
    """The encoder, without its variables.

    Raises:
      InputError: none that is known here.
    """
    inside = self.inside(tensors)
    if self.names is None:
      return vgg.VGG(**vgg_lib.attributes_of(inside, ''))
    if isinstance(self.names, resnet_lib.ResNetNames):
      if not _is_resnet(inside, self.names):
        raise InputError(
          'the encoder of this release is neither a ResNet nor a VGG without '
          'BatchNorm; take its release with one of these'
        )
      attributes, _ = resnet_lib.sizes_of(inside, self.names)
      return resnet.ResNet(**attributes)
    attributes = vit_lib.attributes_of('the release', inside, self.names)
    block = 0 if self.last_norm else attributes['depth']
    return vit.ViT(**attributes, block=block)

  def rules(
    self, tensors: Tensors, model: Any, image_size: tuple[int, int]
  ) -> list[load.Rule]:
    """Rules of the encoder, for images of (H, W)."""
    if self.names is None:
      return vgg_lib.vgg_rules(model, prefix=self.prefix)
    if isinstance(self.names, resnet_lib.ResNetNames):
      return resnet_lib.resnet_rules(self.names, model, prefix=self.prefix)
    position = tensors[self.prefix + self.names.position]
    side = math.isqrt(position.size // model.width - 1)
    return vit_lib.vit_rules(
      self.names,
      model,
      (side, side),
      vit_lib.token_grid(model, image_size),
      prefix=self.prefix,
    )


def numbered(prefix: str) -> Callable[[Tensors], Backbone]:
  """Of tensors the backbone whose layers have numbers behind a prefix."""

  def backbone(tensors):
    if vgg_lib.is_vgg(tensors, prefix):
      return Backbone(prefix, None)
    return Backbone(prefix, NUMBERED)

  return backbone


def _is_resnet(inside, names):
  """Whether a stem and a block are there; other networks are numbered too."""
  first = names.block.format(stage=names.first_stage, i=0)
  needed = names.stem[0], first + names.parts[0][0]
  return has(inside, *(f'{name}.weight' for name in needed))


class Release(NamedTuple):
  """A method whose authors released both halves. All take the tensors.

  Attributes:
    name: of the method.
    matches: whether the tensors are of it.
    backbone: the encoder's half.
    make_aggregator: the aggregator, without its variables.
    rules: of the aggregator.
    image_size: (H, W) that the authors test with.
    any_size: whether images may have another size.
  """

  name: str
  matches: Callable[[Tensors], bool]
  backbone: Callable[[Tensors], Backbone]
  make_aggregator: Callable[[Tensors], nn.Module]
  rules: Callable[[Tensors], list[load.Rule]]
  image_size: Callable[[Tensors], tuple[int, int]]
  any_size: bool = True

  def make_encoder(self, tensors: Tensors) -> nn.Module:
    """The encoder, without its variables; see `Backbone.make`."""
    return self.backbone(tensors).make(tensors)

  def encoder_variables(
    self,
    tensors: Tensors,
    model: nn.Module,
    image_size: tuple[int, int],
    name: str,
  ) -> dict:
    """The variables of the encoder.

    Args:
      tensors: of the checkpoint.
      model: the encoder.
      image_size: (H, W) of its images.
      name: of the checkpoint, for the message.

    Raises:
      InputError: they do not fit, see `load.convert`.
    """
    images = jnp.zeros((1, *image_size, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rules = self.backbone(tensors).rules(tensors, model, image_size)
    return self._converted(tensors, rules, shapes, name)

  def aggregator_variables(
    self, tensors: Tensors, shapes: Any, name: str
  ) -> dict:
    """The variables of the aggregator, whose `shapes` are given.

    Raises:
      InputError: they do not fit, see `load.convert`.
    """
    return self._converted(tensors, self.rules(tensors), shapes, name)

  def _converted(self, tensors, rules, shapes, name):
    """One half; tensors of the other are known, and no others are."""
    backbone = self.backbone(tensors)
    whole = backbone.make(tensors)
    both = backbone.rules(tensors, whole, self.image_size(tensors))
    both += self.rules(tensors)
    known = [source for rule in both for source in rule.sources]
    return load.convert(
      tensors, rules, shapes, ignore=(*_UNUSED, *known), name=name
    )


def find(
  releases: Sequence[Release], tensors: tensors_lib.Tensors
) -> dict[str, Release]:
  """Where models of releases begin, see `Tensors.places`."""
  found: dict[str, Release] = {}
  starts = {''}
  for name in tensors:
    parts = name.split('.')[:-1]
    starts |= {'.'.join(parts[:n]) for n in range(1, _MOST_AROUND + 1)}
  for start in sorted(starts, key=len):
    inside = tensors.below(start)
    for release in releases:
      if release.matches(inside):
        found[start] = release
        break
  return found


def pointwise(path: str, name: str) -> list[load.Rule]:
  """Rules of an `nn.Dense` at `path` from a 1 x 1 convolution `name`."""
  return [
    load.Rule(
      f'{path}/kernel', (f'{name}.weight',), lambda w: w.reshape(len(w), -1).T
    ),
    load.Rule(f'{path}/bias', (f'{name}.bias',)),
  ]


def has(tensors: Tensors, *names: str) -> bool:
  """Whether all of these are among the tensors."""
  return all(name in tensors for name in names)
