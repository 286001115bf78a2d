# SPDX-License-Identifier: Apache-2.0
"""Views of maps, warped photographs and strangers: further real problems.

The map of a view is of two photographs with known poses, or of one with depth;
a warped photograph is seen again by a known homography, darker or brighter,
blurred and noisy; strangers show nothing in common. Matches as in `real_data`.
"""

from collections.abc import Callable
from collections.abc import Iterator
import pathlib
from typing import NamedTuple

import cv2
import numpy as np

from benchmarks import real_data
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import rigid


class View(NamedTuple):
  """Points of a map and where a photograph shows them, best scores first.

  Attributes:
    name: of the scene and the images.
    scene: of the data and the scene.
    points: [N, 3], map frame.
    pixels: [N, 2].
    scores: [N], 1 - ratio of distances.
    lens: the camera.
    size: width and height.
    pose: camera_from_map, as the data have it.
    num_true: points that project within 2 pixels by the known pose.
  """

  name: str
  scene: str
  points: np.ndarray
  pixels: np.ndarray
  scores: np.ndarray
  lens: lens_lib.Lens
  size: tuple[int, int]
  pose: rigid.Rigid
  num_true: int


def _view(scene, photo, points, rows, map_path):
  """A photograph as a problem.

  Args:
    scene: its name.
    photo: the photograph that asks.
    points: [K, 3] in the map, of features of a photograph of the map.
    rows: [K] of these features.
    map_path: of that photograph.
  """
  found, rows0, scores = real_data.match(photo.path, map_path)
  place = np.full(len(real_data.features(map_path).pixels), -1)
  place[rows] = np.arange(len(rows))
  known = place[rows0] >= 0
  points = points[place[rows0[known]]]
  here = real_data.features(photo.path)
  pixels = here.pixels[found[known]]
  seen = points @ photo.pose.rotation.T + photo.pose.translation
  away = np.linalg.norm(real_data.projected(photo.lens, seen) - pixels, axis=1)
  return View(
    name=f'{scene}/{photo.path.stem}-{map_path.stem}',
    scene=scene,
    points=points,
    pixels=pixels,
    scores=scores[known],
    lens=photo.lens,
    size=here.size,
    pose=photo.pose,
    num_true=int((away < real_data.TRUE_WITHIN).sum()),
  )


def _posed_views(data):
  """Queries in maps of two photographs each, triangulated by their poses."""
  scenes, names = real_data.posed_photos(data), real_data.database(data)
  for scene, photos in scenes.items():
    for first, second in zip(names[scene], names[scene][1:], strict=False):
      two = photos[first], photos[second]
      rows0, rows1, _ = real_data.match(two[0].path, two[1].path)
      pixels = [
        real_data.features(photo.path).pixels[rows]
        for photo, rows in zip(two, (rows0, rows1), strict=True)
      ]
      good = real_data.true_matches(*two, *pixels)
      motion = real_data.relative(*two)
      directions = [
        real_data.rays(photo.lens, some[good])
        for photo, some in zip(two, pixels, strict=True)
      ]
      points, _ = real_data.triangulated(motion, *directions)
      pose = two[0].pose
      points = (points - pose.translation) @ pose.rotation
      for name, photo in photos.items():
        if name not in names[scene]:
          yield _view(
            f'posed_photos/{scene}', photo, points, rows0[good], two[0].path
          )


def _cabinet_views(data):
  """The odd photographs in the depth images of the even ones before them."""
  photos = real_data.tum_cabinet(data)
  for before, photo in zip(photos[::2], photos[1::2], strict=True):
    folder = before.path.parents[1] / 'depth_imgs'
    (path,) = folder.glob(f'{before.path.name[:4]}*')
    depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) / 5000.0
    pixels = real_data.features(before.path).pixels
    column, row = np.int64(pixels).T
    away = depth[row, column]
    rows = np.flatnonzero(away > 0)
    points = real_data.rays(before.lens, pixels[rows]) * away[rows, None]
    points = (points - before.pose.translation) @ before.pose.rotation
    yield _view('tum/cabinet', photo, points, rows, before.path)


VIEWS: dict[str, Callable[[pathlib.Path], Iterator[View]]] = {
  'posed_photos': _posed_views,
  'tum': _cabinet_views,
}


class Warp(NamedTuple):
  """Matches of a photograph and of itself, warped by a known homography.

  Attributes:
    name: of the photograph and the warp.
    scene: of the data.
    pixels0: [N, 2] in the photograph.
    pixels1: [N, 2] of their partners.
    scores: [N], 1 - ratio of distances.
    matrix: [3, 3], from the photograph to the warped one.
    sizes: width and height of both.
    num_true: matches within 2 pixels of the homography.
  """

  name: str
  scene: str
  pixels0: np.ndarray
  pixels1: np.ndarray
  scores: np.ndarray
  matrix: np.ndarray
  sizes: tuple[tuple[int, int], tuple[int, int]]
  num_true: int


# How far corners move, in parts of the shorter side, and the blur, pixels.
_WARPS = ((0.15, 0.7), (0.25, 1.5), (0.32, 2.2))
_LONGEST = 640


def mapped(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Points [N, 2] after a homography."""
  with np.errstate(all='ignore'):
    there = points @ matrix[:, :2].T + matrix[:, 2]
    return there[:, :2] / there[:, 2:]


def corners(size: tuple[int, int]) -> np.ndarray:
  """Of an image, [4, 2]."""
  return np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * np.float64(size)


def _warped(path, number, strength, blur):
  """A photograph seen again: turned, darker, blurred, noisy, as a JPEG."""
  grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
  shrink = _LONGEST / max(grey.shape)
  grey = cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=3)
  size = grey.shape[1::-1]
  rng = np.random.default_rng([number, round(100 * strength)])
  reach = strength * min(size)
  there = corners(size) + rng.uniform(-reach, reach, (4, 2))
  matrix = cv2.getPerspectiveTransform(
    np.float32(corners(size)), np.float32(there)
  )
  # OpenCV counts pixel centres from 0.
  shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
  centred = np.linalg.inv(shift) @ matrix @ shift
  seen = cv2.warpPerspective(grey, centred, size, flags=cv2.INTER_AREA)
  seen = cv2.GaussianBlur(seen, (0, 0), blur)
  seen = 255 * (seen / 255.0) ** rng.uniform(0.6, 1.6)
  seen = np.clip(seen + rng.normal(0, 6, seen.shape), 0, 255).astype(np.uint8)
  _, encoded = cv2.imencode('.jpg', seen, (cv2.IMWRITE_JPEG_QUALITY, 60))
  return grey, cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), matrix


def _lund(data):
  return sorted((data / 'places' / 'lund').glob('*.jpg'))


def warps(data: pathlib.Path) -> list[Warp]:
  """Photographs of `places/lund`, each seen again in three ways."""
  paths = _lund(data)
  if not paths:
    print(f'warps are left out: {data}/places/lund is not there')
  found = []
  for number, path, (strength, blur) in (
    (i, path, warp) for i, path in enumerate(paths) for warp in _WARPS
  ):
    grey, seen, matrix = _warped(path, number, strength, blur)
    names = [
      path.with_suffix(f'.{_LONGEST}'),
      path.with_suffix(f'.{_LONGEST}.{strength:g}.{blur:g}'),
    ]
    first, second = (
      real_data.features(names[0], grey),
      real_data.features(names[1], seen),
    )
    rows0, rows1, scores = real_data.match(*names)
    pixels0, pixels1 = first.pixels[rows0], second.pixels[rows1]
    away = np.linalg.norm(mapped(matrix, pixels0) - pixels1, axis=1)
    found.append(
      Warp(
        name=f'{path.stem}/{strength:g}',
        scene='lund',
        pixels0=pixels0,
        pixels1=pixels1,
        scores=scores,
        matrix=matrix,
        sizes=(first.size, second.size),
        num_true=int((away < real_data.TRUE_WITHIN).sum()),
      )
    )
  return found


# Pairs of strangers, at most.
_NUM_STRANGERS = 84


def strangers(data: pathlib.Path) -> list[real_data.Pair]:
  """Photographs of different scenes, with the lens of the first.

  Both facades of `posed_photos`, and every other photograph of a walk that is
  at least twelve photographs away.
  """
  scenes = real_data.posed_photos(data)
  fountain, facade = scenes['fountain-P11'], scenes['Herz-Jesus-P25']
  any_pose = rigid.Rigid(np.eye(3), np.array([0.0, 0.0, 1.0]))
  lens = next(iter(fountain.values())).lens
  couples = [
    (first.path, second.path)
    for first in fountain.values()
    for second in list(facade.values())[::6]
  ]
  walk = _lund(data)
  couples += [
    (walk[i], walk[j])
    for i in range(len(walk))
    for j in range(i + 12, len(walk), 5)
  ]
  rng = np.random.default_rng(0)
  rows = rng.permutation(len(couples))[:_NUM_STRANGERS]
  found = []
  for first, second in (couples[row] for row in np.sort(rows)):
    rows0, rows1, scores = real_data.match(first, second)
    here, there = real_data.features(first), real_data.features(second)
    found.append(
      real_data.Pair(
        name=f'{first.parent.name}/{first.stem}-{second.stem}',
        scene='strangers',
        rows0=rows0,
        rows1=rows1,
        pixels0=here.pixels[rows0],
        pixels1=there.pixels[rows1],
        scores=scores,
        lens0=lens,
        lens1=lens,
        motion=any_pose,
        sizes=(here.size, there.size),
        num_true=0,
      )
    )
  return found
