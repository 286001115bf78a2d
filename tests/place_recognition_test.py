# SPDX-License-Identifier: Apache-2.0
"""One call over folders of photos, for any model."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc import files
from i2ploc import place_recognition
from tests import shared
from tests.evaluation import descriptor_files_test
from tests.photos import folder


def thumbnails(images):
  """Unit descriptors of normalised grey thumbnails."""
  small = [
    np.asarray(Image.fromarray(image).convert('L').resize((8, 8)), np.float32)
    for image in images
  ]
  flat = np.stack(small).reshape(len(small), -1)
  flat = flat - flat.mean(1, keepdims=True) + 1e-3
  return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def scene(seed, size=(48, 64)):
  small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
  return Image.fromarray(small).resize(size[::-1])


class EvaluateTest(folder.FolderTest):
  def setUp(self):
    super().setUp()
    for i in range(6):
      self.scene(f'database/@{100 * i + 1000}@10@33@U@.jpg', i)
    for i in range(4):
      self.scene(f'queries/@{100 * i + 1005}@10@33@U@ {i}.jpg', i, brighter=9)
    self.scene('queries/@9000@10@33@U@.jpg', 77)

  def scene(self, name, seed, brighter=0):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(scene(seed)).astype(int) * (255 - 3 * brighter) // 255
    pixels = pixels + np.random.default_rng(len(name)).integers(
      0, 4 * brighter + 1, pixels.shape
    )
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)

  def evaluate(self, model=thumbnails, *folders, **options):
    folders = folders or ('database', 'queries')
    options = dict(image_size=(32, 40), batch_size=4) | options
    return place_recognition.evaluate(
      model, *(self.root / name for name in folders), **options
    )

  def test_recall_beside_chance_stated_both_ways(self):
    result = self.evaluate()
    numbers = result.numbers
    self.assertEqual(numbers['queries'], 5)
    self.assertEqual(numbers['answerable_25m'], 4)
    self.assertEqual(numbers['database'], 6)
    for n in (1, 5, 10, 20, 100):
      self.assertEqual(numbers[f'recall@{n}_25m'], 100)
      self.assertEqual(numbers[f'recall@{n}_25m_of_all_queries'], 80)
    self.assertAlmostEqual(numbers['chance@1_25m'], 100 / 6)
    self.assertEqual(numbers['chance@100_25m'], 100)
    self.assertEqual(numbers['median_error_m'], 5)
    self.assertIn('within 25 m', result.text)
    self.assertIn('of all queries', result.text)
    self.assertIn('4 of 5', result.text)

  def test_any_radius_and_a_model_that_knows_nothing(self):
    result = self.evaluate(lambda x: np.ones((len(x), 3)), radius=(4, 150.0))
    self.assertEqual(result.numbers['answerable_4m'], 0)
    self.assertNotIn('recall@1_4m', result.numbers)
    # All places tie: no hit, whatever the order.
    self.assertEqual(result.numbers['recall@1_150m'], 0)
    self.assertIn('none of 5 queries', result.text)

  def test_the_model_gets_batches_of_one_shape(self):
    shapes = set()

    def model(images):
      shapes.add((images.dtype.name, images.shape, images.flags.c_contiguous))
      return thumbnails(images)

    self.evaluate(model)
    self.evaluate(model, resize='five_crops')
    self.assertEqual(shapes, {('uint8', (4, 32, 40, 3), True)})

  @parameterized.parameters('crop', 'five_crops', 'nearest_crop')
  def test_queries_may_be_resized_otherwise(self, policy):
    result = self.evaluate(query_resize=policy)
    rows, descriptors = result.asked
    self.assertEqual(rows.tolist(), [6, 7, 8, 9, 10])
    views = 5 if policy == 'nearest_crop' else 1
    self.assertEqual(descriptors.shape[:2], (5, views))
    self.assertEqual(result.embedded[0].tolist(), [0, 1, 2, 3, 4, 5])
    self.assertEqual(result.numbers['recall@5_25m'], 100)

  def test_a_description_does_not_depend_on_the_batch(self):
    for policy in ('stretch', 'five_crops'):
      one, other = (
        self.evaluate(batch_size=size, resize=policy) for size in (1, 7)
      )
      np.testing.assert_allclose(one.embedded[1], other.embedded[1], atol=1e-6)

  def test_one_folder_and_a_layout(self):
    (self.root / 'queries').rename(self.root / 'elsewhere')
    result = self.evaluate(thumbnails, 'database', 'database', radius=110)
    self.assertEqual(result.numbers['queries'], 6)
    self.assertEqual(result.numbers['database'], 6)
    self.assertEqual(result.numbers['candidates'], 5)
    (self.root / 'elsewhere').rename(self.root / 'queries')
    result = self.evaluate(thumbnails, '.')
    self.assertEqual(result.numbers['recall@1_25m'], 100)

  def test_towns_are_asked_apart_and_together(self):
    for town in ('a', 'b'):
      for side in ('database', 'queries'):
        (self.root / town).mkdir(exist_ok=True)
        for path in sorted((self.root / side).iterdir())[: 3 + (town == 'b')]:
          self.scene(f'{town}/{side}/{path.name}', len(path.name) + ord(town))
    for side in ('database', 'queries'):
      (self.root / side).rename(self.root / f'old_{side}')
    result = self.evaluate(thumbnails, '.', radius=1e5)
    self.assertEqual(result.numbers['database'], 7)
    self.assertEqual(result.numbers['recall@1_100000m'], 100)
    found = result.all_numbers
    self.assertEqual(found['test/photos/a/candidates'], 3)
    self.assertEqual(found['test/photos_one_pool/candidates'], 7)
    self.assertLess(found['test/photos_one_pool/chance@1_100000m'], 60)
    self.assertIn('photos_one_pool image_to_image', result.text)

  def test_duplicates_are_named(self):
    name = '@1000@10@33@U@.jpg'
    (self.root / f'queries/{name}').write_bytes(
      (self.root / f'database/{name}').read_bytes()
    )
    result = self.evaluate()
    (found, *_) = result.duplicates.values()
    self.assertEqual(found.kinds.tolist().count('bytes'), 1)
    self.assertEqual(
      result.numbers['queries_with_duplicate'], len(found.queries)
    )
    self.assertIn('recall@1_25m_without_duplicates', result.numbers)
    self.assertIn(
      f'queries/{name} is the same file as database/{name}', result.text
    )

  def test_results_for_other_programs(self):
    result = self.evaluate()
    out = self.root / 'out'
    (line,) = result.save(out)
    self.assertIn('4 names with blanks', line)
    numbers = files.load_json(out / 'metrics.json', '')
    name = 'test/photos/image_to_image/recall@1_25m'
    self.assertEqual(numbers[name], 100)
    names = (out / 'descriptors.txt').read_text().splitlines()
    self.assertEqual(names, result.names)
    array = np.load(out / 'descriptors.npy')
    np.testing.assert_array_equal(array, result.embedded[1][:, 0])
    pairs = (out / 'pairs.txt').read_text().splitlines()
    self.assertLen(pairs, 6)  # of the one query without blanks
    h5py = descriptor_files_test.h5py
    if h5py is not None:
      with h5py.File(out / 'descriptors.h5') as file:
        found = file[names[0]]['global_descriptor'][()]
      np.testing.assert_array_equal(found, array[0])
    left_out = self.evaluate(query_resize='nearest_crop').save(out)
    self.assertIn('queries: several descriptors of a photo.', left_out)

  def test_what_cannot_be_done(self):
    self.refuse('gone: no such folder', self.evaluate, thumbnails, 'gone',
                'queries', error=FileNotFoundError)  # fmt: skip
    self.refuse('one lies in the other', self.evaluate, thumbnails, '.',
                'queries')  # fmt: skip
    self.refuse("Unknown resize policy 'x'", self.evaluate, resize='x')
    self.refuse(r'gives \[4, 3, 1\] for 4 images', self.evaluate,
                lambda x: np.zeros((len(x), 3, 1)))  # fmt: skip
    self.refuse('are not finite', self.evaluate,
                lambda x: np.full((len(x), 3), np.nan))  # fmt: skip
    path = self.save('database/cut.jpg', size=(64, 64))
    path.write_bytes(path.read_bytes()[:500])
    path.rename(self.root / 'database/@1@2@33@U@cut.jpg')
    self.refuse('cut.jpg is not a readable image', self.evaluate)


class PublishedTest(absltest.TestCase):
  def test_weights_by_their_name(self):
    path = pathlib.Path(__file__).parent / 'golden/dinov2_tiny'
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    for pooling in ('gem', 'mean', 'cls'):
      model = place_recognition.published_model(
        str(path), pooling=pooling, image_size=(28, 28)
      )
      found = model(images)
      self.assertEqual(found.dtype, np.float32)
      np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
      np.testing.assert_allclose(found[1:], model(images[1:]), atol=1e-5)
    with self.assertRaisesRegex(ValueError, "'max': expected one of .'gem'"):
      place_recognition.published_model(str(path), pooling='max')


class RealTest(absltest.TestCase):
  def test_the_corridor_by_its_list(self):
    root = shared.require('data/places/corridor')
    result = place_recognition.evaluate(
      thumbnails, root / 'ref', root / 'query',
      positions='ground_truth_new.npy', image_size=(64, 64),
    )  # fmt: skip
    self.assertAlmostEqual(result.numbers['chance@1_listed'], 4.5, delta=0.05)
    self.assertGreater(result.numbers['recall@5_listed'], 40)
    self.assertEqual(result.numbers['queries_with_duplicate'], 0)
    self.assertIn('as listed', result.text)


if __name__ == '__main__':
  absltest.main()
