# SPDX-License-Identifier: Apache-2.0
"""Photos of any size as small pictures of a page, each read once."""

from collections.abc import Sequence
import functools
import pathlib

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.report import figures


class Thumbnails:
  """Finds image files and shrinks them; what cannot be read is None."""

  def __init__(self, folders: Sequence[pathlib.Path]):
    """Keeps where names are looked for, in this order."""
    self._folders = tuple(folders)
    self._drawn = functools.cache(_drawn)

  def uri(self, name: str, width: int) -> str | None:
    """A photo as a data URI, not wider than asked; None if it is gone.

    Args:
      name: a path, or one below a folder of this object.
      width: pixels.
    """
    for folder in self._folders if name else ():
      path = folder / name
      if path.is_file() and (uri := self._drawn(path, width)) is not None:
        return uri
    return None


def _drawn(path: pathlib.Path, width: int) -> str | None:
  try:
    picture = image_files.read_image(path, at_least=2 * width)
  except InputError:
    return None
  return figures.image_uri(picture, width)
