# SPDX-License-Identifier: Apache-2.0
"""KITTI odometry and KITTI-360 as one dataset, as LIP-Loc's exp_combined.

One list names the sequences of both: numbers of one or two digits are KITTI
odometry's, of three or four KITTI-360's, as in '00[:3000]+05+0003'. A list of
one dataset alone is allowed: train on '03+04', test on '0000', and the model is
tested on a camera and on towns that it never saw.

'lip_loc/combined' is exp_combined, with a validation and a test sequence that
it does not train on. 'lip_loc/maximum' trains on all of KITTI and is tested,
and the checkpoint chosen, on KITTI-360 alone. All names of
`kitti_odometry_splits` and `kitti360_splits` are known as well.

KITTI-360 is read as image_00 and single sweeps here: what both cars have.
"""

import pathlib

from input_pipeline import schema
from input_pipeline.readers import joined
from input_pipeline.readers import kitti360
from input_pipeline.readers import kitti360_splits
from input_pipeline.readers import kitti_odometry
from input_pipeline.readers import kitti_odometry_splits
from input_pipeline.readers import splits

_ODOMETRY = kitti_odometry_splits.PUBLISHED
PUBLISHED = (
  _ODOMETRY
  | kitti360_splits.PUBLISHED
  | {
    'lip_loc/combined/train': (
      f'{_ODOMETRY["lip_loc/largest/train"]}'
      '+0002+0003+0004+0005+0006+0007+0009+0010'
    ),
    'lip_loc/combined/validation': '10',
    'lip_loc/combined/test': '08+09+0000',
    'lip_loc/maximum/validation': '0002[:1500]',
    'lip_loc/maximum/test': '0000',
  }
)


def _sequence(text: str) -> str | None:
  width = 2 if len(text) < 3 else 4
  return splits.numbered(width)(text)


GRAMMAR = splits.Grammar(
  dataset='KITTI and KITTI-360',
  sequence=_sequence,
  example="'00[:3000]+05+0003' (two digits: KITTI odometry; four: KITTI-360)",
  published=PUBLISHED,
)


def load(
  root: str | pathlib.Path,
  split: str,
  *,
  kitti360_dir: str | pathlib.Path = '',
  camera: int = 2,
  poses_dir: str | pathlib.Path = '',
  query_spacing: float = 3.0,
) -> schema.Dataset:
  """Loads the frame tables of sequences of both; sensors are read lazily.

  Args:
    root: the folder that holds KITTI odometry's `sequences`, and KITTI-360's
      `data_2d_raw` and so on, if these have no folder of their own.
    split: see the module.
    kitti360_dir: KITTI-360's own folder.
    camera: of KITTI odometry, 0 to 3.
    poses_dir: of KITTI odometry, see `kitti_odometry.load`.
    query_spacing: metres, of the rules 'spaced' and 'disjoint'.

  Returns:
    A dataset; every sequence is a town of its own, KITTI odometry's first.

  Raises:
    MissingFileError: a folder, calibration or pose file is missing.
    InputError: a file does not hold what it should; the message names it.
  """
  wanted = GRAMMAR.parse(split)
  kitti = wanted.only(lambda sequence: len(sequence) == 2)
  rest = wanted.only(lambda sequence: len(sequence) == 4)
  parts = []
  if kitti.parts:
    parts.append(
      kitti_odometry.load(
        root,
        str(kitti),
        camera=camera,
        poses_dir=poses_dir,
        query_spacing=query_spacing,
      )
    )
  if rest.parts:
    parts.append(
      kitti360.load(
        kitti360_dir or root, str(rest), query_spacing=query_spacing
      )
    )
  return joined.join(f'kitti_and_kitti360/{split}', parts)
