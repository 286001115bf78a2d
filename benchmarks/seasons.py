# SPDX-License-Identifier: Apache-2.0
"""One railway in summer and winter, learned on its first part: Nordland.

python benchmarks/seasons.py --data=nordland.npz --workdir=runs/seasons

Frames 0 to 1,999 of both seasons train, 2,000 to 2,199 choose the checkpoint,
2,200 to 3,575 are the test: winter asks summer, 1,376 frames each, 10 s apart.
An answer is right within 1 or 10 frames of the query's number; chance is 0.2
and 1.5 %. Single frames, and the sums of 11 in a row or of every 8th (see
`i2ploc.retrieval.sequences`): trains stand in stations. Every row sees as many
images, once per seed; see `study`.
"""

import pathlib
import sys

from absl import app
from absl import flags
import numpy as np
from PIL import Image

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import study

PARTS = {'train': (0, 2000), 'val': (2000, 2200), 'test': (2200, 3576)}
SEASONS = {'database': 'summer', 'queries': 'winter'}
DONE = 'complete'
METRIC = 'test/photos/image_to_image/recall@1'
LINE = {
  'data.positions': 'order',
  'evaluation.radii': '(1.0, 10.0)',
  'sequence.length': '11',
  'index.radius': '1.0',
}
TRAINED = LINE | {
  'sampling.by_frame': 'True',
  'loss.ignore_radius': '10.0',  # frames
  'evaluation.select': 'validation/photos/image_to_image/recall@1_1frames',
}
WIDE = {'sequence.stride': '8'}
ZERO_SHOT = LINE | {'data.test': 'test'}
PUBLISHED = 'photos.py:image_size=64x128'
CONFIG = 'gsv_cities.py:dataset=photos,image_size=64x128'
TRIPLETS = 'deep_vg.py:dataset=photos,image_size=64x128'
# A frame of the other season with the same number; negatives 10 frames away.
MINED = {k: v for k, v in TRAINED.items() if k != 'sampling.by_frame'} | {
  'sampling.positive_radius': '0.5',
  'sampling.negative_radius': '10.0',
}
STUDY = study.Study(
  name='seasons',
  title='Nordland, second half, winter in summer, R@1 in %',
  rows={
    'gsv': study.Row('multi-similarity', CONFIG, TRAINED),
    'info_nce': study.Row("LIP-Loc's loss", f'{CONFIG},loss=info_nce', TRAINED),
    'deep_vg': study.Row('triplets, partial mining', TRIPLETS, MINED),
    'untrained': study.Row('untrained', CONFIG, TRAINED | study.UNTRAINED),
    'zero_shot': study.Row(
      'zero-shot: EfficientNet-Lite0, VLAD',
      PUBLISHED,
      ZERO_SHOT,
      mode='evaluate',
    ),
    'gsv_wide': study.Row(
      'the first row, 11 of every 8th frame',
      CONFIG,
      TRAINED | WIDE,
      start='gsv',
      start_as='checkpoint',
      mode='evaluate',
    ),
    'zero_shot_wide': study.Row(
      'zero-shot, 11 of every 8th frame',
      PUBLISHED,
      ZERO_SHOT | WIDE,
      mode='evaluate',
    ),
  },
  columns={
    'within 1 frame': f'{METRIC}_1frames',
    'within 10': f'{METRIC}_10frames',
    '11 frames, within 1': f'{METRIC}_1frames_11_frames',
    '11 frames, within 10': f'{METRIC}_10frames_11_frames',
  },
)

DATA = flags.DEFINE_string('data', None, 'nordland.npz.', required=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Of all runs.', required=True)
SEEDS = flags.DEFINE_integer('seeds', 3, 'Runs of each row.')
STEPS = flags.DEFINE_integer('steps', None, 'Training steps of each row.')
TABLE = flags.DEFINE_bool('table', False, 'Train nothing: what is there.')
PAGE = flags.DEFINE_string('page', None, 'File with marks for the table.')


def write_photos(data: pathlib.Path, folder: pathlib.Path) -> None:
  """The frames as photos: PART/database/ in summer, PART/queries/ in winter."""
  if (folder / DONE).exists():
    return
  with np.load(data) as archive:
    frames = {place: archive[season] for place, season in SEASONS.items()}
  for part, (start, stop) in PARTS.items():
    for place, images in frames.items():
      (folder / part / place).mkdir(parents=True, exist_ok=True)
      for number in range(start, stop):
        path = folder / part / place / f'{number:04d}.png'
        Image.fromarray(images[number]).save(path)
  (folder / DONE).touch()


def main(argv: list[str]) -> None:
  """Writes the photos, trains what is missing and prints the table."""
  del argv
  workdir = pathlib.Path(WORKDIR.value)
  folder = workdir / 'photos'
  write_photos(pathlib.Path(DATA.value), folder)
  options = study.Options(
    workdir,
    data_dir=str(folder.absolute()),
    num_seeds=SEEDS.value,
    steps=STEPS.value,
    train=not TABLE.value,
  )
  results = study.run_study(STUDY, options)
  if PAGE.value:
    text = study.table(STUDY, results, options.num_seeds)
    study.insert(text, STUDY.name, pathlib.Path(PAGE.value))


if __name__ == '__main__':
  app.run(main)
