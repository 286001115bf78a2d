# SPDX-License-Identifier: Apache-2.0
"""Real photos found by published networks without training.

python -m benchmarks.place_recognition --data=FOLDER --json=FILE

Every row is one config of configs/photos.py, run as `--mode=evaluate` runs it:
encoder, features, pooling. Columns are R@1 beside chance on three small sets,
see `SETS`; FOLDER holds them. Words and whitening are learned from each set's
database alone. The row of the thumbnail needs no network: 64 x 64 pixels, grey,
mean 0, deviation 1.

Sets of 14 and of 4 queries rank no methods; the interval is of the corridor.
VLAD's words depend on a seed: `--seeds` of them are measured, and the mean is
given.

focus_vit_s14 is a DINOv2 that was fine-tuned for saliency. Its numbers are not
those of DINOv2.
"""

from collections.abc import Iterator
import contextlib
import csv
import io
import json
import pathlib
import tempfile
import time
from typing import Any
from typing import NamedTuple

from absl import app
from absl import flags
import numpy as np

from configs import photos
from i2ploc import place_recognition
from i2ploc import verbs
from input_pipeline.sources import opening

DATA = flags.DEFINE_string('data', None, 'Folder of the sets.', required=True)
ROWS = flags.DEFINE_multi_string('row', [], 'Only these configs.')
SEEDS = flags.DEFINE_integer('seeds', 2, 'Vocabularies of each VLAD.')
TURNS = flags.DEFINE_integer('turns', 10, 'Of the times; 0 for no times.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')

THUMBNAIL = 'thumbnail'
CONFIGS = (
  'encoder=focus_vit_s14,pooling=cls',
  'encoder=focus_vit_s14,pooling=gem',
  'encoder=focus_vit_s14,pooling=vlad',
  'encoder=focus_vit_s14,pooling=vlad,block=8',
  'encoder=focus_vit_s14,pooling=vlad,block=8,facet=value',
  'encoder=focus_vit_s14,pooling=vlad,block=7',
  'encoder=efficientnet_lite0,pooling=gem',
  'encoder=efficientnet_lite0,pooling=vlad,stage=4',
  'encoder=efficientnet_lite0,pooling=vlad,stage=5',
  'encoder=efficientnet_lite0,pooling=vlad,stage=6',
)


class Photos(NamedTuple):
  """A set of photos.

  Attributes:
    name: of its column.
    fields: of config.data.
    radius: metres, where positions tell what is right.
    pairs: of names of a query and its right answer, where a list tells.
  """

  name: str
  fields: dict[str, Any]
  radius: float = 25.0
  pairs: tuple[tuple[str, str], ...] = ()


SETS = (
  # Milford's corridor, two walks: 111 of 111; lists of right references.
  Photos(
    'corridor',
    dict(database='ref', queries='query', positions='ground_truth_new.npy'),
  ),
  # OpenSfM's Lund: every second of 29 photos asks the others.
  Photos('lund', dict(query_every=2), radius=10.0),
  # San Francisco, decades apart: the four pairs that are sure.
  Photos(
    'toy_vpr',
    dict(positions='pairs.csv'),
    pairs=(
      ('queries/q1.jpg', 'database/db2.jpg'),
      ('queries/q2.jpg', 'database/db5.jpg'),
      ('queries/q3.jpg', 'database/db11.jpg'),
      ('queries/q5.jpg', 'database/db14.jpg'),
    ),
  ),
)


@contextlib.contextmanager
def _folder(photos_of: Photos) -> Iterator[pathlib.Path]:
  """The folder of a set, with its list of pairs if it needs one."""
  folder = pathlib.Path(DATA.value).resolve() / photos_of.name
  if not photos_of.pairs:
    yield folder
    return
  with tempfile.TemporaryDirectory() as made:
    for path in folder.iterdir():
      pathlib.Path(made, path.name).symlink_to(path)
    with open(pathlib.Path(made, 'pairs.csv'), 'w') as file:
      csv.writer(file).writerows([('query', 'reference'), *photos_of.pairs])
    yield pathlib.Path(made)


def measure(row: str, photos_of: Photos, seed: int) -> dict[str, float]:
  """What `--mode=evaluate` says of a row and a set: one number each."""
  config = photos.get_config(f'{row},radius={photos_of.radius}')
  config.seed = seed
  config.data.update(photos_of.fields)
  with _folder(photos_of) as folder, tempfile.TemporaryDirectory() as workdir:
    data = opening.open_source(config, str(folder))
    with contextlib.redirect_stdout(io.StringIO()):
      results = verbs.evaluate(config, data, workdir)
  return _chosen(results, 'test/photos/', 'test/photos/image_to_image/')


def _chosen(results, counts, rates):
  (first,) = (
    name
    for name in results
    if name.startswith(f'{rates}recall@1_') and name.endswith('_low')
  )
  first = first.removesuffix('_low')
  at = first.rpartition('_')[2]
  return {
    'recall': results[first],
    'low': results[f'{first}_low'],
    'high': results[f'{first}_high'],
    'chance': results[f'{counts}chance@1_{at}'],
    'answerable': results[f'{counts}answerable_{at}'],
  }


def thumbnails(images: np.ndarray) -> np.ndarray:
  """Descriptors [B, 4096] of uint8 [B, 64, 64, 3]: grey, mean 0, length 1."""
  grey = images.astype(np.float32).mean(-1).reshape(len(images), -1)
  grey -= grey.mean(1, keepdims=True)
  return grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6)


def measure_thumbnails(photos_of: Photos) -> dict[str, float]:
  """The same numbers of a descriptor that is no network's."""
  fields = dict(photos_of.fields)
  every = fields.pop('query_every', 0)
  with _folder(photos_of) as folder, tempfile.TemporaryDirectory() as made:
    database, queries = (
      folder / fields.pop('database', 'database'),
      folder / fields.pop('queries', 'queries'),
    )
    if every:
      database, queries = _parted(folder, every, pathlib.Path(made))
    found = place_recognition.evaluate(
      thumbnails,
      database,
      queries,
      radius=photos_of.radius,
      image_size=(64, 64),
      **fields,
    )
  return _chosen(found.numbers, '', '')


def _parted(folder, every, made):
  """Two folders of links: every N-th photo asks."""
  parts = [made / 'database', made / 'queries']
  for part in parts:
    part.mkdir()
  paths = sorted(p for p in folder.iterdir() if p.suffix == '.jpg')
  for i, path in enumerate(paths):
    (parts[i % every == every - 1] / path.name).symlink_to(path)
  return parts


def seconds_per_image(row: str, turns: int) -> float:
  """Median time of an image of 224 x 224, encoder to descriptor, compiled."""
  import jax

  from i2ploc.models.weights import published
  from i2ploc.tasks import places

  config = photos.get_config(row)
  data = opening.open_source(config, '.')
  towers = places.make_towers(config, data)
  variables = published.load_variables(config.checkpoint, towers.model)
  # Words that were not learned take as long as others.
  variables['map'] = jax.tree.map(np.zeros_like, variables.get('map', {}))
  embed, variables = towers.embed('image'), jax.device_put(variables)
  image = np.zeros((1, *config.data.image_size, 3), np.uint8)
  spent = []
  for _ in range(turns + 2):
    start = time.perf_counter()
    np.asarray(embed(variables, {'image': image}))
    spent.append(time.perf_counter() - start)
  return float(np.median(spent[2:]))


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  table = []
  names = [one.name for one in SETS]
  print(f'{"R@1, %":62}' + ''.join(f'{name:>22}' for name in names) + '   ms')
  for row in ROWS.value or (THUMBNAIL, *CONFIGS):
    found: dict[str, Any] = {'row': row}
    seeds = range(SEEDS.value if 'vlad' in row else 1)
    for one in SETS:
      if row == THUMBNAIL:
        runs = [measure_thumbnails(one)]
      else:
        runs = [measure(row, one, seed) for seed in seeds]
      found[one.name] = {
        key: float(np.mean([run[key] for run in runs])) for key in runs[0]
      } | {'recalls': [run['recall'] for run in runs]}
    if row != THUMBNAIL and TURNS.value:
      found['ms'] = 1e3 * seconds_per_image(row, TURNS.value)
    table.append(found)
    cells = [
      f'{found[name]["recall"]:.1f} (chance {found[name]["chance"]:.1f})'
      for name in names
    ]
    print(
      f'{row:62}'
      + ''.join(f'{cell:>22}' for cell in cells)
      + (f'{found["ms"]:5.0f}' if 'ms' in found else ''),
      flush=True,
    )
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(table, indent=1))


if __name__ == '__main__':
  app.run(main)
