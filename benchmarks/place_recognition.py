# SPDX-License-Identifier: Apache-2.0
"""Real photos found by published networks without training.

python -m benchmarks.place_recognition --data=FOLDER --json=FILE

Every row is one config of configs/photos.py, run as `--mode=evaluate` runs it:
encoder, features, pooling. Columns are R@1 beside chance on three small sets,
see `SETS`; FOLDER holds them. Words and whitening are learned from each set's
database alone. The row of the thumbnail needs no network: 64 x 64 pixels, grey,
mean 0, deviation 1. The last column is the time of an image from pixels to its
descriptor, on all cores that the process may use, beside torch.

Sets of 14 and of 4 queries rank no methods; --json has the intervals.
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
import os
import pathlib
import tempfile
import time
from typing import Any
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import numpy as np
import torch

from benchmarks import torch_encoders
from configs import photos
from i2ploc import compilation
from i2ploc import place_recognition
from i2ploc import verbs
from i2ploc.models.weights import names
from i2ploc.models.weights import published
from i2ploc.models.weights import sources
from i2ploc.models.weights import tensor_files
from i2ploc.tasks import places
from input_pipeline.sources import opening

DATA = flags.DEFINE_string('data', None, 'Folder of the sets.', required=True)
ROWS = flags.DEFINE_multi_string('row', [], 'Only these configs.')
ONLY = flags.DEFINE_multi_enum(
  'set', [], ('corridor', 'lund', 'toy_vpr'), 'Only these sets.'
)
SEEDS = flags.DEFINE_integer('seeds', 2, 'Vocabularies of each VLAD.')
TURNS = flags.DEFINE_integer('turns', 20, 'Of the times; 0 for no times.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')

THUMBNAIL = 'thumbnail'
CONFIGS = (
  'encoder=focus_vit_s14,pooling=cls',
  'encoder=focus_vit_s14,pooling=gem',
  'encoder=focus_vit_s14,pooling=vlad',
  'encoder=focus_vit_s14@8,pooling=vlad',
  'encoder=focus_vit_s14@8.value,pooling=vlad',
  'encoder=focus_vit_s14@8,pooling=vlad,image_size=252x336',
  'encoder=focus_vit_s14@7+focus_vit_s14@8,pooling=vlad,image_size=252x336',
  'encoder=efficientnet_lite0,pooling=gem,image_size=336x448',
  'encoder=efficientnet_lite0@5,pooling=vlad',
  'encoder=efficientnet_lite0@6,pooling=vlad',
  'encoder=efficientnet_lite0@5,pooling=vlad,image_size=336x448',
  'encoder=efficientnet_lite0@6,pooling=vlad,image_size=336x448',
  'encoder=focus_vit_s14@7+focus_vit_s14@8+efficientnet_lite0@5,pooling=vlad,'
  'image_size=252x336',
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


def time_image(row: str, turns: int) -> dict[str, float]:
  """Medians of an image, pixels to descriptor, by turns with torch.

  Torch gets the same layers and poolings, of pixels that are normalised before.
  """
  config = photos.get_config(row)
  size, data = config.data.image_size, opening.open_source(config, '.')
  towers = places.make_towers(config, data)
  variables = published.load_variables(config.checkpoint, towers.model)
  # Words that were not learned take as long as others.
  variables['map'] = jax.tree.map(np.ones_like, variables.get('map', {}))
  embed, variables = towers.embed('image'), jax.device_put(variables)
  image = np.zeros((1, *size, 3), np.uint8)
  theirs = _of_torch(config, size)

  def ours():
    np.asarray(embed(variables, {'image': image}))

  spent = {'ours': [], 'torch': []}
  for _ in range(turns + 2):
    for name, run in (('ours', ours), ('torch', theirs)):
      start = time.perf_counter()
      run()
      spent[name].append(time.perf_counter() - start)
  ours_s, torch_s = (np.asarray(spent[name][2:]) for name in spent)
  return {
    'ms': 1e3 * float(np.median(ours_s)),
    'torch_ms': 1e3 * float(np.median(torch_s)),
    'ratio': float(np.median(ours_s / torch_s)),
  }


def _of_torch(config, size):
  """A row's descriptor of an image in torch, as a function of nothing."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  image = torch.zeros(1, 3, *size)
  parts = []
  for name in names.split(config.checkpoint):
    checkpoint, layer, facet, _ = names.parse(name)
    path = sources.find(checkpoint)
    if name.startswith('efficientnet'):
      tensors = tensor_files.read_tensors(path)
      module = torch_encoders.EfficientNetLite0(tensors)
      parts.append((module, (layer,)))
    else:
      module = torch_encoders.load_dinov2(path, size)
      parts.append((module, (layer, facet)))

  def describe(module, options):
    x = module(image, *options)
    if x.ndim == 4:
      x = x.flatten(2).transpose(1, 2)
    elif pooling == 'first':
      return x[:, 0]
    else:
      x = x[:, 1:]
    if pooling == 'gem':
      return torch_encoders.gem(x)
    return torch_encoders.vlad(x, torch.ones(words, x.shape[-1]))

  aggregator = config.model.aggregator
  pooling, words = aggregator.name, aggregator.get('num_clusters', 0)

  def run():
    with torch.inference_mode():
      torch.cat([describe(*part) for part in parts], dim=1).numpy()

  return run


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  compilation.keep_programs()  # the seeds of a row are one program
  table = []
  sets = [one for one in SETS if one.name in ONLY.value or not ONLY.value]
  _print('R@1, %', *(one.name for one in sets), 'ms (torch)')
  for row in ROWS.value or (THUMBNAIL, *CONFIGS):
    found: dict[str, Any] = {'row': row}
    cells = []
    seeds = range(SEEDS.value if 'vlad' in row else 1)
    for one in sets:
      if row == THUMBNAIL:
        runs = [measure_thumbnails(one)]
      else:
        runs = [measure(row, one, seed) for seed in seeds]
      mean = {
        key: float(np.mean([run[key] for run in runs])) for key in runs[0]
      }
      found[one.name] = mean | {'recalls': [run['recall'] for run in runs]}
      cells.append(f'{mean["recall"]:.1f} (chance {mean["chance"]:.1f})')
    if row != THUMBNAIL and TURNS.value:
      found |= time_image(row, TURNS.value)
      cells.append(f'{found["ms"]:.0f} ({found["torch_ms"]:.0f})')
    table.append(found)
    _print(row, *cells)
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(table, indent=1))


def _print(row, *cells):
  print(f'{row:62}' + ''.join(f'{cell:>22}' for cell in cells), flush=True)


if __name__ == '__main__':
  app.run(main)
