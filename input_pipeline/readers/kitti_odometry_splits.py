# SPDX-License-Identifier: Apache-2.0
"""The papers' splits of KITTI odometry, by name; the grammar is `splits`'.

Sequences are numbers, '05' or '5'. 11-21 have no official poses: SemanticKITTI
publishes some by SLAM (SuMa), as sequences/<sequence>/poses.txt.

LIP-Loc's training lists are those of its released code, to the sequence: large
is exp_large, larger is exp_larger and exp_larger_uncropped, largest is
exp_largest and exp_largest_vit, maximum is exp_maximum_vit. It validates on a
random fifth of the frames of the training sequences, which are about a metre
from trained ones: such a validation measures memory. Here it is a sequence that
none of them trains on, 10. Maximum leaves none over, not even the test's 08 and
09: it is a model to be tested on KITTI-360 (`kitti_and_kitti360`) alone.

RangeBEV's and CMVM's lists are as they publish them; 'rangebev/test' is also
the list of the loop-closure papers (LoGG3D-Net, Locus, ScanContext). ModaLink's
code trains on the first 3,000 frames of 02 and tests, besides, on the rest of
02, which crosses them: '02[3000:]' is left out of the test. VXP's queries lie
in boxes of UTM coordinates around the test regions; the odometry benchmark has
no such coordinates, and its split has no name here.

No sequence is in two roles.
"""

from input_pipeline.readers import splits

# Frames of each sequence, as the benchmark counts them.
NUM_FRAMES = {
  '00': 4541, '01': 1101, '02': 4661, '03': 801, '04': 271, '05': 2761,
  '06': 1101, '07': 1101, '08': 4071, '09': 1591, '10': 1201, '11': 921,
  '12': 1061, '13': 3281, '14': 631, '15': 1901, '16': 1731, '17': 491,
  '18': 1801, '19': 4981, '20': 831, '21': 2721,
}  # fmt: skip


def _listed(*ranges: tuple[int, int]) -> str:
  """The sequences of inclusive ranges, joined by '+'."""
  numbers = [i for first, last in ranges for i in range(first, last + 1)]
  return '+'.join(f'{number:02d}' for number in numbers)


_LIP_LOC = {
  'large': _listed((3, 7)),
  'larger': _listed((0, 7)),
  'largest': _listed((0, 7), (11, 13), (15, 21)),
}
PUBLISHED = {
  f'lip_loc/{experiment}/{role}': listed
  for experiment, train in _LIP_LOC.items()
  for role, listed in (
    ('train', train),
    ('validation', '10'),
    ('test', '08+09'),
  )
} | {
  'lip_loc/maximum/train': _listed((0, 21)),
  'rangebev/train': _listed((11, 21)),
  'rangebev/validation': '09+10',
  'rangebev/test': '00+02+05+06+07+08',
  'modalink/train': '02[:3000]',
  'modalink/validation': '10',
  'modalink/test': '00+05+06+08',
}
GRAMMAR = splits.Grammar(
  dataset='KITTI odometry',
  sequence=splits.numbered(2),
  example="'00[:3000]+05', 'spaced:03+04', 'disjoint:08'",
  published=PUBLISHED,
)
