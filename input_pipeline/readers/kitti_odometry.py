# SPDX-License-Identifier: Apache-2.0
"""The KITTI odometry benchmark (Geiger et al., CVPR 2012).

  ROOT/sequences/<sequence>/image_<k>/<frame>.png  velodyne/<frame>.bin
                            calib.txt  times.txt
  ROOT/poses/<sequence>.txt                 (or sequences/<sequence>/poses.txt)

Pose files hold camera 0 at frame i in camera 0 at frame 0, whose y axis points
down. The world here is the LiDAR's own frame 0 instead (z up, x forward):
world_from_lidar = Tr^-1 pose_i Tr, with Tr = camera 0 from LiDAR.

Scans are corrected for the car's motion during a turn, unlike KITTI raw's.

A sequence with more or fewer files than the benchmark has is reported with its
counts, and read: copies of a few frames are what tests and demonstrations use.
"""

import pathlib

from absl import logging
import numpy as np

from i2ploc import image_files
from i2ploc.errors import MissingFileError
from i2ploc.geometry import lens as lens_lib
from input_pipeline import schema
from input_pipeline.readers import calibrated
from input_pipeline.readers import drive as drive_lib
from input_pipeline.readers import kitti_files
from input_pipeline.readers import kitti_odometry_splits
from input_pipeline.readers import scan_files
from input_pipeline.readers import sensor_folders


def load(
  root: str | pathlib.Path,
  split: str,
  *,
  camera: int = 2,
  poses_dir: str | pathlib.Path = '',
  query_spacing: float = 3.0,
) -> schema.Dataset:
  """Loads the frame tables of KITTI sequences; sensors are read lazily.

  Args:
    root: the folder that holds `sequences`.
    split: sequences joined by '+' with optional slices and a rule, such as
      '00[:3000]+05', see `splits`, or a name of `kitti_odometry_splits`, such
      as 'lip_loc/large/train'.
    camera: 0, 1 (grey, returned with three equal channels), 2 or 3 (colour).
    poses_dir: a folder of `<sequence>.txt`, instead of the two places above.
    query_spacing: metres, of the rules 'spaced' and 'disjoint'.

  Returns:
    A dataset; every sequence is a town of its own. A sequence may lack scans,
    or have them for a few frames only.

  Raises:
    MissingFileError: a folder, calibration or pose file is missing.
    InputError: a file does not hold what it should; the message names it.
  """
  root = pathlib.Path(root)
  wanted = kitti_odometry_splits.GRAMMAR.parse(split)
  folders = [root / 'sequences' / part.sequence for part in wanted.parts]
  if missing := [path.name for path in folders if not path.is_dir()]:
    found = sorted(path.name for path in (root / 'sequences').glob('*/'))
    raise MissingFileError(
      f'{root / "sequences"}: no sequence {missing}; found {found}.'
    )
  dataset = drive_lib.make_dataset(
    f'kitti_odometry/{split}',
    [
      _load_sequence(folder, camera, _find_poses(root, folder, poses_dir))
      for folder in folders
    ],
  )
  return drive_lib.take_split(dataset, wanted, query_spacing)


def _find_poses(
  root: pathlib.Path,
  folder: pathlib.Path,
  poses_dir: str | pathlib.Path,
) -> pathlib.Path:
  if poses_dir:
    candidates = [pathlib.Path(poses_dir) / f'{folder.name}.txt']
  else:
    candidates = [
      root / 'poses' / f'{folder.name}.txt',
      folder / 'poses.txt',
    ]
  for path in candidates:
    if path.is_file():
      logging.info('Sequence %s: poses from %s.', folder.name, path)
      return path
  raise MissingFileError(
    f'Sequence {folder.name} has no poses; looked for '
    f'{" and ".join(map(str, candidates))}. Sequences 11-21 have no official '
    'ones: give poses_dir.'
  )


def _load_sequence(
  folder: pathlib.Path, camera: int, poses: pathlib.Path
) -> drive_lib.Drive:
  sensor = f'image_{camera}'
  images = sensor_folders.numbered_files(folder / sensor, image_files.SUFFIXES)
  if not images:
    drive_lib.check_other_cameras(folder, sensor)
  scans = sensor_folders.numbered_files(
    folder / 'velodyne', scan_files.SUFFIXES
  )
  path = folder / 'calib.txt'
  key = f'P{camera}'
  entries = kitti_files.read_calibration(path, {key: (3, 4), 'Tr': (3, 4)})
  intrinsics, offset = kitti_files.split_projection(
    entries[key], f'{path}: {key}'
  )
  lens, size = calibrated.fit(
    lens_lib.Lens('pinhole', intrinsics),
    kitti_files.calibrated_size(path, f'S_rect_{camera:02d}', entries[key]),
    list(images.values()),
    f'{path}: {key}',
  )
  camera0_from_lidar = kitti_files.rigid_matrix(
    entries['Tr'][:, :3], entries['Tr'][:, 3], f'{path}: Tr'
  )
  camera_from_camera0 = kitti_files.rigid_matrix(np.eye(3), offset, str(path))
  world_from_lidar = (
    np.linalg.inv(camera0_from_lidar)
    @ drive_lib.poses_by_row(
      poses, images | scans, camera0_from_lidar[:3, :3].T
    )
    @ camera0_from_lidar
  )
  times = drive_lib.times_by_frame(folder / 'times.txt', images | scans)
  return drive_lib.Drive(
    name=folder.name,
    images=images,
    scans=scans,
    world_from_lidar=dict(enumerate(world_from_lidar)),
    times=times or None,
    rig=schema.Rig(lens, size, camera_from_camera0 @ camera0_from_lidar),
    calibration=f'{path}: Tr',
    poses=str(poses),
    whole=kitti_odometry_splits.NUM_FRAMES.get(folder.name, 0),
  )
