# SPDX-License-Identifier: Apache-2.0
"""Planted poses of a camera, and who solves them: the parts of a comparison."""

from collections.abc import Callable
import functools
import importlib
from typing import NamedTuple

import numpy as np

from i2ploc.geometry import lens as lens_lib
from i2ploc.robust import absolute_pose

FOCAL, WIDTH, HEIGHT = 500.0, 640, 480
THRESHOLD = 3.0
MAX_DRAWS, CONFIDENCE = 10_000, 0.9999
LENS = lens_lib.Lens(
  'pinhole',
  np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]),
)
OURS = ('ours', 'ours_prosac')
BASE, BASE_PROSAC = 'poselib', 'poselib_prosac'


class Scene(NamedTuple):
  """Correspondences, best scores first, and the truth."""

  points: np.ndarray
  pixels: np.ndarray
  scores: np.ndarray
  rotation: np.ndarray
  position: np.ndarray
  inliers: np.ndarray


class Pose(NamedTuple):
  """camera_from_map rotation and the camera's position; None if not found."""

  rotation: np.ndarray
  position: np.ndarray


def make_scene(rng: np.random.Generator, num_data: int, outliers: float):
  """A problem of the protocol above."""
  pixels = rng.uniform(0, 1, (num_data, 2)) * [WIDTH, HEIGHT]
  rays, _ = lens_lib.rays_from_pixels(LENS, pixels)
  seen = rays / rays[:, 2:] * rng.uniform(2, 10, (num_data, 1))
  q, r = np.linalg.qr(rng.normal(size=(3, 3)))
  rotation = q * np.sign(np.diagonal(r))
  rotation = rotation * np.linalg.det(rotation)
  position = rng.uniform(-5, 5, 3)
  inliers = rng.permutation(num_data) >= round(outliers * num_data)
  pixels = pixels + rng.normal(size=pixels.shape)
  wrong = rng.uniform(0, 1, pixels.shape) * [WIDTH, HEIGHT]
  pixels = np.where(inliers[:, None], pixels, wrong)
  scores = inliers + rng.normal(size=num_data)
  order = np.argsort(-scores)
  points = seen @ rotation + position
  return Scene(
    points[order],
    pixels[order],
    scores[order],
    rotation,
    position,
    inliers[order],
  )


def errors(pose: Pose | None, scene: Scene) -> tuple[float, float]:
  """Degrees and metres; infinite without a pose."""
  if pose is None:
    return np.inf, np.inf
  cosine = (np.trace(pose.rotation @ scene.rotation.T) - 1) / 2
  degrees = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
  return float(degrees), float(np.linalg.norm(pose.position - scene.position))


def is_success(error: tuple[float, float]) -> bool:
  """The protocol's criterion."""
  return error[0] < 1 and error[1] < 0.1


def _ours(scene, has_scores):
  found = absolute_pose.absolute_pose(
    scene.points,
    scene.pixels,
    LENS,
    THRESHOLD,
    scores=scene.scores if has_scores else None,
  )
  return pose_from_found(found)


def pose_from_found(found: absolute_pose.AbsolutePose) -> Pose | None:
  """One of our own results as a `Pose`, valid or not: as of the peers."""
  if found.model is None:
    return None
  rotation, translation = found.model
  return Pose(rotation, -rotation.T @ translation)


def _poselib(poselib, scene, **options):
  camera = {
    'model': 'PINHOLE',
    'width': WIDTH,
    'height': HEIGHT,
    'params': [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2],
  }
  settings = {
    'max_reproj_error': THRESHOLD,
    'max_iterations': MAX_DRAWS,
    'success_prob': CONFIDENCE,
    **options,
  }
  pose, _ = poselib.estimate_absolute_pose(
    scene.pixels, scene.points, camera, settings, {}
  )
  return Pose(pose.R, -pose.R.T @ pose.t)


def _pycolmap(pycolmap, scene):
  camera = pycolmap.Camera(
    model='PINHOLE',
    width=WIDTH,
    height=HEIGHT,
    params=[FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2],
  )
  options = pycolmap.AbsolutePoseEstimationOptions()
  options.ransac.max_error = THRESHOLD
  options.ransac.max_num_trials = MAX_DRAWS
  options.ransac.confidence = CONFIDENCE
  found = pycolmap.estimate_and_refine_absolute_pose(
    scene.pixels, scene.points, camera, options
  )
  if not found:
    return None
  matrix = found['cam_from_world'].matrix()
  return Pose(matrix[:, :3], -matrix[:, :3].T @ matrix[:, 3])


def _opencv(cv2, scene, flag):
  # OpenCV counts pixel centres from 0; a shift of both changes nothing.
  options = {'reprojectionError': THRESHOLD, 'iterationsCount': MAX_DRAWS}
  found, vector, translation, _ = cv2.solvePnPRansac(
    scene.points,
    scene.pixels,
    LENS.intrinsics,
    None,
    confidence=CONFIDENCE,
    flags=flag,
    **options,
  )
  if not found:
    return None
  rotation, _ = cv2.Rodrigues(vector)
  return Pose(rotation, -rotation.T @ translation[:, 0])


def _opencv_usac(cv2, scene, method):
  params = cv2.UsacParams()
  params.confidence, params.threshold = CONFIDENCE, THRESHOLD
  params.maxIterations = MAX_DRAWS
  params.sampler = cv2.SAMPLING_PROSAC if method == 'PROSAC' else 0
  params.score = cv2.SCORE_METHOD_MAGSAC if method == 'MAGSAC' else 1
  params.loMethod = cv2.LOCAL_OPTIM_INNER_LO
  found, _, vector, translation, _ = cv2.solvePnPRansac(
    scene.points, scene.pixels, LENS.intrinsics, None, params=params
  )
  if not found:
    return None
  rotation, _ = cv2.Rodrigues(vector)
  return Pose(rotation, -rotation.T @ translation[:, 0])


def _peer(name):
  try:
    return importlib.import_module(name)
  except ImportError:
    print(f'{name} is not installed: its rows are left out')
    return None


def methods() -> dict[str, Callable[[Scene], Pose | None]]:
  """The methods to compare, by name."""
  table = {
    'ours': functools.partial(_ours, has_scores=False),
    'ours_prosac': functools.partial(_ours, has_scores=True),
  }
  if poselib := _peer('poselib'):
    solve = functools.partial(_poselib, poselib)
    table[BASE] = functools.partial(solve, min_iterations=100)
    table[BASE_PROSAC] = functools.partial(
      solve, min_iterations=100, progressive_sampling=True
    )
  if pycolmap := _peer('pycolmap'):
    table['pycolmap'] = functools.partial(_pycolmap, pycolmap)
  if cv2 := _peer('cv2'):
    cv2.setNumThreads(1)
    for kind in ('DEFAULT', 'MAGSAC', 'PROSAC'):
      table[f'opencv_usac_{kind.lower()}'] = functools.partial(
        _opencv_usac, cv2, method=kind
      )
    table['opencv_ap3p'] = functools.partial(
      _opencv, cv2, flag=cv2.SOLVEPNP_AP3P
    )
  return table
