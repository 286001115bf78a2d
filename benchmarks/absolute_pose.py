# SPDX-License-Identifier: Apache-2.0
"""Pose from 2D-3D correspondences: ours beside PoseLib, COLMAP and OpenCV.

24 cells: N in {100, 300, 1000, 5000} x outliers in {30, 50, 70, 80, 90, 95 %}.
640 x 480 pinhole, f = 500; pixels even, depths even in 2 to 10 m, any world
pose; noise of 1 px; outliers are random pixels. Every match has a score,
inliers N(1, 1), outliers N(0, 1), which only PROSAC reads. All methods solve
the same problems in rotated order on one core, threshold 3 px, confidence
0.9999, at most 10,000 samples, of ours 40,000 (its default: they cost less);
success: below 1 degree and 0.1 m. Times are of the CPU, which other processes
disturb least; on an accelerator of the clock. Compilation is excluded and
printed.

cells    success and time of every method, and the error of the successes
         beside that of the oracle, least squares on the true inliers
ceiling  success where every sample of the smallest N is tried: what remains
         has a wrong pose that more pixels agree with
batch    256 problems in one call
solver   P3P in float32: share that misses the true pose, samples per second
scoring  residuals per second

Peers that are not installed are left out and said to be.
python benchmarks/absolute_pose.py --json=absolute_pose.json
"""

import functools
import json
import math
import os
import pathlib
import statistics
import sys
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import pose_peers as peers
from i2ploc.geometry import p3p
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import consensus
from i2ploc.robust import refine
from i2ploc.robust import scoring
from i2ploc.robust import search

PARTS = ('cells', 'ceiling', 'batch', 'solver', 'scoring')
PART = flags.DEFINE_multi_enum('part', PARTS, PARTS, 'Which parts.')
TRIALS = flags.DEFINE_integer('trials', 20, 'Problems per cell.')
SIZES = flags.DEFINE_multi_integer('size', [100, 300, 1000, 5000], 'N.')
OUTLIERS = flags.DEFINE_multi_float(
  'outliers', [0.3, 0.5, 0.7, 0.8, 0.9, 0.95], 'Shares of outliers.'
)
ONLY = flags.DEFINE_multi_string('method', [], 'Methods; all by default.')
BATCH = flags.DEFINE_integer('batch', 256, 'Problems of the batch.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
# All samples of 100 data are 161,700.
_MOST_SAMPLES = 1_000_000


@functools.partial(jax.jit, static_argnums=0)
def _refined(problem, pose, data):
  return refine.refine(problem, pose, data, len(data.x), jnp.inf)[0]


def oracle(scene: peers.Scene) -> peers.Pose:
  """Least squares on the true inliers, from the true pose."""
  points = scene.points[scene.inliers] - scene.position
  plane = (
    scene.pixels[scene.inliers] - peers.LENS.intrinsics[:2, 2]
  ) / peers.FOCAL
  data = absolute_pose.Correspondences(*points.T, *plane.T)
  with jax.enable_x64(True):
    start = rigid.Rigid(scene.rotation, np.zeros(3))
    pose = _refined(absolute_pose.PLANE, start, data)
  rotation, translation = map(np.asarray, pose)
  return peers.Pose(rotation, scene.position - rotation.T @ translation)


def _methods():
  table = peers.methods()
  if unknown := set(ONLY.value) - set(table):
    raise ValueError(f'no methods {sorted(unknown)}; known: {sorted(table)}')
  return {k: v for k, v in table.items() if k in (ONLY.value or table)}


def _now():
  on_cpu = jax.default_backend() == 'cpu'
  return time.process_time() if on_cpu else time.perf_counter()


def _seconds(solve, scene):
  start = _now()
  pose = solve(scene)
  return pose, _now() - start


def measure_cell(table, num_data: int, outliers: float) -> dict[str, dict]:
  """Success, median seconds and error of each method on the same problems."""
  rng = np.random.default_rng([num_data, round(100 * outliers)])
  scenes = [
    peers.make_scene(rng, num_data, outliers) for _ in range(TRIALS.value)
  ]
  for name in set(peers.OURS) & set(table):
    table[name](scenes[0])  # compiles
  runs = {name: [] for name in table}
  names = list(table)
  for i, scene in enumerate(scenes):
    turn = i % len(names)
    for name in names[turn:] + names[:turn]:
      pose, seconds = _seconds(table[name], scene)
      runs[name].append((seconds, *peers.errors(pose, scene)))
  best = [peers.errors(oracle(scene), scene) for scene in scenes]
  return {name: _summary(rows, best) for name, rows in runs.items()}


def _summary(rows, best):
  """A method in a cell; errors are metres, medians over its successes."""
  right = [i for i, row in enumerate(rows) if peers.is_success(row[1:])]
  summary = {
    'success': len(right) / len(rows),
    'ms': 1e3 * statistics.median(row[0] for row in rows),
  }
  if right:
    summary['error'] = statistics.median(rows[i][2] for i in right)
    summary['oracle'] = statistics.median(best[i][1] for i in right)
  return summary


def show_cells() -> dict:
  """All cells, then the means."""
  table, cells = _methods(), {}
  start = _now()
  for size in SIZES.value:
    for name in set(peers.OURS) & set(table):
      table[name](peers.make_scene(np.random.default_rng(0), size, 0.3))
  print(f'compilation: {_now() - start:.1f} s in all, not counted')
  for size in SIZES.value:
    for share in OUTLIERS.value:
      cell = measure_cell(table, size, share)
      cells[f'{size}/{share:g}'] = cell
      print(f'N {size:5d}  outliers {share:4.0%}', flush=True)
      for name, row in cell.items():
        error = 1e3 * row.get('error', np.nan)
        ratio = row.get('error', np.nan) / row.get('oracle', np.nan)
        print(
          f'  {name:20} success {row["success"]:.2f}  {row["ms"]:8.2f} ms  '
          f'error {error:6.2f} mm, {ratio:.2f} of the oracle'
        )
  means = {name: _means(cells, name) for name in table}
  for name, row in means.items():
    print(' '.join(f'{k} {v:.3f}' for k, v in row.items()), '', name)
  return {'cells': cells, 'means': means}


def _means(cells, name):
  """Mean success, mean time beside PoseLib's, worst error beside the oracle."""

  def relative(base):
    ratios = [
      c[name]['ms'] / c[base]['ms'] for c in cells.values() if base in c
    ]
    return statistics.geometric_mean(ratios) if ratios else np.nan

  sure = [c[name] for c in cells.values() if c[name]['success'] >= 0.9]
  ratios = [row['error'] / row['oracle'] for row in sure]
  return {
    'success': statistics.mean(c[name]['success'] for c in cells.values()),
    'time/poselib': relative(peers.BASE),
    'time/poselib_prosac': relative(peers.BASE_PROSAC),
    'worst error/oracle': max(ratios, default=np.nan),
  }


def show_ceiling() -> dict:
  """Success of the best of all samples, on the problems of the cells."""
  size = min(SIZES.value)
  settings = consensus.DEFAULT._replace(max_draws=math.comb(size, 3))
  everything = search.Search('exhaustive', settings=settings)
  if settings.max_draws > _MOST_SAMPLES:
    print(f'ceiling: {settings.max_draws} samples of {size} are too many')
    return {}
  shares = {}
  for share in OUTLIERS.value:
    rng = np.random.default_rng([size, round(100 * share)])
    right = []
    for _ in range(TRIALS.value):
      scene = peers.make_scene(rng, size, share)
      found = absolute_pose.absolute_pose(
        scene.points,
        scene.pixels,
        peers.LENS,
        peers.THRESHOLD,
        search=everything,
      )
      errors = peers.errors(peers.pose_from_found(found), scene)
      right.append(peers.is_success(errors))
    shares[f'{size}/{share:g}'] = statistics.mean(right)
    print(
      f'ceiling  N {size:5d}  outliers {share:4.0%}  '
      f'success {statistics.mean(right):.3f}',
      flush=True,
    )
  return shares


def show_batch() -> dict:
  """Many problems of a cell in one call, beside PoseLib one by one."""
  poselib, cells = _methods().get(peers.BASE), {}
  for size in SIZES.value:
    for share in OUTLIERS.value:
      rng = np.random.default_rng(size)
      scenes = [peers.make_scene(rng, size, share) for _ in range(BATCH.value)]
      solve = functools.partial(
        absolute_pose.absolute_poses,
        [scene.points for scene in scenes],
        [scene.pixels for scene in scenes],
        peers.LENS,
        peers.THRESHOLD,
      )
      solve()
      start = _now()
      found = solve()
      ours = (_now() - start) / len(scenes)
      poses = map(peers.pose_from_found, found)
      right = [
        peers.is_success(peers.errors(pose, scene))
        for pose, scene in zip(poses, scenes, strict=True)
      ]
      row = {'ms': 1e3 * ours, 'success': statistics.mean(right)}
      if poselib:
        some = scenes[: TRIALS.value]
        theirs = statistics.median(_seconds(poselib, s)[1] for s in some)
        row['time/poselib'] = ours / theirs
      cells[f'{size}/{share:g}'] = row
      print(
        f'batch {BATCH.value}  N {size:5d}  outliers {share:4.0%}  '
        + '  '.join(f'{k} {v:.3f}' for k, v in row.items()),
        flush=True,
      )
  if poselib:
    ratios = [row['time/poselib'] for row in cells.values()]
    print(
      f'batch: {statistics.geometric_mean(ratios):.3f} of PoseLib, geometric'
    )
  return cells


def show_solver() -> dict:
  """P3P alone: accuracy on 100,000 problems, speed in batches of 1,024."""
  rng = np.random.default_rng(0)
  count = 100_000
  scene = peers.make_scene(rng, 3 * count, 0.0)
  seen = (scene.points - scene.position) @ scene.rotation.T
  seen = rng.permutation(seen).reshape(count, 3, 3)
  rotations = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
  rotations *= np.linalg.det(rotations)[:, None, None]
  centers = rng.uniform(-5, 5, (count, 1, 3))
  points = np.einsum('npi,nij->npj', seen, rotations) + centers
  rays = seen / np.linalg.norm(seen, axis=-1, keepdims=True)
  solve = jax.jit(jax.vmap(p3p.p3p))
  found = jax.device_get(solve(np.float32(rays), np.float32(points)))
  truth = -np.einsum('nij,nj->ni', rotations, centers[:, 0])
  turn = np.linalg.norm(found.rotation - rotations[:, None], axis=(-1, -2))
  shift = np.linalg.norm(found.translation - truth[:, None], axis=-1)
  shift /= np.linalg.norm(truth, axis=-1)[:, None]
  error = np.where(found.valid, turn + shift, np.inf).min(axis=-1)
  some = np.float32(rays[:1024]), np.float32(points[:1024])
  jax.block_until_ready(solve(*some))
  times = []
  for _ in range(50):
    start = _now()
    jax.block_until_ready(solve(*some))
    times.append(_now() - start)
  row = {
    'share beyond 1e-3': float((error > 1e-3).mean()),
    'median error': float(np.median(error)),
    'samples/s': 1024 / statistics.median(times),
  }
  print('p3p  ' + '  '.join(f'{k} {v:.3g}' for k, v in row.items()))
  return row


def show_scoring() -> dict:
  """Residuals per second of 1,024 poses."""
  rows = {}
  count = 1024
  for size in SIZES.value:
    scene = peers.make_scene(np.random.default_rng(0), size, 0.5)
    plane = (scene.pixels - peers.LENS.intrinsics[:2, 2]) / peers.FOCAL
    data = absolute_pose.Correspondences(
      *(jnp.asarray(x, jnp.float32) for x in [*scene.points.T, *plane.T])
    )
    models = rigid.Rigid(
      jnp.tile(jnp.asarray(scene.rotation, jnp.float32), (count, 1, 1)),
      jnp.zeros((count, 3)),
    )
    cost = jax.jit(
      functools.partial(scoring.total_costs, absolute_pose.PLANE.residual)
    )
    arguments = (
      models,
      data,
      size,
      peers.THRESHOLD / peers.FOCAL,
    )
    jax.block_until_ready(cost(*arguments))
    start = _now()
    jax.block_until_ready(cost(*arguments))
    rows[str(size)] = count * size / (_now() - start)
    print(f'scoring  N {size:5d}  {rows[str(size)]:.3g} residuals/s')
  return rows


SHOW = {
  'cells': show_cells,
  'ceiling': show_ceiling,
  'batch': show_batch,
  'solver': show_solver,
  'scoring': show_scoring,
}


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  if hasattr(os, 'sched_setaffinity'):  # one core for everybody
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  print(f'device: {jax.devices()[0].device_kind}')
  numbers = {part: SHOW[part]() for part in PART.value}
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
  app.run(main)
