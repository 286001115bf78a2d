# SPDX-License-Identifier: Apache-2.0
"""What of KITTI-360 to download, where to put it, and what is there.

python -m input_pipeline.readers.kitti360_inventory --root=KITTI-360

Prints the folders expected, checks the calibration, and counts per sequence how
many posed frames have which sensor. Downloads nothing: the site asks for an
account. Ends with status 1 if the splits named by --splits cannot be read.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import pathlib
import sys

from absl import app
from absl import flags

from i2ploc import image_files
from input_pipeline.readers import kitti360_files
from input_pipeline.readers import kitti360_splits
from input_pipeline.readers import scan_files
from input_pipeline.readers import sensor_folders

ROOT = flags.DEFINE_string('root', None, 'Where KITTI-360 lies, or shall lie.')
SPLITS = flags.DEFINE_list(
  'splits',
  ['saliency/train', 'saliency/validation', 'saliency/urban'],
  'Splits that have to be complete.',
)
CAMERA = flags.DEFINE_enum(
  'camera', 'panorama', ['panorama', 'perspective'], 'Whose images are needed.'
)

WHAT_TO_DO = """\
KITTI-360: https://www.cvlibs.net/datasets/kitti-360/download.php (an account
is needed). Licence CC BY-NC-SA 3.0: no commercial use; say whose data it is:
Liao, Xie, Geiger, KITTI-360, PAMI 2022.

  download                           about   for
  Calibrations                        3 KB   all; unpacks to calibration/
  Vehicle Poses                       9 MB   all; to data_poses/
  Raw Velodyne Scans (script)       119 GB   all; to data_3d_raw/
  Perspective Images (script)       128 GB   camera=perspective; to data_2d_raw/
  Fisheye Images (script)           355 GB   camera=panorama; to data_2d_raw/
  Test SLAM, 2D and 3D               26 GB   sequences held back for that test

Scripts fetch sequence by sequence: edit their list to take some. Sizes are the
site's, for all training sequences. Expected, in one folder:

  calibration/perspective.txt calib_cam_to_velo.txt calib_cam_to_pose.txt
              image_02.yaml image_03.yaml
  data_poses/2013_05_28_drive_0000_sync/poses.txt cam0_to_world.txt
  data_2d_raw/2013_05_28_drive_0000_sync/image_00/data_rect/0000000000.png
                                         image_02/data_rgb/0000000000.png
                                         image_03/data_rgb/0000000000.png
  data_3d_raw/2013_05_28_drive_0000_sync/velodyne_points/data/0000000000.bin
                                         velodyne_points/timestamps.txt
"""
_SENSORS = ('image_00', *kitti360_files.FISHEYES, 'velodyne_points')


def users(root: pathlib.Path, splits: list[str]) -> dict[str, list[str]]:
  """The splits that need each sequence; also sequences that have a folder."""
  needed = {
    path.name.split('_')[4]: []
    for path in root.glob('data_*/2013_05_28_drive_*_sync')
  }
  for split in splits:
    for part in kitti360_splits.GRAMMAR.parse(split).parts:
      needed.setdefault(part.sequence, []).append(split)
  return dict(sorted(needed.items()))


def count(
  root: pathlib.Path, sequence: str, rig: kitti360_files.Rig
) -> dict[str, int]:
  """Posed frames ('poses'), and how many of them have each sensor.

  Raises:
    InputError: a file is damaged.
  """
  drive = kitti360_files.drive_name(sequence)
  try:
    poses = kitti360_files.load_poses(root, drive, rig)
  except FileNotFoundError:
    poses = {}
  counts = {'poses': len(poses)}
  for sensor in _SENSORS[:-1]:
    folder = kitti360_files.image_folder(root, drive, sensor)
    images = sensor_folders.numbered_files(folder, image_files.SUFFIXES)
    counts[sensor] = len(poses.keys() & images.keys())
  folder = kitti360_files.lidar_folder(root, drive) / 'data'
  scans = sensor_folders.numbered_files(folder, scan_files.SUFFIXES)
  scan_files.check_scans(list(scans.values()))
  counts[_SENSORS[-1]] = len(poses.keys() & scans.keys())
  return counts


def report(
  root: pathlib.Path, splits: list[str], camera: str
) -> Iterator[tuple[str, bool]]:
  """Lines to print, and whether each is about something that is missing.

  A sequence counts as there if more than half of its posed frames have the
  sensors: some lack one in the data as published.

  Args:
    root: of the dataset.
    splits: that have to be complete.
    camera: 'panorama' or 'perspective'.
  """
  fisheyes = camera == 'panorama'
  try:
    rig = kitti360_files.load_rig(root, fisheyes)
  except (FileNotFoundError, ValueError) as error:
    yield f'calibration: {error}', True
    return
  yield 'calibration: complete and consistent', False
  yield _row('sequence', {name: name for name in ('poses', *_SENSORS)}), False
  needed = kitti360_files.FISHEYES if fisheyes else ('image_00',)
  needed = (*needed, _SENSORS[-1])
  for sequence, asking in users(root, splits).items():
    try:
      counts = count(root, sequence, rig)
    except ValueError as error:
      yield f'{sequence:10}damaged: {error}', bool(asking)
      continue
    total = counts['poses']
    lacks = [name for name in needed if counts[name] < total] if total else []
    lacks = lacks if total else ['poses']
    note = f'  lacks {", ".join(lacks)} for {", ".join(asking)}'
    missing = min(counts[name] for name in needed) <= total // 2
    line = _row(sequence, counts) + (note if asking and lacks else '')
    yield line, bool(asking) and missing


def _row(first: str, cells: Mapping[str, object]) -> str:
  return f'{first:10}' + ''.join(
    f'{cells[name]:>{max(8, len(name) + 2)}}' for name in cells
  )


def main(argv: list[str]) -> None:
  """Prints what to do and what is there."""
  del argv
  print(WHAT_TO_DO)
  missing = False
  root = pathlib.Path(str(ROOT.value))
  try:
    for line, is_missing in report(root, SPLITS.value, CAMERA.value):
      print(line, flush=True)
      missing |= is_missing
  except ValueError as error:
    sys.exit(f'inventory: {error}')
  sys.exit(f'{root} is not complete for {SPLITS.value}.' if missing else 0)


if __name__ == '__main__':
  flags.mark_flag_as_required('root')
  app.run(main)
