# SPDX-License-Identifier: Apache-2.0
"""Any number of texts, crops and boxes: each as if it were alone."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.geometry import cropping
from i2ploc.models import image_text
from i2ploc.models import towers
from i2ploc.models import views
from i2ploc.models.encoders import text
from i2ploc.models.encoders import vit
from i2ploc.models.encoders import vocabulary
from tests.models import planted

WORDS = ('a', 'red', 'blue', 'car', 'bin')
RNG = np.random.default_rng(0)
SIZE = (16, 16)


def _crops(count):
  shapes = RNG.integers(5, 40, (count, 2))
  return [RNG.integers(0, 256, (*s, 3), np.uint8) for s in shapes]


class ImageTextEncoderTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    tokenize = vocabulary.make_tokenize(WORDS, 20)
    cls.model = towers.image_and_text(
      vit.ViT(width=12, depth=1, num_heads=3, patch_size=8),
      text.TextTransformer(
        vocabulary_size=vocabulary.size(WORDS),
        width=8,
        depth=1,
        num_heads=2,
        max_length=20,
        end=vocabulary.END,
      ),
      views.Image(SIZE, mean=(0.4, 0.5, 0.6)),
      5,
    )
    cls.variables = planted.towers(cls.model)
    cls.encoder = image_text.ImageTextEncoder(
      cls.model,
      cls.variables,
      tokenize,
      name='planted',
      margin=0.2,
      batch_size=4,
    )

  def test_texts_keep_their_order_whatever_the_batch(self):
    texts = ['a red car', 'a bin', 'a car', 'a bin', 'a blue bin', 'a red bin']
    found = self.encoder.encode_texts(texts)
    self.assertEqual((found.shape, found.dtype), ((6, 5), np.float32))
    np.testing.assert_array_equal(found[1], found[3])
    tokens = vocabulary.make_tokenize(WORDS, 20)(texts)
    expected, _ = self.model.apply(
      self.variables, {'tokens': tokens}, side='text'
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_crops_keep_their_order_whatever_the_batch(self):
    crops = _crops(6)
    found = self.encoder.encode_crops(crops)
    for crop, descriptor in zip(crops, found, strict=True):
      alone = self.encoder.encode_crops([crop])[0]
      np.testing.assert_allclose(alone, descriptor, atol=1e-5)
    self.assertGreater(np.abs(found[0] - found[1]).max(), 1e-2)

  def test_boxes_are_squares_of_the_image_with_context(self):
    image = RNG.integers(0, 256, (30, 50, 3), np.uint8)
    boxes = np.float32([[2, 3, 20, 12], [40, 1, 50, 30], [0, 0, 50, 30]])
    found = self.encoder.encode_boxes(image, boxes)
    windows = cropping.windows(boxes, 0.2)
    crops = cropping.crop(
      image[None] / np.float32(255), windows[None], SIZE, (0.4, 0.5, 0.6)
    )[0]
    expected, _ = self.model.apply(
      self.variables, {'image': crops}, side='image'
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_few_shapes_are_compiled(self):
    encoder = image_text.ImageTextEncoder(
      self.model,
      self.variables,
      vocabulary.make_tokenize(WORDS, 20),
      name='',
      margin=0.2,
      batch_size=4,
    )
    for count in (3, 4, 7):
      encoder.encode_crops(_crops(count))
    self.assertEqual(encoder._image._cache_size(), 1)
    seen = []
    encoder._text = lambda variables, tokens: (
      seen.append(tokens.shape) or (np.zeros((len(tokens), 5)))
    )
    encoder.encode_texts(['a', 'car', 'bin'])
    encoder.encode_texts(['a a a a a', 'red', 'blue', 'car', 'bin'])
    encoder.encode_texts(['a red car a red car a red car'])
    self.assertEqual(seen, [(4, 8), (4, 8), (1, 8), (1, 16)])

  def test_nothing_gives_nothing(self):
    image = np.zeros((9, 9, 3), np.uint8)
    for found in (
      self.encoder.encode_texts([]),
      self.encoder.encode_crops([]),
      self.encoder.encode_boxes(image, np.zeros((0, 4))),
    ):
      self.assertEqual(found.shape, (0, 5))

  def test_what_is_no_crop_or_box_is_named(self):
    with self.assertRaisesRegex(ValueError, r'crop 1 is float64 \[4, 4, 3\]'):
      self.encoder.encode_crops([*_crops(1), np.zeros((4, 4, 3))])
    with self.assertRaisesRegex(ValueError, 'crop 0 is empty'):
      self.encoder.encode_crops([np.zeros((0, 4, 3), np.uint8)])
    boxes = [[0, 0, 5, 5], [np.nan, 0, 5, 5], [5, 0, 1, 5]]
    with self.assertRaisesRegex(ValueError, r'boxes \[1, 2\] are no boxes'):
      self.encoder.encode_boxes(np.zeros((9, 9, 3), np.uint8), boxes)


class PreparationTest(parameterized.TestCase):
  @parameterized.parameters((40, 60), (61, 33), (20, 20), (7, 50), (50, 23))
  def test_cover_is_what_transformers_prepares(self, height, width):
    try:
      from transformers import CLIPImageProcessor as Processor
    except ImportError:
      self.skipTest('these transformers prepare no images without torch')
    image = RNG.integers(0, 256, (height, width, 3), np.uint8)
    size = {'height': 24, 'width': 24}
    expected = Processor(
      size={'shortest_edge': 28},
      crop_size=size,
      do_normalize=False,
      do_rescale=False,
    )(image, return_tensors='np')['pixel_values'][0]
    found = image_text.cover(image, 28, (24, 24))
    np.testing.assert_array_equal(found, expected.transpose(1, 2, 0))

  def test_contain_keeps_everything_in_the_middle(self):
    image = np.full((10, 30, 3), 255, np.uint8)
    found = image_text.contain(image, (30, 30), (0.2, 0.4, 0.6))
    np.testing.assert_array_equal(found[10:20], 255)
    np.testing.assert_array_equal(
      found[:9], np.full((9, 30, 3), (51, 102, 153))
    )
    turned = image_text.contain(image.swapaxes(0, 1), (30, 30), (0.2, 0.4, 0.6))
    np.testing.assert_array_equal(turned, found.swapaxes(0, 1))


if __name__ == '__main__':
  absltest.main()
