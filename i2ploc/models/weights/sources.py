# SPDX-License-Identifier: Apache-2.0
"""Published weights for whatever towers a config has made."""

import pathlib

from i2ploc.errors import InputError
from i2ploc.models import aggregators
from i2ploc.models import projection
from i2ploc.models import towers as towers_lib
from i2ploc.models.encoders import resnet
from i2ploc.models.weights import lip_loc
from i2ploc.models.weights import resnet as resnet_lib
from i2ploc.models.weights import saliency_i2ploc
from i2ploc.models.weights import vit

# Whose checkpoints fit which aggregator.
METHODS = {
  aggregators.NetVLAD: saliency_i2ploc,
  projection.ProjectionHead: lip_loc,
}


def with_encoders(
  path: str | pathlib.Path, model: towers_lib.TwoTower, variables: dict
) -> dict:
  """Variables whose image encoder is that of a checkpoint.

  The LiDAR's too, if its range images have the three channels of an image.

  Args:
    path: a folder or file, see `pretrained_vit` and `pretrained_resnet`.
    model: the towers.
    variables: of them, its collections first; not changed.

  Returns:
    A copy with other 'image' and 'points', in every collection.

  Raises:
    MissingFileError: nothing there.
    InputError: it does not fit the encoders.
  """
  towers = {'image': (model.image, model.image_size)}
  if model.range_shape and model.range_encoding == 'released':
    towers['points'] = model.points, model.range_shape
  variables = {name: dict(tree) for name, tree in variables.items()}
  for tower, (encoder, size) in towers.items():
    if isinstance(encoder, resnet.ResNet):
      loaded = resnet_lib.load_resnet_variables(path, encoder)
    else:
      loaded = vit.load_vit_variables(path, encoder, size)
    for name, tree in loaded.items():
      variables[name][tower] = tree
  return variables


def load_two_tower_variables(
  path: str | pathlib.Path,
  model: towers_lib.TwoTower,
  batch: towers_lib.Batch,
) -> dict:
  """The authors' checkpoint of the method that `model` belongs to.

  Args:
    path: of LIP-Loc for towers with its projection head, of SaliencyI2PLoc for
      those with NetVLAD.
    model: the towers, in their released form.
    batch: one that `model` takes.

  Returns:
    The variables, numpy arrays.

  Raises:
    MissingFileError: nothing there.
    InputError: it does not fit, or the towers are of no published form.
  """
  for aggregator, method in METHODS.items():
    if isinstance(model.image_aggregator, aggregator):
      return method.load_two_tower_variables(path, model, batch)
  raise InputError(
    f'{path}: nobody published towers with a '
    f'{type(model.image_aggregator).__name__}; take a config in its released '
    f'form, with one of {[kind.__name__ for kind in METHODS]}'
  )
