# SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D sequences (Sturm et al., IROS 2012).

  ROOT/rgb.txt           lines `timestamp rgb/<timestamp>.png`
       depth.txt         lines `timestamp depth/<timestamp>.png`
       associations.txt  lines `timestamp rgb/... timestamp depth/...`: instead
                         of the two above, or of depth.txt
       groundtruth.txt   lines `timestamp tx ty tz qx qy qz qw`
       rgb/*.png  depth/*.png

A frame is a colour image with a pose. The pose is interpolated between the two
samples around its time, of which the nearer must be within 20 ms; depth images
belong to the colour image nearest in time, within 20 ms too. Frames without a
pose are left out and counted; images that are listed but not there are counted
and their frames kept, since detections or poses alone are of use.

The world is the motion capture's, z up, metres. Printed intrinsics count pixels
from the centre of the top-left one; half a pixel is added.
"""

from collections.abc import Sequence
import dataclasses
import pathlib

from absl import logging
import numpy as np

from i2ploc import lens_files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.geometry import lens as lens_lib
from input_pipeline import schema
from input_pipeline.readers import calibrated
from input_pipeline.readers import clocks
from input_pipeline.readers import kitti_files
from input_pipeline.readers import sensor_folders
from input_pipeline.readers import tum_files


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
  """F posed frames; sensors are read lazily.

  Attributes:
    name: of the folder.
    timestamp: [F] float64, seconds, of the colour images; increasing.
    world_from_camera: [F, 4, 4] float64.
    images: F files.
    depths: F files, or None.
    has_image: [F] bool, the colour image is there.
    has_depth: [F] bool.
    rig: of both, depth being registered to colour; where no colour image is
      there, `image_size` is the calibrated one.
    depth_units: of depth images, per metre.
  """

  name: str
  timestamp: np.ndarray
  world_from_camera: np.ndarray
  images: tuple[pathlib.Path, ...]
  depths: tuple[pathlib.Path | None, ...]
  has_image: np.ndarray
  has_depth: np.ndarray
  rig: schema.Rig
  depth_units: float = tum_files.DEPTH_UNITS

  def read(
    self, row: int, what: Sequence[str] = ('image', 'depth')
  ) -> dict[str, np.ndarray]:
    """Reads a frame's files.

    Args:
      row: of the frame.
      what: a subset of ('image', 'depth').

    Returns:
      As asked for, image uint8 [H, W, 3] and depth float32 [H, W], metres
      along the optical axis, 0 where nothing was measured.

    Raises:
      InputError: the frame has no such image, or it is damaged, or of another
        size than the others.
    """
    if unknown := set(what) - {'image', 'depth'}:
      raise InputError(
        f'Asked for {sorted(unknown)}; TUM RGB-D has image and depth.'
      )
    for name, has in (('image', self.has_image), ('depth', self.has_depth)):
      if name in what and not has[row]:
        raise InputError(
          f'Frame {row} of {self.name} has no {name}; select rows by '
          f'has_{name}.'
        )
    sample = {}
    if 'image' in what:
      sample['image'] = kitti_files.read_image(self.images[row])
      calibrated.check_size(
        sample['image'].shape, self.rig.image_size, self.images[row]
      )
    depth = self.depths[row]
    if 'depth' in what and depth is not None:
      sample['depth'] = tum_files.read_depth(depth, self.depth_units)
      calibrated.check_size(sample['depth'].shape, self.rig.image_size, depth)
    return sample


def load(
  root: str | pathlib.Path,
  *,
  calibration: lens_files.Calibration | None = None,
) -> Recording:
  """Loads the frame table of a sequence.

  Args:
    root: the folder of the sequence.
    calibration: of the camera, see `lens_files`; None takes the published one
      of the camera that the folder's name tells, as in
      rgbd_dataset_freiburg2_desk. Colour images that are of its size times a
      factor get a lens scaled so. Depth images without units of their own are
      in the published ones.

  Raises:
    MissingFileError: the folder or a list is missing.
    InputError: a file does not hold what it should; the message names it.
  """
  root = pathlib.Path(root)
  if not root.is_dir():
    raise MissingFileError(
      f'There is no folder {root}; expected a TUM RGB-D sequence, with '
      'rgb.txt or associations.txt, and groundtruth.txt.'
    )
  source = 'the lens that was given'
  if calibration is None:
    source = 'the published lens'
    calibration = lens_files.Calibration(
      tum_files.published_lens(root.name), tum_files.SIZE
    )
  lens_lib.check_lens(calibration.lens)
  times, images, depths = _images(root)
  path = root / 'groundtruth.txt'
  stamps, poses = tum_files.read_trajectory(path)
  posed, world_from_camera = tum_files.poses_at(times, stamps, poses)
  if not posed.any():
    raise InputError(
      f'{path}: none of {len(times)} images has a pose within '
      f'{1000 * tum_files.MAX_APART:g} ms; images and poses are of '
      f'{clocks.spans(times, stamps)}. Are both of one sequence and one clock?'
    )
  if not posed.all():
    logging.warning(
      '%s: left out %d of %d frames, which have no pose within %g ms (first: '
      '%.6f).',
      root.name,
      np.sum(~posed),
      len(posed),
      1000 * tum_files.MAX_APART,
      times[~posed][0],
    )
  _log_unlisted(root, images, depths)
  rows = np.flatnonzero(posed)
  images = tuple(images[i] for i in rows)
  depths = tuple(depths[i] for i in rows)
  has_image = _present(root.name, 'colour', images)
  has_depth = _present(root.name, 'depth', depths)
  present = [images[i] for i in np.flatnonzero(has_image)]
  lens, size = calibrated.fit(
    calibration.lens, calibration.image_size, present, source
  )
  size = size or calibration.image_size
  for i in np.flatnonzero(has_depth)[:1].tolist():
    found = kitti_files.image_size(depths[i : i + 1])
    if found is not None:
      calibrated.check_size(found, size, depths[i])
  return Recording(
    name=root.name,
    timestamp=times[rows],
    world_from_camera=world_from_camera[rows],
    images=images,
    depths=depths,
    has_image=has_image,
    has_depth=has_depth,
    rig=schema.Rig(lens, size),
    depth_units=calibration.depth_units or tum_files.DEPTH_UNITS,
  )


def _log_unlisted(root, images, depths):
  """Counts what lies beside listed images and is not listed itself."""
  listed = [path for path in (*images, *depths) if path is not None]
  folders = {path.parent for path in listed} - {root}
  there = [path for path in listed if path.parent in folders]
  others = sensor_folders.passed_over(there)
  if others:
    logging.warning(
      '%s: passed over %s, which no list names.',
      root.name, sensor_folders.counted(others),
    )  # fmt: skip


def _present(name, sensor, paths):
  """[F] bool; counts what is listed but not there."""
  present = np.array([path is not None and path.is_file() for path in paths])
  listed = np.array([path is not None for path in paths])
  if (missing := np.flatnonzero(listed & ~present)).size:
    logging.warning(
      '%s: %d of %d listed %s images are not there (first: %s).',
      name,
      len(missing),
      listed.sum(),
      sensor,
      paths[missing[0]],
    )
  return present


def _images(root):
  """Times [F] of colour images in order, their files, and depth files."""
  pairs = root / 'associations.txt'
  if (root / 'rgb.txt').is_file():
    times, images = tum_files.read_list(root / 'rgb.txt')
  elif pairs.is_file():
    times, images = tum_files.read_list(pairs)
  else:
    raise MissingFileError(
      f'{root}: no rgb.txt and no associations.txt; download them with the '
      'sequence, or list its images: `timestamp rgb/file.png` per line.'
    )
  if (root / 'depth.txt').is_file():
    depth_times, depths = tum_files.read_list(root / 'depth.txt')
  elif pairs.is_file():
    depth_times, depths = tum_files.read_list(pairs, column=2)
  else:
    return times, images, (None,) * len(images)
  matches = tum_files.nearest_pairs(times, depth_times).tolist()
  return times, images, tuple(None if j < 0 else depths[j] for j in matches)
