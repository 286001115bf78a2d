# SPDX-License-Identifier: Apache-2.0
"""A folder of photos as a dataset: a database and queries of one or more towns.

What is read and what counts as right: `i2ploc.photos.album`. Photos may be of
any size, depth and orientation (see `i2ploc.image_files`); a model sees them
resized as the config says. Their lens is not known. Opening a folder reads
headers alone: a photo that is none is named then, one that is cut off when it
is read.
"""

from collections.abc import Sequence
import dataclasses
import pathlib

import numpy as np

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.photos import album as album_lib
from input_pipeline import schema


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
  """`schema.Dataset.read` over image files; plain data, hence picklable.

  Compared and hashed by identity, as the function that it stands for.

  Attributes:
    root: of the names.
    names: of each row's file.
  """

  root: pathlib.Path
  names: tuple[str, ...]

  def __call__(
    self, row: int, what: Sequence[str] = ('image',)
  ) -> dict[str, np.ndarray]:
    """Reads a photo; see `schema.Dataset`.

    Raises:
      InputError: the file does not decode, or a scan is asked for.
    """
    if unknown := sorted(set(what) - {'image'}):
      raise InputError(f'Asked for {unknown}; photos have image alone.')
    if 'image' not in what:
      return {}
    return {'image': image_files.read_image(self.root / self.names[row])}


def load(
  root: str | pathlib.Path,
  split: str = album_lib.ALL,
  *,
  database: str = album_lib.DATABASE,
  queries: str = album_lib.QUERIES,
  query_every: int = 0,
  positions: str = '',
) -> schema.Dataset:
  """Loads the frame table of a folder of photos; pixels are read lazily.

  Args:
    root: the folder.
    split: 'all', or names of towns joined by '+'.
    database: name of the folder of photos that answer.
    queries: name of the folder of photos that ask.
    query_every: N > 1: of one folder every N-th photo asks and the others
      answer; 0: all do both.
    positions: '' for those of names or EXIF, 'order', 'none', or a file in the
      folder; see `i2ploc.photos.album`.

  Returns:
    A dataset whose drives are 'database' and 'queries', whatever the folders
    are called, after 'TOWN/' where there are several. A frame's number is its
    place in order of name.

  Raises:
    MissingFileError: a folder or the file of positions is missing.
    InputError: no photos, some that are none, or bad positions.
  """
  root = pathlib.Path(root)
  album = album_lib.open_album(
    root,
    split,
    database=database,
    queries=queries,
    query_every=query_every,
    positions=positions,
  )
  count = len(album.names)
  frames = schema.FrameTable(
    town=album.town,
    drive=album.drive,
    frame=album.frame,
    timestamp=np.full(count, np.nan),
    world_from_body=album_lib.poses(album.positions),
    has_image=np.ones(count, bool),
    has_points=np.zeros(count, bool),
    name=np.array(album.names, str),
  )
  rig = schema.Rig(None, None)
  drives = {album_lib.DATABASE, album_lib.QUERIES, *album.drive.tolist()}
  return schema.Dataset(
    name=f'photos/{root.resolve().name}',
    frames=frames,
    rigs=dict.fromkeys(sorted(drives), rig),
    read=Reader(root, tuple(album.names)),
    queries=album.queries,
    truth=album.truth,
  )
