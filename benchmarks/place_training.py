# SPDX-License-Identifier: Apache-2.0
"""Methods of place recognition, trained alike, where they have never been.

python benchmarks/place_training.py --workdir=runs/places --data_dir=demo/data \
  --steps=60 --page=docs/place_training.md
python benchmarks/place_training.py --workdir=runs/places --table

Every row sees as many images as the first of its table, once per seed, and is
measured on towns, tiles or seasons that no training has seen; see `study` for
what happens to finished and interrupted runs. Tables:

  towns     losses, samplers, sequences and baselines: synthetic_city, queries
            of another drive in other weather, right within 10 m
  mesh      maps that are rendered of the town without textures
  night     queries of the night, with a few photos of it to learn from
  earth     photos from space against satellite tiles: synthetic_earth, right if
            footprints overlap (--steps=300)

The real season, Nordland, is in benchmarks/seasons.py.
"""

import pathlib
import sys

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import study

GSV, SEQUENCES = 'gsv_cities.py', 'seq_vlad.py'
PUBLISHED = 'backbone=efficientnet_lite0@5,aggregator=netvlad'
COLUMNS = {
  'R@1': 'test/cross/{direction}/recall@1_10m',
  'R@5': 'test/cross/{direction}/recall@5_10m',
  'R@20': 'test/cross/{direction}/recall@20_10m',
  'R@1, opposite': 'test/opposite/{direction}/recall@1_10m',
}
TOWNS = study.Study(
  name='towns',
  title='test towns, other weather, within 10 m, %',
  rows={
    'gsv': study.Row('multi-similarity, places x views (GSV-Cities)', GSV),
    'untrained': study.Row('untrained', GSV, study.UNTRAINED),
    'zero_shot': study.Row(
      'zero-shot: EfficientNet-Lite0, VLAD',
      f'{GSV}:backbone=efficientnet_lite0@5,aggregator=vlad',
      {'checkpoint': 'efficientnet_lite0@5'},
      mode='evaluate',
    ),
    'info_nce': study.Row("LIP-Loc's loss", f'{GSV}:loss=info_nce'),
    'published': study.Row(
      'multi-similarity from EfficientNet-Lite0, NetVLAD',
      f'{GSV}:{PUBLISHED}',
    ),
    'cos_place': study.Row('CosPlace', 'cos_place.py'),
    'eigen_places': study.Row('EigenPlaces, panoramas', 'eigen_places.py'),
    'eigen_ahead': study.Row(
      'EigenPlaces, images that look ahead', 'eigen_places.py:panoramas=false'
    ),
    'deep_vg': study.Row('triplets, partial mining (Deep VG)', 'deep_vg.py'),
    'deep_vg_full': study.Row(
      'triplets, full mining', 'deep_vg.py:mining=full'
    ),
    'deep_vg_random': study.Row(
      'triplets, random negatives', 'deep_vg.py:mining=random'
    ),
    'adversary': study.Row(
      'the first row, an adversary on weather',
      GSV,
      {'loss.adversary': '0.1', 'sampling.even_conditions': 'True'},
    ),
    'netvlad': study.Row('NetVLAD, one frame', f'{SEQUENCES}:frames=1'),
    **{
      f'netvlad_{form}': study.Row(
        title,
        f'{SEQUENCES}:fusion={form},aggregator=netvlad',
        start='netvlad',
        start_as='checkpoint',
        mode='evaluate',
      )
      for form, title in (
        ('set', 'the same weights, 5 frames as one set'),
        ('mean', 'the same, mean of 5 descriptors'),
        ('delta', 'the same, Delta of 5'),
        ('concatenation', 'the same, 5 side by side (CAT)'),
      )
    },
    'seq_vlad': study.Row('SeqVLAD, trained on 5 frames', SEQUENCES),
    'transformer': study.Row(
      'a transformer over 5 of NetVLAD, trained',
      f'{SEQUENCES}:fusion=transformer,aggregator=netvlad',
    ),
    'gsv_concatenation': study.Row(
      'the first row, 5 frames side by side',
      f'{SEQUENCES}:fusion=concatenation,aggregator=mixvpr',
      start='gsv',
      start_as='checkpoint',
      mode='evaluate',
    ),
  },
  columns=COLUMNS,
)
RENDERED = {'direction': 'image_to_rendering', 'start': 'gsv'}
MESH = study.Study(
  name='mesh',
  title='map, queries are photos, within 10 m, %',
  rows={
    'gsv': study.Row('photos', GSV),
    'unaligned': study.Row(
      'renderings, the tower of photos',
      'mesh_vpr.py',
      start_as='checkpoint',
      mode='evaluate',
      **RENDERED,
    ),
    'aligned': study.Row(
      'renderings, a tower aligned with it', 'mesh_vpr.py', **RENDERED
    ),
  },
  columns=COLUMNS,
)
NIGHT = study.Study(
  name='night',
  title='maps of the day, queries of the night, within 10 m, %',
  rows={
    'day': study.Row('no photo of the night', 'ada_geo.py:target=0'),
    **{
      f'night_{count}': study.Row(
        f'{count} photos', f'ada_geo.py:target={count}'
      )
      for count in (5, 20, 100)
    },
    'night_adversary': study.Row(
      '20 photos, and an adversary', 'ada_geo.py:target=20,adversary=0.1'
    ),
    'night_plain': study.Row(
      '20 photos, the adversary alone',
      'ada_geo.py:target=20,adversary=0.1,mixing=0',
    ),
  },
  columns=COLUMNS,
)
ONE_VIEW = {'index.views': '(0.0,)'}
EARTH = study.Study(
  name='earth',
  title='test regions, photos in tiles, %',
  rows={
    'earth': study.Row('EarthLoc, map in four rotations', 'earth_loc.py'),
    'earth_one': study.Row(
      'the same, map in one rotation',
      'earth_loc.py',
      ONE_VIEW,
      start='earth',
      start_as='checkpoint',
      mode='evaluate',
    ),
    'earth_disc': study.Row(
      'the same, within 30 km of a rough position',
      'earth_loc.py',
      {'evaluation.disc': '30000.0'},
      start='earth',
      start_as='checkpoint',
      mode='evaluate',
    ),
    'earth_untrained': study.Row('untrained', 'earth_loc.py', study.UNTRAINED),
    'earth_zero_shot': study.Row(
      'zero-shot: EfficientNet-Lite0, VLAD',
      'earth_loc.py:backbone=efficientnet_lite0@5,aggregator=vlad',
      {'checkpoint': 'efficientnet_lite0@5'},
      mode='evaluate',
    ),
    'earth_long': study.Row(
      'the first row, 1,500 steps',
      'earth_loc.py',
      {'train.num_steps': '1500', 'train.eval_every': '300'},
    ),
    'earth_negatives': study.Row(
      'overlapping tiles are negatives', 'earth_loc.py:neutral=false'
    ),
    'earth_everywhere': study.Row(
      'batches from everywhere', 'earth_loc.py:clusters=false'
    ),
    'earth_similarity': study.Row(
      'multi-similarity', 'earth_loc.py:loss=multi_similarity'
    ),
    'earth_plain': study.Row(
      'tiles as they are', 'earth_loc.py:variation=false'
    ),
  },
  columns={
    'R@1': 'test/photos/image_to_image/recall@1_overlap',
    'R@10': 'test/photos/image_to_image/recall@10_overlap',
    'R@1, all regions': 'test/photos_one_pool/image_to_image/recall@1_overlap',
  },
)


if __name__ == '__main__':
  study.main(TOWNS, MESH, NIGHT, EARTH)
