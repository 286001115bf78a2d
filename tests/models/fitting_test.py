# SPDX-License-Identifier: Apache-2.0
"""Vocabulary, whitening and NetVLAD's initial values, from a map's photos."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from i2ploc.models import aggregators
from i2ploc.models import fitting
from i2ploc.models import towers
from i2ploc.models import views
from i2ploc.models import vlad
from i2ploc.models import whitening
from i2ploc.models.encoders import resnet
from i2ploc.models.encoders import vit
from tests.models import planted

SIZE = (32, 48)
COUNT = 9


def _encoder(name='vit'):
  if name == 'resnet':
    return resnet.ResNet(8, widths=(4, 8), depths=(1, 1), expansion=2)
  return vit.ViT(patch_size=8, width=16, depth=1, num_heads=2)


def _model(aggregator, features=0, encoder='vit'):
  head = whitening.Whitening(features) if features else None
  view = views.Image(SIZE)
  tower = towers.Tower(view, _encoder(encoder), aggregator, head=head)
  return towers.Towers({'image': tower})


def _images():
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (COUNT, 4, 6, 3), np.uint8)
  return coarse.repeat(8, axis=1).repeat(8, axis=2)


def _batches(size=4, asked=None):
  """Batches of `size`, the last one padded, as those of a source."""
  images = _images()

  def batches(rows):
    if asked is not None:
      asked.append(list(rows))
    for start in range(0, len(rows), size):
      part = rows[start : start + size]
      padded = np.pad(part, (0, size - len(part)), mode='edge')
      yield {
        'image': images[padded],
        'mask': np.arange(size) < len(part),
      }

  return batches


def _variables(model):
  variables = planted.towers(model)
  for name, tree in variables.get('map', {}).items():
    variables['map'][name] = jax.tree.map(
      lambda x: np.full_like(x, np.nan), tree
    )
  return variables


def _tokens(model, variables):
  """Tokens of all images at unit length, image by image."""
  found = []
  for image in _images():
    batch = {'image': image[None]}
    tokens = model.apply(variables, batch, side='image')[1]['tokens']
    x = np.asarray(tokens.features[0])
    found.append(x / np.linalg.norm(x, axis=1, keepdims=True))
  return found


class FitTest(parameterized.TestCase):
  def test_only_what_is_of_the_map_has_to_be_fitted(self):
    mean, words = aggregators.Mean(features=0), vlad.VLAD(4)
    self.assertFalse(fitting.needs_fit(_model(mean)))
    self.assertTrue(fitting.needs_fit(_model(words)))
    self.assertTrue(fitting.needs_fit(_model(mean, features=3)))
    self.assertTrue(fitting.needs_fit(_model(words), 'image'))
    self.assertNotIn('map', towers.shapes(_model(mean)))

  def test_nothing_to_fit_reads_nothing(self):
    model, asked = _model(aggregators.Mean(features=0)), []
    variables = _variables(model)
    found = fitting.fit(model, 'image', variables, _batches(4, asked), COUNT)
    self.assertIs(found, variables)
    self.assertEmpty(asked)

  def test_the_words_are_centres_of_the_tokens(self):
    model = _model(vlad.VLAD(4))
    variables = _variables(model)
    found = fitting.fit(model, 'image', variables, _batches(), COUNT)
    words = found['map']['image_aggregator']['vocabulary']
    x = np.concatenate(_tokens(model, variables))
    nearest = np.linalg.norm(x[:, None] - words, axis=-1).argmin(axis=1)
    for k in range(4):
      np.testing.assert_allclose(words[k], x[nearest == k].mean(0), atol=1e-4)
    # What was given is as it was, and all else is what was given.
    before = variables['map']['image_aggregator']['vocabulary']
    self.assertTrue(np.isnan(before).all())
    self.assertIs(found['params'], variables['params'])

  def test_tokens_are_centred_before_they_are_clustered(self):
    model = _model(vlad.VLAD(4, centered=True))
    variables = _variables(model)
    found = fitting.fit(model, 'image', variables, _batches(), COUNT)
    found = found['map']['image_aggregator']
    x = np.concatenate(_tokens(model, variables))
    np.testing.assert_allclose(found['mean'], x.mean(0), atol=1e-5)
    x = x - x.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    words = found['vocabulary']
    nearest = np.linalg.norm(x[:, None] - words, axis=-1).argmin(axis=1)
    for k in range(4):
      np.testing.assert_allclose(words[k], x[nearest == k].mean(0), atol=1e-4)

  def test_the_whitening_is_of_the_descriptors_without_it(self):
    model = _model(vlad.VLAD(4), features=3)
    variables = _variables(model)
    found = fitting.fit(model, 'image', variables, _batches(), COUNT)
    bare = _model(vlad.VLAD(4))
    batch = {'image': _images()}
    z = bare.apply(found, batch, side='image')[0]
    expected = whitening.fit(np.asarray(z), 3)
    mean = found['map']['image_head']['mean']
    np.testing.assert_allclose(mean, expected.mean, atol=1e-5)
    got = model.apply(found, batch, side='image')[0]
    y = (z - expected.mean) @ expected.projection
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose(got, y, atol=1e-4)

  def test_the_size_of_batches_changes_nothing_and_the_seed_does(self):
    model = _model(vlad.VLAD(4), features=3)
    variables = _variables(model)

    def fit(size, seed=0):
      batches = _batches(size)
      found = fitting.fit(
        model, 'image', variables, batches, COUNT, seed=seed, max_tokens=6
      )
      return found['map']['image_aggregator']['vocabulary']

    one, again = fit(4), fit(4)
    np.testing.assert_array_equal(one, again)
    np.testing.assert_allclose(fit(2), one, atol=1e-5)
    self.assertGreater(np.abs(fit(4, seed=1) - one).max(), 1e-3)

  def test_no_more_than_asked_for_is_read(self):
    model, asked = _model(vlad.VLAD(4), features=3), []
    fitting.fit(
      model,
      'image',
      _variables(model),
      _batches(4, asked),
      COUNT,
      max_images=3,
      max_tokens=5,
      max_descriptors=5,
    )
    self.assertEqual(asked, [[0, 4, 8], [0, 2, 4, 6, 8]])
    tokens = fitting.sample_tokens(
      model,
      'image',
      _variables(model),
      _batches(),
      COUNT,
      max_images=3,
      max_tokens=5,
    )
    self.assertEqual(tokens.shape, (15, 16))

  def test_a_map_that_is_too_small_is_refused(self):
    with self.assertRaisesRegex(ValueError, '300 clusters of 216 tokens'):
      model = _model(vlad.VLAD(300))
      fitting.fit(model, 'image', _variables(model), _batches(), COUNT)
    with self.assertRaisesRegex(ValueError, 'features to at most 8'):
      model = _model(aggregators.Mean(features=0), features=9)
      fitting.fit(model, 'image', _variables(model), _batches(), COUNT)
    with self.assertRaisesRegex(ValueError, 'a map of 0 readings'):
      fitting.fit(model, 'image', _variables(model), _batches(), 0)

  def test_weights_that_were_not_loaded_are_named(self):
    model = _model(vlad.VLAD(4))
    variables = jax.tree.map(
      lambda x: np.full_like(x, np.nan), _variables(model)
    )
    with self.assertRaisesRegex(ValueError, 'tokens of the map are not finite'):
      fitting.fit(model, 'image', variables, _batches(), COUNT)

  @parameterized.parameters((1, 1, [0]), (5, 9, [0, 1, 2, 3, 4]))
  def test_rows_are_spread(self, count, limit, expected):
    self.assertEqual(fitting.spread(count, limit).tolist(), expected)


class InitNetVLADTest(parameterized.TestCase):
  @parameterized.product(encoder=('vit', 'resnet'), norm=('none', 'bias'))
  def test_clusters_and_sharpness_are_those_of_the_tokens(self, encoder, norm):
    aggregator = vlad.NetVLAD(3, features=0, norm=norm)
    model = _model(aggregator, encoder=encoder)
    variables = _variables(model)
    found = fitting.init_netvlad(model, 'image', variables, _batches(), COUNT)
    found = found['params']['image_aggregator']
    x = np.concatenate(_tokens(model, variables))
    centers = found['centers']
    nearest = np.linalg.norm(x[:, None] - centers, axis=-1).argmin(axis=1)
    for k in range(3):
      np.testing.assert_allclose(centers[k], x[nearest == k].mean(0), atol=1e-4)
    # By the definition: the second best weighs a hundredth of the best.
    logits = np.sort(x @ found['assign']['kernel'], axis=1)[:, ::-1]
    gap = (logits[:, 0] - logits[:, 1]).mean()
    self.assertAlmostEqual(gap, -math.log(0.01), places=3)
    directions = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    alpha = found['assign']['kernel'][:, 0] @ directions[0]
    np.testing.assert_allclose(
      found['assign']['kernel'], alpha * directions.T, rtol=1e-4, atol=1e-4
    )

  @parameterized.parameters('vit', 'resnet')
  def test_tokens_are_transposed_and_not_viewed(self, encoder):
    """Sampled vectors are cells of the grid, not slices through channels."""
    model = _model(vlad.NetVLAD(3, features=0, norm='none'), encoder=encoder)
    variables = _variables(model)
    found = fitting.sample_tokens(model, 'image', variables, _batches(), COUNT)
    tokens = _tokens(model, variables)
    np.testing.assert_allclose(found, np.concatenate(tokens), atol=1e-5)
    length, width = tokens[0].shape
    # What the trap would cluster: [N, D] read as [D, N] and turned.
    viewed = np.stack([x.reshape(width, length).T for x in tokens])
    viewed = viewed.reshape(-1, width)
    viewed /= np.linalg.norm(viewed, axis=1, keepdims=True) + 1e-6
    self.assertGreater(np.abs(found - viewed).max(), 0.1)

  @parameterized.parameters(
    (vlad.NetVLAD(3, features=0), "NetVLAD with norm 'layer'"),
    (vlad.VLAD(3), 'is VLAD'),
  )
  def test_other_aggregators_are_refused(self, aggregator, message):
    model = _model(aggregator)
    with self.assertRaisesRegex(ValueError, message):
      fitting.init_netvlad(model, 'image', {}, _batches(), COUNT)


if __name__ == '__main__':
  absltest.main()
