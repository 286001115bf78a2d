# SPDX-License-Identifier: Apache-2.0
"""A robot's sequence is found where its single frames are not: Nordland.

  python -m benchmarks.sequences --data=nordland.npz --json=sequences.json
  python -m benchmarks.sequences --data=nordland.npz --nonetworks   (a minute)

One railway line in summer (the map) and in winter (the queries), 3,576 frames
each, 10 s apart, gray 64 x 32; equal numbers are equal places. Nothing is
trained: descriptors are hand-made, or of a network that was trained on
ImageNet; means, whitening and vocabulary come from the summer map alone.

Two lines are measured. `every 8th` is the protocol of the study of this
repository (447 queries, 447 places, the same number and no other is right;
chance 0.22 %): frames 80 s apart. `every frame` is harder: 3,576 places, right
within 3 frames (chance 0.20 %), so that 11 frames are 110 s and the train's
halts, the same picture up to 69 times, are longer than a sequence. There is
also a column of 11 frames of which every 8th is taken.

Seventeen summer frames at the start are black. Their places are asked like all
others, and numbers without them are in the JSON as `without_black`.

Settings of SeqSLAM are those of its paper (window of 10 neighbours, speeds 0.8
to 1.2), none was tuned. What was tried and chosen on these very frames, before
that table: whitening to 64, 128, 256, 400 and 1024 numbers (256 kept; all but
64 do better than 22.5 % by single frames), cells of 4 and 8 pixels (4 kept),
and images of 64 x 128 for the network alone.

docs/photos.md has what it printed. Matching 3,576 x 3,576 takes 0.1 s for plain
sums, 1 to 3 s with contrast and 3 to 7 s with five speeds.
"""

from collections.abc import Callable
import json
import pathlib
import sys
import time
from typing import NamedTuple

from absl import app
from absl import flags
import numpy as np
from PIL import Image

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from i2ploc import factory
from i2ploc.evaluation import metrics
from i2ploc.models import fitting
from i2ploc.models import towers as towers_lib
from i2ploc.models import whitening
from i2ploc.models.weights import published
from i2ploc.retrieval import sequences

DATA = flags.DEFINE_string(
  'data', None, 'nordland.npz: frames of both seasons.', required=True
)
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
NETWORKS = flags.DEFINE_bool('networks', True, 'EfficientNet-Lite0, too.')

LENGTH = 11
WINDOW = 11  # ten neighbours and the reference itself
SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.2)
EVERY = 8
BLACK = 5.0  # mean gray level
FLAT = 1.0  # standard deviation in gray levels that is no picture
FEATURES = 256
IMAGE_SIZE = (64, 128)
BATCH = 64

Unit = np.ndarray  # float32 [N, D], of unit length, or 0 for no picture
# Of images [N, H, W] of the map and of queries.
Describe = Callable[[np.ndarray, np.ndarray], tuple[Unit, Unit]]


class Line(NamedTuple):
  """Who asks whom.

  Attributes:
    name: for people.
    every: rows of the line between two frames.
    tolerance: frames of it within which an answer is right.
    sequences: columns beside the single frame.
  """

  name: str
  every: int
  tolerance: int
  sequences: dict[str, sequences.Sequence]


SEQUENCES = {
  'plain': sequences.Sequence(LENGTH),
  'contrast': sequences.Sequence(LENGTH, contrast=WINDOW),
  'contrast, speeds': sequences.Sequence(LENGTH, SPEEDS, WINDOW),
}
LINES = (
  Line('every 8th', EVERY, 0, SEQUENCES),
  Line(
    'every frame',
    1,
    3,
    SEQUENCES | {'plain, every 8th': sequences.Sequence(LENGTH, stride=EVERY)},
  ),
)


def unit(x: np.ndarray) -> Unit:
  """Rows at unit length; rows of zeros stay."""
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def thumbnails(images: np.ndarray) -> Unit:
  """Pixels with mean 0 and deviation 1 in every image; 0 for a flat one."""
  x = images.reshape(len(images), -1).astype(np.float32)
  x -= x.mean(1, keepdims=True)
  return unit(np.where(x.std(1, keepdims=True) < FLAT, 0, x))


def patches(images: np.ndarray, size: int = 8) -> Unit:
  """Pixels with mean 0 and deviation 1 in every patch, as SeqSLAM does."""
  count, height, width = images.shape
  grid = (count, height // size, size, width // size, size)
  x = images.astype(np.float32).reshape(grid)
  x -= x.mean((2, 4), keepdims=True)
  x /= np.maximum(x.std((2, 4), keepdims=True), FLAT)
  return unit(x.reshape(count, -1))


def gradients(images: np.ndarray, cell: int = 4, bins: int = 8) -> np.ndarray:
  """Histograms of the orientations of gradients in cells, each of length 1.

  Dalal and Triggs, CVPR 2005, without blocks.
  """
  x = images.astype(np.float32)
  down, right = np.gradient(x, axis=1), np.gradient(x, axis=2)
  strength = np.hypot(down, right)
  turn = (np.arctan2(down, right) % np.pi) * (bins / np.pi)
  count, height, width = x.shape
  grid = (count, height // cell, cell, width // cell, cell)
  found = []
  for one in range(bins):
    # Linear between neighbouring orientations, around the half circle.
    away = np.abs((turn - one + bins / 2) % bins - bins / 2)
    share = strength * np.maximum(1 - away, 0)
    found.append(share.reshape(grid).sum((2, 4)))
  cells = np.stack(found, -1)
  cells /= np.sqrt(np.square(cells).sum(-1, keepdims=True) + FLAT**2)
  return cells.reshape(count, -1)


def alone(describe: Callable[[np.ndarray], np.ndarray]) -> Describe:
  """A descriptor that takes nothing from the map."""
  return lambda places, queries: (
    unit(describe(places)),
    unit(describe(queries)),
  )


def centred(describe: Callable[[np.ndarray], np.ndarray]) -> Describe:
  """Less the mean of the map's."""

  def both(places, queries):
    known = describe(places)
    mean = known.mean(0)
    return unit(known - mean), unit(describe(queries) - mean)

  return both


def whitened(describe: Callable[[np.ndarray], np.ndarray]) -> Describe:
  """PCA-whitened as the map has it; 0 stays 0, for there is no picture."""

  def both(places, queries):
    known = describe(places)
    some = np.abs(known).sum(1) > 0
    mean, projection = whitening.fit(known[some], FEATURES)

    def apply(x):
      return unit(np.where(x.any(1, keepdims=True), (x - mean) @ projection, 0))

    return apply(known), apply(describe(queries))

  return both


def together(*parts: Describe) -> Describe:
  """The mean of the similarities of several descriptors."""

  def both(places, queries):
    found = [part(places, queries) for part in parts]
    return tuple(
      np.concatenate(side, 1) / np.sqrt(np.float32(len(parts)))
      for side in zip(*found, strict=True)
    )

  return both


def network(places: np.ndarray, queries: np.ndarray) -> tuple[Unit, Unit]:
  """VLAD of stage 5 of EfficientNet-Lite0, its 32 words from the map."""
  model = factory.make_places(
    image=dict(name='published', checkpoint='efficientnet_lite0@5'),
    points=None,
    aggregator=dict(name='vlad', num_clusters=32),
    dtype='float32',
    image_size=IMAGE_SIZE,
    saliency='none',
  )
  variables = published.load_variables('efficientnet_lite0', model)
  variables = fitting.fit(
    model, 'image', variables, lambda rows: _batches(places[rows]), len(places)
  )
  embed = towers_lib.CompiledTowers(model, 'image').embed('image')

  def describe(images):
    found = [
      np.asarray(embed(variables, batch)).reshape(BATCH, -1)[batch['mask']]
      for batch in _batches(images)
    ]
    return np.concatenate(found)

  return describe(places), describe(queries)


def _batches(images):
  """Gray images enlarged and in three channels."""
  for start in range(0, len(images), BATCH):
    part = images[start : start + BATCH]
    batch = np.zeros((BATCH, *IMAGE_SIZE, 3), np.uint8)
    for out, image in zip(batch, part, strict=False):
      large = Image.fromarray(image).resize(
        IMAGE_SIZE[::-1], Image.Resampling.BICUBIC
      )
      out[:] = np.asarray(large)[..., None]
    yield {'image': batch, 'mask': np.arange(BATCH) < len(part)}


METHODS: dict[str, Describe] = {
  'thumbnail': alone(thumbnails),
  'patches of 8 pixels (SeqSLAM)': alone(patches),
  'thumbnail, whitened': whitened(thumbnails),
  'gradients, centred': centred(gradients),
  'whitened thumbnail + gradients': together(
    whitened(thumbnails), centred(gradients)
  ),
}
NETWORK = {
  'EfficientNet-Lite0, VLAD': network,
}


def recall(
  similarities: np.ndarray, right: np.ndarray, asked: np.ndarray
) -> float:
  """R@1 in percent, ties pessimistic, of the queries that are asked."""
  ranks = metrics.pessimistic_ranks(
    similarities, right, np.ones_like(right, dtype=bool)
  )
  return 100 * float((ranks[asked] < 1).mean())


def measure(
  line: Line, describe: Describe, places: np.ndarray, queries: np.ndarray
) -> dict[str, object]:
  """All numbers of a method on a line."""
  start = time.perf_counter()
  known, asking = describe(places, queries)
  seconds = {'describe': time.perf_counter() - start}
  start = time.perf_counter()
  similarities = asking @ known.T
  seconds['compare'] = time.perf_counter() - start
  row = np.arange(len(places))
  right = np.abs(row[:, None] - row) <= line.tolerance
  everyone = np.ones(len(row), bool)
  seeing = places.mean((1, 2)) >= BLACK
  runs = np.zeros(len(row), np.int64)
  found: dict[str, object] = {
    'chance': 100 * float(right.mean()),
    'black': int((~seeing).sum()),
    'queries': len(row),
  }

  def add(name, matched, truth):
    found[name] = recall(matched, truth, everyone)
    found[f'{name}, without_black'] = recall(matched, truth, seeing)

  add('single', similarities, right)
  for name, sequence in line.sequences.items():
    start = time.perf_counter()
    matched = sequences.match(similarities, runs, runs, sequence)
    seconds[name] = time.perf_counter() - start
    add(name, matched, right)
    add(f'{name}, exact', matched, np.eye(len(row), dtype=bool))
    if name == 'plain':
      any_frame = sequences.any_along(right, runs, runs, sequence)
      add(f'{name}, any_frame', matched, any_frame)
      found['chance, any_frame'] = 100 * float(any_frame.mean())
  found['seconds'] = {k: round(v, 2) for k, v in seconds.items()}
  return found


def halts(images: np.ndarray, alike: float = 0.99) -> list[int]:
  """Lengths in frames of the stretches in which the picture stays."""
  x = thumbnails(images)
  same = (x[1:] * x[:-1]).sum(1) > alike
  edges = np.flatnonzero(np.diff(np.concatenate([[0], same, [0]])))
  return (edges[1::2] - edges[::2] + 1).tolist()


def main(argv):
  """Prints a table per line, and writes JSON if wanted."""
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {argv[1:]}')
  with np.load(DATA.value) as saved:
    summer, winter = saved['summer'], saved['winter']
  stays = [length for length in halts(summer) if length >= LENGTH]
  print(
    f'{len(summer)} frames a season; halts of {LENGTH} frames and more in'
    f' summer: {len(stays)}, {sum(stays)} frames, the longest {max(stays)}.'
  )
  methods = METHODS | (NETWORK if NETWORKS.value else {})
  numbers: dict[str, dict[str, object]] = {}
  for line in LINES:
    places, queries = summer[:: line.every], winter[:: line.every]
    columns = ['single', *line.sequences]
    print(
      f'\n{line.name}: {len(places)} places, right within {line.tolerance}'
      f' frames; R@1 in %, sequences of {LENGTH}; in brackets without the black'
      ' frames'
    )
    print(f'{"":32}' + ''.join(f'{name:>20}' for name in columns), end='')
    print(f'{"any frame":>12}{"chance":>8}{"s":>7}')
    for name, describe in methods.items():
      found = measure(line, describe, places, queries)
      numbers.setdefault(line.name, {})[name] = found
      cells = ''.join(
        f'{found[c]:>12.1f} ({found[f"{c}, without_black"]:.1f})'.rjust(20)
        for c in columns
      )
      spent = found['seconds']
      assert isinstance(spent, dict)
      print(
        f'{name:32}{cells}{found["plain, any_frame"]:12.1f}'
        f'{found["chance"]:8.2f}{sum(spent.values()):7.1f}',
        flush=True,
      )
  if JSON.value:
    numbers['halts'] = {'lengths': stays}
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
  app.run(main)
