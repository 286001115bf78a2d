# SPDX-License-Identifier: Apache-2.0
"""Image files as people have them: any format, depth and orientation.

An image is uint8 RGB and upright as EXIF says. Grey gets three equal channels,
more than 8 bits and floats become 8 (see `image_levels`), transparency is
dropped (the colours behind it stay), CMYK is converted, of an animation the
first picture is taken. What is not an image, too small to show anything or too
large to be meant raises an error that names the file.
"""

import math
import os
import pathlib
import re
import sys
from typing import NamedTuple
import warnings

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import PpmImagePlugin
from PIL import TiffImagePlugin

from i2ploc import image_levels
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError

SUFFIXES = (
  *('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm'),
  *('.tif', '.tiff', '.webp'),
)
MIN_SIDE = 16  # pixels
MAX_PIXELS = 178_956_970  # 512 MiB as RGB; Pillow's own limit
# Pillow warns of attacks from half of that on; ours is the limit.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
# Pillow's names.
_MODES = (
  *('1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX'),
  *('CMYK', 'YCbCr', 'I', 'F', 'I;16', 'I;16L', 'I;16B'),
)
# Pillow takes the high byte of colours of 16 bits. The low one is the high one
# of the other order of bytes; of grey with alpha, one of four channels.
_NATIVE = 'L' if sys.byteorder == 'little' else 'B'
_OTHER_ORDER = {'B': 'L', 'L': 'B', 'N': 'B' if _NATIVE == 'L' else 'L'}
_GREY_ALPHA = 'LA;16B'
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_ON_ITS_SIDE = (5, 6, 7, 8)  # EXIF's orientations


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


class Oriented(NamedTuple):
  """An image and how its file has it.

  Attributes:
    pixels: uint8 [H, W, 3].
    orientation: EXIF's, 1 to 8, by which these pixels were turned out of the
      file's; 1 for not at all.
  """

  pixels: np.ndarray
  orientation: int


def read_image(path: str | os.PathLike, at_least: int = 0) -> np.ndarray:
  """The image uint8 [H, W, 3] of a file, upright.

  Args:
    path: of the file.
    at_least: pixels of either side that are enough: a JPEG of a camera is then
      decoded at a fraction of its size; 0 for all of them.

  Raises:
    MissingFileError: there is no such file.
    InputError: it does not decode, is too small or too large, or its levels
      have no known white.
  """

  def take(image):
    if at_least:
      image.draft('RGB', (at_least, at_least))
    return _oriented(path, image, upright=True).pixels

  return _open(path, take)


def read_oriented(path: str | os.PathLike, upright: bool = True) -> Oriented:
  """The image of a file, and how it was turned.

  Args:
    path: of the file.
    upright: whether the orientation of its EXIF counts; otherwise the pixels
      lie as in the file.

  Raises:
    MissingFileError: as `read_image`.
    InputError: as `read_image`.
  """
  return _open(path, lambda image: _oriented(path, image, upright))


def read_header(path: str | os.PathLike) -> Header:
  """The header of an image file; no pixel is decoded.

  Raises:
    MissingFileError: there is no such file.
    InputError: it is no image, too small or too large, or of an unknown kind.
  """
  return _open(path, _header)


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """Pixels [H, W, ...] of a file as one sees them, by EXIF's orientation."""
  if orientation in _ON_ITS_SIDE:
    pixels = pixels.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    pixels = pixels[::-1]
  if orientation in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  return np.ascontiguousarray(pixels)


def raw_mode(image: Image.Image) -> str:
  """How the samples lie in an open file, as Pillow calls it.

  Such as 'RGB;16B', which Pillow reads as RGB of 8 bits; '' where it has no
  name, or several.
  """
  found = {_raw_mode_of(tile) for tile in getattr(image, 'tile', ())}
  return found.pop() if len(found) == 1 else ''


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
  except Image.DecompressionBombError as error:
    (count, *_) = re.findall(r'\d+', str(error))
    raise InputError(
      f'{path}: {int(count) / 1e6:.0f} megapixels, expected at most '
      f'{MAX_PIXELS // 10**6}; store it smaller.'
    ) from error
  # Damaged files make Pillow raise almost anything.
  except Exception as error:
    text = str(error).replace(f' {str(path)!r}', '')
    text = ' '.join(text.replace(str(path), 'the file').split())
    raise InputError(f'{path} is not a readable image: {text}') from error


def _check(image: Image.Image) -> None:
  if image.mode not in _MODES:
    raise InputError(
      f'mode {image.mode}, expected grey or colours, of 8 or 16 bits or floats'
    )
  if min(image.size) < MIN_SIDE:
    raise InputError(
      f'{image.width} x {image.height} pixels, expected at least {MIN_SIDE} on '
      'either side'
    )


def _oriented(path, image: Image.Image, upright: bool) -> Oriented:
  # Before it is loaded: Pillow itself turns a TIFF, and forgets that it did.
  said = _orientation(Image.Image.getexif(image))
  pixels = _pixels(path, image)
  if image.format == 'TIFF':
    if not upright:
      # Those that turn by a quarter are undone by each other.
      pixels = turn(pixels, {6: 8, 8: 6}.get(said, said))
  else:
    said = _orientation(image.getexif())  # a PNG may say it behind its pixels
    if upright:
      pixels = turn(pixels, said)
  return Oriented(pixels, said if upright else 1)


def _orientation(exif: Image.Exif) -> int:
  found = exif.get(ExifTags.Base.Orientation)
  return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _pixels(path, image: Image.Image) -> np.ndarray:
  """uint8 [H, W, 3], as Pillow loads it."""
  white, raw = _white(image), raw_mode(image)
  if image.mode == 'F':
    grey = image_levels.from_floats(np.asarray(image))
  elif image.mode.startswith('I'):
    grey = image_levels.from_integers(np.asarray(image), white)
  elif raw == _GREY_ALPHA:
    grey = image_levels.from_integers(_both_bytes(path, image)[..., 0])
  elif raw.startswith('RGB') and ';16' in raw:
    return image_levels.from_integers(_both_bytes(path, image))
  else:
    return np.array(image.convert('RGB'))
  return np.repeat(grey[..., None], 3, 2)


def _raw_mode_of(tile) -> str:
  arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
  return arguments[0] if isinstance(arguments[0], str) else ''


def _white(image: Image.Image) -> int | None:
  """The level of white, if the file says one below the 16 bits around it."""
  if isinstance(image, TiffImagePlugin.TiffImageFile):
    (bits, *_) = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))
    return (1 << bits) - 1 if bits < 16 else None
  if isinstance(image, PpmImagePlugin.PpmImageFile):
    arguments = image.tile[0].args
    # What says another white than 65535 goes through a decoder that scales it.
    scaled = isinstance(arguments, tuple) and arguments[1] != 65535
    return 65535 if scaled else None
  return None


def _both_bytes(path, image: Image.Image) -> np.ndarray:
  """uint16 [H, W, C] of colours of 16 bits, of which Pillow takes half."""
  with Image.open(path) as again:
    again.tile = [
      tile._replace(args=_with_low_bytes(tile.args)) for tile in again.tile
    ]
    low = np.asarray(again)
  if raw_mode(image) == _GREY_ALPHA:
    high, low = low[..., :1], low[..., 1:2]
  else:
    high, low = np.asarray(image)[..., :3], low[..., :3]
  return high.astype(np.uint16) << 8 | low


def _with_low_bytes(arguments):
  if isinstance(arguments, tuple):
    return (_with_low_bytes(arguments[0]), *arguments[1:])
  if arguments == _GREY_ALPHA:
    return 'RGBA'  # high and low byte of grey and of alpha
  return arguments[:-1] + _OTHER_ORDER[arguments[-1]]


def _header(image: Image.Image) -> Header:
  # A PNG's own method decodes the pixels to see whether EXIF follows them.
  exif = Image.Image.getexif(image)
  height, width = image.height, image.width
  # Of a TIFF, Pillow gives the size as one sees it.
  if image.format != 'TIFF' and _orientation(exif) in _ON_ITS_SIDE:
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
