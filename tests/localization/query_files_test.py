# SPDX-License-Identifier: Apache-2.0
"""Image files are read upright, with a lens and boxes, or refused by name."""

import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc.geometry import lens as lens_lib
from i2ploc.localization import query_files
from i2ploc.objects import detections as detections_lib
from i2ploc.objects import files as detection_files

LENS = lens_lib.Lens(
  'opencv',
  np.array([[100.0, 0, 104], [0, 110, 32], [0, 0, 1]]),
  np.array([0.1, 0, 0, 0]),
)
CAMERA = query_files.Camera(LENS, (64, 208))


class QueryFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(tempfile.mkdtemp())
    self.addCleanup(shutil.rmtree, self.root)

  def save(self, height, width, name='', **options):
    path = self.root / (name or f'{width}x{height}.png')
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(image).save(path, **options)
    return str(path), image

  def read(self, *paths, **options):
    return list(query_files.read_queries(paths, **options))

  def refuse(self, message, *paths, error=ValueError, **options):
    options = {'camera': CAMERA} | options
    with self.assertRaisesRegex(error, message):
      self.read(*map(str, paths), **options)

  def test_an_image_comes_as_it_is_in_the_file(self):
    path, image = self.save(30, 40)
    (query,) = self.read(path)
    self.assertEqual(query.name, path)
    np.testing.assert_array_equal(query.image, image)
    self.assertIsNone(query.lens)
    self.assertIsNone(query.detections)

  def test_patterns_give_their_files_in_order(self):
    for name in ('b.png', 'a.png', 'c.jpg'):
      self.save(20, 20, name)
    found = self.read(f'{self.root}/*.png', f'{self.root}/c.jpg')
    names = [pathlib.Path(query.name).name for query in found]
    self.assertEqual(names, ['a.png', 'b.png', 'c.jpg'])

  def test_numbers_are_in_the_order_of_counting(self):
    for number in (10, 9, 1, 100):
      self.save(20, 20, f'f{number}.png')
    (self.root / 'notes.txt').write_text('no image')
    for pattern in (f'{self.root}/*.png', str(self.root)):
      names = [pathlib.Path(q.name).name for q in self.read(pattern)]
      self.assertEqual(names, ['f1.png', 'f9.png', 'f10.png', 'f100.png'])

  def test_sub_folders_are_read_folder_by_folder(self):
    for name in ('b.png', 'c/10.png', 'c/9.JPG', 'd.jpeg'):
      path = self.root / name
      path.parent.mkdir(exist_ok=True)
      Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(path)
    found = self.read(str(self.root), length=2)
    names = [str(pathlib.Path(q.name).relative_to(self.root)) for q in found]
    self.assertEqual(names, ['b.png', 'd.jpeg', 'c/9.JPG', 'c/10.png'])
    self.assertEqual([len(q.previous) for q in found], [0, 1, 0, 1])

  def test_a_query_of_three_images_knows_the_two_before(self):
    for number in range(5):
      self.save(20, 20 + number, f'{number}.png')
    other = self.root / 'other'
    other.mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(other / '0.png')
    found = self.read(f'{self.root}/*.png', str(other), length=3)
    names = [
      [pathlib.Path(one.name).stem for one in (*query.previous, query)]
      for query in found
    ]
    self.assertEqual(
      names, [['0'], ['0', '1'], ['0', '1', '2'], ['1', '2', '3'],
              ['2', '3', '4'], ['0']]
    )  # fmt: skip
    # The arrays are shared, and no image holds on to all that came before it.
    self.assertIs(found[3].previous[1].image, found[2].image)
    self.assertEqual({one.previous for one in found[3].previous}, {()})

  def test_a_picture_taken_with_the_phone_on_its_side_is_turned_upright(self):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    path, image = self.save(20, 40, exif=exif)
    (query,) = self.read(path)
    np.testing.assert_array_equal(query.image, np.rot90(image, -1))

  def test_the_lens_of_the_map_is_scaled_to_the_file(self):
    path, _ = self.save(128, 416)
    (query,) = self.read(path, camera=CAMERA)
    self.assertEqual(query.lens.model, 'opencv')
    expected = [[200, 0, 208], [0, 220, 64], [0, 0, 1]]
    np.testing.assert_allclose(query.lens.intrinsics, expected)
    np.testing.assert_array_equal(query.lens.distortion, LENS.distortion)
    same, _ = self.save(64, 208)
    (query,) = self.read(same, camera=CAMERA)
    np.testing.assert_array_equal(query.lens.intrinsics, LENS.intrinsics)

  def test_a_camera_of_its_own_is_not_scaled(self):
    path, _ = self.save(300, 400)  # nor does its shape matter
    (query,) = self.read(
      path, camera=CAMERA, intrinsics=('50', '60.5', '200', '150')
    )
    self.assertEqual(query.lens.model, 'pinhole')
    expected = [[50, 0, 200], [0, 60.5, 150], [0, 0, 1]]
    np.testing.assert_array_equal(query.lens.intrinsics, expected)
    self.assertEqual(np.size(query.lens.distortion), 0)

  def test_panoramas_are_asked_with_panoramas(self):
    around = lens_lib.Lens('equirectangular', LENS.intrinsics)
    path, _ = self.save(300, 400)
    (query,) = self.read(
      path,
      camera=query_files.Camera(around, (64, 208)),
      intrinsics=(50, 50, 200, 150),
    )
    self.assertEqual(query.lens.model, 'equirectangular')

  def test_a_rough_position_is_of_all_files(self):
    self.save(20, 20)
    (query,) = self.read(f'{self.root}/*.png', near=['3.5', '-2', '10'])
    np.testing.assert_array_equal(query.prior.position, [3.5, -2.0])
    self.assertEqual(query.prior.radius, 10)
    for near in ('1,2', '1,2,0', 'nan,2,3', '1,b,3'):
      with self.subTest(near):
        self.refuse('expected east,north,radius', 'x.png', near=near.split(','))

  def boxes(self, *names):
    """Boxes that tell the images apart, in a file beside them."""
    frames = {
      name: detections_lib.make_detections(
        [[1.0 + i, 2, 9, 9]], [i], [0.5], (30, 40)
      )
      for i, name in enumerate(names)
    }
    detection_files.save_detections(
      frames, self.root / 'detections.npz', (30, 40)
    )

  def test_boxes_lie_beside_the_image(self):
    paths = [self.save(30, 40, name)[0] for name in ('a.png', 'b.png')]
    self.boxes('a.png', 'b.png')
    first, second = self.read(*paths, with_boxes=True)
    np.testing.assert_array_equal(first.detections.box, [[1, 2, 9, 9]])
    np.testing.assert_array_equal(second.detections.box, [[2, 2, 9, 9]])
    self.assertIsNone(self.read(paths[0])[0].detections)

  def test_an_image_without_boxes_is_named(self):
    path, _ = self.save(30, 40, 'a.png')
    self.refuse(
      r'a\.png: no boxes; put',
      path,
      error=FileNotFoundError,
      camera=None,
      with_boxes=True,
    )
    self.boxes('b.png')
    self.refuse(
      r'does not name .*a\.png; it has', path, camera=None, with_boxes=True
    )

  def test_no_query(self):
    self.refuse('No query')
    self.refuse('no photos; expected files that end in', self.root)
    self.refuse('length=0', self.save(64, 208)[0], length=0)

  def test_a_missing_file(self):
    self.refuse('gone.png', self.root / 'gone.png', error=FileNotFoundError)

  def test_a_file_that_is_no_image(self):
    path = self.root / 'text.png'
    path.write_text('hello')
    self.refuse('text.png is not a readable image', path)

  def test_a_truncated_image(self):
    path = pathlib.Path(self.save(64, 208)[0])
    path.write_bytes(path.read_bytes()[:200])
    self.refuse('64.png is not a readable image', path)

  def test_one_pixel(self):
    self.refuse('1x1.png is not .* 1 x 1 pixels', self.save(1, 1)[0])

  @parameterized.parameters((300, 400), (62, 208), (64, 204), (30, 104))
  def test_an_image_of_another_camera(self, height, width):
    self.refuse(
      f'{width} x {height} pixels, not of the shape of .* 208 x 64',
      self.save(height, width)[0],
    )

  def test_boxes_of_a_larger_image_are_scaled(self):
    path, _ = self.save(60, 80, 'a.png')
    self.boxes('a.png')
    (query,) = self.read(path, with_boxes=True)
    np.testing.assert_array_equal(query.detections.box, [[2, 4, 18, 18]])
    Image.new('RGB', (40, 20)).save(path)
    self.refuse(
      'boxes of a.png are of 40x30 pixels, but the images are 40x20',
      path,
      camera=None,
      with_boxes=True,
    )

  def test_images_of_two_sizes_have_their_own_boxes(self):
    paths = [self.save(30, 40, 'a.png')[0], self.save(300, 600, 'b.png')[0]]
    boxes = [[400.0 + i, 200, 590, 250] for i in range(4)]
    entries = [{'category_id': 1, 'bbox': box} for box in boxes]
    content = [
      {
        'file_name': 'a.png',
        'detections': [{'category_id': 0, 'bbox': [1, 2, 9, 9]}],
      },
      {'file_name': 'b.png', 'detections': entries},
    ]
    (self.root / 'detections.json').write_text(json.dumps(content))
    first, second = self.read(*paths, with_boxes=True)
    self.assertLen(first.detections.box, 1)
    self.assertLen(second.detections.box, 4)
    Image.new('RGB', (300, 150)).save(paths[1])
    self.refuse(
      'detections.json: 4 boxes reach to column 590.* 300x150: are they of'
      ' larger',
      paths[1],
      camera=None,
      with_boxes=True,
    )

  @parameterized.parameters(
    ('100,100', 'expected fx,fy,cx,cy'),
    ('100,100,1,2,3', 'expected fx,fy,cx,cy'),
    ('100,100,1,x', 'expected fx,fy,cx,cy'),
    ('0,0,0,0', 'focal lengths 0 and 0 must be positive'),
    ('100,-5,1,1', 'focal lengths 100 and -5 must be positive'),
    ('nan,5,1,1', 'must be finite'),
    ('inf,5,1,1', 'must be finite'),
    ('0.5,1.6,0.5,0.5', 'no camera sees as wide as this in .*208x64.png'),
    ('400,400,416,128', r'point lies outside of .*208x64.png, 208 x 64 pixels'),
  )
  def test_half_a_camera(self, text, message):
    path, _ = self.save(64, 208)
    flag = f'--intrinsics={text}'
    self.refuse(f'^{flag}.*{message}', path, intrinsics=text.split(','))

  def turned(self, height, width, orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return self.save(height, width, exif=exif)[0]

  def test_the_camera_turns_with_its_image(self):
    """Clockwise by a quarter: the file's rows become columns from the right."""
    path = self.turned(64, 208)
    (query,) = self.read(path, camera=CAMERA)
    self.assertEqual(query.image.shape, (208, 64, 3))
    expected = [[110, 0, 64 - 32], [0, 100, 104], [0, 0, 1]]
    np.testing.assert_allclose(query.lens.intrinsics, expected)
    intrinsics = ('100', '110', '104', '30')
    (query,) = self.read(path, camera=CAMERA, intrinsics=intrinsics)
    expected = [[110, 0, 64 - 30], [0, 100, 104], [0, 0, 1]]
    np.testing.assert_allclose(query.lens.intrinsics, expected)

  def test_an_image_that_has_the_shape_of_the_map_once_it_is_turned(self):
    """Photos of a map that stood on their side too: nothing else to turn."""
    (query,) = self.read(self.turned(208, 64), camera=CAMERA)
    np.testing.assert_array_equal(query.lens.intrinsics, LENS.intrinsics)

  def test_the_orientation_may_be_ignored(self):
    path = self.turned(64, 208, 3)
    (upright,), (stored,) = (
      self.read(path, camera=CAMERA, upright=upright)
      for upright in (True, False)
    )
    np.testing.assert_array_equal(stored.image, upright.image[::-1, ::-1])
    np.testing.assert_array_equal(stored.lens.intrinsics, LENS.intrinsics)
    self.assertEqual((upright.upright, stored.upright), (True, False))

  def test_the_first_image_that_is_turned_is_said(self):
    names = [self.turned(20, 40 + i) for i in range(2)]
    with self.assertLogs('absl', 'WARNING') as logs:
      self.read(*names)
    (line,) = logs.output
    self.assertIn('40x20.png is turned as the orientation 6', line)
    with self.assertNoLogs('absl', 'WARNING'):
      self.read(*names, upright=False)
      self.read(self.save(20, 30)[0])

  def test_the_intrinsics_of_an_image_as_one_sees_it_are_refused(self):
    self.refuse(
      'fits .* as one sees it, 64 x 208 pixels, and not as it is stored, 208',
      self.turned(64, 208),
      intrinsics=('100', '110', '32', '50'),
    )

  def test_a_panorama_is_not_turned_by_a_quarter(self):
    around = lens_lib.Lens('equirectangular', LENS.intrinsics)
    self.refuse(
      r'208x64\.png: a panorama cannot be turned .*--ignore_orientation',
      self.turned(64, 208),
      camera=query_files.Camera(around, (64, 208)),
    )


if __name__ == '__main__':
  absltest.main()
