# SPDX-License-Identifier: Apache-2.0
"""An image with what was detected in it and the ellipsoids that explain it."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.report import figures
from i2ploc.report import templates

# More names in one picture would cover it; they appear under the pointer.
_MOST_NAMED = 8
# Of a picture, pixels: photographs of 4:3 need not fill the page.
_TALLEST = 420


def open_image(path: pathlib.Path, upright: bool = True) -> np.ndarray | None:
  """uint8 [H, W, 3], or None if the file is gone or broken.

  Args:
    path: of the file.
    upright: whether its EXIF turns it, see `image_files.read_oriented`.
  """
  try:
    return image_files.read_oriented(path, upright).pixels
  except InputError:
    return None


def drawing(
  image: np.ndarray | None,
  boxes: Sequence[Sequence[float]],
  outlines: Sequence[Mapping[str, Any]],
  image_size: tuple[int, int],
  width: int,
) -> templates.Markup:
  """Boxes in grey, outlines of ellipsoids in colour, over the image.

  Args:
    image: uint8 [H, W, 3] of any size; None is drawn black.
    boxes: [M][4] left, top, right, bottom, pixels of `image_size`.
    outlines: `name`, `overlap` and `points` [[x, y], ...] of each.
    image_size: (height, width) that boxes and points refer to.
    width: pixels of the drawing.
  """
  scale = width / image_size[1]
  height = scale * image_size[0]
  ellipses = [
    {**one, 'points': scale * np.array(one['points'])} for one in outlines
  ]
  return templates.render(
    'boxes.html',
    width=width,
    height=round(height),
    limit=round(_TALLEST / height * width),
    uri=None if image is None else figures.image_uri(image, width),
    boxes=scale * np.reshape(np.array(boxes, float), (-1, 4)),
    outlines=ellipses,
    named=len(ellipses) <= _MOST_NAMED,
  )
