# SPDX-License-Identifier: Apache-2.0
"""The file formats KITTI raw and KITTI odometry share.

Every function reads one file, believes nothing it finds there and raises an
error that names the file, what stands in it and what should.

KITTI's projection matrices count pixels from the centre of the top-left pixel.
`split_projection` adds the half pixel that takes them to this program's
convention; nothing else does.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
import contextlib
import datetime
import pathlib

import numpy as np
import PIL.Image

from i2ploc import image_files
from i2ploc.errors import InputError

# Printed digits leave 1e-6; a wrong row or a transposed file leaves 1e-1.
_ROTATION_TOLERANCE = 1e-3
# (H, W) of the rectified images, by fx = fy, cx, cy of the five days of KITTI
# raw, of whose frames the other benchmarks are made. The files of those, and
# shortened ones, have no entry that tells it.
_SIZES = {
  (721.5377, 609.5593, 172.854): (375, 1242),  # 2011_09_26
  (707.0493, 604.0814, 180.5066): (370, 1224),  # 2011_09_28
  (718.3351, 600.3891, 181.5122): (374, 1238),  # 2011_09_29
  (707.0912, 601.8873, 183.1104): (370, 1226),  # 2011_09_30
  (718.856, 607.1928, 185.2157): (376, 1241),  # 2011_10_03
}
_ORIENTATION = 0x0112  # of EXIF
# Pillow's PNG plugin reports broken chunks as SyntaxError.
_UNREADABLE = (OSError, SyntaxError, ValueError)


def read_image(path: pathlib.Path) -> np.ndarray:
  """Reads an 8-bit image as uint8 [H, W, 3]; grey becomes three channels.

  Args:
    path: any format Pillow decodes.

  Raises:
    MissingFileError: no such file.
    InputError: the file does not decode, has more than 8 bits, or EXIF turns
      it.
  """
  try:
    with PIL.Image.open(path) as image:
      # Of colours of 16 bits Pillow would take the high byte.
      raw_mode = image_files.raw_mode(image)
      if image.mode not in ('L', 'P', 'RGB', 'RGBA') or ';16' in raw_mode:
        raise InputError(
          f'mode {raw_mode or image.mode}, expected 8-bit grey or RGB'
        )
      # Of the file, without a look behind the pixels of a PNG.
      turn = PIL.Image.Image.getexif(image).get(_ORIENTATION, 1)
      if turn != 1:
        raise InputError(
          f'its EXIF turns it (orientation {turn}), and a calibration is of '
          'pixels as they are stored: remove the tag'
        )
      return np.array(image.convert('RGB'))
  except FileNotFoundError:
    raise
  except _UNREADABLE as error:
    raise InputError(
      f'{path}: the image does not decode ({error}); download it again, or '
      'delete it: a missing image is allowed.'
    ) from error


def image_size(files: Iterable[pathlib.Path]) -> tuple[int, int] | None:
  """(H, W) of the first image whose header is whole; nothing is decoded."""
  for path in files:
    with contextlib.suppress(*_UNREADABLE), PIL.Image.open(path) as image:
      return image.height, image.width
  return None


def read_calibration(
  path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """Reads named matrices from a calibration file.

  Args:
    path: lines of a key and numbers, `R: 1 0 ...`; the colon may be missing,
      and lines of other keys (dates, say) are ignored.
    shapes: the keys wanted and the shapes of their values.

  Returns:
    Key to float64 array.

  Raises:
    MissingFileError: no such file.
    InputError: a key is missing or has two values, or they are not as many
      finite numbers as its shape asks for.
  """
  entries = _entries(path, shapes)
  result = {}
  for key, shape in shapes.items():
    if key not in entries:
      raise InputError(
        f'{path}: no entry {key!r}; found {sorted(filter(None, entries))}.'
      )
    values = _numbers(entries[key], f'{path}: {key}')
    if values.size != np.prod(shape):
      raise InputError(
        f'{path}: {key} has {values.size} values, expected {np.prod(shape)}.'
      )
    result[key] = values.reshape(shape)
  return result


def _entries(path: pathlib.Path, wanted: Collection[str]) -> dict[str, str]:
  """The text after each key of a file; a wanted one has one value."""
  entries = {}
  for line in _read_lines(path):
    key, _, values = line.strip().partition(':' if ':' in line else ' ')
    key = key.strip()
    if key in wanted and entries.get(key, values).split() != values.split():
      raise InputError(
        f'{path}: {key} is there twice, with different numbers; remove one.'
      )
    entries[key] = values
  return entries


def calibrated_size(
  path: pathlib.Path, key: str, projection: np.ndarray
) -> tuple[int, int] | None:
  """(H, W) of the images that a projection is of, pixels.

  Args:
    path: of the calibration file.
    key: of the line with width and height, as in S_rect_02; it may be missing.
    projection: [3, 4] as it stands in the file; the published ones are known.

  Returns:
    None if neither tells.

  Raises:
    MissingFileError: no such file.
    InputError: the line does not hold two counts of pixels.
  """
  text = _entries(path, (key,)).get(key)
  if text is None:
    fx, _, cx, _, _, fy, cy = projection.ravel()[:7]
    for published, size in _SIZES.items():
      if np.allclose((fx, fy, cx, cy), published[:1] + published, atol=1e-3):
        return size
    return None
  values = _numbers(text, f'{path}: {key}')
  if values.size != 2 or (values < 1).any() or (values % 1).any():
    raise InputError(
      f'{path}: {key} is {text.strip()!r}, expected width and height in pixels.'
    )
  width, height = values.astype(int).tolist()
  return height, width


def _read_lines(path: pathlib.Path) -> list[str]:
  try:
    return path.read_text('utf-8').splitlines()
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: not a text file ({error}).') from error


def _numbers(text: str, source: str) -> np.ndarray:
  try:
    values = np.array([float(word) for word in text.split()], np.float64)
  except ValueError as error:
    raise InputError(f'{source}: not numbers ({error}).') from error
  if not np.isfinite(values).all():
    raise InputError(f'{source}: non-finite values in {text.strip()!r}.')
  return values


def rigid_matrix(
  rotation: np.ndarray, translation: np.ndarray, source: str
) -> np.ndarray:
  """Returns [..., 4, 4] from rotation [..., 3, 3], translation [..., 3].

  Args:
    rotation: expected orthonormal with determinant 1.
    translation: metres.
    source: where the numbers came from, for the message.

  Raises:
    InputError: a rotation is not one.
  """
  product = rotation @ np.swapaxes(rotation, -1, -2)
  error = np.abs(product - np.eye(3)).max(axis=(-1, -2)).ravel()
  determinant = np.linalg.det(rotation).ravel()
  bad = (error > _ROTATION_TOLERANCE) | (determinant < 0)
  if bad.any():
    i = np.argmax(bad)
    at = f' in row {i}' if rotation.ndim > 2 else ''
    raise InputError(
      f'{source}: not a rotation{at}: R R^T differs from the identity by '
      f'{error[i]:.2g} (allowed {_ROTATION_TOLERANCE:g}), determinant '
      f'{determinant[i]:.3g}.'
    )
  matrix = np.zeros((*rotation.shape[:-2], 4, 4))
  matrix[..., :3, :3] = rotation
  matrix[..., :3, 3] = translation
  matrix[..., 3, 3] = 1
  return matrix


def split_projection(
  projection: np.ndarray, source: str
) -> tuple[np.ndarray, np.ndarray]:
  """Splits a rectified projection `P = K [I | t]` into K and t.

  Args:
    projection: [3, 4], as KITTI prints it, pixels.
    source: where it came from, for the message.

  Returns:
    intrinsics: [3, 3] with the half pixel added to the principal point.
    translation: [3] metres, K^-1 P[:, 3]: camera_k = reference camera + t. All
      three components: KITTI's second camera is 3 mm off in z, which changes
      its x by 2 mm.

  Raises:
    InputError: K has no positive focal lengths, or another last row than
      (0, 0, 1).
  """
  intrinsics = projection[:, :3].copy()
  if min(intrinsics[0, 0], intrinsics[1, 1]) <= 0 or not np.allclose(
    intrinsics[2], (0, 0, 1)
  ):
    raise InputError(
      f'{source}: not the projection of a rectified camera; expected positive '
      'focal lengths and a third row that starts with 0 0 1, found '
      f'{projection.round(3).tolist()}.'
    )
  translation = np.linalg.solve(intrinsics, projection[:, 3])
  intrinsics[:2, 2] += 0.5
  return intrinsics, translation


def read_poses(path: pathlib.Path) -> np.ndarray:
  """Reads a pose file; the row is the frame number.

  Args:
    path: per line a 3x4 matrix, row by row: 12 numbers, or 13 with a timestamp
      before them (ignored).

  Returns:
    [F, 4, 4] float64.

  Raises:
    MissingFileError: no such file.
    InputError: no rows, a malformed or blank line (it would shift the frames
      after it), or something else than a rotation.
  """
  lines = _read_lines(path)
  while lines and not lines[-1].strip():
    lines.pop()
  if not lines:
    raise InputError(f'{path}: no poses in the file.')
  rows = []
  for i, line in enumerate(lines):
    values = _numbers(line, f'{path}, line {i + 1}')
    width = len(rows[0]) if rows else len(values)
    if len(values) not in (12, 13) or len(values) != width:
      expected = f'{width} as in line 1' if rows else '12, or 13 with a time'
      raise InputError(
        f'{path}, line {i + 1}: {len(values)} numbers, expected {expected}.'
      )
    rows.append(values)
  matrices = np.stack(rows)[:, -12:].reshape(-1, 3, 4)
  return rigid_matrix(matrices[:, :, :3], matrices[:, :, 3], str(path))


def read_timestamps(path: pathlib.Path) -> np.ndarray:
  """Reads a time per line; the row is the frame number.

  Args:
    path: seconds, or dates as in `2011-09-26 13:02:25.964389445` (taken as UTC;
      nanoseconds are truncated to microseconds). Blank lines stand for frames
      without a time.

  Returns:
    [F] float64 seconds, NaN where the line is blank.

  Raises:
    MissingFileError: no such file.
    InputError: a line is neither.
  """
  times = []
  for i, line in enumerate(_read_lines(path)):
    text = line.strip()
    try:
      times.append(_seconds(text) if text else np.nan)
    except ValueError as error:
      raise InputError(
        f'{path}, line {i + 1}: {text!r} is neither a number of seconds nor a '
        'date such as 2011-09-26 13:02:25.964389445.'
      ) from error
  return np.array(times, np.float64)


def _seconds(text: str) -> float:
  if ':' in text:
    date = datetime.datetime.fromisoformat(text[:26])
    return date.replace(tzinfo=datetime.UTC).timestamp()
  seconds = float(text)
  if not np.isfinite(seconds):
    raise InputError('non-finite')
  return seconds
