# SPDX-License-Identifier: Apache-2.0
"""Image files as queries, for all tasks.

A query without a camera of its own is taken for one of the map's camera, whose
intrinsics are scaled to the size of the file; an image of another shape cannot
be one, see `resizing.is_resize`. Boxes of a detector lie in a file beside the
images.
"""

import collections
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import glob
import math
import pathlib
from typing import NamedTuple

import numpy as np

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import resizing
from i2ploc.localization import answer
from i2ploc.objects import detections as detections_lib
from i2ploc.objects import files as detection_files
from i2ploc.photos import listing

# Where the boxes of a folder's images are looked for.
DETECTION_FILES = ('detections.npz', 'detections.json')


class Camera(NamedTuple):
  """The camera that queries come from unless they bring their own.

  Attributes:
    lens: of images of `image_size`.
    image_size: (height, width), pixels.
  """

  lens: lens_lib.Lens
  image_size: tuple[int, int]


def read_queries(
  patterns: Sequence[str],
  *,
  intrinsics: Sequence[str | float] = (),
  camera: Camera | None = None,
  with_boxes: bool = False,
  length: int = 1,
  near: Sequence[str | float] = (),
) -> Iterator[answer.Query]:
  """Reads image files one by one.

  Args:
    patterns: image files, folders of them, or patterns; those of one pattern
      or folder in natural order (2 before 10).
    intrinsics: fx, fy, cx, cy in pixels of the files as one sees them, the
      centre of the top-left pixel at (0.5, 0.5); () if `camera` took them.
    camera: of the map; None where no calibration is needed.
    with_boxes: whether boxes are needed, from `DETECTION_FILES` beside the
      image; see `objects.files` for their formats.
    length: images of a query: each file asks together with the files of its
      folder that were read just before it, `length` - 1 at most. The first
      file of a folder has none.
    near: about where all of them were taken, and how surely: metres east and
      north in the map, radius in metres; () if unknown.

  Yields:
    Queries, one per file, in order.

  Raises:
    MissingFileError: no file of this name, or no boxes beside it.
    InputError: no query, a rough position that is none, a file that is no image
      (see `image_files`), one of another shape than the map's camera without
      intrinsics of its own, or boxes that do not name the image, or are of an
      image of another size.
  """
  if not patterns:
    raise InputError('No query: give image files with --query=PATH.')
  if length < 1:
    raise InputError(f'length={length} images of a query; expected 1 or more.')
  own, prior = _lens(intrinsics, camera), _prior(near)
  # Images of a folder share a file of boxes.
  load = functools.cache(detection_files.read_content)
  recent: collections.deque[answer.Query] = collections.deque()
  folder = None
  for path in [path for pattern in patterns for path in _files(pattern)]:
    image = image_files.read_image(path)
    lens = own
    if lens is None and camera is not None:
      lens = _scaled(path, camera, image.shape[:2])
    detections = (
      _beside(pathlib.Path(path), image, load) if with_boxes else None
    )
    query = answer.Query(path, image, lens, prior, detections)
    if pathlib.Path(path).parent != folder:
      recent.clear()
    folder = pathlib.Path(path).parent
    yield query._replace(previous=tuple(recent))
    recent.append(query)
    if len(recent) == length:
      recent.popleft()


def _files(pattern: str) -> list[str]:
  """The files of a pattern or a folder; the pattern itself if there are none.

  Whoever reads it then says that there is no such file.
  """
  folder = pathlib.Path(pattern)
  if folder.is_dir():
    found = [
      str(path)
      for path in folder.iterdir()
      if path.suffix.lower() in image_files.SUFFIXES
    ]
    if not found:
      raise InputError(f'{pattern}: no images in this folder.')
  else:
    found = glob.glob(pattern) or [pattern]
  return sorted(found, key=listing.natural)


def _prior(near) -> answer.Prior:
  """What a rough position says."""
  if not near:
    return answer.UNKNOWN
  try:
    east, north, radius = map(float, near)
  except ValueError:
    east = north = radius = math.nan
  if not (math.isfinite(east) and math.isfinite(north) and radius > 0):
    raise InputError(
      f'near={",".join(map(str, near))}: expected east,north,radius, metres in'
      ' the map.'
    )
  return answer.Prior(position=np.array([east, north]), radius=radius)


def _lens(intrinsics, camera) -> lens_lib.Lens | None:
  """The queries' own camera, of the map camera's kind; None if not given."""
  if not intrinsics:
    return None
  try:
    fx, fy, cx, cy = map(float, intrinsics)
  except ValueError:
    raise InputError(
      f'intrinsics={",".join(map(str, intrinsics))}: expected fx,fy,cx,cy.'
    ) from None
  around = camera is not None and camera.lens.model == 'equirectangular'
  lens = lens_lib.Lens(
    'equirectangular' if around else 'pinhole',
    np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]),
  )
  lens_lib.check_lens(lens)
  return lens


def _scaled(path, camera: Camera, size: tuple[int, int]) -> lens_lib.Lens:
  """The map's lens for an image (height, width) that it took."""
  if not resizing.is_resize(camera.image_size, size):
    height, width = camera.image_size
    raise InputError(
      f"{path} is {size[1]} x {size[0]} pixels, not of the shape of the map's"
      f' camera, {width} x {height}: it was cropped, stretched or taken by'
      ' another camera. Give its own camera with --intrinsics=fx,fy,cx,cy.'
    )
  return resizing.resize_lens(camera.lens, camera.image_size, size)


def _beside(path, image, load) -> detections_lib.Detections:
  """The boxes of an image, from the file in its folder."""
  candidates = [path.with_name(name) for name in DETECTION_FILES]
  file = next((file for file in candidates if file.is_file()), None)
  if file is None:
    raise MissingFileError(
      f'{path}: no boxes; put {" or ".join(DETECTION_FILES)} beside it (COCO,'
      ' OA-SLAM or npz, see i2ploc.objects.files).'
    )
  content = load(file)
  if path.name not in content.images():
    raise InputError(
      f'{file} does not name {path.name}; it has'
      f' {sorted(content.images())[:3]}.'
    )
  # Each image may have a size of its own.
  found = detection_files.collect(content.only(path.name), image.shape[:2])
  return found.frames[path.name]
