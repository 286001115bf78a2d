# SPDX-License-Identifier: Apache-2.0
"""What a user waits for: first calls, and calls of ever other sizes.

first   seconds to the first answer of each function in a fresh process, whose
        programs are kept in an empty folder (cold), then in the same one (warm)
calls   200 problems of each function with 30 to 4,000 data and 30 to 80 %
        outliers in one process, in turn: programs compiled, memory mappings
        (Linux grants a process 65,530), median and 99th percentile of a call,
        beside PoseLib on the same problems
long    as many more problems of all functions as make 1,000: memory mappings

Times of calls are of the CPU, in milliseconds.
python benchmarks/first_call.py --json=first_call.json
"""

import collections
from collections.abc import Callable
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tests.testing import programs as programs_lib

PARTS = ('first', 'calls', 'long')
PART = flags.DEFINE_multi_enum('part', PARTS, PARTS, 'Which parts.')
CALLS = flags.DEFINE_integer('calls', 200, 'Problems of each function.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
_ONE = flags.DEFINE_string('one', None, 'Time this function; used inside.')
_KEPT = flags.DEFINE_string('kept', None, 'Folder of kept programs.')

FOCAL, SIZE = 500.0, np.array([640.0, 480.0])
_ABSOLUTE = (
  'absolute_pose',
  'absolute_pose_all_around',
  'upright_pose',
  'focal_pose',
  'rig_pose',
)
# PoseLib as in benchmarks/absolute_pose.py.
MAX_DRAWS, CONFIDENCE = 10_000, 0.9999


def _camera():
  from i2ploc.geometry import lens

  matrix = [[FOCAL, 0, SIZE[0] / 2], [0, FOCAL, SIZE[1] / 2], [0, 0, 1]]
  return lens.Lens('pinhole', np.array(matrix))


def _seen(points):
  return FOCAL * points[:, :2] / points[:, 2:] + SIZE / 2


def _spoilt(rng, pixels, share):
  wrong = rng.uniform(size=len(pixels)) < share
  noisy = pixels + rng.normal(size=pixels.shape)
  anywhere = rng.uniform(size=pixels.shape) * SIZE
  return np.where(wrong[:, None], anywhere, noisy)


def _points(rng, count):
  plane = rng.uniform(-0.5, 0.5, (count, 2)) * SIZE / FOCAL
  rays = np.insert(plane, 2, 1.0, axis=1)
  return rays * rng.uniform(2, 10, (count, 1))


def plant(name: str, rng: np.random.Generator, count: int, share: float):
  """Arguments of a function of `functions`: a planted problem."""
  points = _points(rng, count)
  before, after = _seen(points), _seen(points + rng.uniform(-1, 1, 3))
  if name in _ABSOLUTE:
    return points + rng.uniform(-9, 9, 3), _spoilt(rng, before, share)
  if name in ('homography', 'plane_motion'):
    flat = _seen(points / points[:, 2:] * 5 + rng.uniform(-1, 1, 3))
    return before, _spoilt(rng, flat, share)
  if name in ('relative_pose', 'upright_relative_pose', 'fundamental'):
    return _spoilt(rng, before, 0.0), _spoilt(rng, after, share)
  if name in ('alignment', 'similarity'):
    wrong = rng.uniform(size=(count, 1)) < share
    moved = points + rng.uniform(-1, 1, 3) + 0.01 * rng.normal(size=(count, 3))
    return np.where(wrong, rng.uniform(-9, 9, (count, 3)), moved), points
  size = {'plane': 3, 'line': 2}[name]
  found = rng.uniform(-5, 5, (count, size))
  kept = rng.uniform(size=count) >= share
  found[kept, -1] = 2 + 0.01 * rng.normal(size=kept.sum())
  return (found,)


def functions() -> dict[str, Callable]:
  """What a user calls, by name."""
  from i2ploc.geometry import lens
  from i2ploc.geometry import rigid
  from i2ploc.robust import absolute_pose
  from i2ploc.robust import alignment
  from i2ploc.robust import focal_pose
  from i2ploc.robust import fundamental
  from i2ploc.robust import homography
  from i2ploc.robust import lines
  from i2ploc.robust import plane_motion
  from i2ploc.robust import planes
  from i2ploc.robust import relative_pose
  from i2ploc.robust import rig_pose
  from i2ploc.robust import upright_pose
  from i2ploc.robust import upright_relative_pose

  camera = _camera()
  around = lens.Lens('equirectangular', camera.intrinsics)
  down = np.array([0.0, 1.0, 0.0])
  rig = [rig_pose.RigCamera(camera, rigid.Rigid(np.eye(3), np.zeros(3)))] * 2
  return {
    'absolute_pose': lambda a, b: absolute_pose.absolute_pose(a, b, camera),
    'absolute_pose_all_around': lambda a, b: absolute_pose.absolute_pose(
      a, b, around
    ),
    'relative_pose': lambda a, b: relative_pose.relative_pose(
      a, b, camera, camera
    ),
    'upright_pose': lambda a, b: upright_pose.upright_pose(
      a, b, camera, down, up=-down
    ),
    'focal_pose': lambda a, b: focal_pose.focal_pose(a, b, SIZE / 2),
    'rig_pose': lambda a, b: rig_pose.rig_pose(
      a, b, np.arange(len(a)) % 2, rig
    ),
    'upright_relative_pose': lambda a, b: (
      upright_relative_pose.upright_relative_pose(
        a, b, camera, camera, down, down
      )
    ),
    'plane_motion': lambda a, b: plane_motion.plane_motion(
      a, b, camera, camera
    ),
    'fundamental': fundamental.fundamental,
    'homography': homography.homography,
    'alignment': lambda a, b: alignment.alignment(a, b, 0.05),
    'similarity': lambda a, b: alignment.alignment(a, b, 0.05, with_scale=True),
    'plane': lambda a: planes.plane(a, 0.05),
    'line': lambda a: lines.line(a, 0.05),
  }


def peers() -> dict[str, Callable]:
  """PoseLib's functions of the same names; none if it is not installed."""
  try:
    import poselib
  except ImportError:
    print('poselib is not installed: its columns are left out')
    return {}
  camera = {
    'model': 'PINHOLE',
    'width': int(SIZE[0]),
    'height': int(SIZE[1]),
    'params': [FOCAL, FOCAL, *(SIZE / 2)],
  }
  options = {
    'max_iterations': MAX_DRAWS,
    'min_iterations': 100,
    'success_prob': CONFIDENCE,
  }
  near = options | {'max_epipolar_error': 1.5}
  far = options | {'max_reproj_error': 3.0}
  return {
    'absolute_pose': lambda a, b: poselib.estimate_absolute_pose(
      b, a, camera, far, {}
    ),
    'relative_pose': lambda a, b: poselib.estimate_relative_pose(
      a, b, camera, camera, near, {}
    ),
    'fundamental': lambda a, b: poselib.estimate_fundamental(a, b, near, {}),
    'homography': lambda a, b: poselib.estimate_homography(a, b, far, {}),
  }


def _num_mappings():
  maps = pathlib.Path('/proc/self/maps')
  return len(maps.read_text().splitlines()) if maps.exists() else 0


def time_first(name: str) -> None:
  """Prints seconds to import and to answer, as JSON."""
  start = time.perf_counter()
  from i2ploc import compilation

  function = functions()[name]
  imported = time.perf_counter() - start
  compilation.keep_programs(_KEPT.value)
  problem = plant(name, np.random.default_rng(0), 300, 0.5)
  start = time.perf_counter()
  function(*problem)
  first = time.perf_counter() - start
  start = time.perf_counter()
  function(*problem)
  second = time.perf_counter() - start
  print(json.dumps({'import': imported, 'first': first, 'second': second}))


def show_first() -> dict:
  """First calls of fresh processes."""
  rows = {}
  print(f'{"first call, seconds":26} import   cold   warm  (second call, ms)')
  for name in functions():
    with tempfile.TemporaryDirectory() as folder:
      command = [sys.executable, __file__, f'--one={name}', f'--kept={folder}']
      cold, warm = (
        json.loads(
          subprocess.run(
            command, check=True, capture_output=True, text=True
          ).stdout.splitlines()[-1]
        )
        for _ in range(2)
      )
    rows[name] = {'cold': cold, 'warm': warm}
    print(
      f'{name:26} {warm["import"]:6.2f} {cold["first"]:6.2f} '
      f'{warm["first"]:6.2f}  {1e3 * warm["second"]:8.2f}',
      flush=True,
    )
  return rows


def _timed(function, problem):
  start = time.process_time()
  function(*problem)
  return 1e3 * (time.process_time() - start)


def _problem(name, rng):
  count = int(np.exp(rng.uniform(np.log(30), np.log(4000))))
  return plant(name, rng, count, rng.uniform(0.3, 0.8))


def _percentiles(times):
  times = sorted(times)
  return {
    'median ms': statistics.median(times),
    'p99 ms': times[min(int(0.99 * len(times)), len(times) - 1)],
  }


def show_calls() -> dict:
  """Problems of all sizes, of all functions, in turn."""
  programs, others = programs_lib.of_this_process(), peers()
  rng = np.random.default_rng(0)
  ours, theirs = collections.defaultdict(list), collections.defaultdict(list)
  compiled = collections.Counter()
  for _ in range(CALLS.value):
    for name, function in functions().items():
      problem = _problem(name, rng)
      before = programs.count
      ours[name].append(_timed(function, problem))
      compiled[name] += programs.count - before
      if name in others:
        theirs[name].append(_timed(others[name], problem))
  rows = {}
  print(
    f'{CALLS.value} calls each       programs   median      p99 ms   PoseLib '
    'median      p99 ms'
  )
  for name, times in ours.items():
    rows[name] = {'programs': compiled[name]} | _percentiles(times)
    line = (
      f'{name:26} {compiled[name]:8d} {rows[name]["median ms"]:8.2f} '
      f'{rows[name]["p99 ms"]:11.2f}'
    )
    if theirs[name]:
      rows[name]['poselib'] = _percentiles(theirs[name])
      line += ''.join(f' {v:14.2f}' for v in rows[name]['poselib'].values())
    print(line, flush=True)
  total = sum(compiled.values())
  print(f'{total} programs, {_num_mappings()} memory mappings')
  return rows | {'mappings': _num_mappings()}


def show_long() -> dict:
  """Memory mappings of a process after 1,000 calls."""
  rng, table = np.random.default_rng(1), functions()
  names = list(table)
  for i in range(1000):
    name = names[i % len(names)]
    table[name](*_problem(name, rng))
  print(f'1,000 calls of {len(names)} functions: {_num_mappings()} mappings')
  return {'mappings': _num_mappings()}


SHOW = {'first': show_first, 'calls': show_calls, 'long': show_long}


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  if _ONE.value:
    time_first(_ONE.value)
    return
  numbers = {part: SHOW[part]() for part in PART.value}
  if hasattr(os, 'cpu_count'):
    numbers['cores'] = os.cpu_count()
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
  app.run(main)
