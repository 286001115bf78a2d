# SPDX-License-Identifier: Apache-2.0
"""Duplicates are found by file, picture and descriptor, and others are not."""

import io
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc import image_files
from i2ploc.evaluation import duplicates
from i2ploc.evaluation import questions as questions_lib
from i2ploc.evaluation import scores
from tests import shared
from tests.evaluation import retrieval_test


def _scene(seed, size=(96, 128)):
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (12, 16, 3), np.uint8)
  return np.asarray(Image.fromarray(small).resize(size[::-1]))


def _again(image, size, quality):
  """Resized and compressed."""
  file = io.BytesIO()
  Image.fromarray(image).resize(size[::-1]).save(file, 'JPEG', quality=quality)
  return np.asarray(Image.open(file).resize(image.shape[1::-1]))


class PictureTest(parameterized.TestCase):
  @parameterized.parameters(((96, 128), 60), ((48, 64), 90), ((150, 200), 75))
  def test_a_picture_is_itself_when_made_again(self, size, quality):
    for seed in range(10):
      image = _scene(seed)
      bits = duplicates.picture_bits(
        np.stack([image, _again(image, size, quality), _scene(seed + 99)])
      )
      self.assertLessEqual((bits[0] != bits[1]).sum(), duplicates.MAX_BITS)
      self.assertGreater((bits[0] != bits[2]).sum(), 8 * duplicates.MAX_BITS)

  def test_the_last_view_of_the_last_frame_counts(self):
    images = np.stack([_scene(seed) for seed in range(12)])
    bits = duplicates.picture_bits(images.reshape(2, 2, 3, *images.shape[1:]))
    np.testing.assert_array_equal(bits, duplicates.picture_bits(images[5::6]))

  def test_cells_are_means_of_their_pixels(self):
    values = np.random.default_rng(0).random((2, 7))
    fine = np.repeat(values, 5, 1)  # 35 parts of 5 cells of 7
    np.testing.assert_allclose(
      values @ duplicates._shares(7, 5).T,
      fine.reshape(2, 5, 7).mean(2),
      atol=1e-6,
    )


class FindTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.paths = [pathlib.Path(root, f'{i}.png') for i in range(12)]
    scenes = [_scene(i) for i in range(12)]
    scenes[6] = scenes[1]  # bytes
    scenes[7] = _again(scenes[2], (96, 128), 80)  # pixels
    scenes[0] = scenes[5] = 0 * scenes[0]  # black, of two kinds of files
    scenes[9] = scenes[10]  # two queries
    self.images = np.stack(scenes)
    for path, image in zip(self.paths, self.images, strict=True):
      Image.fromarray(image).save(path)
    self.paths[5].write_bytes(self.paths[5].read_bytes() + b' ')
    rng = np.random.default_rng(0)
    self.codes = rng.normal(size=(12, 1, 8)).astype(np.float32)
    self.codes /= np.linalg.norm(self.codes, axis=-1, keepdims=True)
    self.codes[8] = self.codes[3] * (1 + 1e-4)
    rows = np.arange(12)
    self.track = questions_lib.Track(rows, np.zeros((12, 3)), 'z_up')
    self.question = questions_lib.Question(
      'photos', '', 'image', 'image', rows[5:11], rows[:5], (25.0,),
      exclude_self=True, travel=0,
    )  # fmt: skip

  def ask(self, question):
    sides = [
      scores.Side(self.codes[rows], self.track.take(rows))
      for rows in (question.query_rows, question.map_rows)
    ]
    blocks = np.arange(len(question.query_rows))
    return scores.ask(question, *sides, blocks, num_ranked=20)

  def find(self, question=None, images=True):
    question = question or self.question
    finder = duplicates.Finder(12, lambda row: self.paths[row])
    if images:
      finder.see(np.arange(12), duplicates.picture_bits(self.images))
    outcome = self.ask(question)
    describe = self.codes.__getitem__
    found = finder.find(question, outcome, describe, describe)
    return found, outcome

  def test_each_kind_is_found_and_named(self):
    found, _ = self.find()
    self.assertEqual(found.query_rows.tolist(), [5, 6, 7, 8])
    self.assertEqual(found.map_rows.tolist(), [0, 1, 2, 3])
    self.assertEqual(
      found.kinds.tolist(), ['pixels', 'bytes', 'pixels', 'descriptors']
    )
    self.assertEqual(found.queries.tolist(), [0, 1, 2, 3])
    names = [path.name for path in self.paths]
    (line,) = duplicates.text({'photos': found}, names)
    self.assertEqual(
      line,
      'photos: 4 queries have a duplicate in the database: 5.png is the same'
      ' picture as 0.png; 6.png is the same file as 1.png; 7.png is the same'
      ' picture as 2.png; and 1 more.',
    )
    found, _ = self.find(images=False)
    self.assertEqual(found.kinds.tolist(), ['bytes', 'descriptors'])

  def test_no_photo_is_a_duplicate_of_itself(self):
    rows = np.arange(12)
    question = self.question._replace(query_rows=rows, map_rows=rows)
    found, _ = self.find(question)
    pairs = dict(zip(found.query_rows, found.map_rows, strict=True))
    self.assertEqual(
      pairs, {0: 5, 5: 0, 1: 6, 6: 1, 2: 7, 7: 2, 3: 8, 8: 3, 9: 10, 10: 9}
    )

  def test_a_model_that_says_the_same_of_all_makes_no_duplicates(self):
    self.codes[:] = self.codes[0]
    found, _ = self.find(images=False)
    self.assertEqual(found.kinds.tolist(), ['bytes'])

  def test_recall_without_them(self):
    found, outcome = self.find()
    ranks = np.array([0, 0, 0, 0, 0, 7])[:, None]
    outcome = outcome._replace(ranks=ranks, num_positives=ranks * 0 + 1)
    numbers = dict(duplicates.without(self.question, outcome, found))
    self.assertEqual(numbers['queries_with_duplicate'], 4)
    self.assertEqual(numbers['recall@1_25m_without_duplicates'], 50)
    self.assertEqual(numbers['recall@10_25m_without_duplicates'], 100)
    self.assertNotIn('recall@1_25m_ties_found_without_duplicates', numbers)

  def test_without_duplicates_there_is_nothing_beside(self):
    found, outcome = self.find(
      self.question._replace(query_rows=np.array([11]))
    )
    numbers = dict(duplicates.without(self.question, outcome, found))
    self.assertEqual(numbers, {'queries_with_duplicate': 0})
    self.assertEmpty(duplicates.text({'photos': found}, []))


class EvaluatorTest(absltest.TestCase):
  def test_duplicates_of_every_town_are_counted_once(self):
    frames = retrieval_test.make_frames()
    queries = np.array([drive.endswith('query') for drive in frames.drive])
    codes = np.random.default_rng(0).normal(size=(len(queries), 16))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    query_rows = np.flatnonzero(queries)[::9]
    codes[query_rows] = codes[query_rows - retrieval_test.SIZE]
    towers = retrieval_test.Towers(codes, codes)
    evaluator = towers.evaluator(
      frames,
      questions_lib.within_photos(frames, queries),
      duplicates=duplicates.Finder(len(queries)),
    )
    results = dict(evaluator.run(1.0))
    name = 'test/photos/image_to_image'
    self.assertEqual(results[f'{name}/queries_with_duplicate'], len(query_rows))
    self.assertLess(
      results[f'{name}/recall@1_25m_without_duplicates'],
      results[f'{name}/recall@1_25m'],
    )
    found = evaluator.duplicates[name]
    self.assertEqual(found.query_rows.tolist(), query_rows.tolist())
    np.testing.assert_array_equal(
      np.flatnonzero(queries)[found.queries], found.query_rows
    )
    pool = evaluator.duplicates['test/photos_one_pool/image_to_image']
    self.assertEqual(pool.query_rows.tolist(), query_rows.tolist())
    record = evaluator.predictions['test/photos_one_pool/image_to_image']
    self.assertEqual(set(record.towns), {'0', '1'})

  def test_pictures_are_seen_in_batches_or_by_their_bits(self):
    images = np.stack([_scene(0), _scene(1), _scene(0)])
    batch = {'mask': np.array([True, True, False]), 'image': images,
             'image_index': np.array([4, 2, 2])}  # fmt: skip
    bits = duplicates.picture_bits(images)
    for given in (batch, {**batch, 'image': None, 'image_bits': bits}):
      finder = duplicates.Finder(5)
      (passed,) = finder.watch('image', [given])
      self.assertIs(passed, given)
      self.assertEqual(np.flatnonzero(finder._seen).tolist(), [2, 4])
      np.testing.assert_array_equal(finder._bits[2], bits[1])
    (passed,) = duplicates.Finder(5).watch('points', [batch | {
      'points_index': batch['image_index']
    }])  # fmt: skip

  def test_without_a_finder_nothing_is_said(self):
    frames = retrieval_test.make_frames(1)
    codes = retrieval_test.codes()
    towers = retrieval_test.Towers(codes, codes)
    evaluator = towers.evaluator(frames, questions_lib.within_photos(frames))
    self.assertFalse([n for n in dict(evaluator.run(1.0)) if 'duplicate' in n])
    self.assertEmpty(evaluator.duplicates)


class RealTest(absltest.TestCase):
  def test_two_walks_of_a_corridor_share_no_picture(self):
    root = shared.require('data/places/corridor')
    bits = [
      duplicates.picture_bits(np.stack([
        image_files.read_image(path)
        for path in sorted((root / side).glob('*.jpg'))
      ]))
      for side in ('ref', 'query')
    ]  # fmt: skip
    apart = (bits[0][:, None] != bits[1]).sum(2)
    self.assertGreater(apart.min(), 2 * duplicates.MAX_BITS)


if __name__ == '__main__':
  absltest.main()
