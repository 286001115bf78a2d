# SPDX-License-Identifier: Apache-2.0
"""Maps come back as written; what cannot be a map is refused by name."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.objects.map import landmarks
from tests import shared


def make(count=4, seed=0, **columns):
  rng = np.random.default_rng(seed)
  turns = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
  turns *= np.linalg.det(turns)[:, None, None]
  spread = rng.normal(size=(count, 3, 3)) / 100
  return landmarks.make_map(
    **{
      'center': rng.normal(size=(count, 3)),
      'semi_axes': rng.uniform(0.1, 1, (count, 3)),
      'rotation': turns,
      'category': np.arange(count) % 3,
      'ids': 10 + np.arange(count),
      'labels': [('mug', 'a "blue" cup')[: i % 3] for i in range(count)],
      'embedding': rng.normal(size=(count, 5)),
      'covariance': spread @ np.swapaxes(spread, 1, 2),
      'num_views': np.arange(count),
    }
    | columns
  )


def assert_equal(one, other):
  for name in landmarks.ObjectMap._fields:
    a, b = getattr(one, name), getattr(other, name)
    if name == 'labels' or a is None:
      absltest.TestCase().assertEqual(a, b)
    else:
      np.testing.assert_array_equal(a, b, name)
      absltest.TestCase().assertEqual(a.dtype, b.dtype, name)


class _FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='object_map_'))
    )


class RoundTripTest(_FileTest):
  @parameterized.product(
    suffix=['.json', '.npz'],
    missing=[(), ('embedding',), ('covariance', 'embedding')],
  )
  def test_a_map_comes_back_exactly(self, suffix, missing):
    objects = make(**dict.fromkeys(missing))
    path = self.folder / f'map{suffix}'
    landmarks.save_map(objects, path)
    assert_equal(landmarks.load_map(path), objects)
    self.assertEqual([p.name for p in self.folder.iterdir()], [path.name])

  def test_the_file_has_a_line_per_landmark(self):
    path = self.folder / 'map.json'
    landmarks.save_map(make(), path)
    lines = path.read_text().splitlines()
    self.assertLen(lines, 6)
    self.assertEqual(json.loads(lines[2].rstrip(','))['id'], 11)

  def test_a_landmark_by_hand_needs_only_its_shape(self):
    path = self.folder / 'map.json'
    record = {
      'id': 3,
      'center': [0, 1, 2],
      'semi_axes': [1, 1, 1],
      'rotation': np.eye(3).tolist(),
      'labels': 'tree',
    }
    content = {'format': landmarks.FORMAT, 'landmarks': [record]}
    path.write_text(json.dumps(content))
    found = landmarks.load_map(path)
    self.assertEqual(found.names(), ['tree'])
    self.assertEqual(found.category.tolist(), [landmarks.UNKNOWN])
    self.assertIsNone(found.covariance)

  def test_names_fall_back_to_categories(self):
    self.assertEqual(make().names(), ['category 0', 'mug', 'mug', 'category 0'])


class RefusalTest(_FileTest):
  @parameterized.parameters(
    ({'ids': [1, 2, 1, 3]}, r'ids \[1\] occur more than once'),
    ({'center': np.full((4, 3), np.nan)}, 'center is not finite in 4 land'),
    (
      {'semi_axes': np.array([[1, 1, 1], [1, 0, 1]] * 2)},
      r'positive.*ids \[11',
    ),
    ({'semi_axes': -np.ones((4, 3))}, 'semi-axes must be positive'),
    ({'rotation': 2 * np.tile(np.eye(3), (4, 1, 1))}, 'not a rotation'),
    ({'rotation': -np.tile(np.eye(3), (4, 1, 1))}, 'not a rotation'),
    ({'category': [1, 2]}, '2 rows of category, expected 4'),
    ({'labels': ['a']}, '1 rows of labels'),
    ({'covariance': np.full((4, 3, 3), np.inf)}, 'covariance is not finite'),
  )
  def test_unsound_maps(self, columns, message):
    with self.assertRaisesRegex(ValueError, message):
      make(**columns)

  def test_an_empty_map_exists_but_is_no_file_to_localize_in(self):
    empty = landmarks.make_map(
      np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros(0)
    )
    self.assertEqual(empty.num_landmarks, 0)
    for suffix in ('.json', '.npz'):
      path = self.folder / f'map{suffix}'
      landmarks.save_map(empty, path)
      with self.assertRaisesRegex(ValueError, 'the map is empty'):
        landmarks.load_map(path)

  def _edited(self, edit):
    path = self.folder / 'map.json'
    landmarks.save_map(make(), path)
    content = json.loads(path.read_text())
    edit(content['landmarks'])
    path.write_text(json.dumps(content))
    return path

  @parameterized.parameters(
    (lambda x: x[1].pop('center'), 'landmark 1 has no center; it has'),
    (lambda x: x[1].update(center=[1, 2]), r'landmark 1: center is \[1, 2\]'),
    (lambda x: x[1].update(semi_axes='big'), 'landmark 1: semi_axes'),
    (lambda x: x[1].update(id=10), r'ids \[10\] occur'),
    (lambda x: x[2].update(center=[0, 0, float('nan')]), r'ids \[12\]'),
    (lambda x: x[2].pop('embedding'), '3 of 4 landmarks have embedding'),
    (lambda x: x.append(7), 'landmark 4 is 7'),
    (lambda x: x[0].update(embedding=[1.0]), 'map.json: '),
  )
  def test_edited_files(self, edit, message):
    with self.assertRaisesRegex(ValueError, message):
      landmarks.load_map(self._edited(edit))

  @parameterized.parameters(
    ('map.json', '{"format"', 'truncated or not JSON'),
    ('map.json', '[]', "has format 'none'"),
    ('map.json', '{"format": "i2ploc.object_map.9"}', 'object_map.9'),
    ('map.json', f'{{"format": "{landmarks.FORMAT}"}}', 'a list "landmarks"'),
    ('map.npz', 'no zip', 'truncated or not an npz'),
  )
  def test_other_files(self, name, content, message):
    (self.folder / name).write_text(content)
    with self.assertRaisesRegex(ValueError, message):
      landmarks.load_map(self.folder / name)

  def test_no_file_and_no_format(self):
    with self.assertRaisesRegex(
      FileNotFoundError, 'There is no .*map.json: make an object map'
    ):
      landmarks.load_map(self.folder / 'map.json')
    with self.assertRaisesRegex(ValueError, 'a .json or an .npz'):
      landmarks.save_map(make(), self.folder / 'map.txt')


class ImportTest(_FileTest):
  YAML = """
objects:
  - {center: [1, 2, 3], axes: [0.1, 0.2, 0.3], category: cup,
     R: [[0, -1, 0], [1, 0, 0], [0, 0, 1]]}
  - {center: [4, 5, 6], axes: [0.3, 0.2, 0.1], category: 0, id: 7,
     R: [[1, 0, 0], [0, 1, 0], [0, 0, 1]], labels: [a red bottle]}
"""

  def test_yaml_and_json_are_the_same_map(self):
    import yaml

    (self.folder / 'a.yaml').write_text(self.YAML)
    content = yaml.safe_load(self.YAML)['objects']
    (self.folder / 'a.json').write_text(json.dumps(content))
    names = ('bottle', 'cup')
    one = landmarks.import_quadrics(self.folder / 'a.yaml', names)
    assert_equal(one, landmarks.import_quadrics(self.folder / 'a.json', names))
    self.assertEqual(one.ids.tolist(), [0, 7])
    self.assertEqual(one.category.tolist(), [1, 0])
    self.assertEqual(one.labels, (('cup',), ('a red bottle',)))
    self.assertEqual(one.semi_axes[0].tolist(), [0.1, 0.2, 0.3])
    self.assertEqual(one.rotation[0, 0].tolist(), [0, -1, 0])

  def test_names_without_numbers_stay_labels(self):
    (self.folder / 'a.yaml').write_text(self.YAML)
    found = landmarks.import_quadrics(self.folder / 'a.yaml')
    self.assertEqual(found.category.tolist(), [landmarks.UNKNOWN, 0])
    self.assertEqual(found.labels[0], ('cup',))

  @parameterized.parameters(
    (YAML.replace('cup', 'spoon'), "landmark 0 is a 'spoon'"),
    (YAML.replace('id: 7', 'id: 0'), r'ids \[0\] occur'),
    (YAML.replace('[0.1, 0.2, 0.3]', '[0.1, 0.2, -0.3]'), 'positive'),
    (YAML.replace('center: [1, 2, 3], ', ''), 'landmark 0 has no center'),
    ('- [', 'truncated or not YAML'),
    ('objects: []', 'expected a list'),
    ('3', 'expected a list'),
  )
  def test_refused(self, content, message):
    path = self.folder / 'a.yaml'
    path.write_text(content)
    with self.assertRaisesRegex(ValueError, message):
      landmarks.import_quadrics(path, ('bottle', 'cup'))

  def test_the_landmarks_of_another_program(self):
    fixture = np.load(shared.require('data/objects/tum_fr2_desk/fixture.npz'))
    records = [
      {'center': c, 'axes': a, 'R': turn, 'category': category}
      for c, a, turn, category in zip(
        *(fixture[f'obj_{x}'].tolist() for x in ('center', 'axes', 'R', 'cat')),
        strict=True,
      )
    ]
    path = self.folder / 'fr2.json'
    path.write_text(json.dumps(records))
    found = landmarks.import_quadrics(path)
    self.assertEqual(found.num_landmarks, 21)
    np.testing.assert_array_equal(found.center, fixture['obj_center'])
    np.testing.assert_array_equal(found.category, fixture['obj_cat'])


if __name__ == '__main__':
  absltest.main()
