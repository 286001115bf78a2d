# SPDX-License-Identifier: Apache-2.0
"""LIP-Loc's recipe against ours: the same encoders, as many pairs.

Trains on synthetic_city, once per seed, and evaluates on the test towns; see
`study`. Between the two ends stand what is easily exchanged.

python benchmarks/lip_loc.py --workdir=runs/lip_loc --data_dir=demo/data \
  --jobs=2 --page=docs/results.md
"""

import pathlib
import sys

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import study

CONFIG = 'lip_loc.py'
ACROSS = {'data.cross_drive': '0.85', 'data.max_offset': '4.0'}
ROWS = {
  'ours': study.Row('ours', CONFIG),
  'head': study.Row(
    'ours, one head of 256 numbers', f'{CONFIG}:aggregator=head'
  ),
  'released': study.Row('as released', f'{CONFIG}:recipe=released'),
  'released_across': study.Row(
    'as released, pairs of different drives',
    f'{CONFIG}:recipe=released',
    ACROSS,
  ),
  'adamw': study.Row(
    'ours, one head, AdamW for matrices too',
    f'{CONFIG}:aggregator=head',
    {'optimizer.matrix_learning_rate': '0.0'},
  ),
}
COLUMNS = {
  'cross R@1': study.RECALL,
  'R@5': 'test/cross/image_to_points/recall@5_10m',
  'points to image R@1': 'test/cross/points_to_image/recall@1_10m',
  'R@1, 3 frames': f'{study.RECALL}_3_frames',
  'sync R@1, 20 m': 'test/sync/image_to_points/recall@1_20m',
}
STUDY = study.Study(
  name='lip_loc',
  title='LIP-Loc, test towns, within 10 m, %',
  rows=ROWS,
  columns=COLUMNS,
)


if __name__ == '__main__':
  study.main(STUDY)
