# SPDX-License-Identifier: Apache-2.0
"""Object-based localization: success against draws, speed, and larger maps.

  python benchmarks/object_localization.py --fixture=DIR --json=objects.json

DIR holds fixture.npz of TUM RGB-D fr2_desk: boxes of a detector, true poses,
intrinsics. The map is built here, from the boxes of even frames; queries are
every --stride-th odd frame, all of them in the denominator. All settings were
chosen on even frames. Methods alternate frame by frame, so that their times
compare.

  python benchmarks/object_localization.py --part=speed --part=scaling

measure the time of 1,024 triples, and random maps of up to 4,096 look-alikes.

  python benchmarks/object_localization.py --part=city --clip=WORKDIR \
    --data_dir=demo/data

asks the test towns of synthetic_city as configs/clip_loc.py does, by the CLIP
that configs/clip.py trained into WORKDIR; --radius=0 in the map of a whole town
and not about a rough idea of the place.
"""

from collections.abc import Sequence
import json
import pathlib
import sys
import time
from typing import Any
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import object_tables
from benchmarks import object_worlds
from configs import clip_loc
from i2ploc.errors import InputError
from i2ploc.evaluation import poses as poses_lib
from i2ploc.evaluation import questions
from i2ploc.geometry import rigid
from i2ploc.localization import objects as localization_objects
from i2ploc.objects import association
from i2ploc.objects import detections as detections_lib
from i2ploc.objects import observer as observer_lib
from i2ploc.objects.map import construction
from i2ploc.objects.map import landmarks
from i2ploc.objects.map import place_map
from i2ploc.objects.pose import search
from i2ploc.tasks import captions
from i2ploc.tasks import objects as objects_lib
from input_pipeline.sources import opening

PARTS = ('fr2_desk', 'city', 'speed', 'scaling')
BUDGETS = (16, 64, 256, 1024, None)
IMAGE_SIZE = (480, 640)
# Queries within it fail together: one block of the bootstrap.
BLOCK_SECONDS = 5.0
UNREFINED = search.DEFAULT._replace(refined=0)


class Queries(NamedTuple):
  """Q images whose poses are known, and the maps to find them in.

  Attributes:
    object_maps: Q of them, what may be near.
    detections: Q of them.
    poses: Q true camera_from_map.
    blocks: int [Q], which fail together.
    intrinsics: [3, 3].
    image_size: (height, width).
    calibrations: Q of them: what similarities are worth there.
  """

  object_maps: Sequence[landmarks.ObjectMap]
  detections: Sequence[detections_lib.Detections]
  poses: Sequence[rigid.Rigid]
  blocks: np.ndarray
  intrinsics: np.ndarray
  image_size: tuple[int, int]
  calibrations: Sequence[association.Calibration]


class Row(NamedTuple):
  """A way of localizing, and its options of `object_pose.localize`."""

  name: str
  options: dict[str, Any]


UNIFORM = {'sampler': 'uniform', 'prune': False}
CATEGORY = (
  Row('category', {'method': 'category'}),
  Row('  unrefined', {'method': 'category', 'settings': UNREFINED}),
  Row('  uniform', {'method': 'category', **UNIFORM}),
  Row(
    '  uniform, unrefined',
    {'method': 'category', 'settings': UNREFINED, **UNIFORM},
  ),
  Row('brute force', {'method': 'brute_force'}),
)
# Samplers alone: no sizes rule triples out.
_SAMPLED = {'method': 'hybrid', 'prune': False}
LANGUAGE = (
  Row('hybrid', {'method': 'hybrid'}),
  Row('hybrid, as in the paper', {'method': 'paper'}),
  Row('clip', {'method': 'clip'}),
  Row('category', {'method': 'category'}),
  Row('brute force', {'method': 'brute_force'}),
  Row('hybrid, B-PROSAC', _SAMPLED | {'sampler': 'b_prosac'}),
  Row('hybrid, PROSAC', _SAMPLED | {'sampler': 'prosac'}),
  Row('hybrid, uniform', _SAMPLED | {'sampler': 'uniform'}),
)


def load_fr2_desk(folder: str, stride: int) -> Queries:
  """Builds the map from even frames; queries are odd ones.

  Raises:
    FileNotFoundError: no fixture.npz in the folder.
  """
  path = pathlib.Path(folder) / 'fixture.npz'
  if not path.is_file():
    raise FileNotFoundError(f'{path} does not exist; --fixture=its folder.')
  with np.load(path) as file:
    data = {name: file[name] for name in file}
  frames = [_detections(data, i) for i in range(len(data['timestamps']))]
  poses = np.tile(np.eye(4), (len(frames), 1, 1))
  poses[:, :3, :3], poses[:, :3, 3] = data['R_wc'], data['C_w']
  start = time.perf_counter()
  built = construction.build_map(frames[::2], poses[::2], data['K'], IMAGE_SIZE)
  seconds = time.perf_counter() - start
  print(f'{built.num_landmarks} landmarks from even frames, {seconds:.0f} s')
  rows = np.arange(1, len(frames), 2)[::stride]
  rotation = np.swapaxes(data['R_wc'][rows], -1, -2)
  center = data['C_w'][rows]
  return Queries(
    [built] * len(rows),
    [frames[i] for i in rows],
    [rigid.Rigid(r, -r @ c) for r, c in zip(rotation, center, strict=True)],
    np.floor(data['timestamps'][rows] / BLOCK_SECONDS).astype(np.int64),
    data['K'],
    IMAGE_SIZE,
    [association.UNCALIBRATED] * len(rows),
  )


def load_city(
  clip: str,
  data_dir: str | None,
  num_queries: int,
  radius: float | None = None,
) -> Queries:
  """Maps the test towns; their queries, as many of each.

  Landmarks are those within `radius`, metres; None for the config's.

  Raises:
    FileNotFoundError: no CLIP there, or no data.
  """
  config = clip_loc.get_config()
  config.clip = clip
  if radius is not None:
    config.search.radius = radius
  encoder = captions.load_encoder(clip)
  print(f'weights: {encoder.name}')
  columns = {name: [] for name in Queries._fields}
  data = opening.open_source(config, data_dir)
  for number, place in enumerate(data.places(questions.between_drives)):
    objects, calibration = objects_lib.build(config, place, encoder)
    print(f'{place.name}: {objects.num_landmarks} landmarks', flush=True)
    observer = observer_lib.Observer(place, encoder, config.leave_out)
    shots = place.queries
    rows = np.linspace(0, len(shots.names) - 1, num_queries).round()
    for row in rows.astype(int).tolist():
      sight = observer.look(shots, row)
      motion = np.linalg.inv(shots.world_from_camera[row])
      columns['object_maps'].append(
        place_map.near(objects, sight.position, config.search.radius)
      )
      columns['detections'].append(sight.detections)
      columns['poses'].append(rigid.Rigid(motion[:3, :3], motion[:3, 3]))
      columns['blocks'].append(1000 * number + shots.blocks[row])
      columns['calibrations'].append(calibration)
  return Queries(
    **columns
    | {
      'blocks': np.array(columns['blocks']),
      'intrinsics': shots.lens.intrinsics,
      'image_size': shots.image_size,
    }
  )


def _detections(data, frame):
  rows = data['det_frame'] == frame
  found = detections_lib.make_detections(
    data['det_box'][rows], data['det_cat'][rows], data['det_score'][rows],
    IMAGE_SIZE,
  )  # fmt: skip
  # The boxes are undistorted: where the image ended is known from before.
  return found._replace(cut=data['det_cut'][rows])


def _localize(queries, row, options):
  start = time.perf_counter()
  answer = localization_objects.localize(
    queries.detections[row],
    queries.object_maps[row],
    queries.intrinsics,
    queries.image_size,
    calibration=queries.calibrations[row],
    **options,
  )
  return answer, 1e3 * (time.perf_counter() - start)


def measure(
  queries: Queries,
  rows: Sequence[Row],
  budgets: Sequence[int | None] = BUDGETS,
) -> list[dict[str, Any]]:
  """All rows with all budgets; one dict of numbers for each.

  Every frame is localized in all ways before the next one, in an order that
  rotates. The first frame is localized once more before, to compile.
  """
  ways = [(row, budget) for row in rows for budget in budgets]
  answers = {i: [] for i in range(len(ways))}
  for query in range(len(queries.poses)):
    for turn in range(len(ways)):
      i = (turn + query) % len(ways)
      options = ways[i][0].options | {'draws': ways[i][1]}
      if query == 0:
        _localize(queries, query, options)
      answers[i].append(_localize(queries, query, options))
  results = []
  for i, (row, budget) in enumerate(ways):
    found, times = zip(*answers[i], strict=True)
    results.append(_summary(queries, row.name.strip(), budget, found, times))
  return results


def _summary(queries, name, budget, answers, times):
  errors = poses_lib.pose_errors(
    [localization_objects.camera_from_world(one) for one in answers],
    queries.poses,
  )
  correct = (errors.distance < 0.5) & (errors.angle < 10)
  confidence = np.asarray([answer.confidence for answer in answers])
  rates = poses_lib.success_rates(errors, queries.blocks)
  return {
    'method': name,
    'draws': budget,
    'queries': len(answers),
    'success': poses_lib.record(rates),
    'median_metres': float(np.median(errors.distance)),
    'median_degrees': float(np.median(errors.angle)),
    'median_draws': float(np.median([a.evidence['draws'] for a in answers])),
    'median_ms': float(np.median(times)),
    'calibration_error': poses_lib.calibration_error(confidence, correct),
    'ranking_quality': poses_lib.ranking_quality(confidence, correct),
    'distance': errors.distance.tolist(),
  }


def speed(num_calls: int = 200) -> dict[str, float]:
  """Time of 1,024 triples, 21 ellipsoids, 16 boxes: proposed and scored.

  The time on the wall, at best and in the median, and the processor's own.
  """
  inputs = object_worlds.crowded_scene(np.random.default_rng(0))
  run = jax.jit(search.search, static_argnames='settings')
  inputs = jax.device_put(inputs)
  start = time.perf_counter()
  jax.block_until_ready(run(*inputs, UNREFINED))
  results = {'compile_s': time.perf_counter() - start}
  for name, settings in (
    ('propose_and_score', UNREFINED),
    ('with_refinement', search.DEFAULT),
  ):
    jax.block_until_ready(run(*inputs, settings))
    walls, cpu = [], time.process_time()
    for _ in range(num_calls):
      start = time.perf_counter()
      jax.block_until_ready(run(*inputs, settings))
      walls.append(1e3 * (time.perf_counter() - start))
    cpu = 1e3 * (time.process_time() - cpu) / num_calls
    results |= {
      f'{name}_min_ms': min(walls),
      f'{name}_median_ms': float(np.median(walls)),
      f'{name}_cpu_ms': cpu,
    }
  for name, value in results.items():
    print(f'{name:32}{value:10.2f}')
  return results


def scaling(num_queries: int = 20) -> list[dict[str, Any]]:
  """Random maps of more and more look-alikes: sizes against uniform draws."""
  results = []
  for size in (64, 256, 1024, 4096):
    worlds = object_worlds.make_queries(size, num_queries)
    rows = (
      Row(f'{size}, by sizes', {'method': 'category'}),
      Row(f'{size}, uniform', {'method': 'category', **UNIFORM}),
    )
    results += measure(Queries(**worlds), rows, [4096])
  object_tables.show(results)
  return results


def define_flags() -> None:
  """Flags of the command line."""
  flags.DEFINE_multi_enum('part', ['fr2_desk'], PARTS, 'What to measure.')
  flags.DEFINE_string('fixture', None, 'Folder of fixture.npz of fr2_desk.')
  flags.DEFINE_string('clip', None, 'Workdir of configs/clip.py, for city.')
  flags.DEFINE_string('data_dir', None, 'Where synthetic_city lies.')
  flags.DEFINE_integer('queries', 60, 'Of every town.', 1)
  flags.DEFINE_float('radius', None, "Metres, of city's landmarks; 0: all.", 0)
  flags.DEFINE_integer('stride', 8, 'Of the odd frames that are queries.', 1)
  flags.DEFINE_string('json', None, 'Where to write the numbers.')


def main(argv: list[str]) -> None:
  """Runs the command line; bad input ends in one line."""
  del argv
  given, results = flags.FLAGS, {}
  if 'fr2_desk' in given.part:
    if not given.fixture:
      sys.exit('object_localization: give --fixture=DIR, or other parts.')
    try:
      queries = load_fr2_desk(given.fixture, given.stride)
    except InputError as error:
      sys.exit(f'object_localization: {error}')
    rows = measure(queries, CATEGORY)
    object_tables.show(rows)
    results['fr2_desk'] = {
      'rows': rows,
      'draws_to_90': object_tables.show_draws(rows),
    }
  if 'city' in given.part:
    if not given.clip:
      sys.exit('object_localization: give --clip=WORKDIR, or other parts.')
    try:
      queries = load_city(
        given.clip, given.data_dir, given.queries, given.radius
      )
    except InputError as error:
      sys.exit(f'object_localization: {error}')
    rows = measure(queries, LANGUAGE)
    object_tables.show(rows)
    needed = {
      str(m): object_tables.show_draws(rows, m, relative=True)
      for m in (0.5, 1.0, 2.0)
    }
    results['city'] = {
      'rows': rows,
      'draws_to_90_of_the_best': needed,
      'differences': object_tables.show_differences(rows, queries.blocks),
    }
  if 'speed' in given.part:
    results['speed'] = speed()
  if 'scaling' in given.part:
    results['scaling'] = scaling()
  if given.json:
    pathlib.Path(given.json).write_text(json.dumps(results, indent=1))


if __name__ == '__main__':
  define_flags()
  app.run(main)
