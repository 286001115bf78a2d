# SPDX-License-Identifier: Apache-2.0
"""The official lists of Pitts30k, Tokyo 24/7 and Nordland, asked by our code.

  python -m benchmarks.official_lists --golden=tests/golden/vpr_benchmarks

Counts, right answers and what guessing reaches, from the positions in the lists
through `evaluation.questions` and `evaluation.metrics`, beside the golden:
whoever reports recall on these sets with this program counts the same queries
and the same right answers as the authors of the sets. No image is needed.

Nordland stores the position (i, i) of frame i and the threshold 10: that is 7
frames, and not 10. Its frames are compared by place in the list, as the authors
do, and by number, whose gaps make some of them no neighbours.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import pathlib
import sys
from typing import Any

from absl import app
from absl import flags
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from i2ploc import files
from i2ploc.evaluation import metrics
from i2ploc.evaluation import questions
from i2ploc.photos import truth

DEFAULT = 'tests/golden/vpr_benchmarks'
RADIUS, OTHER_RADII = 25.0, (5.0, 10.0)
FRAMES = (0.0, 1.0, 2.0, 7.0, 10.0)
STORED_THRESHOLD = 10.0
RECALL_AT = (1, 5, 10, 20)
CITIES = ('pitts30k_test', 'tokyo247')


def track(positions: np.ndarray) -> questions.Track:
  """Photos at positions [N, 2]."""
  height = np.zeros((len(positions), 1))
  return questions.Track(
    np.arange(len(positions)), np.concatenate([positions, height], 1), 'z_up'
  )


def count(
  queries: np.ndarray,
  places: np.ndarray,
  radii: tuple[float, ...],
  unit: str = truth.METRES,
  **options: Any,
) -> questions.Counts:
  """Right answers of photos at positions [Q, 2] among those at [M, 2]."""
  question = questions.Question(
    'photos', '', 'image', 'image',
    np.arange(len(queries)), np.arange(len(places)), radii,
    truth=truth.Truth(unit), travel=0, **options,
  )  # fmt: skip
  return questions.count_positives(question, track(queries), track(places))


def chance(
  counts: questions.Counts, i: int, *, of_all: bool
) -> dict[str, float]:
  """Percent of recall@N of a random ranking, at the i-th radius."""
  positives = counts.positives[:, i]
  counted = np.ones(len(positives), bool) if of_all else positives > 0
  return {
    f'{n}': round(
      100
      * float(metrics.chance(positives, counts.candidates, n)[counted].mean()),
      4,
    )
    for n in RECALL_AT
  }


def spread(positives: np.ndarray) -> list[float]:
  """Least, median and most right answers [Q] of a query."""
  return [
    int(positives.min()),
    float(np.median(positives)),
    int(positives.max()),
  ]


def city(lists: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The numbers of a set with positions in metres."""
  queries = lists['query_place_utm'][lists['query_place']]
  places = lists['database_place_utm'][lists['database_place']]
  found = count(queries, places, (RADIUS, *OTHER_RADII))
  below = count(queries, places, (RADIUS,), strict=True)
  positives = found.positives[:, 0]
  numbers = {
    'queries': len(queries),
    'answerable': int((positives > 0).sum()),
    'database': len(places),
    'positives_min_median_max': spread(positives),
    'chance_percent_answerable': chance(found, 0, of_all=False),
    'chance_percent_all_queries': chance(found, 0, of_all=True),
    'places_query': len(lists['query_place_utm']),
    'places_database': len(lists['database_place_utm']),
    'pairs_less': int(below.positives.sum()),
    'pairs_less_or_equal': int(positives.sum()),
  }
  for i, radius in enumerate(OTHER_RADII, 1):
    numbers[f'at_{radius:g}_m'] = {
      'answerable': int((found.positives[:, i] > 0).sum()),
      'chance_percent_answerable': chance(found, i, of_all=False),
    }
  return numbers


def differing_queries(lists: Mapping[str, np.ndarray]) -> int:
  """Places of queries whose right places, or their number, are others.

  The list of a set has the right places of every place, and how many photos
  are right for every query.
  """
  queries, places = lists['query_place_utm'], lists['database_place_utm']
  question = questions.Question(
    'photos', '', 'image', 'image',
    np.arange(len(queries)), np.arange(len(places)), (RADIUS,), travel=0,
  )  # fmt: skip
  offsets, expected = (
    lists['positive_offsets'],
    lists['positive_database_places'],
  )
  photos = np.bincount(lists['database_place'], minlength=len(places))
  wrong, counted = 0, np.zeros(len(queries), int)
  for block in questions.blocks_from_question(
    question, track(queries), track(places)
  ):
    near = block.graded & question.within(block.distances, RADIUS)
    for row, right in enumerate(near, block.rows.start):
      listed = expected[offsets[row] : offsets[row + 1]]
      wrong += sorted(listed.tolist()) != np.flatnonzero(right).tolist()
      counted[row] = photos[right].sum()
  per_query = counted[lists['query_place']]
  return wrong + int((per_query != lists['num_positives_25m']).sum())


def nordland(frame: np.ndarray, radii: tuple[float, ...] = FRAMES):
  """The numbers of two seasons of the same frames [N]."""
  index = np.arange(len(frame))
  by = {
    name: count(
      *[np.stack([x, 0 * x], 1).astype(float)] * 2, radii, truth.FRAMES
    )
    for name, x in (('index', index), ('number', frame))
  }
  numbers = {'images_each': len(frame)}
  for i, radius in enumerate(radii):
    ours, other = by['index'].positives[:, i], by['number'].positives[:, i]
    numbers[f'index_within_{radius:g}'] = {
      'chance_percent_answerable': chance(by['index'], i, of_all=False),
      'positives_min_median_max': spread(ours),
      'pairs': int(ours.sum()),
      'pairs_by_frame_number': int(other.sum()),
      'chance_by_frame_number': chance(by['number'], i, of_all=False),
    }
  return numbers


def stored_frames(frame: np.ndarray) -> int:
  """How many frames the stored positions and threshold of Nordland are."""
  index = np.arange(len(frame), dtype=float)
  stored = np.stack([index, index], 1)
  middle = len(frame) // 2
  found = count(stored[[middle]], stored, (STORED_THRESHOLD,))
  return (int(found.positives[0, 0]) - 1) // 2


def compare(ours: Mapping[str, Any], golden: Mapping[str, Any]) -> list[str]:
  """What differs from the golden, as lines; [] if all is equal."""
  return [
    f'{key}: {value} instead of {golden.get(key)}'
    for key, value in ours.items()
    if golden.get(key) != value
  ]


def report(folder: pathlib.Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """Name, verdict and numbers of each set."""
  golden = files.load_json(folder / 'chance.json', 'give --golden')
  for name in CITIES:
    lists = files.load_arrays(folder / f'{name}.npz', 'give --golden')
    numbers = city(lists)
    wrong = compare(numbers, golden[name])
    if other := differing_queries(lists):
      wrong.append(f'right answers of {other} places or queries')
    yield name, '; '.join(wrong) or 'equal', numbers
  frame = files.load_arrays(folder / 'nordland.npz', 'give --golden')['frame']
  numbers = nordland(frame)
  numbers['stored_threshold_means_index_difference_at_most'] = stored_frames(
    frame
  )
  wrong = compare(numbers, golden['nordland'])
  yield 'nordland', '; '.join(wrong) or 'equal', numbers


def lines(name: str, verdict: str, numbers: Mapping[str, Any]) -> Iterator[str]:
  """A set as text."""
  if 'queries' in numbers:
    low, median, high = numbers['positives_min_median_max']
    yield (
      f'{name}: {numbers["queries"]} queries, {numbers["answerable"]} with a'
      f' right answer, {numbers["database"]} in the database;'
      f' {numbers["pairs_less_or_equal"]} right pairs within {RADIUS:g} m,'
      f' {low} to {high} of a query (median {median:g})'
    )
    yield _chances('25 m', numbers['chance_percent_answerable'])
    for radius in OTHER_RADII:
      there = numbers[f'at_{radius:g}_m']
      yield (
        _chances(f'{radius:g} m', there['chance_percent_answerable'])
        + f', of {there["answerable"]} queries'
      )
  else:
    stored = numbers['stored_threshold_means_index_difference_at_most']
    yield (
      f'{name}: {numbers["images_each"]} images of either season; the stored'
      f' threshold {STORED_THRESHOLD:g} means {stored} frames'
    )
    for radius in FRAMES:
      there = numbers[f'index_within_{radius:g}']
      yield (
        _chances(f'{radius:g} frames', there['chance_percent_answerable'])
        + f', {there["pairs"]} right pairs'
        f' ({there["pairs_by_frame_number"]} by frame number)'
      )
  yield f'  the golden: {verdict}'


def _chances(within: str, chances: Mapping[str, float]) -> str:
  text = ', '.join(f'@{n} {value:.4f}' for n, value in chances.items())
  return f'  chance within {within}, %: {text}'


def main(argv: list[str]) -> None:
  """Prints the sets; exits with 1 if one differs."""
  del argv
  equal, found = True, {}
  for name, verdict, numbers in report(pathlib.Path(flags.FLAGS.golden)):
    print('\n'.join(lines(name, verdict, numbers)), flush=True)
    equal &= verdict == 'equal'
    found[name] = {'golden': verdict, **numbers}
  if flags.FLAGS.json:
    pathlib.Path(flags.FLAGS.json).write_text(json.dumps(found, indent=1))
  sys.exit(0 if equal else 1)


if __name__ == '__main__':
  flags.DEFINE_string('golden', DEFAULT, 'Folder of the lists.')
  flags.DEFINE_string('json', '', 'Write the numbers there.')
  app.run(main)
