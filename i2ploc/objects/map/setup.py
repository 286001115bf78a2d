# SPDX-License-Identifier: Apache-2.0
"""What object maps were made with: the file beside them."""

from collections.abc import Mapping
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from i2ploc.objects import association

FILE = 'maps/setup.json'


class Setup(NamedTuple):
  """What maps were made with, and are to be asked with.

  Attributes:
    lens: of the queries' camera.
    image_size: (height, width).
    categories: names of the detector's numbers.
    calibration: by place, see `association.Calibration`.
    encoder: name of the encoder of the descriptors; '' for none.
    config: of the run that made the maps; {} of maps that do not say.
  """

  lens: lens_lib.Lens
  image_size: tuple[int, int]
  categories: tuple[str, ...]
  calibration: Mapping[str, association.Calibration]
  encoder: str
  config: Mapping[str, Any] = {}


def save_setup(setup: Setup, workdir: str) -> None:
  """Writes maps/setup.json of a workdir."""
  content = {
    'lens': {
      'model': setup.lens.model,
      'intrinsics': np.asarray(setup.lens.intrinsics).tolist(),
      'distortion': setup.lens.coefficients.tolist(),
    },
    'image_size': list(setup.image_size),
    'categories': list(setup.categories),
    'calibration': {
      name: one._asdict() for name, one in setup.calibration.items()
    },
    'encoder': setup.encoder,
    'config': setup.config,
  }
  files.save_json(pathlib.Path(workdir) / FILE, content)


def load_setup(workdir: str) -> Setup:
  """What `index` wrote beside the maps of a workdir.

  Raises:
    MissingFileError: there are no maps.
    InputError: the file is damaged.
  """
  path = pathlib.Path(workdir) / FILE
  content = files.load_json(path, 'run --mode=index')
  try:
    lens = lens_lib.Lens(
      content['lens']['model'],
      np.asarray(content['lens']['intrinsics'], np.float64).reshape(3, 3),
      np.asarray(content['lens']['distortion'], np.float64),
    )
    return Setup(
      lens,
      tuple(content['image_size']),
      tuple(content['categories']),
      {
        name: association.Calibration(tuple(one['offsets']), one['slope'])
        for name, one in content['calibration'].items()
      },
      content['encoder'],
      content.get('config', {}),
    )
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(
      f'{path} is damaged ({error}): run --mode=index again.'
    ) from error
