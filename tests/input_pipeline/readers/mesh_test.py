# SPDX-License-Identifier: Apache-2.0
"""A folder with a mesh, poses and photos as a dataset."""

import pathlib
import pickle
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image
import pytest

from i2ploc.errors import InputError
from input_pipeline import datasets
from input_pipeline.readers import mesh as mesh_lib
from tests.input_pipeline.readers import mesh_files_test

pytest.importorskip('embreex')  # no wheel for Linux on ARM

SHIFT = (384100.0, 6174000.0, 30.0)
POSES = (
  'name,x,y,z,heading\n'
  'database/a.png,384100,6173996,31,0\n'
  ',384104,6174000,31,180\n'
)


class MeshTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='mesh_'))
    )
    mesh_files_test.write_obj(self.root / 'mesh' / 'a.obj')
    (self.root / 'poses.csv').write_text(POSES)

  def save(self, name, value=7):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (40, 30), (value,) * 3).save(path)

  def load(self, **options):
    options = {
      'poses': 'poses.csv',
      'origin': SHIFT,
      'rendering_size': (48, 64),
    } | (options)
    return datasets.load(
      'mesh', split=options.pop('split', 'all'), data_dir=self.root, **options
    )

  def refuse(self, message, **options):
    with self.assertRaisesRegex(InputError, message) as context:
      self.load(**options)
    self.assertNotIn('\n', str(context.exception))

  def test_renderings_make_the_map_and_photos_ask(self):
    self.save('queries/@384101.5@6173990@.png', 9)
    dataset = self.load()
    frames = dataset.frames
    self.assertEqual(
      frames.name.tolist(),
      [
        'database/a.png',
        'database_000001',
        'queries/@384101.5@6173990@.png',
      ],
    )
    self.assertEqual(frames.drive.tolist(), ['database'] * 2 + ['queries'])
    self.assertEqual(set(frames.town), {self.root.name})
    self.assertEqual(frames.has_rendering.tolist(), [True, True, False])
    self.assertEqual(frames.has_image.tolist(), [False, False, True])
    self.assertFalse(frames.has_points.any())
    self.assertEqual(dataset.queries.tolist(), [False, False, True])
    np.testing.assert_allclose(
      frames.position[:, :2],
      [[384100, 6173996], [384104, 6174000], [384101.5, 6173990]],
    )
    np.testing.assert_allclose(
      frames.heading[:2], [np.pi / 2, -np.pi / 2], atol=1e-9
    )
    self.assertEqual(dataset.rigs['database'].image_size, (48, 64))
    self.assertIsNone(dataset.rigs['queries'].lens)

  def test_a_row_shows_what_stands_at_its_pose(self):
    self.save('queries/a.png', 9)
    dataset = self.load(positions='none')
    found = dataset.read(0, ('rendering',))
    picture = found['rendering']
    self.assertEqual((picture.shape, picture.dtype), ((48, 64, 3), np.uint8))
    quarters = [
      tuple(picture[r, c].tolist()) for r in (17, 31) for c in (25, 39)
    ]
    red, green = mesh_files_test.RED, mesh_files_test.GREEN
    blue, white = mesh_files_test.BLUE, mesh_files_test.WHITE
    self.assertEqual(quarters, [red, green, blue, white])
    self.assertEqual(dataset.read(2, ('image',))['image'][0, 0, 0], 9)
    for row, what in ((0, 'image'), (2, 'rendering'), (0, 'points')):
      with self.assertRaisesRegex(InputError, f"Asked for '{what}' of row"):
        dataset.read(row, (what,))
    copy = pickle.loads(pickle.dumps(dataset.read))
    np.testing.assert_array_equal(copy(0, ('rendering',))['rendering'], picture)

  def test_a_photo_with_a_pose_has_both(self):
    self.save('database/a.png')
    dataset = self.load()
    self.assertEqual(dataset.frames.has_image.tolist(), [True, False])
    self.assertEqual(dataset.frames.has_rendering.tolist(), [True, True])
    self.assertIsNone(dataset.queries)
    found = dataset.read(0, ('image', 'rendering'))
    self.assertEqual(found['image'].shape, (30, 40, 3))
    self.assertEqual(found['rendering'].shape, (48, 64, 3))
    # A photo may have any size.
    self.assertIsNone(dataset.rigs['database'].image_size)

  def test_the_camera(self):
    lens = self.load(field_of_view=90.0).rigs['database'].lens
    np.testing.assert_allclose(
      lens.intrinsics, [[32, 0, 32], [0, 32, 24], [0, 0, 1]]
    )
    lens = self.load(intrinsics=(50, 51, 30, 20)).rigs['database'].lens
    np.testing.assert_allclose(
      lens.intrinsics, [[50, 0, 30], [0, 51, 20], [0, 0, 1]]
    )

  def test_poses_all_over_the_ground(self):
    points, faces = mesh_files_test.box([-20, -20, -1], [20, 20, 0])
    mesh_files_test.write_ply(self.root / 'ground.ply', points, faces)
    dataset = self.load(
      poses='', mesh='ground.ply', spacing=10.0, headings=4, origin=(0, 0, 0)
    )
    self.assertLen(dataset.frames.name, 25 * 4)
    np.testing.assert_allclose(dataset.frames.position[:, 2], 1.6, atol=1e-5)
    self.assertEqual(dataset.frames.name[99], 'database_000099')

  def test_photos_of_another_frame_are_named(self):
    self.save('queries/@384101.5@6173990@.png', 9)
    (self.root / 'poses.csv').write_text('x,y,z,yaw\n0,0,1,0\n')
    self.refuse(
      r'photos, as at \(384102, 6173990\) m, are 61.. km .* Set data.origin',
      origin=(0, 0, 0),
    )

  @parameterized.parameters(
    ({'split': 'train'}, 'not a split of a mesh'),
    ({'spacing': 0}, 'spacing=0'),
    ({'headings': 0}, 'headings=0'),
    ({'height': -1}, 'height=-1'),
    ({'rendering_size': (5,)}, 'rendering_size must be'),
    ({'field_of_view': 180}, 'field_of_view=180'),
    ({'intrinsics': (1, 2)}, 'expected fx, fy, cx, cy'),
    ({'mesh': 'none.glb'}, 'none.glb: no such mesh'),
    ({'poses': 'none.csv'}, 'none.csv: no such file of poses'),
  )
  def test_options_are_checked(self, options, message):
    self.refuse(message, **options)

  def test_the_reader_is_the_one_of_its_name(self):
    self.assertIn('mesh', datasets.NAMES)
    self.assertEqual(
      mesh_lib.load(self.root, poses='poses.csv').name, f'mesh/{self.root.name}'
    )


if __name__ == '__main__':
  absltest.main()
