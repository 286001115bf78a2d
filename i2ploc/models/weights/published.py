# SPDX-License-Identifier: Apache-2.0
"""Published weights for whatever towers a config has made.

Checkpoints are named as `names` says: a folder, a file, a name of the table of
`sources`, or a repository of the Hugging Face hub, perhaps with a layer. Those
of released models for place recognition (RELEASES) hold an aggregator too.

A file may hold several networks: the one that is named is taken, and if none
is, the message lists them. What of a file was not used is said in a line.

A checkpoint is read once: what made a model of it keeps its tensors in memory
until `load_variables` or `with_encoders` has them in the model's variables.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any
from typing import NamedTuple

from absl import logging
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models import projection
from i2ploc.models import towers as towers_lib
from i2ploc.models import views
from i2ploc.models import vlad
from i2ploc.models.encoders import efficientnet
from i2ploc.models.encoders import resnet
from i2ploc.models.encoders import vgg
from i2ploc.models.encoders import vit
from i2ploc.models.weights import boq
from i2ploc.models.weights import clip
from i2ploc.models.weights import cosplace
from i2ploc.models.weights import deep_vg
from i2ploc.models.weights import efficientnet as efficientnet_lib
from i2ploc.models.weights import lip_loc
from i2ploc.models.weights import mixvpr
from i2ploc.models.weights import names
from i2ploc.models.weights import released
from i2ploc.models.weights import resnet as resnet_lib
from i2ploc.models.weights import salad
from i2ploc.models.weights import saliency_i2ploc
from i2ploc.models.weights import sources
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib
from i2ploc.models.weights import vgg as vgg_lib
from i2ploc.models.weights import vit as vit_lib

# Found by the names of their tensors.
RELEASES = (
  cosplace.RELEASE,
  salad.RELEASE,
  mixvpr.RELEASE,
  boq.RELEASE,
  deep_vg.RELEASE,
)
# Whose checkpoints of both towers fit which aggregator.
METHODS = {
  vlad.NetVLAD: saliency_i2ploc,
  projection.ProjectionHead: lip_loc,
}


class Normalization(NamedTuple):
  """What an encoder's images were standardised by.

  Attributes:
    mean: per channel, of images in 0..1.
    std: per channel.
  """

  mean: tuple[float, float, float]
  std: tuple[float, float, float]


class _Family(NamedTuple):
  """Encoders of one kind.

  Attributes:
    kind: the encoder's class.
    make: takes a path, a part of it and a layer; returns the encoder.
    load: takes path, part, encoder and (H, W) of its images; returns its
      variables.
    places: of tensors, where encoders of the kind begin.
    options: attributes of the encoder that a config may choose.
    layer: that of them which is its layer; '' if there is none.
  """

  kind: type[nn.Module]
  make: Callable[..., nn.Module]
  load: Callable[..., dict]
  places: Callable[[tensors_lib.Tensors], list[str]]
  options: tuple[str, ...]
  layer: str = ''


_RESNET = _Family(
  resnet.ResNet,
  resnet_lib.make_resnet,
  lambda path, part, model, _: resnet_lib.load_resnet_variables(
    path, model, part
  ),
  resnet_lib.places,
  ('frozen_norm',),
  'stage',
)
_EFFICIENTNET = _Family(
  efficientnet.EfficientNetLite0,
  efficientnet_lib.make_efficientnet,
  lambda path, part, model, _: efficientnet_lib.load_efficientnet_variables(
    path, model, part
  ),
  efficientnet_lib.places,
  ('padding', 'frozen_norm'),
  'stage',
)
_VGG = _Family(
  vgg.VGG,
  vgg_lib.make_vgg,
  lambda path, part, model, _: vgg_lib.load_vgg_variables(path, model, part),
  vgg_lib.places,
  (),
  'stage',
)
_VIT = _Family(
  vit.ViT,
  lambda path, part, **layer: vit_lib.make_vit(path, part).clone(**layer),
  lambda path, part, model, size: vit_lib.load_vit_variables(
    path, model, size, part
  ),
  vit_lib.places,
  ('remat', 'adapter'),
  'block',
)

# Found by the names of their tensors, in this order.
_FAMILIES = (_EFFICIENTNET, _VGG, _RESNET, _VIT)

# The tensors that were read last, see the module.
_kept: list[tensors_lib.Tensors] = []

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Where a folder has no preprocessor_config.json, by the type in config.json.
_BY_TYPE = {
  'clip': Normalization(clip.IMAGE_MEAN, clip.IMAGE_STD),
  'clip_vision_model': Normalization(clip.IMAGE_MEAN, clip.IMAGE_STD),
  'vit': _HALF,
}


def make_encoder(
  checkpoint: str | os.PathLike,
  dtype: jnp.dtype = jnp.float32,
  **options: Any,
) -> nn.Module:
  """The image encoder of a checkpoint, without its variables.

  Args:
    checkpoint: see the module.
    dtype: of the computation.
    **options: attributes of the encoder beside the layer that the name has:
      remat and adapter of a `vit.ViT`, frozen_norm of a `ResNet` or an
      `EfficientNetLite0`, and padding of the latter.

  Raises:
    MissingFileError: nothing there.
    InputError: damaged, no encoder that is known here, or an option that it
      does not have.
  """
  path, part = _find(checkpoint)
  family, place = _family(path, part)
  unknown = sorted(set(options) - set(family.options))
  if unknown:
    raise InputError(
      f'{checkpoint}: its encoder has no {", ".join(unknown)}; it takes '
      f'{", ".join(family.options) or "no options"}'
    )
  made = family.make(path, place, **_layer(checkpoint, family))
  return made.clone(dtype=dtype, **options)


def _layer(checkpoint, family):
  """The attributes of an encoder that make its features those of a layer."""
  _, layer, facet, _ = names.parse(checkpoint)
  if layer is None:
    return {}
  if not family.layer:
    raise InputError(f'{checkpoint}: a release has the layer of its authors')
  if facet and family is not _VIT:
    raise InputError(
      f'{checkpoint}: a {family.kind.__name__} has no {facet}; transformers do'
    )
  return {family.layer: layer} | ({'facet': facet} if facet else {})


def make_aggregator(checkpoint: str | os.PathLike) -> nn.Module:
  """The aggregator of a released model, without its variables.

  Raises:
    MissingFileError: nothing there.
    InputError: damaged, or of no release that is known here.
  """
  path, part = _find(checkpoint)
  found = _released(path, part)
  if found is None:
    raise InputError(
      f'{path} holds no aggregator that is known: those of '
      f'{", ".join(release.name for release in RELEASES)} are. Name another '
      'aggregator for the encoder'
    )
  return found.release.make_aggregator(found.tensors)


def image_size(checkpoint: str | os.PathLike) -> tuple[int, int] | None:
  """(H, W) that the authors of a release test with; None for an encoder.

  Raises:
    MissingFileError: nothing there.
    InputError: the file is damaged.
  """
  found = _released(*_find(checkpoint))
  return found and found.release.image_size(found.tensors)


def check_image_size(
  checkpoint: str | os.PathLike, size: tuple[int, int]
) -> None:
  """Compares (H, W) of images with what the authors of a release test with.

  Another size is said in a line.

  Raises:
    InputError: the release cannot describe images of another size.
  """
  found = _released(*_find(checkpoint))
  if found is None:
    return
  own = found.release.image_size(found.tensors)
  if tuple(size) == own:
    return
  wanted, given = (f'{height} x {width}' for height, width in (own, size))
  if not found.release.any_size:
    raise InputError(
      f'{checkpoint}: {found.release.name} takes images of one size, its '
      f"authors' {wanted}, and image_size is {given}: set it to {wanted}"
    )
  logging.warning(
    '%s: its authors test with images of %s, and image_size is %s',
    checkpoint,
    wanted,
    given,
  )


def normalization(checkpoint: str | os.PathLike) -> Normalization:
  """What the images of a checkpoint's encoder were standardised by.

  Its preprocessor_config.json says so; without one its family does.

  Raises:
    MissingFileError: nothing there.
    InputError: the file is damaged, or no encoder that is known here.
  """
  path, part = _find(checkpoint)
  fields = _json(path / 'preprocessor_config.json')
  if 'image_mean' in fields and 'image_std' in fields:
    return Normalization(
      tuple(fields['image_mean']), tuple(fields['image_std'])
    )
  if _family(path, part)[0] is _EFFICIENTNET:
    return Normalization(efficientnet_lib.MEAN, efficientnet_lib.STD)
  return _BY_TYPE.get(_model_type(path), IMAGENET)


def with_encoders(
  checkpoint: str | os.PathLike, model: towers_lib.Towers, variables: dict
) -> dict:
  """Variables whose image encoder is that of a checkpoint.

  The LiDAR's too, if its range images have the three channels of an image.

  Args:
    checkpoint: of an image encoder, see the module.
    model: the towers.
    variables: of them, its collections first; not changed.

  Returns:
    A copy with other 'image' and 'points', in every collection. Adapters keep
    their values.

  Raises:
    MissingFileError: nothing there.
    InputError: it does not fit the encoders.
  """
  variables = {name: dict(tree) for name, tree in variables.items()}
  with _last_use():
    encoders = _encoders(checkpoint, model)
  for side, found in encoders.items():
    for name, tree in found.items():
      variables[name][side] = _filled(variables[name][side], tree)
  return variables


def _filled(own, loaded):
  """A tree with the leaves of another one; those it lacks stay."""
  own, loaded = map(traverse_util.flatten_dict, (own, loaded))
  return traverse_util.unflatten_dict(own | loaded)


def load_variables(
  checkpoint: str | os.PathLike, model: towers_lib.Towers
) -> dict:
  """The variables of towers whose weights were published.

  Args:
    checkpoint: see the module. For images against LiDAR it is of both towers:
      LIP-Loc's for towers with its projection head, SaliencyI2PLoc's for those
      with NetVLAD. For images alone it is of the encoder, and of the aggregator
      too if that is the one of a release; else the pooling keeps its initial
      values.
    model: the towers, in their published form.

  Returns:
    The variables, numpy arrays.

  Raises:
    MissingFileError: nothing there.
    InputError: it does not fit, or the towers are of no published form.
  """
  if 'points' not in model.towers:
    with _last_use():
      return _load_images(checkpoint, model)
  aggregator = model.towers['image'].aggregator
  for kind, method in METHODS.items():
    if isinstance(aggregator, kind):
      path, part = _find(checkpoint)
      with tensors_lib.telling_unused():
        return method.load_variables(path, model, part=part)
  raise InputError(
    f'{checkpoint}: nobody published towers with a '
    f'{type(aggregator).__name__}; take a config in its released form, with '
    f'one of {[kind.__name__ for kind in METHODS]}'
  )


@contextlib.contextmanager
def _last_use():
  """Says what of files is not used, and leaves no tensors in memory."""
  try:
    with tensors_lib.telling_unused():
      yield
  finally:
    _kept.clear()


def _read(path):
  """The tensors of a checkpoint, kept for whoever reads them next."""
  tensors = tensor_files.read_tensors(path)
  _kept[:] = [tensors]
  return tensors


def _load_images(checkpoint, model):
  """What a checkpoint has, and initial values of all else."""
  found = _encoders(checkpoint, model) | _aggregators(checkpoint, model)
  collections = {}
  for module, trees in found.items():
    for name, tree in trees.items():
      collections.setdefault(name, {})[module] = tree
  loaded = traverse_util.flatten_dict(collections)

  @jax.jit
  def init(key):
    # Never used, and so never computed: initial values of what was found.
    variables = model.init(key, model.example(), method='every_side')
    own = traverse_util.flatten_dict(variables)
    return {path: x for path, x in own.items() if path not in loaded}

  return traverse_util.unflatten_dict(
    jax.device_get(init(jax.random.key(0))) | loaded
  )


def _find(name) -> tuple[pathlib.Path, str | None]:
  """The folder or file of a name, whatever layer of it is meant; the part."""
  named = names.parse(name)
  return sources.find(named.checkpoint), named.part


def _parts(checkpoint, model):
  """Sides, their towers, each by itself, the path of its checkpoint, part."""
  for side, tower in model.towers.items():
    towers, found = tower.parts, names.split(checkpoint)
    if len(found) not in (1, len(towers)):
      raise InputError(
        f'{checkpoint}: {len(found)} checkpoints, and {side!r} has'
        f' {len(towers)} towers beside each other: expected as many, or one for'
        ' all'
      )
    for one, name in zip(
      towers, found * (len(towers) // len(found)), strict=True
    ):
      yield side, one, *_find(name)


def _encoders(checkpoint, model):
  """Variables of the encoders that a checkpoint is for, by their names."""
  loaded = {}
  for side, tower, path, part in _parts(checkpoint, model):
    if isinstance(tower.view, views.Image):
      size = tower.view.size
    elif _looks_like_an_image(tower.view):
      size = tower.view.shape
    else:
      continue
    family, place = _family(path, part)
    if not isinstance(tower.encoder, family.kind):
      family.make(path, place)  # says so if it is none of ours
      raise InputError(
        f'{path} fits a {family.kind.__name__}, and the {side} encoder is a '
        f"{type(tower.encoder).__name__}: set the config's model.{side} to "
        "{name: 'published', checkpoint: ...}, or take other weights"
      )
    loaded[tower.encoder.name] = family.load(path, place, tower.encoder, size)
  return loaded


def _aggregators(checkpoint, model):
  """Variables of the released aggregators of a model, by their names."""
  shapes = towers_lib.shapes(model)
  loaded = {}
  for _, tower, path, part in _parts(checkpoint, model):
    found = _released(path, part)
    if found is None:
      continue
    own = tower.aggregator
    wanted = found.release.make_aggregator(found.tensors)
    if type(own) is not type(wanted):
      continue
    other = _differing(wanted, own)
    if other:
      raise InputError(
        f'{path} fits a {type(own).__name__} with {other}; set the '
        "aggregator to {name: 'published', checkpoint: ...}, or to another one "
        'for the encoder alone'
      )
    loaded[own.name] = found.release.aggregator_variables(
      found.tensors,
      {k: tree[own.name] for k, tree in shapes.items() if own.name in tree},
      str(path),
    )
  return loaded


def _differing(wanted, own):
  """Attributes of a module that another one has otherwise."""
  fields = [field.name for field in dataclasses.fields(wanted)]
  values = {
    name: getattr(wanted, name)
    for name in fields
    if name not in ('name', 'parent')
  }
  return {k: v for k, v in values.items() if getattr(own, k) != v}


def _looks_like_an_image(view):
  return isinstance(view, views.RangeImage) and view.encoding == 'released'


class _Released(NamedTuple):
  """A checkpoint of a release."""

  release: released.Release
  tensors: tensors_lib.Tensors


def _released(path: pathlib.Path, part: str | None) -> _Released | None:
  """The release that a file, or a part of it, is of; or None."""
  if _model_type(path) is not None:
    return None
  tensors = _read(path)
  networks = _networks(tensors)
  place = tensors_lib.choose(path, networks, part)
  found = networks.get(place)
  if not isinstance(found, released.Release):
    return None
  return _Released(found, tensors_lib.pick(tensors, networks, part))


def _released_family(found):
  """The encoder's half of a release."""

  def load(path, part, model, size):
    del part
    return found.release.encoder_variables(
      found.tensors, model, size, str(path)
    )

  def make(path, part):
    del path, part
    return found.release.make_encoder(found.tensors)

  return _Family(type(make(None, None)), make, load, lambda _: [], ())


def _networks(tensors) -> dict[str, Any]:
  """The release or the family of each network of a file, by its place."""
  whole = released.find(RELEASES, tensors)
  # The encoder of a release is no network of its own.
  parts = {
    f'{place}.{release.backbone(tensors.below(place)).prefix}'.strip('.')
    for place, release in whole.items()
  }
  alone = {
    place: family
    for family in reversed(_FAMILIES)
    for place in family.places(tensors)
    if place not in parts
  }
  return alone | whole


def _family(path: pathlib.Path, part: str | None) -> tuple[_Family, str | None]:
  """What the encoder of a folder or file is, and where it begins in it."""
  kind = _model_type(path)
  if kind == 'resnet':
    _read(path)
    return _RESNET, part
  if kind is not None:
    return _VIT, part  # config.json says it all
  found = _released(path, part)
  if found is not None:
    return _released_family(found), part
  networks = _networks(_read(path))
  place = tensors_lib.choose(path, networks, part)
  return networks.get(place, _VIT), place if networks else part


def _model_type(path) -> str | None:
  """What config.json calls the encoder."""
  return _json(path / 'config.json').get('model_type')


def _json(file) -> dict[str, Any]:
  """The fields of a file of a folder; none without such a file."""
  if not file.exists():
    return {}
  try:
    fields = json.loads(file.read_text())
  except ValueError as error:
    raise InputError(f'{file} is no configuration ({error})') from error
  if not isinstance(fields, dict):
    raise InputError(f'{file} is no configuration: expected {{...}}')
  return fields
