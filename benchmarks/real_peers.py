# SPDX-License-Identifier: Apache-2.0
"""Who solves the problems of real photographs, all in the same way.

Every method has the same threshold, confidence 0.9999 and at most 10,000
samples, and one thread; all else is its own default. An answer is a model and
how many data agree with it; None without a model. Those of ours have in
addition what they think of it.
"""

from collections.abc import Callable
import functools
import importlib
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import fundamental
from i2ploc.robust import homography
from i2ploc.robust import relative_pose

MAX_DRAWS, CONFIDENCE = 10_000, 0.9999
OURS = ('ours', 'ours_scores')


class Answer(NamedTuple):
  """What a method says.

  Attributes:
    model: as the problem has it; None if there is none.
    num_inliers: data that agree with it, as the method counts them.
    valid: whether the method trusts it; peers do not say.
  """

  model: Any
  num_inliers: int
  valid: bool


Method = Callable[[Any, float], Answer | None]


@functools.cache
def _peer(name):
  try:
    module = importlib.import_module(name)
  except ImportError:
    print(f'{name} is not installed: its rows are left out')
    return None
  if name == 'cv2':
    module.setNumThreads(1)
  return module


def _answer(found):
  if found.model is None:
    return None
  return Answer(found.model, found.num_inliers, found.valid)


def _scores(pair, has_scores):
  return pair.scores if has_scores else None


def _ours_relative(pair, threshold, *, has_scores):
  return _answer(
    relative_pose.relative_pose(
      pair.pixels0,
      pair.pixels1,
      pair.lens0,
      pair.lens1,
      threshold,
      scores=_scores(pair, has_scores),
    )
  )


def _ours_fundamental(pair, threshold, *, has_scores):
  return _answer(
    fundamental.fundamental(
      pair.pixels0, pair.pixels1, threshold, scores=_scores(pair, has_scores)
    )
  )


def _ours_homography(pair, threshold, *, has_scores):
  return _answer(
    homography.homography(
      pair.pixels0, pair.pixels1, threshold, scores=_scores(pair, has_scores)
    )
  )


def _ours_absolute(view, threshold, *, has_scores):
  return _answer(
    absolute_pose.absolute_pose(
      view.points,
      view.pixels,
      view.lens,
      threshold,
      scores=_scores(view, has_scores),
    )
  )


def _poselib_camera(lens, size):
  matrix = lens.intrinsics
  return {
    'model': 'PINHOLE',
    'width': size[0],
    'height': size[1],
    'params': [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]],
  }


def _poselib_options(threshold, progressive):
  return {
    'max_reproj_error': threshold,
    'max_epipolar_error': threshold,
    'max_iterations': MAX_DRAWS,
    'min_iterations': 100,
    'success_prob': CONFIDENCE,
    'progressive_sampling': progressive,
  }


def _poselib_relative(pair, threshold, *, progressive):
  cameras = [
    _poselib_camera(*one)
    for one in zip((pair.lens0, pair.lens1), pair.sizes, strict=True)
  ]
  pose, found = _peer('poselib').estimate_relative_pose(
    pair.pixels0,
    pair.pixels1,
    *cameras,
    _poselib_options(threshold, progressive),
    {},
  )
  return Answer(rigid.Rigid(pose.R, pose.t), found['num_inliers'], True)


def _poselib_fundamental(pair, threshold, *, progressive):
  matrix, found = _peer('poselib').estimate_fundamental(
    pair.pixels0, pair.pixels1, _poselib_options(threshold, progressive), {}
  )
  return Answer(matrix, found['num_inliers'], True)


def _poselib_homography(pair, threshold, *, progressive):
  matrix, found = _peer('poselib').estimate_homography(
    pair.pixels0, pair.pixels1, _poselib_options(threshold, progressive), {}
  )
  return Answer(matrix, found['num_inliers'], True)


def _poselib_absolute(view, threshold, *, progressive):
  pose, found = _peer('poselib').estimate_absolute_pose(
    view.pixels,
    view.points,
    _poselib_camera(view.lens, view.size),
    _poselib_options(threshold, progressive),
    {},
  )
  return Answer(rigid.Rigid(pose.R, pose.t), found['num_inliers'], True)


def _decomposed(essential, pair, mask, count):
  """The pose of an essential matrix, by OpenCV; inliers [N] bool."""
  if essential is None or np.shape(essential) != (3, 3):
    return None
  if not np.isfinite(essential).all() or not mask.any():
    return None
  plane0, plane1 = (
    (pixels - lens.intrinsics[:2, 2]) / np.diagonal(lens.intrinsics)[:2]
    for pixels, lens in (
      (pair.pixels0[mask], pair.lens0),
      (pair.pixels1[mask], pair.lens1),
    )
  )
  _, rotation, shift, _ = _peer('cv2').recoverPose(
    np.ascontiguousarray(essential), plane0, plane1, np.eye(3)
  )
  return Answer(rigid.Rigid(rotation, shift[:, 0]), count, True)


def _opencv_relative(pair, threshold, *, method):
  cv2 = _peer('cv2')
  essential, mask = cv2.findEssentialMat(
    pair.pixels0,
    pair.pixels1,
    pair.lens0.intrinsics,
    method=getattr(cv2, method),
    prob=CONFIDENCE,
    threshold=threshold,
    maxIters=MAX_DRAWS,
  )
  if essential is None or mask is None:
    return None
  mask = mask[:, 0] > 0
  return _decomposed(essential[:3], pair, mask, int(mask.sum()))


def _opencv_matrix(pair, threshold, *, method, problem):
  cv2 = _peer('cv2')
  find = {
    'fundamental': cv2.findFundamentalMat,
    'homography': cv2.findHomography,
  }[problem]
  options = (
    (threshold, CONFIDENCE, MAX_DRAWS)
    if problem == 'fundamental'
    else (threshold, None, MAX_DRAWS, CONFIDENCE)
  )
  matrix, mask = find(
    pair.pixels0, pair.pixels1, getattr(cv2, method), *options
  )
  if matrix is None or matrix.shape != (3, 3):
    return None
  return Answer(matrix, int(mask.sum()), True)


def _opencv_absolute(view, threshold, *, score):
  cv2 = _peer('cv2')
  params = cv2.UsacParams()
  params.confidence, params.threshold = CONFIDENCE, threshold
  params.maxIterations = MAX_DRAWS
  params.score = getattr(cv2, f'SCORE_METHOD_{score}')
  params.loMethod = cv2.LOCAL_OPTIM_INNER_LO
  found, _, vector, shift, mask = cv2.solvePnPRansac(
    view.points, view.pixels, view.lens.intrinsics, None, params=params
  )
  if not found:
    return None
  rotation, _ = cv2.Rodrigues(vector)
  return Answer(rigid.Rigid(rotation, shift[:, 0]), len(mask), True)


def _superansac_settings(threshold):
  # Each call changes its settings: they are made anew.
  settings = _peer('pysuperansac').RANSACSettings()
  settings.inlier_threshold = threshold
  settings.confidence = CONFIDENCE
  settings.min_iterations, settings.max_iterations = 100, MAX_DRAWS
  return settings


def _sizes(pair):
  (width0, height0), (width1, height1) = pair.sizes
  return [float(x) for x in (width0, height0, width1, height1)]


def _superansac_pairs(pair, threshold, *, problem):
  peer = _peer('pysuperansac')
  pixels = np.concatenate([pair.pixels0, pair.pixels1], axis=1)
  settings = _superansac_settings(threshold)
  if problem == 'relative':
    matrix, inliers, *_ = peer.estimateEssentialMatrix(
      pixels,
      pair.lens0.intrinsics,
      pair.lens1.intrinsics,
      _sizes(pair),
      config=settings,
    )
    mask = np.isin(np.arange(len(pixels)), inliers)
    return _decomposed(np.asarray(matrix), pair, mask, len(inliers))
  find = {
    'fundamental': peer.estimateFundamentalMatrix,
    'homography': peer.estimateHomography,
  }[problem]
  matrix, inliers, *_ = find(pixels, _sizes(pair), config=settings)
  return Answer(np.asarray(matrix), len(inliers), True) if inliers else None


def _superansac_absolute(view, threshold):
  peer = _peer('pysuperansac')
  matrix = view.lens.intrinsics
  # It knows one focal length: rows are stretched to have that of the columns.
  pixels = view.pixels - matrix[:2, 2]
  pixels = pixels * [1, matrix[0, 0] / matrix[1, 1]] + matrix[:2, 2]
  low, high = view.points.min(axis=0), view.points.max(axis=0)
  rotation, shift, inliers, *_ = peer.estimateAbsolutePose(
    np.concatenate([pixels, view.points], axis=1),
    peer.CameraType.SimplePinhole,
    [matrix[0, 0], matrix[0, 2], matrix[1, 2]],
    [*(float(x) for x in view.size), *(high - low)],
    config=_superansac_settings(threshold),
  )
  if not inliers:
    return None
  return Answer(
    rigid.Rigid(np.asarray(rotation), np.ravel(shift)), len(inliers), True
  )


def _pycolmap_options(threshold):
  options = _peer('pycolmap').RANSACOptions()
  options.max_error, options.confidence = threshold, CONFIDENCE
  options.min_num_trials, options.max_num_trials = 100, MAX_DRAWS
  options.random_seed = 0
  return options


def _pycolmap_camera(lens, size):
  matrix = lens.intrinsics
  return _peer('pycolmap').Camera(
    model='PINHOLE',
    width=size[0],
    height=size[1],
    params=[matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]],
  )


def _pycolmap_pairs(pair, threshold, *, problem):
  peer, options = _peer('pycolmap'), _pycolmap_options(threshold)
  if problem == 'relative':
    found = peer.estimate_essential_matrix(
      pair.pixels0,
      pair.pixels1,
      _pycolmap_camera(pair.lens0, pair.sizes[0]),
      _pycolmap_camera(pair.lens1, pair.sizes[1]),
      options,
    )
    if not found:
      return None
    pose = found['cam2_from_cam1'].matrix()
    motion = rigid.Rigid(pose[:, :3], pose[:, 3])
    return Answer(motion, int(found['num_inliers']), True)
  find, key = {
    'fundamental': (peer.estimate_fundamental_matrix, 'F'),
    'homography': (peer.estimate_homography_matrix, 'H'),
  }[problem]
  found = find(pair.pixels0, pair.pixels1, options)
  return Answer(found[key], int(found['num_inliers']), True) if found else None


def _pycolmap_absolute(view, threshold):
  peer = _peer('pycolmap')
  options = peer.AbsolutePoseEstimationOptions()
  options.ransac = _pycolmap_options(threshold)
  found = peer.estimate_and_refine_absolute_pose(
    view.pixels, view.points, _pycolmap_camera(view.lens, view.size), options
  )
  if not found:
    return None
  pose = found['cam_from_world'].matrix()
  return Answer(
    rigid.Rigid(pose[:, :3], pose[:, 3]), int(found['num_inliers']), True
  )


def _degensac(pair, threshold, *, problem):
  peer = _peer('pydegensac')
  find = {
    'fundamental': peer.findFundamentalMatrix,
    'homography': peer.findHomography,
  }[problem]
  matrix, mask = find(
    pair.pixels0, pair.pixels1, threshold, CONFIDENCE, MAX_DRAWS, seed=0
  )
  if matrix is None or not np.any(mask):
    return None
  return Answer(np.asarray(matrix), int(np.sum(mask)), True)


def _barath(pair, threshold, *, name, problem):
  """pymagsac and pygcransac, which have one interface but for their names."""
  peer = _peer(name)
  pixels = np.ascontiguousarray(
    np.concatenate([pair.pixels0, pair.pixels1], axis=1)
  )
  limit = 'sigma_th' if name == 'pymagsac' else 'threshold'
  options = {
    limit: threshold,
    'conf': CONFIDENCE,
    'min_iters': 100,
    'max_iters': MAX_DRAWS,
    'probabilities': np.zeros(0),
    # Uniform; their own default is for data in order of scores.
    'sampler': 0,
  }
  sizes = dict(
    zip(('w1', 'h1', 'w2', 'h2'), map(int, _sizes(pair)), strict=True)
  )
  if problem == 'relative':
    matrices = {'K1': pair.lens0.intrinsics, 'K2': pair.lens1.intrinsics}
    matrix, mask = peer.findEssentialMatrix(
      pixels, **matrices, **sizes, **options
    )
    mask = np.asarray(mask, bool)
    return _decomposed(matrix, pair, mask, int(mask.sum()))
  find = {
    'fundamental': peer.findFundamentalMatrix,
    'homography': peer.findHomography,
  }[problem]
  matrix, mask = find(pixels, **sizes, **options)
  if matrix is None:
    return None
  return Answer(np.asarray(matrix), int(np.sum(mask)), True)


_USAC = ('USAC_DEFAULT', 'USAC_ACCURATE', 'USAC_MAGSAC', 'USAC_PROSAC')


def methods(problem: str) -> dict[str, Method]:
  """Who solves 'relative', 'fundamental', 'homography' or 'absolute', by name.

  Args:
    problem: of these four. An absolute pose is of a `real_problems.View`, all
      else of a `real_data.Pair`, for homographies also of a
      `real_problems.Warp`.
  """
  ours, poselib = {
    'relative': (_ours_relative, _poselib_relative),
    'fundamental': (_ours_fundamental, _poselib_fundamental),
    'homography': (_ours_homography, _poselib_homography),
    'absolute': (_ours_absolute, _poselib_absolute),
  }[problem]
  table: dict[str, Method] = {
    'ours': functools.partial(ours, has_scores=False),
    'ours_scores': functools.partial(ours, has_scores=True),
  }
  if _peer('poselib'):
    table['poselib'] = functools.partial(poselib, progressive=False)
    table['poselib_prosac'] = functools.partial(poselib, progressive=True)
  if problem == 'absolute':
    if _peer('cv2'):
      for score in ('MSAC', 'MAGSAC'):
        table[f'opencv_{score.lower()}'] = functools.partial(
          _opencv_absolute, score=score
        )
    table |= _present('pycolmap', _pycolmap_absolute)
    return table | _present('pysuperansac', _superansac_absolute)
  if _peer('cv2'):
    for name in _USAC:
      table[f'opencv_{name[5:].lower()}'] = (
        functools.partial(_opencv_relative, method=name)
        if problem == 'relative'
        else functools.partial(_opencv_matrix, method=name, problem=problem)
      )
  table |= _present('pycolmap', _pycolmap_pairs, problem=problem)
  if problem != 'relative':
    table |= _present('pydegensac', _degensac, problem=problem)
  for name in ('pymagsac', 'pygcransac'):
    table |= _present(name, _barath, name=name, problem=problem)
  return table | _present('pysuperansac', _superansac_pairs, problem=problem)


def _present(peer, method, **options):
  """The row of a peer, if it is installed."""
  if not _peer(peer):
    return {}
  return {peer: functools.partial(method, **options)}
