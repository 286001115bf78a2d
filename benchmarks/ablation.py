# SPDX-License-Identifier: Apache-2.0
"""What each part of the method earns: the table of docs/results.md.

Trains every row with as many pairs on synthetic_city, once per seed, and
evaluates it on the test towns; see `study`.

python benchmarks/ablation.py --workdir=runs/ablation --data_dir=demo/data \
  --jobs=2 --page=docs/results.md
"""

import pathlib
import sys

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import study

CONFIG = 'saliency_i2ploc.py'
RELATION = 'loss.relation_weights'
ROWS = {
  'ours': study.Row('ours', CONFIG),
  'no_saliency': study.Row('without saliency', f'{CONFIG}:saliency=none'),
  'released_saliency': study.Row(
    'released saliency (a sigmoid)', f'{CONFIG}:saliency=released'
  ),
  'all_tokens': study.Row(
    'NetVLAD over all tokens, as in the paper',
    f'{CONFIG}:aggregator=netvlad',
  ),
  'euclidean': study.Row(
    '+ Euclidean relations', CONFIG, {RELATION: '(1.0, 0.0, 0.0)'}
  ),
  'angle': study.Row(
    '+ angle relations (released: weight 2)',
    CONFIG,
    {RELATION: '(0.0, 2.0, 0.0)'},
  ),
  'hyperbolic': study.Row(
    '+ hyperbolic relations, features before normalisation',
    CONFIG,
    {RELATION: '(0.0, 0.0, 1.0)', 'loss.curvature': '1.0'},
  ),
  'same_drive': study.Row(
    'pairs of one drive only, as in the paper',
    CONFIG,
    {'data.cross_drive': '0.0', 'data.max_offset': '0.0'},
  ),
  'no_poses': study.Row(
    'near places are negatives, as in the paper',
    CONFIG,
    {'loss.ignore_radius': '0.0'},
  ),
  'batch_norm': study.Row(
    'BatchNorm in the NetVLAD head',
    CONFIG,
    {
      'model.aggregator.norm': 'batch',
      'model.aggregator.output_batch_norm': 'True',
    },
  ),
  'yaw': study.Row(
    'pairs turned by up to 0.2 radians', CONFIG, {'train.yaw': '0.2'}
  ),
  'small_batch': study.Row('batches of 16', CONFIG, {'train.batch_size': '16'}),
  'large_batch': study.Row(
    'batches of 256 through the gradient cache',
    CONFIG,
    {
      'train.batch_size': '256',
      'train.num_chunks': '4',
      'optimizer.warmup_steps': '12',  # as many pairs as the others
    },
  ),
  'adamw': study.Row(
    'AdamW for matrices too',
    CONFIG,
    {
      'optimizer.matrix_learning_rate': '0.0',
      'optimizer.weight_decay': '0.05',
    },
  ),
  'points': study.Row(
    'point groups, as in the paper, instead of range images',
    f'{CONFIG}:lidar=points',
  ),
  'panorama': study.Row(
    'panoramas, sectors turned for headings',
    f'{CONFIG}:camera=panorama',
  ),
  'ae_spherical': study.Row('AE-Spherical-like, triplets', 'ae_spherical.py'),
}
COLUMNS = {
  'cross R@1': study.RECALL,
  'R@5': 'test/cross/image_to_points/recall@5_10m',
  'R@1, 3 frames': f'{study.RECALL}_3_frames',
  'opposite R@1': 'test/opposite/image_to_points/recall@1_10m',
  'image saliency on movable': 'test/saliency/image/movable_share',
  'points saliency on movable': 'test/saliency/points/movable_share',
}
STUDY = study.Study(
  name='ablation',
  title='SaliencyI2PLoc, test towns, within 10 m, %',
  rows=ROWS,
  columns=COLUMNS,
)


if __name__ == '__main__':
  study.main(STUDY)
