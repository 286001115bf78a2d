# SPDX-License-Identifier: Apache-2.0
"""Descriptors that survive a kill, of a model that is fitted to its map."""

import contextlib
import io
import pathlib
import tempfile
from types import SimpleNamespace
from unittest import mock

from absl.testing import absltest
import numpy as np

from i2ploc.errors import InputError
from i2ploc.evaluation import duplicates
from i2ploc.tasks import embedding

COUNT = 10
ORIGIN = {'model': 'a', 'config': 'b'}


class Towers:
  """Stands for `CompiledTowers`: a pixel and what was fitted, by view."""

  map_side = 'image'
  model = 'model'

  def embed(self, side, views=None):
    del side

    def embed(variables, batch):
      level = batch['image'][..., 0, 0, 0].astype(np.float32)
      fitted = variables.get('map', {}).get('words', np.zeros(1))
      ahead = np.stack([level, level**2, np.full(level.shape, fitted[0])], -1)
      if views is None:
        return ahead
      return np.stack([ahead + yaw for yaw in views], 1)

    return embed


class Split:
  """Ten grey pictures in batches of three, the last filled up with black."""

  def __init__(self):
    self.read = []
    poses = np.tile(np.eye(4), (COUNT, 1, 1))
    names = np.array([f'{i}.jpg' for i in range(COUNT)])
    self.frames = SimpleNamespace(world_from_body=poses, name=names)

  def batches(self, rows, what, size, all_around=False, resize=''):
    del what, all_around
    rows = np.asarray(rows)
    for start in range(0, len(rows), size):
      part = rows[start : start + size]
      self.read += part.tolist()
      levels = np.zeros(size, np.uint8)
      levels[: len(part)] = part
      # A crop is brighter by its number.
      views = np.arange(5 if resize else 1, dtype=np.uint8)
      image = (levels[:, None] + views)[..., None, None, None]
      image = np.tile(image, (1, 1, 16, 17, 3))
      image[:, :, :, 0] += levels[:, None, None, None]
      if not resize:
        image = image[:, 0]
      yield {'image': image, 'mask': np.arange(size) < len(part)}


class EmbeddingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.enterContext(mock.patch.object(embedding, 'PART_ROWS', 4))
    self.fits = self.enterContext(
      mock.patch.object(embedding.fitting, 'needs_fit', return_value=False)
    )
    self.split = Split()

  def make(self, towers=None, rows=range(COUNT), split=None, **origin):
    with contextlib.redirect_stdout(io.StringIO()):
      return embedding.Embedding(
        towers or Towers(),
        {'params': {}, 'map': {'words': np.zeros(2, np.float32)}},
        split or self.split,
        np.array(rows),
        batch_size=3,
        folder=self.folder,
        seed=0,
        origin=ORIGIN | origin,
      )

  def describe(self, made, rows, *args, **kwargs):
    """Columns of all batches."""
    embed, batches = made.described('image', *args, **kwargs)
    with contextlib.redirect_stdout(io.StringIO()):
      found = [
        batch | {'descriptors': embed(made.variables, batch)}
        for batch in batches(np.asarray(rows))
      ]
    return {k: np.concatenate([one[k] for one in found]) for k in found[0]}

  def test_every_row_has_its_own_descriptor(self):
    rows = np.array([7, 2, 9, 4, 5, 0, 8, 1, 3])
    found = self.describe(self.make(), rows)
    np.testing.assert_array_equal(found['image_index'], rows)
    self.assertTrue(found['mask'].all())
    level = 2 * rows
    np.testing.assert_array_equal(found['descriptors'][:, 0, 0], level)
    np.testing.assert_array_equal(found['descriptors'][:, 0, 1], level**2)

  def test_what_a_kill_left_is_not_read_again(self):
    class Dies(Towers):
      def embed(self, side, views=None):
        embed = super().embed(side, views)

        def dies(variables, batch):
          if 10 in batch['image'][:, 0, 0, 0]:
            raise KeyboardInterrupt
          return embed(variables, batch)

        return dies

    with self.assertRaises(KeyboardInterrupt):
      self.describe(self.make(Dies()), range(COUNT))
    self.split.read.clear()
    found = self.describe(self.make(), range(COUNT))
    self.assertEqual(self.split.read, list(range(4, COUNT)))
    level = 2 * np.arange(COUNT)
    np.testing.assert_array_equal(found['descriptors'][:, 0, 0], level)

  def test_parts_of_another_origin_or_map_are_not_mixed_in(self):
    rows = range(COUNT)
    moved, renamed = Split(), Split()
    moved.frames.world_from_body[0, 0, 3] = 5
    renamed.frames.name[0] = 'other.jpg'
    self.describe(self.make(), rows)
    for change in (
      dict(model='another'),
      dict(rows=range(COUNT - 1)),
      dict(split=moved),
      dict(split=renamed),
    ):
      with self.subTest(**change):
        made = self.make(**change)
        seen = change.get('split', self.split).read
        seen.clear()
        self.describe(made, rows)
        self.assertEqual(seen, list(rows))

  def test_the_model_is_fitted_once_to_the_map_alone(self):
    self.fits.return_value = True

    def fit(model, side, variables, batches, count, *, seed):
      self.assertEqual((model, side, count, seed), ('model', 'image', 4, 0))
      seen = [batch['image'][batch['mask']] for batch in batches(np.arange(4))]
      words = np.concatenate(seen)[:, 0, 0, 0].astype(np.float32)
      return {**variables, 'map': {'words': words[:2]}}

    odd = [1, 3, 5, 7]
    with mock.patch.object(embedding.fitting, 'fit', side_effect=fit) as fitted:
      first = self.make(rows=odd)
      self.assertEqual(self.split.read, odd)
      found = self.describe(first, range(COUNT))
      again = self.make(rows=odd)
      fitted.assert_called_once()
      # Another map is another vocabulary.
      self.make(rows=[0, 2, 4, 6])
      self.assertEqual(fitted.call_count, 2)
    np.testing.assert_array_equal(found['descriptors'][:, 0, 2], 2)
    np.testing.assert_array_equal(again.variables['map']['words'], [2, 6])
    np.testing.assert_array_equal(again.learned['map/words'], [2, 6])
    self.split.read.clear()
    self.describe(again, range(COUNT))
    self.assertEmpty(self.split.read)

  def test_views_and_crops_have_descriptors_of_their_own(self):
    made, rows = self.make(), np.arange(3)
    ahead = self.describe(made, rows)['descriptors'][:, 0]
    turned = self.describe(made, rows, (0.0, 2.0))['descriptors']
    np.testing.assert_array_equal(turned[:, 0], ahead)
    np.testing.assert_array_equal(turned[:, 1], ahead + 2)
    crops = self.describe(made, rows, resize='nearest_crop')
    level = 2 * rows[:, None] + np.arange(5)
    np.testing.assert_array_equal(crops['descriptors'][..., 0], level)
    mean = self.describe(made, rows, resize='five_crops')['descriptors']
    self.assertEqual(mean.shape, (3, 1, 3))
    np.testing.assert_allclose(np.linalg.norm(mean, axis=-1), 1, atol=1e-6)

  def test_pictures_are_remembered_by_their_bits(self):
    rows = np.array([0, 8])
    made = self.make()
    for _ in range(2):  # computed, and read from the parts
      bits = self.describe(made, rows)['image_bits']
      (batch,) = self.split.batches(rows, ('image',), 2)
      expected = duplicates.picture_bits(batch['image'])
      np.testing.assert_array_equal(bits, expected)
      self.assertFalse(bits[0].any())
      self.assertTrue(bits[1].any())

  def test_what_another_model_learned_is_refused(self):
    variables = {'params': {}, 'map': {'words': np.zeros(2, np.float32)}}
    arrays = {'map/words': np.ones(2, np.float32)}
    found = embedding.with_learned(variables, arrays)
    np.testing.assert_array_equal(found['map']['words'], 1)
    for wrong in ({}, {'map/words': np.ones(3)}, {'map/mean': np.ones(2)}):
      with self.assertRaisesRegex(InputError, 'does not fit.*--mode=index'):
        embedding.with_learned(variables, wrong)

  def test_nothing_is_left_when_it_is_done(self):
    made = self.make()
    self.describe(made, range(COUNT))
    self.assertNotEmpty(list(self.folder.iterdir()))
    made.remove()
    self.assertEmpty(list(self.folder.iterdir()))


if __name__ == '__main__':
  absltest.main()
