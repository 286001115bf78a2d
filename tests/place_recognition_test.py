# SPDX-License-Identifier: Apache-2.0
"""One call over folders of photos, for any model."""

import contextlib
import io
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc import factory
from i2ploc import files
from i2ploc import place_recognition
from i2ploc import verbs
from input_pipeline.sources import opening
from tests import configs_test
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


class PublishedTest(parameterized.TestCase):
  PATH = str(shared.GOLDEN / 'dinov2_tiny')
  OPTIONS = (
    dict(pooling='default'),
    dict(pooling='cls'),
    dict(pooling='mean', layer='@2.value'),
    dict(pooling='gem', whitening=3),
    dict(pooling='vlad', words=5),
  )

  @parameterized.parameters(*OPTIONS)
  def test_weights_by_their_name(self, **options):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 42, 3), np.uint8)
    name = self.PATH + options.pop('layer', '')
    model = place_recognition.published_model(
      name, image_size=(28, 42), **options
    )
    self.assertEqual(model.image_size, (28, 42))
    config = ','.join(f'{k}={v}' for k, v in options.items())
    config = configs_test.load('photos', f'encoder={name},{config}')
    expected = factory.make_model(**config.model.to_dict(), image_size=(28, 42))
    self.assertEqual(model.towers.model, expected)
    if 'words' in options or 'whitening' in options:
      with self.assertRaisesRegex(ValueError, 'belong to a database'):
        model(images)
      shown = []
      model.fit(self.batches(images, shown), len(images))
      self.assertEqual(shown, list(range(6)))
    found = model(images)
    self.assertEqual(found.dtype, np.float32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found[1:], model(images[1:]), atol=1e-5)

  def batches(self, images, shown):
    def batches(rows):
      shown.extend(rows.tolist())
      for row in rows:
        # The last one is filling.
        pair = np.stack([images[row], np.zeros_like(images[row])])
        yield {'image': pair, 'mask': np.array([True, False])}

    return batches

  def test_a_model_forgets_the_database_before(self):
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 6, 28, 28, 3), np.uint8)
    model = place_recognition.published_model(
      self.PATH, pooling='mean', whitening=2, image_size=(28, 28)
    )
    found = []
    for images in (one, other, one):
      model.fit(self.batches(images, []), 6)
      found.append(model(one))
    np.testing.assert_array_equal(found[0], found[2])
    self.assertGreater(np.abs(found[0] - found[1]).max(), 0.01)

  def test_of_five_crops_the_middle_one_is_learned_from(self):
    class Learner:
      image_size = 20, 30

      def fit(self, batches, count):
        (batch,) = batches(np.arange(count))
        self.images = batch['image'][batch['mask']]

      def __call__(self, images):
        return thumbnails(images)

    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for i in range(4):
      path = self.root / f'{"queries" if i == 3 else "database"}/{i}.png'
      path.parent.mkdir(exist_ok=True)
      scene(i, (20, 90)).save(path)
    learner = Learner()
    place_recognition.evaluate(learner, self.root, resize='five_crops')
    self.assertEqual(learner.images.shape, (3, 20, 30, 3))
    middle = np.asarray(scene(2, (20, 90)))[:, 30:60]
    np.testing.assert_array_equal(learner.images[2], middle)

  def test_what_there_is_not(self):
    with self.assertRaisesRegex(ValueError, "'max': expected one of .'defa"):
      place_recognition.published_model(self.PATH, pooling='max')
    with self.assertRaisesRegex(ValueError, "words=8 are of pooling='vlad'"):
      place_recognition.published_model(self.PATH, words=8)
    with self.assertRaisesRegex(ValueError, 'no aggregator that is known'):
      place_recognition.published_model(self.PATH, pooling='released')


class VerbsTest(folder.FolderTest):
  """The same folders by main.py."""

  def setUp(self):
    super().setUp()
    for i in range(12):
      name = 'queries' if i % 3 == 0 else 'database'
      path = self.root / f'{name}/@{1000 + 10 * i}@10@33@U@.png'
      path.parent.mkdir(exist_ok=True)
      scene(i).save(path)

  @parameterized.parameters(
    (
      '@2.key',
      dict(pooling='vlad', words=4, whitening=5),
      'crop',
    ),
    ('', dict(pooling='default'), 'stretch'),
  )
  def test_the_same_numbers(self, layer, options, resize):
    path, size = f'{shared.GOLDEN / "dinov2_tiny"}{layer}', (28, 42)
    text = ','.join(f'{k}={v}' for k, v in options.items())
    config = configs_test.load('photos', f'encoder={path},{text}')
    config.data.image_size, config.data.resize = size, resize
    data = opening.open_source(config, str(self.root))
    with contextlib.redirect_stdout(io.StringIO()):
      expected = verbs.evaluate(config, data, self.root / 'run')
    model = place_recognition.published_model(path, image_size=size, **options)
    result = place_recognition.evaluate(
      model, self.root / 'database', self.root / 'queries', resize=resize
    )
    found = result.all_numbers
    self.assertGreater(len(found), 20)
    # Neither nothing nor everything.
    recall = found['test/photos/image_to_image/recall@1_25m']
    self.assertBetween(recall, 1, 99)
    for name, value in found.items():
      self.assertAlmostEqual(value, expected[name], places=4, msg=name)


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
