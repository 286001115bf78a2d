# SPDX-License-Identifier: Apache-2.0
"""Poses of rigs, of unknown focal length, and with a known vertical.

40 planted problems per row: 300 points 2 to 12 m away, noise of 1 px, images of
640 x 480, threshold 3 px, outliers are random pixels. All methods solve the
same problems, one after the other on one core; times are of the CPU, without
the first call's compilation; success: the camera is less than 0.3 m off.

rig        two cameras, beside PoseLib's generalised absolute pose
focal      focal lengths of 400 to 2,000 px, points in space and on a tilted
           plane, beside pycolmap's search with a focal length
upright    down known to 0.2 degrees, beside our own search without it

Peers that are not installed are left out and said to be.
python benchmarks/more_poses.py
"""

from collections.abc import Callable
import importlib
import json
import pathlib
import statistics
import sys
import time
from types import ModuleType

from absl import app
from absl import flags
import numpy as np
from scipy.spatial import transform

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import focal_pose
from i2ploc.robust import rig_pose
from i2ploc.robust import upright_pose

PARTS = ('rig', 'focal', 'upright')
PART = flags.DEFINE_multi_enum('part', PARTS, PARTS, 'Which parts.')
TRIALS = flags.DEFINE_integer('trials', 40, 'Problems per row.')
OUTLIERS = flags.DEFINE_multi_float(
  'outliers', [0.5, 0.7, 0.8], 'Shares of outliers.'
)
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')

NUM_DATA, NOISE, THRESHOLD, SUCCESS = 300, 1.0, 3.0, 0.3
MOST_DRAWS = 10_000
MIDDLE = np.array([320.0, 240.0])
TILT = np.deg2rad(0.2)
LENS = lens_lib.Lens(
  'pinhole', np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
)
_TURN = transform.Rotation.from_rotvec([0, 1.5, 0]).as_matrix()
RIG = (
  rig_pose.RigCamera(LENS, rigid.Rigid(np.eye(3), np.array([-0.3, 0, 0]))),
  rig_pose.RigCamera(LENS, rigid.Rigid(_TURN, -_TURN @ [-0.3, 0.1, 0])),
)


def _peer(name: str) -> ModuleType | None:
  try:
    return importlib.import_module(name)
  except ImportError:
    print(f'{name} is not installed: left out')
    return None


def _scene(rng, outliers, *, focal=500.0, motions=None, flat=False):
  """Points, pixels, numbers of cameras, and the pose of the body."""
  motions = motions or [rigid.Rigid(np.eye(3), np.zeros(3))]
  cameras = rng.integers(0, len(motions), NUM_DATA)
  plane = rng.uniform(-1, 1, (NUM_DATA, 2)) * MIDDLE / focal
  depth = rng.uniform(2, 12, (NUM_DATA, 1))
  if flat:
    depth = 6 / (1 + plane @ np.array([[0.9], [0.5]]))
  seen = np.append(plane, np.ones((NUM_DATA, 1)), axis=1) * depth
  for number, motion in enumerate(motions):
    rows = cameras == number
    seen[rows] = (seen[rows] - motion.translation) @ motion.rotation
  rotation = transform.Rotation.random(random_state=rng.integers(1 << 31))
  rotation, center = rotation.as_matrix(), rng.normal(size=3)
  pixels = focal * plane + MIDDLE + NOISE * rng.normal(size=plane.shape)
  wrong = rng.uniform(0, 1, plane.shape) * 2 * MIDDLE
  outlying = rng.permutation(NUM_DATA) < round(outliers * NUM_DATA)
  pixels = np.where(outlying[:, None], wrong, pixels)
  return seen @ rotation + center, pixels, cameras, rotation, center


def _position(pose):
  return -np.asarray(pose.rotation).T @ np.asarray(pose.translation)


def _of(found):
  return None if found.model is None else _position(found.model)


def _rig_methods() -> dict[str, Callable]:
  def ours(scene):
    return _of(rig_pose.rig_pose(*scene[:3], RIG, THRESHOLD))

  methods = {'ours': ours}
  if poselib := _peer('poselib'):
    mounted = []
    for camera in RIG:
      pose = poselib.CameraPose()
      pose.R, pose.t = camera.camera_from_body
      mounted.append(pose)
    kind = {'model': 'SIMPLE_PINHOLE', 'width': 640, 'height': 480}
    kind['params'] = [500.0, *MIDDLE]
    options = {'max_reproj_error': THRESHOLD, 'max_iterations': MOST_DRAWS}

    def theirs(scene):
      points, pixels, cameras = scene[:3]
      rows = [cameras == number for number in range(len(RIG))]
      pose, _ = poselib.estimate_generalized_absolute_pose(
        [pixels[r] for r in rows],
        [points[r] for r in rows],
        mounted,
        [kind] * len(RIG),
        options,
        {},
      )
      return -pose.R.T @ pose.t

    methods['PoseLib'] = theirs
  return methods


def _focal_methods() -> dict[str, Callable]:
  def ours(scene):
    return _of(focal_pose.focal_pose(*scene[:2], MIDDLE, THRESHOLD))

  methods = {'ours': ours}
  if colmap := _peer('pycolmap'):

    def theirs(scene):
      camera = colmap.Camera(
        model='SIMPLE_PINHOLE', width=640, height=480, params=[768, *MIDDLE]
      )
      estimation = colmap.AbsolutePoseEstimationOptions()
      estimation.estimate_focal_length = True
      estimation.ransac.max_error = THRESHOLD
      refinement = colmap.AbsolutePoseRefinementOptions()
      refinement.refine_focal_length = True
      found = colmap.estimate_and_refine_absolute_pose(
        scene[1], scene[0], camera, estimation, refinement
      )
      if found is None:
        return None
      pose = found['cam_from_world']
      return -pose.rotation.matrix().T @ pose.translation

    methods['pycolmap'] = theirs
  return methods


def _upright_methods() -> dict[str, Callable]:
  def ours(scene):
    axis = np.cross(scene[3][:, 2], [0.3, -0.5, 0.8])
    turn = transform.Rotation.from_rotvec(TILT * axis / np.linalg.norm(axis))
    down = -turn.as_matrix() @ scene[3][:, 2]
    return _of(upright_pose.upright_pose(*scene[:2], LENS, down, THRESHOLD))

  def without(scene):
    return _of(absolute_pose.absolute_pose(*scene[:2], LENS, THRESHOLD))

  return {'ours': ours, 'without the vertical': without}


def _row(methods, scenes):
  """Success, median error and time in ms of each method."""
  for solve in methods.values():
    solve(scenes[0])  # compiles
  errors = {name: [] for name in methods}
  times = {name: [] for name in methods}
  for scene in scenes:
    for name, solve in methods.items():
      start = time.process_time()
      center = solve(scene)
      times[name].append(1e3 * (time.process_time() - start))
      away = np.inf if center is None else np.linalg.norm(center - scene[4])
      errors[name].append(float(away))
  return {
    name: {
      'success': float(np.mean(np.asarray(errors[name]) < SUCCESS)),
      'median_error': statistics.median(errors[name]),
      'median_ms': statistics.median(times[name]),
    }
    for name in methods
  }


def _drawn(part, outliers, flat):
  scenes = []
  for seed in range(TRIALS.value):
    rng = np.random.default_rng(seed)
    options = {'flat': flat}
    if part == 'rig':
      options['motions'] = [camera.camera_from_body for camera in RIG]
    if part == 'focal':
      options['focal'] = np.exp(rng.uniform(np.log(400), np.log(2000)))
    scenes.append(_scene(rng, outliers, **options))
  return scenes


def main(argv: list[str]) -> None:
  """Prints a line per part, share of outliers and method."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments {argv[1:]}')
  made = {'rig': _rig_methods, 'focal': _focal_methods}
  made['upright'] = _upright_methods
  rows = []
  for part in PART.value:
    methods = made[part]()
    for flat in (False, True) if part == 'focal' else (False,):
      for outliers in OUTLIERS.value:
        found = _row(methods, _drawn(part, outliers, flat))
        rows.append({'part': part, 'flat': flat, 'outliers': outliers} | found)
        for name, row in found.items():
          print(
            f'{part}{" on a plane" if flat else ""} {outliers:.0%}  {name}: '
            f'success {row["success"]:.3f}  '
            f'error {row["median_error"]:.4f} m  '
            f'{row["median_ms"]:.1f} ms',
            flush=True,
          )
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(rows, indent=2))


if __name__ == '__main__':
  app.run(main)
