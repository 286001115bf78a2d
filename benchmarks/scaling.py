# SPDX-License-Identifier: Apache-2.0
"""How recall grows with the number of towns that a model has seen.

LIP-Loc's question of data, on synthetic_city: the same number of steps on 2 to
all of the training towns, once per seed, evaluated on the same test towns; see
`study`.

python benchmarks/scaling.py --workdir=runs/scaling --data_dir=demo/data \
  --jobs=2 --page=docs/results.md
"""

import pathlib
import sys

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import study

CONFIG = 'lip_loc.py'
NUM_TOWNS = (2, 4, 8, 16)
ROWS = {'all': study.Row('all towns', CONFIG)} | {
  str(count): study.Row(
    f'{count} towns', CONFIG, {'data.train': f'train[:{count}]'}
  )
  for count in reversed(NUM_TOWNS)
}
COLUMNS = {
  'cross R@1': study.RECALL,
  'R@5': 'test/cross/image_to_points/recall@5_10m',
  'points to image R@1': 'test/cross/points_to_image/recall@1_10m',
  'sync R@1': 'test/sync/image_to_points/recall@1_10m',
}
STUDY = study.Study(
  name='scaling',
  title='LIP-Loc (ours), test towns, within 10 m, %',
  rows=ROWS,
  columns=COLUMNS,
)


if __name__ == '__main__':
  study.main(STUDY)
