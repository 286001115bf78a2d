# SPDX-License-Identifier: Apache-2.0
"""Cameras of files are read as they are meant, or refused by their key."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc import lens_files
from i2ploc.geometry import lens as lens_lib

MATRIX = [[500.5, 0, 320.5], [0, 501, 240.5], [0, 0, 1]]
CAMERA = (
  'Camera.fx: 500.5\nCamera.fy: 501\nCamera.cx: 320  # pixels\nCamera.cy: 240\n'
)
KANNALA_BRANDT = (
  'File.version: "1.0"\nCamera.type: "KannalaBrandt8"\n'
  + CAMERA.replace('Camera.', 'Camera1.')
  + 'Camera1.k1: 0.0034\nCamera1.k2: 0.0007\nCamera1.k3: -0.002\n'
  'Camera1.k4: 2e-4\nCamera2.fx: 499.0\nCamera.width: 752\n'
  'Camera.height: 480\nCamera.newWidth: 600\nCamera.fps: 20\n'
  'RGBD.DepthMapFactor: 1000.0\n'
  'IMU.T_b_c1: !!opencv-matrix\n  rows: 1\n  cols: 2\n  dt: f\n'
  '  data: [1.0, 2.0]\n'
)
COLMAP = '# Camera list\n# CAMERA_ID, MODEL\n'


class _FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory(prefix='lens_'))
    self.folder = pathlib.Path(root)

  def load(self, text, name='camera.yaml'):
    path = self.folder / name
    path.write_text(text)
    return lens_files.load_calibration(path)

  def assert_fails(self, text, message, name='camera.yaml'):
    with self.assertRaisesRegex(ValueError, f'{name}.*{message}') as caught:
      self.load(text, name)
    self.assertNotIn('\n', str(caught.exception))


class SettingsTest(_FileTest):
  @parameterized.parameters(
    ('', 'pinhole', []),
    ('Camera.type: "PinHole"\n', 'pinhole', []),
    ('Camera.type: "Rectified"\n', 'pinhole', []),
    ('Camera.k1: 0\nCamera.k2: 0\n', 'pinhole', []),
    ('Camera.k1: 0.1\nCamera.p2: -2e-1\n', 'opencv', [0.1, 0, 0, -0.2]),
    ('Camera.k3: 0.3\n', 'opencv', [0, 0, 0, 0, 0.3]),
    ('Camera.k6: 0.3\n', 'opencv', [0] * 7 + [0.3]),
    ('Camera.model: "fisheye"\nCamera.k2: 0.1\n', 'fisheye', [0, 0.1, 0, 0]),
    ('Camera.type: "KannalaBrandt8"\n', 'fisheye', [0, 0, 0, 0]),
    (
      'Camera.model: radial_division\nCamera.distortion: -0.2\n',
      'division',
      [-0.2],
    ),
  )
  def test_the_type_says_what_coefficients_mean(self, text, model, expected):
    found = self.load(f'%YAML:1.0\n---\n{CAMERA}{text}')
    np.testing.assert_array_equal(found.lens.intrinsics, MATRIX)
    self.assertEqual(found.lens.model, model)
    self.assertEqual(found.lens.coefficients.tolist(), expected)
    self.assertIsNone(found.image_size)
    self.assertIsNone(found.depth_units)

  def test_orb_slam_3(self):
    found = self.load(f'%YAML:1.0\n{KANNALA_BRANDT}')
    self.assertEqual(found.lens.model, 'fisheye')
    np.testing.assert_array_equal(found.lens.intrinsics, MATRIX)
    self.assertEqual(
      found.lens.coefficients.tolist(), [0.0034, 0.0007, -0.002, 2e-4]
    )
    self.assertEqual(found.image_size, (480, 752))
    self.assertEqual(found.depth_units, 1000)
    # A point 60 degrees off the axis; as Brown's model it is elsewhere.
    off = np.radians(60)
    point = [[np.sin(off), 0, np.cos(off)]]
    pixel, _ = lens_lib.project(found.lens, point)
    theta = off * (
      1 + 0.0034 * off**2 + 0.0007 * off**4 - 0.002 * off**6 + 2e-4 * off**8
    )
    np.testing.assert_allclose(pixel, [[500.5 * theta + 320.5, 240.5]])

  def test_nested_settings(self):
    text = (
      'Camera:\n  model: equirectangular\n  cols: 2000\n  rows: 1000\n'
      '  color_order: RGB\nPreprocessing:\n  depthmap_factor: 5000\n'
    )
    found = self.load(text, 'stella.yml')
    self.assertEqual(found.lens.model, 'equirectangular')
    self.assertAlmostEqual(found.lens.intrinsics[0, 0], 1000 / np.pi)
    self.assertEqual(
      (found.image_size, found.depth_units), ((1000, 2000), 5000)
    )

  @parameterized.parameters(
    (
      'Camera.type: "Mei"',
      "Camera.type 'Mei' is not known; known: PinHole, Ka",
    ),
    ('Camera.xi: 0.9', 'Camera.xi is nothing that a camera of type .PinHole'),
    ('Camera.k7: 0.1', 'Camera.k7 is nothing'),
    ('Camera.s1: 0.1', 'Camera.s1 is nothing'),
    ('Camera.type: Rectified\nCamera.k1: 0.1', 'Camera.k1 is nothing'),
    (
      'Camera.type: KannalaBrandt8\nCamera.p1: 0.1',
      "p1 is nothing that a camera of type 'KannalaBrandt8'.*fx, fy.*k1, k2",
    ),
    ('Camera.fx: 400', 'Camera.fx is there twice, as 500.5 and as 400: remove'),
    ('Camera1.fx: 400', 'Camera.fx is 500.5, but Camera1.fx is 400'),
    ('Camera.type: PinHole\nCamera.model: fisheye', 'say different things'),
    ('DepthMapFactor: 5000\nRGBD.DepthMapFactor: 1', 'say different things'),
    ('DepthMapFactor: 0', 'DepthMapFactor 0, expected what a metre'),
    ('DepthMapFactor: many', "DepthMapFactor is 'many', expected a number"),
    ('Camera.k1: one', "Camera.k1 is 'one', expected a number"),
    ('Camera.k1: .nan', 'Camera.k1 is nan, expected a number'),
    ('Camera.k1: [1, 2', 'while parsing'),
    ('Camera.width: 640\nCamera.height: -480', 'images of 640 x -480'),
    ('Camera.model: radial_division', 'no Camera.distortion; found'),
  )
  def test_what_is_not_known_is_refused_by_its_key(self, line, message):
    self.assert_fails(f'{CAMERA}{line}\n', message)

  @parameterized.parameters(
    (CAMERA.replace('Camera.cx', 'cx'), 'no Camera.cx; found'),
    (
      CAMERA.replace('500.5', '-5'),
      'focal lengths -5 and 501 must be positive',
    ),
    ('nothing', 'no lines such as'),
    ('', 'no lines such as'),
    ('Camera.model: equirectangular\n', 'without Camera.cols and Camera.rows'),
  )
  def test_a_file_without_a_camera(self, text, message):
    self.assert_fails(text, message)

  def test_the_same_twice_is_no_fault(self):
    found = self.load(f'{CAMERA}Camera.fx: 500.5\nCamera1.fx: 500.5\n')
    self.assertEqual(found.lens.intrinsics[0, 0], 500.5)

  def test_other_files(self):
    with self.assertRaisesRegex(
      FileNotFoundError, 'There is no /nowhere/c.yml'
    ):
      lens_files.load_calibration('/nowhere/c.yml')
    self.assert_fails('', 'expected a settings file', 'cameras.bin')
    (self.folder / 'a.yaml').write_bytes(b'\xff\xfe\x00')
    with self.assertRaisesRegex(ValueError, 'a.yaml: not a text file'):
      lens_files.load_calibration(self.folder / 'a.yaml')


class ColmapTest(_FileTest):
  def test_one_camera(self):
    found = self.load(
      f'{COLMAP}3 OPENCV_FISHEYE 640 480 500 510 320 240 .1 .2 .3 .4\n',
      'cameras.txt',
    )
    self.assertEqual(found.image_size, (480, 640))
    self.assertEqual(found.lens.model, 'fisheye')
    self.assertEqual(found.lens.coefficients.tolist(), [0.1, 0.2, 0.3, 0.4])
    # COLMAP counts pixels as we do.
    self.assertEqual(found.lens.intrinsics[0].tolist(), [500, 0, 320])

  @parameterized.parameters(
    ('1 FISH 640 480 1 2', "line 3: unknown camera model 'FISH' of COLMAP"),
    ('1 PINHOLE 640 480 500 320 240', 'PINHOLE has 3 parameters, expected 4'),
    ('1 PINHOLE 640 480 500 no 320 240', 'expected CAMERA_ID MODEL WIDTH'),
    ('1 PINHOLE 640', 'expected CAMERA_ID MODEL WIDTH'),
    ('1 PINHOLE 0 480 500 500 320 240', 'images of 0 x 480'),
    ('1 PINHOLE 640 480 -5 500 320 240', 'line 3: focal lengths -5 and 500'),
    ('1 FOV 640 480 500 500 320 240 0', 'omega = 0 must be'),
    ('', '0 cameras'),
    (
      '1 SIMPLE_PINHOLE 640 480 500 320 240\n'
      '2 SIMPLE_PINHOLE 640 480 500 320 240',
      r'2 cameras \[1, 2\], expected one',
    ),
    (
      '1 SIMPLE_PINHOLE 640 480 500 320 240\n'
      '1 SIMPLE_PINHOLE 640 480 500 320 240',
      'line 4: camera 1 is there twice',
    ),
  )
  def test_what_is_no_camera_is_refused_by_its_line(self, line, message):
    self.assert_fails(f'{COLMAP}{line}\n', message, 'cameras.txt')


if __name__ == '__main__':
  absltest.main()
