# SPDX-License-Identifier: Apache-2.0
"""Matches of real photographs whose motion is known: the data of a comparison.

SIFT of OpenCV finds the points, each other's nearest in the space of its
descriptors, and clearly nearer than the next (ratio .85); the score of a match
is how clearly. Features and matches are kept in a folder of temporary files, so
that a second run starts at once. Data are beside the checkout, see
`../shared/data/README.md`; what is not there is left out and said to be.
"""

from collections.abc import Callable
from collections.abc import Iterator
import csv
import hashlib
import pathlib
import tempfile
from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import rigid

CACHE = pathlib.Path(tempfile.gettempdir()) / 'i2ploc_real_data'
_RATIO, _NUM_FEATURES = 0.85, 2000
# Pixels within which a match is true to the known motion.
TRUE_WITHIN = 2.0


class Photo(NamedTuple):
  """An image and where it was taken.

  Attributes:
    path: of the image.
    lens: the camera.
    pose: camera_from_world, float64.
  """

  path: pathlib.Path
  lens: lens_lib.Lens
  pose: rigid.Rigid


class Features(NamedTuple):
  """Keypoints of an image.

  Attributes:
    pixels: [K, 2] (column, row), top-left pixel centre at 0.5.
    descriptors: [K, 128] float32.
    size: width and height, pixels.
  """

  pixels: np.ndarray
  descriptors: np.ndarray
  size: tuple[int, int]


class Pair(NamedTuple):
  """Matches of two images, best scores first.

  Attributes:
    name: of the data, the scene and the images.
    scene: of the data and the scene.
    rows0: [N] of the features of image 0.
    rows1: [N] of the features of image 1.
    pixels0: [N, 2] in image 0.
    pixels1: [N, 2] of their partners in image 1.
    scores: [N], 1 - ratio of distances.
    lens0: camera 0.
    lens1: camera 1.
    motion: camera1_from_camera0; its length as the data have it.
    sizes: width and height of both images.
    num_true: matches that triangulate within 2 pixels by the known motion.
  """

  name: str
  scene: str
  rows0: np.ndarray
  rows1: np.ndarray
  pixels0: np.ndarray
  pixels1: np.ndarray
  scores: np.ndarray
  lens0: lens_lib.Lens
  lens1: lens_lib.Lens
  motion: rigid.Rigid
  sizes: tuple[tuple[int, int], tuple[int, int]]
  num_true: int


def _kept(name: str, make: Callable[[], dict]) -> dict[str, np.ndarray]:
  """Arrays of an earlier run, else those that `make` makes now."""
  path = CACHE / f'{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz'
  if not path.exists():
    CACHE.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part.npz')
    np.savez(part, **make())
    part.rename(path)
  with np.load(path) as file:
    return dict(file)


def features(path: pathlib.Path, image: np.ndarray | None = None) -> Features:
  """SIFT of an image file, or of an image of which `path` is only the name."""

  def make():
    grey = image
    if grey is None:
      grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    found, rows = cv2.SIFT_create(_NUM_FEATURES).detectAndCompute(grey, None)
    return {
      'pixels': np.float64([one.pt for one in found]).reshape(-1, 2) + 0.5,
      'descriptors': np.zeros((0, 128), np.float32) if rows is None else rows,
      'size': np.array(grey.shape[1::-1]),
    }

  kept = _kept(f'features {_NUM_FEATURES} {path}', make)
  width, height = kept['size']
  return Features(
    kept['pixels'], kept['descriptors'], (int(width), int(height))
  )


def match(
  path0: pathlib.Path, path1: pathlib.Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rows [N] of the features of two images, and scores [N], best first."""

  def make():
    first, second = (features(path).descriptors for path in (path0, path1))
    if min(len(first), len(second)) < 2:
      nothing = np.zeros(0, np.int64)
      return {'rows0': nothing, 'rows1': nothing, 'scores': np.zeros(0)}
    away = (
      (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    )
    nearest = away.argmin(1)
    two = np.sqrt(np.maximum(np.partition(away, 1, axis=1)[:, :2], 1e-9))
    rows = np.arange(len(away))
    mutual = away.argmin(0)[nearest] == rows
    rows = rows[mutual & (two[:, 0] < _RATIO * two[:, 1])]
    scores = (1 - two[:, 0] / two[:, 1])[rows]
    order = np.argsort(-scores, kind='stable')
    rows = rows[order]
    return {'rows0': rows, 'rows1': nearest[rows], 'scores': scores[order]}

  kept = _kept(f'match {_NUM_FEATURES} {_RATIO} {path0} {path1}', make)
  return kept['rows0'], kept['rows1'], np.float64(kept['scores'])


def relative(photo0: Photo, photo1: Photo) -> rigid.Rigid:
  """camera1_from_camera0, float64."""
  rotation = photo1.pose.rotation @ photo0.pose.rotation.T
  shift = photo1.pose.translation - rotation @ photo0.pose.translation
  return rigid.Rigid(rotation, shift)


def rays(lens: lens_lib.Lens, pixels: np.ndarray) -> np.ndarray:
  """Directions [N, 3] on the plane z = 1."""
  found, _ = lens_lib.rays_from_pixels(lens, pixels)
  return found / found[:, 2:]


def triangulated(
  motion: rigid.Rigid, rays0: np.ndarray, rays1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Points [N, 3] in camera 0 halfway between two rays, and both depths."""
  turned = rays0 @ motion.rotation.T
  # d1 r1 - d0 turned = t in least squares.
  a, b, c = (
    np.einsum('ni,ni->n', *two)
    for two in ((rays1, rays1), (rays1, turned), (turned, turned))
  )
  d, e = rays1 @ motion.translation, turned @ motion.translation
  scale = np.maximum(a * c - b * b, 1e-15)
  depth1, depth0 = (c * d - b * e) / scale, (b * d - a * e) / scale
  middle = (depth1[:, None] * rays1 + depth0[:, None] * turned) / 2
  middle = middle + motion.translation / 2
  points = (middle - motion.translation) @ motion.rotation
  return points, np.stack([depth0, depth1], axis=-1)


def projected(lens: lens_lib.Lens, points: np.ndarray) -> np.ndarray:
  """Pixels [N, 2] of points [N, 3] in the camera; inf behind it."""
  with np.errstate(all='ignore'):
    plane = points / points[:, 2:]
    pixels = plane @ np.asarray(lens.intrinsics).T
  return np.where(points[:, 2:] > 1e-9, pixels[:, :2], np.inf)


def true_matches(
  photo0: Photo, photo1: Photo, pixels0: np.ndarray, pixels1: np.ndarray
) -> np.ndarray:
  """[N] bool: pairs that triangulate ahead, within 2 pixels in both images."""
  motion = relative(photo0, photo1)
  points, depths = triangulated(
    motion, rays(photo0.lens, pixels0), rays(photo1.lens, pixels1)
  )
  there = points @ motion.rotation.T + motion.translation
  away = np.maximum(
    np.linalg.norm(projected(photo0.lens, points) - pixels0, axis=1),
    np.linalg.norm(projected(photo1.lens, there) - pixels1, axis=1),
  )
  return (depths > 0).all(axis=1) & (away < TRUE_WITHIN)


def pair(scene: str, photo0: Photo, photo1: Photo) -> Pair:
  """Two photographs as a problem."""
  first, second = features(photo0.path), features(photo1.path)
  rows0, rows1, scores = match(photo0.path, photo1.path)
  pixels0, pixels1 = first.pixels[rows0], second.pixels[rows1]
  true = true_matches(photo0, photo1, pixels0, pixels1)
  return Pair(
    name=f'{scene}/{photo0.path.stem}-{photo1.path.stem}',
    scene=scene,
    rows0=rows0,
    rows1=rows1,
    pixels0=pixels0,
    pixels1=pixels1,
    scores=scores,
    lens0=photo0.lens,
    lens1=photo1.lens,
    motion=relative(photo0, photo1),
    sizes=(first.size, second.size),
    num_true=int(true.sum()),
  )


def _pinhole(fx, fy, cx, cy):
  # All of these data count pixel centres from 0.
  matrix = np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]])
  return lens_lib.Lens('pinhole', matrix)


def _inverted(rotation, translation):
  return rigid.Rigid(rotation.T, -rotation.T @ translation)


def posed_photos(data: pathlib.Path) -> dict[str, dict[str, Photo]]:
  """Photos of either scene by name (Strecha et al., CVPR 2008)."""
  scenes: dict[str, dict[str, Photo]] = {}
  folder = data / 'posed_photos'
  with (folder / 'poses.csv').open() as file:
    for row in csv.DictReader(file):
      lens = _pinhole(*(float(row[key]) for key in ('fx', 'fy', 'cx', 'cy')))
      rotation = [float(row[f'r{i}{j}']) for i in range(3) for j in range(3)]
      shift = [float(row[f't{axis}']) for axis in 'xyz']
      pose = rigid.Rigid(np.reshape(rotation, (3, 3)), np.array(shift))
      path = folder / 'images' / row['scene'] / row['image']
      scenes.setdefault(row['scene'], {})[row['image']] = Photo(
        path, lens, pose
      )
  return scenes


def database(data: pathlib.Path) -> dict[str, list[str]]:
  """Of either scene of `posed_photos`, the images that are not queries."""
  names: dict[str, list[str]] = {}
  with (data / 'posed_photos' / 'poses.csv').open() as file:
    for row in csv.DictReader(file):
      if row['split'] == 'database':
        names.setdefault(row['scene'], []).append(row['image'])
  return names


def _posed_pairs(data):
  scenes = posed_photos(data)
  with (data / 'posed_photos' / 'pairs.csv').open() as file:
    for row in csv.DictReader(file):
      photos = scenes[row['scene']]
      yield pair(
        f'posed_photos/{row["scene"]}',
        photos[row['query']],
        photos[row['database']],
      )


def _kitti_pairs(data):
  """Frames two apart, 0.2 s, of three drives."""
  folder = data / 'kitti_odometry'
  for drive in ('00', '01', '06'):
    here = folder / 'sequences' / drive
    numbers = (here / 'calib.txt').read_text().split()[1:13]
    matrix = np.float64(numbers).reshape(3, 4)
    lens = _pinhole(matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
    derived = here / 'poses_0to4_derived_pnp.txt'
    poses = derived if derived.exists() else folder / 'poses' / f'{drive}.txt'
    world = np.loadtxt(poses).reshape(-1, 3, 4)
    photos = [
      Photo(path, lens, _inverted(*_split(world[int(path.stem)])))
      for path in sorted((here / 'image_0').glob('*.png'))
    ]
    for first, second in zip(photos, photos[2:], strict=False):
      yield pair(f'kitti/{drive}', first, second)


def _split(matrix):
  return matrix[:, :3], matrix[:, 3]


def _numbers(path, key):
  for line in path.read_text().splitlines():
    if line.startswith(f'{key}:'):
      return np.float64(line.split()[1:])
  raise ValueError(f'{path}: no {key}')


def _kitti_raw_pairs(data):
  """A drive in traffic, poses by its LiDAR."""
  day = data / 'kitti_raw' / '2011_09_26'
  here = day / '2011_09_26_drive_sfnd_sync'
  rotation = _numbers(day / 'calib_velo_to_cam.txt', 'R').reshape(3, 3)
  shift = _numbers(day / 'calib_velo_to_cam.txt', 'T')
  rectify = _numbers(day / 'calib_cam_to_cam.txt', 'R_rect_00').reshape(3, 3)
  project = _numbers(day / 'calib_cam_to_cam.txt', 'P_rect_02').reshape(3, 4)
  lens = _pinhole(project[0, 0], project[1, 1], project[0, 2], project[1, 2])
  beside = np.linalg.solve(project[:, :3], project[:, 3])
  from_scanner = rigid.Rigid(rectify @ rotation, rectify @ shift + beside)
  world = np.loadtxt(here / 'poses_velo_icp.txt').reshape(-1, 3, 4)
  photos = []
  for path in sorted((here / 'image_02' / 'data').glob('*.png')):
    there = _inverted(*_split(world[int(path.stem)]))
    rotation = from_scanner.rotation @ there.rotation
    shift = from_scanner.rotation @ there.translation + from_scanner.translation
    photos.append(Photo(path, lens, rigid.Rigid(rotation, shift)))
  for first, second in zip(photos, photos[1:], strict=False):
    yield pair('kitti_raw/sfnd', first, second)


def _tum_pose(row):
  rotation = transform.Rotation.from_quat(row[4:8]).as_matrix()
  return _inverted(rotation, row[1:4])


def tum_cabinet(data: pathlib.Path) -> list[Photo]:
  """Photos of a cabinet on a floor, few and weak features."""
  here = data / 'tum_rgbd' / 'freiburg3_cabinet_58'
  table = np.loadtxt(here / 'truth_cam_poses.txt')
  lens = _pinhole(535.4, 539.2, 320.1, 247.6)
  paths = sorted((here / 'raw_imgs').iterdir())
  return [
    Photo(path, lens, _tum_pose(row))
    for path, row in zip(paths, table, strict=True)
  ]


def tum_office(data: pathlib.Path) -> list[Photo]:
  """Photos of a walk around a desk, a second apart."""
  here = data / 'tum_rgbd' / 'rgbd_dataset_freiburg3_long_office_household'
  table = np.loadtxt(here / 'groundtruth.txt')
  lens = _pinhole(535.4, 539.2, 320.1, 247.6)
  return [
    Photo(
      path,
      lens,
      _tum_pose(table[np.abs(table[:, 0] - float(path.stem)).argmin()]),
    )
    for path in sorted((here / 'rgb').glob('*.png'))
  ]


def _tum_pairs(data):
  for name, photos in (
    ('office', tum_office(data)),
    ('cabinet', tum_cabinet(data)),
  ):
    for first, second in zip(photos, photos[1:], strict=False):
      yield pair(f'tum/{name}', first, second)


_READERS: dict[str, Callable[[pathlib.Path], Iterator[Pair]]] = {
  'posed_photos': _posed_pairs,
  'kitti': _kitti_pairs,
  'kitti_raw': _kitti_raw_pairs,
  'tum': _tum_pairs,
}
SETS = tuple(_READERS)


def pairs(data: pathlib.Path, name: str) -> list[Pair]:
  """All pairs of a set of `SETS`; none, and a line that says so, if absent."""
  try:
    return list(_READERS[name](data))
  except FileNotFoundError as error:
    print(f'{name} is left out: {error.filename} is not there')
    return []
