# SPDX-License-Identifier: Apache-2.0
"""Image files as people have them: any format, depth and orientation.

An image is uint8 RGB and upright as EXIF says. Grey gets three equal channels,
16 bits become 8, transparency is dropped (the colours behind it stay), CMYK is
converted, of an animation the first picture is taken. What is not an image, or
too small to show anything, raises an error that names the file.
"""

import math
import os
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError

SUFFIXES = (
  *('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm'),
  *('.tif', '.tiff', '.webp'),
)
MIN_SIDE = 16  # pixels
# Pillow's names. Others, such as 32-bit floats, have no known white.
_MODES = (
  *('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr'),
  *('I;16', 'I;16L', 'I;16B'),
)


class Gps(NamedTuple):
  """Where a photo was taken, as its EXIF says.

  Attributes:
    latitude: degrees, north.
    longitude: degrees, east.
    altitude: metres; NaN if it does not say.
    heading: degrees clockwise from north; NaN if it does not say.
  """

  latitude: float
  longitude: float
  altitude: float = math.nan
  heading: float = math.nan


class Header(NamedTuple):
  """What an image file says without its pixels.

  Attributes:
    image_size: (H, W), pixels, of the upright image.
    gps: None if there is none.
  """

  image_size: tuple[int, int]
  gps: Gps | None


def read_image(path: str | os.PathLike) -> np.ndarray:
  """The image uint8 [H, W, 3] of a file.

  Raises:
    MissingFileError: there is no such file.
    InputError: it does not decode, is too small, or of an unknown depth.
  """
  return _open(path, _pixels)


def read_header(path: str | os.PathLike) -> Header:
  """The header of an image file; no pixel is decoded.

  Raises:
    MissingFileError: there is no such file.
    InputError: it is no image, too small, or of an unknown depth.
  """
  return _open(path, _header)


def _open(path, take):
  path = pathlib.Path(path)
  if not path.is_file():
    raise MissingFileError(f'{path}: no such image file.')
  if not path.stat().st_size:
    raise InputError(f'{path}: an empty file.')
  try:
    with Image.open(path) as image:
      _check(image)
      return take(image)
  except MemoryError:
    raise
  # Damaged files make Pillow raise almost anything.
  except Exception as error:
    text = str(error).replace(f' {str(path)!r}', '')
    text = ' '.join(text.replace(str(path), 'the file').split())
    raise InputError(f'{path} is not a readable image: {text}') from error


def _check(image: Image.Image) -> None:
  if image.mode not in _MODES:
    raise InputError(f'mode {image.mode}, expected 8 or 16 bits a channel')
  if min(image.size) < MIN_SIDE:
    raise InputError(
      f'{image.width} x {image.height} pixels, expected at least {MIN_SIDE} on '
      'either side'
    )


def _pixels(image: Image.Image) -> np.ndarray:
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith('I;16'):
    # Pillow would cut off at 255.
    levels = np.asarray(image).astype(np.uint32)
    image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
  return np.array(image.convert('RGB'))


def _header(image: Image.Image) -> Header:
  # A PNG's own method decodes the pixels to see whether EXIF follows them.
  exif = Image.Image.getexif(image)
  height, width = image.height, image.width
  if exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8):  # on its side
    height, width = width, height
  return Header((height, width), _gps(exif.get_ifd(ExifTags.IFD.GPSInfo)))


def _gps(entries: dict) -> Gps | None:
  """The position of EXIF's GPS entries, if they hold one."""
  tags = ExifTags.GPS
  latitude = _degrees(
    entries.get(tags.GPSLatitude), entries.get(tags.GPSLatitudeRef), 'NS', 90
  )
  longitude = _degrees(
    entries.get(tags.GPSLongitude), entries.get(tags.GPSLongitudeRef), 'EW', 180
  )
  # Cameras without a fix write zeros.
  if latitude is None or longitude is None or latitude == longitude == 0:
    return None
  altitude = _number(entries.get(tags.GPSAltitude))
  if entries.get(tags.GPSAltitudeRef) in (1, b'\x01'):  # below the sea
    altitude = -altitude
  heading = _number(entries.get(tags.GPSImgDirection))
  return Gps(latitude, longitude, altitude, heading)


def _degrees(parts, reference, signs: str, limit: float) -> float | None:
  """Degrees of (degrees, minutes, seconds) and a letter; None if broken."""
  if not isinstance(parts, tuple) or len(parts) != 3:
    return None
  if not isinstance(reference, str) or reference not in signs or not reference:
    return None
  degrees, minutes, seconds = map(_number, parts)
  value = degrees + minutes / 60 + seconds / 3600
  if not 0 <= value <= limit:  # false of NaN, too
    return None
  return value if reference == signs[0] else -value


def _number(value) -> float:
  """A float; NaN of 0 / 0, of nothing and of what is no number."""
  try:
    number = float(value)
  except (TypeError, ValueError, ZeroDivisionError):
    return math.nan
  return number if math.isfinite(number) else math.nan
