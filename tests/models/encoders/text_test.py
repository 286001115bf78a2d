# SPDX-License-Identifier: Apache-2.0
"""The text tower: who reads whom, and where a text ends."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.encoders import text
from tests.models import planted
from tests.testing import compiled

SMALL = dict(
  vocabulary_size=9, width=12, depth=2, num_heads=3, max_length=8, end=1
)
TOKENS = np.array([[0, 4, 5, 1, 1, 1, 1, 1], [0, 3, 2, 8, 6, 1, 7, 1]])


class TextTransformerTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = text.TextTransformer(**SMALL)
    cls.variables = planted.variables(cls.model, TOKENS)

  def _run(self, tokens, **fields):
    model = self.model.clone(**fields)
    return compiled.apply(model, self.variables, np.asarray(tokens))

  def test_a_token_sees_itself_and_what_is_before_it(self):
    _, before = self._run(TOKENS)
    other = TOKENS.copy()
    other[:, 4] = 7
    _, after = self._run(other)
    change = np.abs(after['sequence'] - before['sequence']).max((0, 2))
    np.testing.assert_allclose(change[:4], 0.0, atol=1e-6)
    self.assertGreater(change[4:].min(), 1e-3)

  def test_features_are_those_of_the_first_end(self):
    features, out = self._run(TOKENS)
    np.testing.assert_array_equal(features[0], out['sequence'][0, 3])
    np.testing.assert_array_equal(features[1], out['sequence'][1, 5])

  def test_what_follows_the_end_and_how_far_it_goes_does_not_matter(self):
    features, _ = self._run(TOKENS)
    junk = TOKENS.copy()
    junk[0, 4:], junk[1, 6:] = 6, 5
    np.testing.assert_allclose(self._run(junk)[0], features, atol=1e-6)
    np.testing.assert_allclose(self._run(TOKENS[:, :6])[0], features, atol=1e-6)

  def test_every_word_and_its_place_matter(self):
    features, _ = self._run(TOKENS)
    for column in (1, 2):
      other = TOKENS[:1].copy()
      other[0, column] = 6
      self.assertGreater(np.abs(self._run(other)[0] - features[0]).max(), 1e-2)
    swapped = TOKENS[:1, [0, 2, 1, 3]]
    self.assertGreater(np.abs(self._run(swapped)[0] - features[0]).max(), 1e-2)

  def test_a_text_without_an_end_ends_where_its_row_does(self):
    features, out = self._run([[0, 4, 5, 6]])
    np.testing.assert_array_equal(features[0], out['sequence'][0, 3])

  def test_the_legacy_end_is_the_highest_number(self):
    features, out = self._run([[0, 4, 8, 1], [0, 8, 8, 2]], end=None)
    np.testing.assert_array_equal(features[0], out['sequence'][0, 2])
    np.testing.assert_array_equal(features[1], out['sequence'][1, 1])

  def test_half_precision_computes_about_the_same(self):
    features, _ = self._run(TOKENS)
    half, out = self._run(TOKENS, dtype=jnp.bfloat16)
    self.assertEqual(out['sequence'].dtype, jnp.float32)
    difference = np.abs(np.asarray(half - features)).max()
    self.assertBetween(difference, 1e-6, 0.2)

  def test_texts_longer_than_the_positions_are_refused(self):
    with self.assertRaisesRegex(ValueError, '9 tokens, but .* for 8'):
      jax.eval_shape(self.model.apply, self.variables, np.zeros((1, 9), int))


if __name__ == '__main__':
  absltest.main()
