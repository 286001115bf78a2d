# SPDX-License-Identifier: Apache-2.0
"""Image files as queries, for all tasks.

A query without a camera of its own is taken for one of the map's camera, whose
intrinsics are scaled to the size of the file; an image of another shape cannot
be one, see `resizing.is_resize`. An image that EXIF turns is turned, and its
camera with it. Boxes of a detector lie in a file beside the images.
"""

import collections
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import glob
import math
import os
import pathlib
from typing import NamedTuple

from absl import logging
import numpy as np

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import resizing
from i2ploc.geometry import turning
from i2ploc.localization import answer
from i2ploc.objects import detections as detections_lib
from i2ploc.objects import files as detection_files
from i2ploc.photos import listing

# Where the boxes of a folder's images are looked for.
DETECTION_FILES = ('detections.npz', 'detections.json')
# Shorter focal lengths, in widths of the image, are in other units: no pinhole
# sees 169 degrees.
_SHORTEST_FOCAL = 0.05
# How much nearer to the middle, in sides of the image, a principal point lies
# in the turned image if it was measured there.
_MEASURED_TURNED = 0.05


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
  upright: bool = True,
) -> Iterator[answer.Query]:
  """Reads image files one by one.

  Args:
    patterns: image files, folders of them, their sub-folders included, or
      patterns; those of one pattern or folder in natural order (2 before 10).
    intrinsics: fx, fy, cx, cy in pixels of the files as they are stored, the
      centre of the top-left pixel at (0.5, 0.5); an image that EXIF turns takes
      them along, so that they are the camera's however it was held. () if
      `camera` took them.
    camera: of the map; None where no calibration is needed.
    with_boxes: whether boxes are needed, from `DETECTION_FILES` beside the
      image; see `objects.files` for their formats.
    length: images of a query: each file asks together with the files of its
      folder that were read just before it, `length` - 1 at most. The first
      file of a folder has none.
    near: about where all of them were taken, and how surely: metres east and
      north in the map, radius in metres; () if unknown.
    upright: whether images are turned as their EXIF says; the first one that
      is turned is said in a line.

  Yields:
    Queries, one per file, in order.

  Raises:
    MissingFileError: no file of this name, or no boxes beside it.
    InputError: no query, a rough position or intrinsics that are none or do
      not fit the image, a file that is no image (see `image_files`), one of
      another shape than the map's camera without intrinsics of its own, or
      boxes that do not name the image or are of one of another size.
  """
  if not patterns:
    raise InputError('No query: give image files with --query=PATH.')
  if length < 1:
    raise InputError(f'length={length} images of a query; expected 1 or more.')
  own, prior = _lens(intrinsics, camera), _prior(near)
  # Images of a folder share a file of boxes.
  load = functools.cache(detection_files.read_content)
  recent: collections.deque[answer.Query] = collections.deque()
  folder, said = None, False
  for path in [path for pattern in patterns for path in _files(pattern)]:
    image, orientation = image_files.read_oriented(path, upright)
    if orientation > 1 and not said:
      said = True
      logging.warning(
        '%s is turned as the orientation %d of its EXIF says, and its camera '
        'with it; so are others. --ignore_orientation takes all as stored.',
        path,
        orientation,
      )
    lens = None
    if own is not None:
      lens = _turned(path, own, image.shape[:2], orientation)
    elif camera is not None:
      lens = _scaled(path, camera, image.shape[:2], orientation)
    detections = (
      _beside(pathlib.Path(path), image, load) if with_boxes else None
    )
    query = answer.Query(path, image, lens, prior, detections, upright=upright)
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
    found = [str(folder / n) for n in listing.list_photos(folder, folder)]
  else:
    found = glob.glob(pattern) or [pattern]
  # Folder by folder: a query's earlier images are of its own.
  return sorted(
    found, key=lambda name: list(map(listing.natural, os.path.split(name)))
  )


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
      f'--near={",".join(map(str, near))}: expected east,north,radius, metres'
      ' in the map.'
    )
  return answer.Prior(position=np.array([east, north]), radius=radius)


def _lens(intrinsics, camera) -> lens_lib.Lens | None:
  """The queries' own camera, of the map camera's kind; None if not given."""
  if not intrinsics:
    return None
  around = camera is not None and camera.lens.model == 'equirectangular'
  try:
    fx, fy, cx, cy = map(float, intrinsics)
    lens = lens_lib.Lens(
      'equirectangular' if around else 'pinhole',
      np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]),
    )
    lens_lib.check_lens(lens)
  except ValueError as error:
    reason = f' ({error})' if isinstance(error, InputError) else ''
    raise InputError(
      f'--intrinsics={",".join(map(str, intrinsics))}: expected fx,fy,cx,cy, '
      f'four numbers in pixels of the files{reason}.'
    ) from None
  return lens


def _turned(
  path, lens: lens_lib.Lens, size: tuple[int, int], orientation: int
) -> lens_lib.Lens:
  """The queries' own camera, of an image (height, width) that was turned.

  Raises:
    InputError: it is the camera of other images than this one.
  """
  if lens.model == 'equirectangular':
    stored = turning.turned_size(size, orientation)
    return _turn(path, lens, stored, orientation)
  height, width = stored = turning.turned_size(size, orientation)
  (fx, _, cx), (_, fy, cy), _ = lens.intrinsics.tolist()
  given = f'--intrinsics={fx:g},{fy:g},{cx:g},{cy:g}'
  if not (0 < cx < width and 0 < cy < height):
    raise InputError(
      f'{given}: the principal point lies outside of {path}, {width} x {height}'
      ' pixels; give the intrinsics of images of this size.'
    )
  if min(fx / width, fy / height) < _SHORTEST_FOCAL:
    raise InputError(
      f'{given}: no camera sees as wide as this in {path}, {width} x {height} '
      'pixels; give focal lengths in pixels.'
    )
  middle = np.array([cx, cy])
  as_stored, as_shown = (
    np.abs(middle / one[::-1] - 0.5).max() for one in (stored, size)
  )
  if as_shown + _MEASURED_TURNED < as_stored:
    raise InputError(
      f'{given} fits {path} as one sees it, {size[1]} x {size[0]} pixels, and '
      f'not as it is stored, {width} x {height}: give the intrinsics of the '
      'stored image, which are turned with it.'
    )
  return _turn(path, lens, stored, orientation)


def _turn(path, lens, stored, orientation) -> lens_lib.Lens:
  try:
    return turning.turn_lens(lens, stored, orientation)
  except InputError as error:
    raise InputError(f'{path}: {error} with --ignore_orientation.') from error


def _scaled(
  path, camera: Camera, size: tuple[int, int], orientation: int
) -> lens_lib.Lens:
  """The map's lens for an image (height, width) that it took.

  An image that has the shape of the map's only in its file was taken with the
  camera on its side.
  """
  stored = turning.turned_size(size, orientation)
  if resizing.is_resize(camera.image_size, size):
    return resizing.resize_lens(camera.lens, camera.image_size, size)
  if resizing.is_resize(camera.image_size, stored):
    lens = resizing.resize_lens(camera.lens, camera.image_size, stored)
    return _turn(path, lens, stored, orientation)
  height, width = camera.image_size
  raise InputError(
    f"{path} is {size[1]} x {size[0]} pixels, not of the shape of the map's"
    f' camera, {width} x {height}: it was cropped, stretched or taken by'
    ' another camera. Give its own camera with --intrinsics=fx,fy,cx,cy.'
  )


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
