# SPDX-License-Identifier: Apache-2.0
"""Saliency: what the released form cannot do, laws of ours."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models import saliency
from i2ploc.models.encoders import vit
from tests.models import planted
from tests.testing import compiled

KEY = jax.random.key(0)


def _attention(seed, batch=2, heads=3, length=7, sharpness=1.0):
  logits = np.random.default_rng(seed).normal(size=(batch, heads, length))
  weights = np.exp(sharpness * logits.astype(np.float32))
  return weights / weights.sum(-1, keepdims=True)


@jax.jit
def _weigh(attention, mask, gamma=1.0):
  """Weights of the tokens, without that of CLS."""
  variables = {'params': {'gamma': jnp.asarray(gamma)}}
  weights = saliency.AttentionSaliency().apply(
    variables, None, {'attention': attention}, mask
  )
  return weights[:, 1:]


class ReleasedSaliencyTest(parameterized.TestCase):
  def test_is_nearly_constant_where_ours_discriminates(self):
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 6, 500, 64)).astype(np.float32)
    released, attention = saliency.released_saliency(query, key)
    ours = _weigh(attention, np.ones((1, 499), bool))
    self.assertLess(released.max() / released.min(), 1.1)
    self.assertGreater(ours.max() / ours.min(), 2.0)

  def test_no_gradient_flows(self):
    query = jax.random.normal(KEY, (1, 2, 5, 4))
    grad = jax.jit(
      jax.grad(lambda q: saliency.released_saliency(q, q)[0][0, 1])
    )(query)
    np.testing.assert_array_equal(grad, 0.0)

  def test_queries_and_keys_are_those_of_the_unit_tokens(self):
    encoder = vit.ViT(width=8, depth=2, num_heads=2, patch_size=8)
    images = np.random.default_rng(1).normal(size=(2, 16, 24, 3))
    variables = planted.variables(encoder, images.astype(np.float32))
    bound = encoder.bind(variables)
    _, out = bound(images.astype(np.float32))
    found = saliency.RecomputedSaliency().apply({}, bound, out, None)
    sequence = np.asarray(out['sequence'])
    unit = sequence / np.linalg.norm(sequence, axis=-1, keepdims=True)
    expected, _ = saliency.released_saliency(*bound.last_query_key(unit))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    self.assertEqual(found.shape, (2, 7))  # CLS and 2 x 3 tokens


class AttentionSaliencyTest(parameterized.TestCase):
  def test_the_cls_token_has_the_weight_of_an_average_token(self):
    variables = {'params': {'gamma': jnp.asarray(1.7)}}
    out = {'attention': _attention(5, sharpness=3.0)}
    mask = np.ones((2, 6), bool)
    weights = compiled.apply(
      saliency.AttentionSaliency(), variables, None, out, mask
    )
    np.testing.assert_array_equal(weights[:, 0], 1.0)

  def test_uniform_attention_weighs_every_token_about_one(self):
    attention = jnp.full((2, 3, 101), 1 / 101)
    weights = _weigh(attention, jnp.ones((2, 100), bool))
    np.testing.assert_allclose(weights, 100 / 101, rtol=1e-5)

  def test_weight_is_the_scaled_head_sum_raised_and_clipped(self):
    attention = _attention(0, sharpness=3.0)
    mask = np.ones((2, 6), bool)
    relative = 6 * np.asarray(attention)[:, :, 1:].sum(1) / 3
    expected = np.clip(relative**1.7, 0.1, 10.0)
    weights = _weigh(attention, mask, gamma=1.7)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)

  def test_gamma_zero_switches_saliency_off(self):
    weights = _weigh(_attention(1), np.ones((2, 6), bool), gamma=0.0)
    np.testing.assert_allclose(weights, 1.0)

  @parameterized.parameters(0.0, 1.0, -30.0, 1e6)
  def test_gradients_are_finite_for_extreme_exponents(self, gamma):
    attention = _attention(2)
    attention[0, :, 2] = 0.0
    mask = np.asarray([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)

    def total(gamma, attention):
      return _weigh(attention, mask, gamma).sum()

    grads = jax.jit(jax.grad(total, argnums=(0, 1)))(gamma, attention)
    self.assertTrue(all(np.isfinite(g).all() for g in grads))
    self.assertTrue(np.isfinite(total(gamma, attention)))

  def test_gradient_reaches_the_attention_and_the_exponent(self):
    slope = jax.grad(
      lambda g, a: _weigh(a, np.ones((2, 6), bool), g)[0, 0], argnums=(0, 1)
    )
    grads = jax.jit(slope)(1.0, _attention(3))
    self.assertTrue(all(np.abs(g).max() > 0 for g in grads))

  def test_masked_tokens_weigh_nothing(self):
    mask = np.asarray([[1, 1, 0, 0, 0, 0]] * 2, bool)
    np.testing.assert_array_equal(_weigh(_attention(4), mask)[:, 2:], 0.0)


if __name__ == '__main__':
  absltest.main()
