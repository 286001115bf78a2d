# SPDX-License-Identifier: Apache-2.0
"""Tests of LiDAR scans as files: one cloud in every format, and damaged."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pypcd4

from input_pipeline.readers import scan_files

_POINTS = np.array([[1, 2, 3, 0.5], [4, 5, 6, 0.25]], '<f4')
_FIELDS = ('x', 'y', 'z', 'intensity')


def _read_scan(path):
  return scan_files.read_scan(path, scan_files.Dropped('drive'))


class _FileTest(parameterized.TestCase):
  def folder(self) -> pathlib.Path:
    return pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti_'))
    )

  def write(self, content: bytes | str, name: str) -> pathlib.Path:
    path = self.folder() / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class ScanTest(_FileTest):
  def test_a_scan_comes_back_as_written(self):
    path = self.write(_POINTS.tobytes(), '1.bin')
    points = _read_scan(path)
    np.testing.assert_array_equal(points, _POINTS)
    self.assertEqual(points.dtype, np.float32)

  def test_non_finite_points_and_the_origin_are_dropped_and_counted(self):
    bad = np.array(
      [
        [np.nan, 0, 0, 0],
        [1, np.inf, 0, 0],
        [0, 0, 0, np.nan],
        [0, 0, 0, 0.5],
        [1e-30, 0, 0, 0],
      ],
      '<f4',
    )
    content = np.concatenate([bad[:3], _POINTS, bad[3:]]).tobytes()
    path = self.write(content, '1.bin')
    dropped = scan_files.Dropped('drive')
    with self.assertLogs(level='WARNING') as logs:
      points = scan_files.read_scan(path, dropped)
    np.testing.assert_array_equal(points, np.concatenate([_POINTS, bad[4:]]))
    self.assertIn(
      'drive: dropped points of 1 scans so far: 3 non-finite, 1 range 0; last '
      f'{path}',
      logs.output[0],
    )
    with self.assertNoLogs(level='WARNING'):  # Once, not once per epoch.
      scan_files.read_scan(path, dropped)
    self.assertEqual(dropped.total(), {'non-finite': 3, 'range 0': 1})

  def test_what_is_dropped_is_told_ever_more_rarely(self):
    dropped = scan_files.Dropped('drive')
    self.assertEqual(dropped.total(), {'non-finite': 0, 'range 0': 0})
    with self.assertLogs(level='WARNING') as logs:
      for i in range(150):
        dropped.add(pathlib.Path(f'{i}.bin'), (0, i % 2))
        dropped.add(pathlib.Path(f'{i}.bin'), (0, i % 2))
    # 75 scans lost a point: the first and the tenth were worth a line.
    self.assertLen(logs.output, 2)
    self.assertEqual(dropped.total(), {'non-finite': 0, 'range 0': 75})

  @parameterized.parameters(
    (b'', 'empty scan, 0 bytes'),
    (b'x' * 39, 'truncated scan, 39 bytes'),
    (bytes(32), 'no finite point with a range above 0'),
    (np.full((3, 4), np.nan, '<f4').tobytes(), 'no finite point'),
    (
      np.array([[1, 2, 3, 255]], '<f4').tobytes(),
      r'reflectance from 255 to 255, expected \[0, 1\]',
    ),
    (np.array([[1, 2, 3, -1]], '<f4').tobytes(), 'reflectance from -1'),
  )
  def test_a_damaged_scan_is_named(self, content, message):
    path = self.write(content, '000007.bin')
    with self.assertRaisesRegex(ValueError, f'{path}.*{message}'):
      _read_scan(path)

  def test_a_missing_scan_is_named(self):
    with self.assertRaisesRegex(FileNotFoundError, '/nowhere/3.bin'):
      _read_scan(pathlib.Path('/nowhere/3.bin'))

  def test_all_damaged_scans_of_a_folder_are_found_at_once(self):
    files = [
      self.write(_POINTS.tobytes(), '1.bin'),
      self.write(b'', '2.bin'),
      self.write(b'123', '3.bin'),
    ]
    with self.assertRaisesRegex(
      ValueError, '2 of 3 scans.*2.bin: empty.*3.bin: truncated'
    ):
      scan_files.check_scans(files)
    scan_files.check_scans(files[:1])


def pcd(encoding, shades=_POINTS[:, 3], name='intensity'):
  """The points as a PCD file, with the reflectances as given."""
  columns = [*_POINTS[:, :3].T, shades]
  types = [np.float32] * 3 + [shades.dtype]
  cloud = pypcd4.PointCloud.from_points(columns, (*_FIELDS[:3], name), types)
  folder = pathlib.Path(tempfile.mkdtemp())
  cloud.save(folder / '1.pcd', pypcd4.Encoding(encoding))
  return (folder / '1.pcd').read_bytes()


def ply(form, shades=_POINTS[:, 3], name='intensity', faces=''):
  """The points as a PLY file."""
  kind = {'f': 'float', 'u': 'uchar'}[shades.dtype.kind]
  rows = np.zeros(2, [*((n, '<f4') for n in 'xyz'), (name, shades.dtype)])
  for i, axis in enumerate('xyz'):
    rows[axis] = _POINTS[:, i]
  rows[name] = shades
  header = [
    'ply', f'format {form} 1.0', 'element vertex 2',
    *(f'property float {axis}' for axis in 'xyz'), f'property {kind} {name}',
    *([faces] if faces else []), 'end_header\n',
  ]  # fmt: skip
  text = '\n'.join(' '.join(map(str, row)) for row in rows.tolist()) + '\n'
  body = text.encode() if form == 'ascii' else rows.tobytes()
  return '\n'.join(header).encode() + body


class FormatsTest(_FileTest):
  @parameterized.parameters('ascii', 'binary', 'binary_compressed')
  def test_pcd(self, encoding):
    found = _read_scan(self.write(pcd(encoding), '1.PCD'))
    np.testing.assert_array_equal(found, _POINTS)
    self.assertEqual(found.dtype, np.float32)

  @parameterized.parameters('ascii', 'binary_little_endian')
  def test_ply(self, form):
    found = _read_scan(self.write(ply(form), '1.ply'))
    np.testing.assert_array_equal(found, _POINTS)

  def test_npy(self):
    path = self.write(b'', '1.npy')
    np.save(path, _POINTS.astype(np.float64))
    np.testing.assert_array_equal(_read_scan(path), _POINTS)
    np.save(path, _POINTS[:, :3])
    np.testing.assert_array_equal(_read_scan(path)[:, :3], _POINTS[:, :3])
    np.testing.assert_array_equal(_read_scan(path)[:, 3], 0)

  def test_reflectances_of_8_and_16_bits_are_shares(self):
    for most in (255, 65535):
      kind = np.min_scalar_type(most)
      content = pcd('binary', np.array([0, most], kind), 'reflectivity')
      found = _read_scan(self.write(content, '1.pcd'))
      np.testing.assert_array_equal(found[:, 3], [0, 1])
    content = ply('ascii', np.array([0, 255], np.uint8), 'scalar_Intensity')
    found = _read_scan(self.write(content, '1.ply'))
    np.testing.assert_array_equal(found[:, 3], [0, 1])

  def test_an_unknown_scale_is_refused(self):
    for shades in (
      np.array([3.0, 90], np.float32),
      np.array([0, 9], np.uint32),
    ):
      with self.assertRaisesRegex(ValueError, 'reflectance from .*expected .0'):
        _read_scan(self.write(pcd('ascii', shades), '1.pcd'))

  @parameterized.parameters(
    ('1.pcd', b'hello', '1.pcd: the scan does not load'),
    ('1.pcd', pcd('binary')[:-3], '1.pcd: the scan does not load'),
    ('1.pcd', pcd('binary_compressed')[:-3], '1.pcd: the scan does not load'),
    ('1.pcd', pcd('ascii')[:-14], '1.pcd: the scan does not load'),
    ('1.pcd', pcd('ascii').replace(b'POINTS 2', b'POINTS 3'),
     '2 points, but its header says 3'),
    ('1.pcd', pcd('ascii').replace(b'x y z', b'a b c'), 'expected x, y and z'),
    ('1.pcd', pcd('ascii').replace(b'0.0 0.0 0.0 1.0', b'5.0 0.0 0.0 1.0'),
     'VIEWPOINT .5'),
    ('1.ply', b'ply\n', '1.ply: the scan does not load'),
    ('1.ply', ply('binary_little_endian')[:-3], 'the scan does not load'),
    ('1.ply', ply('ascii', name='x1').replace(b'float x\n', b'float q\n'),
     'expected x, y and z|does not load'),
    ('1.npy', b'hello', '1.npy: the scan does not load'),
  )  # fmt: skip
  def test_damaged_files_are_named(self, name, content, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      _read_scan(self.write(content, name))
    self.assertNotIn('\n', str(caught.exception))

  def test_arrays_of_another_shape(self):
    path = self.write(b'', '1.npy')
    for array in (_POINTS.T[:2], np.zeros((3, 4), int), np.zeros((2, 3, 4))):
      np.save(path, array)
      with self.assertRaisesRegex(ValueError, r'1.npy: an array .*\[N, 4\]'):
        _read_scan(path)

  def test_points_that_no_lidar_reaches(self):
    for offset, scale in (([0, 0, 0], 1000.0), ([5e5, 5.4e6, 0], 1.0)):
      points = np.tile(_POINTS, (3, 1))
      points[:, :3] = points[:, :3] * scale + offset
      path = self.write(points.astype('<f4').tobytes(), '1.bin')
      with self.assertRaisesRegex(ValueError, 'metres from the LiDAR; divide'):
        _read_scan(path)


if __name__ == '__main__':
  absltest.main()
