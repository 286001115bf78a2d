# SPDX-License-Identifier: Apache-2.0
"""KITTI-360 (Liao, Xie and Geiger, PAMI 2022), as its archives unpack.

  ROOT/calibration/perspective.txt  calib_cam_to_velo.txt
                   calib_cam_to_pose.txt  image_02.yaml  image_03.yaml
  ROOT/data_2d_raw/2013_05_28_drive_<sequence>_sync/
         image_00/data_rect/<frame>.png            rectified, ahead
         image_02/data_rgb/<frame>.png  image_03/  fisheyes, left and right
  ROOT/data_3d_raw/2013_05_28_drive_<sequence>_sync/velodyne_points/
         data/<frame>.bin  timestamps.txt
  ROOT/data_poses/2013_05_28_drive_<sequence>_sync/poses.txt cam0_to_world.txt

The world is x east, y north, z up, in UTM-like metres. Frames without a pose
(the car stood still) are left out. Scans are corrected for the car's motion
(`kitti360_sweeps`). A panorama's frame is the vehicle's, x right, y down, z
forward, midway between the fisheyes.

`python -m input_pipeline.readers.kitti360_inventory --root=ROOT` tells what is
there.
With data.packed=DIR in a config, `input_pipeline.packing` packs what a split
needs on first use; without, the raw files are read each time.
"""

from collections.abc import Mapping
import dataclasses
import math
import pathlib

from absl import logging
import jax
import numpy as np
from PIL import Image

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.geometry import fisheye
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import panorama
from i2ploc.geometry import rigid
from input_pipeline import schema
from input_pipeline.readers import calibrated
from input_pipeline.readers import drive as drive_lib
from input_pipeline.readers import kitti360_files
from input_pipeline.readers import kitti360_splits
from input_pipeline.readers import kitti360_submaps
from input_pipeline.readers import kitti360_sweeps
from input_pipeline.readers import kitti_files
from input_pipeline.readers import scan_files
from input_pipeline.readers import sensor_folders

CAMERAS = ('perspective', 'panorama')
POINTS = ('scan', 'submap')
CLEANING = {
  'ground': kitti360_submaps.without_ground,
  'outliers': kitti360_submaps.without_outliers,
}
# The rim of the image circle. The lenses are given as "roughly 185 degrees";
# 188 close the ring ahead, where both look a little backwards.
_HALF_VIEW = math.radians(94)
# Metres at which the two halves of a panorama meet without a step: a facade.
_SEAM_RADIUS = 20.0
# A panorama's axes, right, down and forward, as rows in the IMU's.
_PANORAMA_FROM_IMU = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])

_find_seams = jax.jit(
  panorama.find_seams, static_argnames=('size', 'image_size')
)
_stitch = jax.jit(panorama.stitch)


def load(
  root: str | pathlib.Path,
  split: str,
  *,
  camera: str = 'perspective',
  points: str = 'scan',
  panorama_size: tuple[int, int] = (512, 1024),
  without: str = '',
  query_spacing: float = 3.0,
  maps_dir: str | pathlib.Path = '',
) -> schema.Dataset:
  """Loads the frame tables of KITTI-360 sequences; sensors are read lazily.

  Args:
    root: the folder that holds `calibration`, `data_2d_raw` and so on.
    split: sequences joined by '+' with optional slices and a rule, see
      `splits`, or a name of `kitti360_splits`, such as 'saliency/train'.
    camera: 'perspective' (image_00, 376 x 1408) or 'panorama' (stitched from
      the fisheyes).
    points: 'scan' (one sweep) or 'submap' (40 x 40 m around the frame out of
      all sweeps of the sequence, in the axes of the frame's LiDAR).
    panorama_size: (H, W) of the stitched panorama, the whole sphere, pixels.
    without: what to drop from submaps: 'ground', 'outliers', both joined by
      '+', or ''.
    query_spacing: metres, of the rules 'spaced' and 'disjoint'.
    maps_dir: where the maps that submaps are cut from are made and kept.

  Returns:
    A dataset; every sequence is a town of its own. Panoramas have an
    equirectangular lens, see `i2ploc.geometry.panorama`.

  Raises:
    MissingFileError: a folder, calibration or pose file is missing.
    InputError: an unknown option, or a file does not hold what it should.
  """
  _check_options(camera, points, without, maps_dir)
  root, wanted = pathlib.Path(root), kitti360_splits.GRAMMAR.parse(split)
  rig = kitti360_files.load_rig(root, fisheyes=camera == 'panorama')
  stitcher = make_stitcher(rig, panorama_size) if rig.lenses else None
  drives = [
    _load_drive(root, part.sequence, rig, stitcher) for part in wanted.parts
  ]
  dataset = drive_lib.make_dataset(
    f'kitti360/{split}', [drive for drive, _ in drives]
  )
  dataset = drive_lib.take_split(dataset, wanted, query_spacing)
  reader = Reader(
    files=drive_lib.reader_of(dataset),
    right_images=tuple(right for _, right in drives),
    stitcher=stitcher,
  )
  if points == 'submap':
    reader = reader.with_maps(pathlib.Path(maps_dir), without)
  return dataset._replace(read=reader)


def _check_options(camera: str, points: str, without: str, maps_dir) -> None:
  for name, value, known in (
    ('camera', camera, CAMERAS),
    ('points', points, POINTS),
    *(('without', part, tuple(CLEANING)) for part in _listed(without)),
  ):
    if value not in known:
      raise InputError(f'kitti360: {name}={value!r}; known: {list(known)}.')
  if without and points != 'submap':
    raise InputError(f"kitti360: without={without!r} is for points='submap'.")
  if points == 'submap' and not maps_dir:
    raise InputError(
      "kitti360: points='submap' needs a folder to make maps in: set maps_dir, "
      'or data.packed in a config.'
    )


def _listed(without: str) -> list[str]:
  return without.split('+') if without else []


def _load_drive(
  root: pathlib.Path,
  sequence: str,
  rig: kitti360_files.Rig,
  stitcher: 'Stitcher | None',
) -> tuple[drive_lib.Drive, Mapping[int, pathlib.Path]]:
  """A drive, and its right fisheye's images beside the left one's in it."""
  name = kitti360_files.drive_name(sequence)
  poses = kitti360_files.load_poses(root, name, rig)
  lidar = kitti360_files.lidar_folder(root, name)
  scans = sensor_folders.numbered_files(lidar / 'data', scan_files.SUFFIXES)
  sensors = kitti360_files.FISHEYES if stitcher else ('image_00',)
  found = [_find_images(root, name, sensor) for sensor in sensors]
  images = {i: path for i, path in found[0].items() if i in found[-1]}
  for sensor, files in zip(sensors, found, strict=True):
    lone = sorted((found[0].keys() | found[-1].keys()) - files.keys())
    if lone:
      logging.warning(
        'Drive %s: %d frames have no %s (first: %d), hence no panorama.',
        name, len(lone), sensor, lone[0],
      )  # fmt: skip
  camera = kitti360_files.image_folder(root, name, sensors[0]).parent
  times = drive_lib.times_of_both(
    (lidar / 'timestamps.txt', scans), (camera / 'timestamps.txt', images)
  )
  calibration = root / 'calibration'
  drive = drive_lib.Drive(
    name=name,
    images=images,
    scans=scans,
    world_from_lidar=poses,
    times=times,
    poses=str(root / 'data_poses' / name),
    rig=stitcher.rig
    if stitcher
    else schema.Rig(
      *calibrated.fit(
        lens_lib.Lens('pinhole', rig.intrinsics),
        rig.image_size,
        list(images.values()),
        f'{calibration / "perspective.txt"}: P_rect_00',
      ),
      rig.camera_from_lidar,
    ),
    calibration=str(calibration / 'calib_cam_to_velo.txt'),
  )
  return drive, found[-1]


def _find_images(
  root: pathlib.Path, drive: str, sensor: str
) -> dict[int, pathlib.Path]:
  folder = kitti360_files.image_folder(root, drive, sensor)
  images = sensor_folders.numbered_files(folder, image_files.SUFFIXES)
  if not images:
    drive_lib.check_other_cameras(folder.parent.parent, sensor)
  return images


@dataclasses.dataclass(frozen=True, eq=False)
class Stitcher:
  """Makes panoramas of pairs of fisheye images; plain data, hence picklable.

  Attributes:
    rig: of the panoramas.
    image_size: (H, W) of the fisheye images, pixels.
    shrink: they are averaged down by this much before they are sampled.
    seams: in the shrunken images.
  """

  rig: schema.Rig
  image_size: tuple[int, int]
  shrink: int
  seams: panorama.Seams

  def __call__(self, paths: tuple[pathlib.Path, ...]) -> np.ndarray:
    """The panorama uint8 [H, W, 3] of the left and the right image.

    Raises:
      InputError: an image is damaged, or not of the lens's size.
    """
    shrunken = []
    for path in paths:
      image = kitti_files.read_image(path)
      if image.shape[:2] != self.image_size:
        raise InputError(
          f'{path}: an image of {image.shape[1]}x{image.shape[0]}, but its '
          f'lens is calibrated for {self.image_size[1]}x{self.image_size[0]}. '
          'Use the original images.'
        )
      shrunken.append(np.asarray(Image.fromarray(image).reduce(self.shrink)))
    with jax.default_device(_host()):
      stitched = np.asarray(_stitch(np.stack(shrunken), self.seams))
    return np.clip(np.rint(stitched), 0, 255).astype(np.uint8)


def _host() -> jax.Device:
  """Readings are prepared on the CPU, whatever trains meanwhile."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS names accelerators only
    return jax.local_devices()[0]


def make_stitcher(rig: kitti360_files.Rig, size: tuple[int, int]) -> Stitcher:
  """Prepares the stitching of panoramas of (H, W) pixels.

  Raises:
    InputError: the fisheyes have images of different sizes.
  """
  if len(set(rig.image_sizes)) != 1:
    raise InputError(f'Fisheye images of different sizes: {rig.image_sizes}.')
  poses = np.stack(rig.imu_from_fisheye)
  panorama_from_imu = np.eye(4)
  panorama_from_imu[:3, :3] = _PANORAMA_FROM_IMU
  panorama_from_imu[:3, 3] = -_PANORAMA_FROM_IMU @ poses[:, :3, 3].mean(0)
  fisheye_from_panorama = np.linalg.inv(panorama_from_imu @ poses)
  # Pixels per radian where the image is coarsest: on the axis.
  density = min(lens.gamma1 / (1 + lens.xi) for lens in rig.lenses)
  shrink = max(1, int(density / (size[1] / (2 * np.pi))))
  height, width = rig.image_sizes[0]
  with jax.default_device(_host()):
    seams = _find_seams(
      [fisheye.resize(lens, 1 / shrink) for lens in rig.lenses],
      [rigid.from_matrix(motion) for motion in fisheye_from_panorama],
      size=tuple(size),
      image_size=(math.ceil(height / shrink), math.ceil(width / shrink)),
      radius=_SEAM_RADIUS,
      half_view=_HALF_VIEW,
    )
  return Stitcher(
    rig=schema.Rig(
      lens_lib.Lens(
        'equirectangular', panorama.sphere_intrinsics(size).astype(np.float64)
      ),
      tuple(size),
      panorama_from_imu @ rig.imu_from_lidar,
    ),
    image_size=rig.image_sizes[0],
    shrink=shrink,
    seams=jax.tree.map(np.asarray, seams),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
  """`schema.Dataset.read` over drives; plain data, hence picklable.

  Compared and hashed by identity, as the function that it stands for.

  Attributes:
    files: reads image_00 and raw scans.
    right_images: per drive, the right fisheye's files.
    stitcher: None for image_00.
    maps: per drive, if points are submaps.
    without: what to drop from submaps, see `load`.
  """

  files: drive_lib.Reader
  right_images: tuple[Mapping[int, pathlib.Path], ...]
  stitcher: Stitcher | None
  maps: tuple[kitti360_submaps.Map, ...] = ()
  without: str = ''

  def __call__(
    self, row: int, what: tuple[str, ...] = ('image', 'points')
  ) -> dict[str, np.ndarray]:
    """Reads a row's files; see `schema.Dataset`.

    Raises:
      InputError: the frame has no such sensor, or its file is damaged.
    """
    own = {'image'} if self.stitcher else set()
    own |= {'points'} if self.maps else set()
    sample = self.files(row, tuple(name for name in what if name not in own))
    index, frame = self.files.drive_index[row], int(self.files.frame[row])
    poses = self.files.drives[index].world_from_lidar
    if 'image' in what and self.stitcher:
      sample['image'] = self.stitcher(self._fisheye_images(index, frame))
    if 'points' in what and self.maps:
      submap = self.maps[index].crop(poses[frame])
      for name in _listed(self.without):
        submap = CLEANING[name](submap)
      sample['points'] = submap
    elif 'points' in what:
      motion = kitti360_sweeps.motion_at(poses, frame)
      sample['points'] = kitti360_sweeps.uncurl(sample['points'], motion)
    return sample

  def _fisheye_images(
    self, index: int, frame: int
  ) -> tuple[pathlib.Path, pathlib.Path]:
    drive = self.files.drives[index]
    if frame not in drive.images:
      raise InputError(
        f'Frame {frame} of drive {drive.name} has no panorama: one or both of '
        f'{kitti360_files.FISHEYES} are missing; select rows by has_image.'
      )
    return drive.images[frame], self.right_images[index][frame]

  def with_maps(self, folder: pathlib.Path, without: str) -> 'Reader':
    """The reader of submaps; makes in `folder` the maps it lacks."""
    maps = []
    for drive in self.files.drives:
      sweeps = kitti360_submaps.Sweeps(
        drive.name, drive.scans, drive.world_from_lidar, self.files.dropped
      )
      maps.append(kitti360_submaps.load(folder, sweeps))
    return dataclasses.replace(self, maps=tuple(maps), without=without)
