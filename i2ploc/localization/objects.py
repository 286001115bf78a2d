# SPDX-License-Identifier: Apache-2.0
"""The stage that poses a camera by the objects it sees and a map of objects.

Detections become candidate pairs, pairs become triples, triples become poses,
and poses are judged by all boxes of the image (Matsuzaki et al., CLIP-Loc, ICRA
2024). What differs between methods is which pairs propose and which judge:

  method         proposes                        judges
  'category'     same category                   same category
  'clip'         k nearest texts                 k nearest texts
  'paper'        k nearest texts                 both of the above
  'hybrid'       both, the nearest texts first   both
  'brute_force'  every landmark                  every landmark

The paper's loses what no near text names, however many triples are solved: on
towns, hybrid finds as much with a few and more with many. Triples are
enumerated as long as there are few, so that an answer does not depend on
chance; see `objects.pose.proposals`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax
import numpy as np
from scipy import special

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.geometry import rigid
from i2ploc.localization import answer as answer_lib
from i2ploc.objects import association
from i2ploc.objects import detections as detections_lib
from i2ploc.objects import observer
from i2ploc.objects.map import landmarks as landmarks_lib
from i2ploc.objects.pose import proposals
from i2ploc.objects.pose import scene
from i2ploc.objects.pose import search

BY_LANGUAGE = ('clip', 'paper', 'hybrid')
METHODS = ('category', *BY_LANGUAGE, 'brute_force')
# Triples that are solved if no budget is given.
_MOST_TRIPLES = 1 << 14
# Squared sine below which landmarks are on a line.
_FLAT = 1e-4
# Smallest eigenvalue of a correlation that float32 can tell from 0.
_SINGULAR = 1e-5
# Of a logistic model: offset, and slopes of the score, of its margin over the
# rival's, and of the logarithm of the number of explained detections. Fitted on
# even frames of TUM RGB-D fr2_desk, to answers of 8, 16 and all triples.
CONFIDENCE = (-21.7, 18.6, 1.23, 5.34)

Answer = answer_lib.Answer


def _unlocalizable(reason, place, num_left_out=0, num_draws=0):
  return Answer(
    rank=1,
    place=place,
    world_from_camera=None,
    covariance=None,
    similarity=0.0,
    confidence=0.0,
    reason=reason,
    evidence={
      'stage': 'objects',
      'score': 0.0,
      'rival': 0.0,
      'draws': num_draws,
      'left_out': num_left_out,
      'pairs': np.zeros((0, 2), np.int64),
      'overlaps': np.zeros(0),
    },
  )


def candidate_pairs(
  detections,
  object_map,
  method: str,
  *,
  similarity: np.ndarray | None = None,
  k: int = 3,
  calibration: association.Calibration = association.UNCALIBRATED,
) -> tuple[association.Candidates, association.Candidates]:
  """What proposes poses and what judges them.

  Args:
    detections: of an image.
    object_map: of landmarks.
    method: of `METHODS`.
    similarity: [M, L]; None for the cosines of both embeddings.
    k: texts per detection.
    calibration: what ranks and similarities are worth.

  Raises:
    InputError: an unknown method, or one that needs embeddings there are not.
  """
  if method not in METHODS:
    raise InputError(f'unknown method {method!r}; known: {METHODS}')
  size = len(detections.box), len(object_map.center)
  if method == 'brute_force':
    pairs = association.all_pairs(*size)
    return pairs, pairs
  category = association.same_category(detections.category, object_map.category)
  if method == 'category':
    return category, category
  if similarity is None:
    sides = detections.embedding, object_map.embedding
    if any(side is None for side in sides):
      raise InputError(
        f'method {method!r} compares embeddings, but the detections or the map'
        " have none: embed them, give similarity=, or use 'category'."
      )
    similarity = association.cosines(*sides)
  if np.shape(similarity) != size:
    raise InputError(
      f'similarity has shape {np.shape(similarity)}; expected {size},'
      ' detections by landmarks.'
    )
  nearest = association.nearest(similarity, k, calibration)
  if method == 'clip':
    return nearest, nearest
  if method == 'paper':
    return nearest, association.union(nearest, category)
  ranked = association.nearest(similarity, size[1], calibration)
  same = detections.category[ranked.observation]
  same = same == object_map.category[ranked.landmark]
  both = ranked.take(np.flatnonzero(same | (ranked.rank < k)))
  return both, both


def _obstacle(object_map, pairs: association.Candidates) -> str:
  """Why three pairs that determine a pose cannot be found; '' if they may."""
  count = len(np.unique(pairs.observation))
  if count < proposals.SAMPLE_SIZE:
    return f'{count} detections have a candidate in the map; a pose needs three'
  landmarks = np.unique(pairs.landmark)
  if len(landmarks) < proposals.SAMPLE_SIZE:
    return (
      f'{len(landmarks)} landmarks are candidates of the detections; a pose'
      ' needs three'
    )
  center = object_map.center[landmarks]
  spread = np.linalg.svd(center - center.mean(0), compute_uv=False)
  if spread[1] ** 2 <= _FLAT * spread[0] ** 2:
    return (
      f'all {len(landmarks)} candidate landmarks lie on a line: the camera may'
      ' be anywhere around it'
    )
  return ''


_search = compilation.jit(search.search, static_argnames='settings')


def localize(
  detections: detections_lib.Detections,
  object_map: landmarks_lib.ObjectMap,
  intrinsics: np.ndarray,
  image_size: tuple[int, int],
  *,
  method: str = 'hybrid',
  pairs: tuple[association.Candidates, association.Candidates] | None = None,
  similarity: np.ndarray | None = None,
  k: int = 3,
  calibration: association.Calibration = association.UNCALIBRATED,
  draws: int | None = None,
  sampler: str = 'auto',
  prune: bool = True,
  prior: answer_lib.Prior = answer_lib.UNKNOWN,
  seed: int = 0,
  settings: search.Settings = search.DEFAULT,
  place: str = '',
) -> Answer:
  """The pose of a camera that sees objects of a map.

  Args:
    detections: of one image, boxes in pixels of a pinhole.
    object_map: of landmarks.
    intrinsics: [3, 3] of the pinhole, without skew.
    image_size: (height, width).
    method: of `METHODS`.
    pairs: what proposes and what judges, instead of a method's.
    similarity: [M, L] of detections and landmarks; None for the cosines of
      their embeddings.
    k: texts per detection.
    calibration: what ranks and similarities are worth.
    draws: triples that are solved, at most.
    sampler: of `proposals.SAMPLERS`.
    prune: whether sizes of boxes may rule out triples before they are solved.
    prior: what else is known of the camera.
    seed: of the samplers that draw.
    settings: how to search.
    place: name of the map.

  Returns:
    The answer; its similarity is the score. A map or detections that cannot be
    used, or that do not determine a pose, give an answer without a pose that
    says why in `reason`. Evidence:

      score: [0, 1], the share of the detections that the pose explains, see
        `objects.pose.verification`.
      rival: score of the best pose 0.5 m or 10 degrees away.
      draws: triples that were solved.
      left_out: detections that could not be used: not finite, or inverted.
      pairs: int [A, 2], rows of detections and landmarks that explain them.
      overlaps: [A] IoU of their boxes.

  Raises:
    InputError: an unknown method or sampler, no draws, or a method that needs
      embeddings where there are none.
  """
  try:
    landmarks_lib.check_map(object_map)
  except InputError as error:
    return _unlocalizable(str(error), place)
  if not len(object_map.center):
    return _unlocalizable('the map is empty', place)
  sound = detections_lib.box_fault(detections.box) == ''
  sound &= np.isfinite(detections.score)
  left_out = int(np.sum(~sound))
  kept = np.flatnonzero(sound)
  if not len(kept):
    reason = f'all {left_out} boxes are broken' if left_out else 'no detections'
    return _unlocalizable(reason, place, left_out)
  seen = detections.take(kept)
  if pairs is None:
    some = None if similarity is None else np.asarray(similarity)[kept]
    pairs = candidate_pairs(
      seen, object_map, method, similarity=some, k=k, calibration=calibration
    )
  else:
    pairs = tuple(_renumbered(one, sound) for one in pairs)
  if reason := _obstacle(object_map, pairs[0]):
    return _unlocalizable(reason, place, left_out)
  ellipsoids = object_map.ellipsoid
  cut = detections_lib.cut_edges(seen, image_size)
  plane = scene.plane_boxes(seen.box, intrinsics)
  triples = proposals.propose(
    proposals.sightings(plane, np.asarray(cut.any(-1))),
    ellipsoids,
    pairs[0],
    num_draws=_MOST_TRIPLES if draws is None else draws,
    sampler=sampler,
    prune=prune,
    seed=seed,
  )
  if not len(triples):
    reason = 'no three detections can be three landmarks, by their sizes'
    return _unlocalizable(reason, place, left_out)
  placed = scene.make_scene(
    plane,
    seen.score,
    cut,
    ellipsoids,
    pairs[1],
    np.union1d(pairs[0].landmark, pairs[1].landmark),
    intrinsics,
    image_size,
  )
  found = _found(placed, pairs[0], triples, prior, settings)
  if not found.valid:
    reason = f'none of {len(triples)} triples gives a pose that explains a box'
    return _unlocalizable(reason, place, left_out, len(triples))
  return _answer(found, placed, kept, len(triples), left_out, place)


def _renumbered(pairs, sound):
  """Pairs of the sound detections, as rows of these."""
  rows = np.flatnonzero(np.asarray(sound)[pairs.observation])
  few = pairs.take(rows)
  return few._replace(observation=(np.cumsum(sound) - 1)[few.observation])


def _found(placed, proposing, triples, prior, settings):
  """`search.search` of triples, padded; on the host again."""
  size = scene.bucket(len(triples), _MOST_TRIPLES)
  sides = (
    proposing.observation[triples],
    placed.scene_rows(proposing.landmark[triples]),
  )
  sides = tuple(scene.pad(x.astype(np.int32), size) for x in sides)
  found = _search(
    placed.scene,
    sides,
    np.int32(len(triples)),
    _traced_prior(prior, placed.origin),
    settings,
  )
  return jax.device_get(found)


def _traced_prior(prior, origin):
  down, cosine = np.asarray([0.0, 0.0, 1.0]), -2.0
  if prior.down is not None:
    down = np.asarray(prior.down, np.float64)
    down = down / np.linalg.norm(down)
    cosine = np.cos(prior.tolerance)
  height = (-np.inf, np.inf) if prior.height is None else prior.height
  position, radius = origin[:2], np.inf
  if prior.position is not None:
    position, radius = np.asarray(prior.position, np.float64), prior.radius
  return search.Prior(
    *(
      np.asarray(x, np.float32)
      for x in (
        down,
        cosine,
        np.asarray(height) - origin[2],
        position - origin[:2],
        radius,
      )
    )
  )


def _answer(found, placed, kept, num_draws, left_out, place):
  """What was found, in the caller's rows and the map's frame."""
  assignment = found.assignment
  rows = np.flatnonzero(assignment.explained)
  columns = assignment.column[rows]
  landmarks = placed.rows[placed.scene.landmark[rows, columns]]
  rotation = np.asarray(found.fit.pose.rotation, np.float64)
  # float32 is orthonormal to 1e-6 only.
  left, _, right = np.linalg.svd(rotation)
  rotation = left @ right
  translation = found.fit.pose.translation - rotation @ placed.origin
  score, rival = float(assignment.score), float(found.rival)
  return Answer(
    rank=1,
    place=place,
    world_from_camera=_inverse_matrix(rotation, translation),
    covariance=_covariance(found.fit),
    similarity=score,
    confidence=confidence(score, rival, len(rows)),
    reason='',
    evidence={
      'stage': 'objects',
      'score': score,
      'rival': rival,
      'draws': num_draws,
      'left_out': left_out,
      'pairs': np.stack([kept[rows], landmarks], axis=-1),
      'overlaps': np.asarray(assignment.overlap)[rows],
    },
  )


def _inverse_matrix(rotation, translation) -> np.ndarray:
  matrix = np.eye(4)
  matrix[:3, :3], matrix[:3, 3] = rotation.T, -rotation.T @ translation
  return matrix


def camera_from_world(answer: Answer) -> rigid.Rigid | None:
  """The pose of an answer as a motion; None without one."""
  if answer.world_from_camera is None:
    return None
  turn, center = (
    answer.world_from_camera[:3, :3],
    answer.world_from_camera[:3, 3],
  )
  return rigid.Rigid(turn.T, -turn.T @ center)


def _covariance(fit) -> np.ndarray:
  """s^2 (J^T J)^-1 with s^2 the errors' own variance; infinite if singular."""
  matrix = np.asarray(fit.matrix, np.float64)
  freedom = int(fit.count) - len(matrix)
  scale = np.sqrt(np.maximum(np.diagonal(matrix), 1e-30))
  values, vectors = np.linalg.eigh(matrix / scale[:, None] / scale)
  if freedom <= 0 or values[0] < _SINGULAR:
    return np.full_like(matrix, np.inf)
  inverse = (vectors / values) @ vectors.T / scale[:, None] / scale
  return inverse * float(fit.squares) / freedom


def confidence(score: float, rival: float, num_pairs: int) -> float:
  """Probability that a pose is right within 0.5 m and 10 degrees."""
  offset, *slopes = CONFIDENCE
  features = (score, score - rival, np.log(max(num_pairs, 1)))
  return float(special.expit(offset + np.dot(slopes, features)))


def drawn(
  answer: Answer,
  object_map: landmarks_lib.ObjectMap,
  box: np.ndarray,
  intrinsics: np.ndarray,
) -> Answer:
  """An answer with evidence that a page can draw.

  Args:
    answer: of `localize`.
    object_map: that was asked.
    box: [M, 4] of the detections, pixels.
    intrinsics: [3, 3] of the pinhole.

  Returns:
    With more evidence: position of the camera and heading of its optical axis;
    landmarks, how many were asked; boxes [M, 4]; outlines, one per pair: number
    of the box, the landmark's name, their overlap, and points of the projected
    ellipsoid in pixels.
  """
  evidence: dict[str, Any] = dict(answer.evidence)
  evidence |= {
    'position': None,
    'heading': None,
    'landmarks': object_map.num_landmarks,
    'boxes': np.round(box, 1),
    'outlines': [],
  }
  overlaps = evidence.pop('overlaps')
  pose, camera = camera_from_world(answer), answer.world_from_camera
  if pose is None or camera is None:
    return answer._replace(evidence=evidence)
  rows, names = evidence['pairs'][:, 1], object_map.names()
  shapes = ellipsoid_lib.Ellipsoid(*(x[rows] for x in object_map.ellipsoid))
  plane = ellipsoid_lib.outline_points(shapes, pose)
  pixels = np.asarray(plane) * np.diagonal(intrinsics)[:2] + intrinsics[:2, 2]
  evidence['position'] = camera[:3, 3]
  evidence['heading'] = float(np.arctan2(camera[1, 2], camera[0, 2]))
  evidence['outlines'] = [
    {
      'box': one,
      'name': names[row],
      'overlap': float(overlap),
      'points': np.round(points, 1),
    }
    for (one, row), overlap, points in zip(
      evidence['pairs'].tolist(), overlaps, pixels, strict=True
    )
  ]
  return answer._replace(evidence=evidence)


def make_stage(
  maps: Mapping[str, landmarks_lib.ObjectMap],
  calibration: Mapping[str, association.Calibration],
  *,
  categories: Sequence[str] = (),
  leave_out: Sequence[str] = (),
  encode: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
  **options: Any,
) -> answer_lib.Stage:
  """The stage `objects`; it needs no answers to start from.

  Every map is asked; answers are ranked by their confidence, maps in which
  nothing was found come last and say why.

  Args:
    maps: by place.
    calibration: by place, see `localize`.
    categories: names of the detector's numbers.
    leave_out: names of categories that are not looked at.
    encode: image and boxes [M, 4] to descriptors [M, D]; None for none.
    **options: of `localize`.
  """

  def objects(query: answer_lib.Query, answers: list[Answer]) -> list[Answer]:
    del answers
    if query.detections is None or query.lens is None:
      raise InputError(
        f'{query.name}: objects are asked with boxes and a lens; it has'
        f' {"no boxes" if query.detections is None else "no lens"}.'
      )
    if query.prior.position is not None and len(maps) > 1:
      raise InputError(
        f'{query.name}: a rough position is in the metres of one map, and'
        f' {len(maps)} are asked.'
      )
    seen = observer.prepare(
      observer.without(query.detections, leave_out, categories),
      query.lens,
      None if encode is None else functools.partial(encode, query.image),
    )
    matrix = np.asarray(query.lens.intrinsics, np.float64)
    found = []
    for place, object_map in maps.items():
      one = localize(
        seen,
        object_map,
        matrix,
        query.image.shape[:2],
        calibration=calibration[place],
        prior=query.prior,
        place=place,
        **options,
      )
      found.append(drawn(one, object_map, seen.box, matrix))
    found.sort(key=lambda one: -(one.confidence or 0.0))
    return [one._replace(rank=rank) for rank, one in enumerate(found, 1)]

  return objects
