# SPDX-License-Identifier: Apache-2.0
"""CLIP: two towers in one space."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models import clip
from i2ploc.models.encoders import text
from i2ploc.models.encoders import vit
from tests.models import planted

IMAGE = vit.ViT(width=12, depth=1, num_heads=3, patch_size=8)
TEXT = text.TextTransformer(
  vocabulary_size=9, width=8, depth=1, num_heads=2, max_length=6, end=1
)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
TOKENS = np.array([[0, 4, 5, 1], [0, 3, 1, 1], [0, 8, 8, 1]])


class ClipTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = clip.Clip(IMAGE, TEXT, image_size=(16, 24), features=5)
    cls.variables = planted.variables(cls.model, IMAGES, TOKENS)
    cls.embedded, cls.out = cls.model.apply(cls.variables, IMAGES, TOKENS)

  def test_descriptors_are_unit_projections_of_cls_and_end(self):
    params = self.variables['params']
    for name, pooled in (
      ('image', self.out['image']['cls']),
      ('text', self.out['text']['pooled']),
    ):
      features = pooled @ params[f'{name}_projection']['kernel']
      np.testing.assert_allclose(
        self.out[name]['features'], features, atol=1e-5
      )
      length = np.linalg.norm(features, axis=1, keepdims=True)
      np.testing.assert_allclose(
        self.embedded[name], features / length, atol=1e-5
      )
    self.assertEqual(self.embedded['image'].shape, (2, 5))
    self.assertEqual(self.embedded['text'].shape, (3, 5))

  def test_bytes_and_floats_are_the_same_image(self):
    floats = self.model.apply(
      self.variables, IMAGES / np.float32(255), method='embed_image'
    )[0]
    np.testing.assert_allclose(floats, self.embedded['image'], atol=1e-5)

  def test_images_are_normalised_by_the_attributes(self):
    model = self.model.clone(image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    mean, std = jnp.asarray(clip.IMAGE_MEAN), jnp.asarray(clip.IMAGE_STD)
    x = (IMAGES / np.float32(255) - mean) / std
    found = model.apply(self.variables, x, method='embed_image')[0]
    np.testing.assert_allclose(found, self.embedded['image'], atol=1e-5)

  def test_the_scale_is_learned_and_bounded(self):
    self.assertAlmostEqual(float(self.embedded['scale']), 1 / 0.07, places=3)
    variables = jax.tree.map(lambda x: x, self.variables)
    variables['params']['log_scale'] = np.float32(9.0)
    embedded, _ = self.model.apply(variables, IMAGES, TOKENS)
    self.assertAlmostEqual(float(embedded['scale']), 100.0, places=3)
    biased = self.model.clone(initial_bias=-3.0)
    shapes = jax.eval_shape(biased.init, jax.random.key(0), IMAGES, TOKENS)
    self.assertIn('similarity_bias', shapes['params'])

  def test_an_encoder_without_cls_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'takes the CLS token'):
      clip.Clip(IMAGE.clone(use_cls=False), TEXT, image_size=(16, 24))


if __name__ == '__main__':
  absltest.main()
