# SPDX-License-Identifier: Apache-2.0
"""VLAD and NetVLAD against explicit loops."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from benchmarks.parity_rows import aggregators as oracles
from i2ploc.models import aggregators
from i2ploc.models import vlad
from tests.models import planted
from tests.testing import compiled

BOUNDS = (np.full(2, -0.8, np.float32), np.full(2, 0.8, np.float32))


def _tokens(batch=2, length=30, width=6, seed=0):
  rng = np.random.default_rng(seed)
  return aggregators.Tokens(
    rng.normal(size=(batch, length, width)).astype(np.float32),
    rng.uniform(-0.75, 0.75, (batch, length)).astype(np.float32),
    rng.uniform(size=(batch, length)) < 0.9,
  )


def _weights(batch=2, length=30):
  rng = np.random.default_rng(1)
  return rng.uniform(0.2, 2.0, (batch, length)).astype(np.float32)


class VLADTest(parameterized.TestCase):
  def test_against_a_loop_over_tokens(self):
    tokens, weights = _tokens(), _weights()
    words = np.random.default_rng(2).normal(0, 0.5, (4, 6)).astype(np.float32)
    variables = {'map': {'vocabulary': words}}
    found, out = compiled.apply(vlad.VLAD(4), variables, tokens, weights, None)
    np.testing.assert_array_equal(out['assignment'].sum(-1), 1.0)
    for b in range(2):
      mask = tokens.mask[b]
      expected = oracles.hard_vlad(
        tokens.features[b][mask], words, weights[b][mask]
      )
      np.testing.assert_allclose(found[b], expected, atol=1e-5)

  def test_soft_and_centred_against_a_loop_over_tokens(self):
    tokens, weights = _tokens(), _weights()
    rng = np.random.default_rng(2)
    words = rng.normal(0, 0.5, (4, 6)).astype(np.float32)
    mean = rng.normal(0, 0.3, 6).astype(np.float32)
    variables = {'map': {'vocabulary': words, 'mean': mean}}
    model = vlad.VLAD(4, softness=0.1, centered=True)
    found, _ = compiled.apply(model, variables, tokens, weights, None)
    for b in range(2):
      sums = np.zeros((4, 6))
      for i in np.flatnonzero(tokens.mask[b]):
        x = tokens.features[b, i] / np.linalg.norm(tokens.features[b, i]) - mean
        x /= np.linalg.norm(x)
        near = np.exp(-((x - words) ** 2).sum(axis=1) / 0.2)
        for k in range(4):
          share = weights[b, i] * near[k] / near.sum()
          sums[k] += share * (x - words[k])
      sums /= np.linalg.norm(sums, axis=1, keepdims=True)
      np.testing.assert_allclose(found[b], sums.ravel() / 2.0, atol=1e-5)

  def test_without_softness_is_its_limit(self):
    tokens, weights = _tokens(), _weights()
    words = np.random.default_rng(2).normal(0, 0.5, (4, 6)).astype(np.float32)
    variables = {'map': {'vocabulary': words}}
    hard, soft = (
      compiled.apply(model, variables, tokens, weights, None)[0]
      for model in (vlad.VLAD(4), vlad.VLAD(4, softness=1e-4))
    )
    np.testing.assert_allclose(soft, hard, atol=1e-3)

  def test_a_word_without_tokens_is_zero(self):
    words = np.asarray([[1.0, 0, 0], [-9.0, 0, 0], [0, 1.0, 0]], np.float32)
    tokens = _tokens(width=3)
    found, out = compiled.apply(
      vlad.VLAD(3), {'map': {'vocabulary': words}}, tokens, _weights(), None
    )
    np.testing.assert_array_equal(out['residuals'][:, 0, 1], 0.0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)

  def test_sectors_are_vlads_of_their_tokens(self):
    tokens, weights = _tokens(), _weights()
    words = np.random.default_rng(2).normal(0, 0.5, (4, 6)).astype(np.float32)
    # Whole sectors: tokens at their centres.
    centers = np.float32(-0.8 + 0.4 * (np.arange(4) + 0.5))
    tokens = tokens._replace(
      azimuth=np.tile(centers[np.arange(30) % 4], (2, 1))
    )
    _, out = compiled.apply(
      vlad.VLAD(4, num_sectors=4),
      {'map': {'vocabulary': words}},
      tokens,
      weights,
      BOUNDS,
    )
    for b, s in np.ndindex(2, 4):
      mask = tokens.mask[b] & (np.arange(30) % 4 == s)
      expected = oracles.hard_vlad(
        tokens.features[b][mask], words, weights[b][mask]
      )
      got = out['residuals'][b, s].ravel()
      got = got / np.linalg.norm(got)
      np.testing.assert_allclose(got, expected, atol=1e-5)

  def test_without_a_vocabulary_there_are_no_descriptors(self):
    model = vlad.VLAD(4)
    args = _tokens(), _weights(), None
    variables = model.init(jax.random.key(0), *args)
    self.assertTrue(np.isnan(variables['map']['vocabulary']).all())
    self.assertTrue(np.isnan(model.apply(variables, *args)[0]).all())


class NetVLADTest(parameterized.TestCase):
  def test_the_form_of_the_benchmark(self):
    model = vlad.NetVLAD(5, features=0, norm='none', epsilon=1e-12)
    tokens = _tokens()
    args = tokens, np.ones((2, 30), np.float32), None
    variables = planted.variables(model, *args)
    self.assertEqual(set(variables['params']), {'assign', 'centers'})
    self.assertEqual(set(variables['params']['assign']), {'kernel'})
    found, out = compiled.apply(model, variables, *args)
    np.testing.assert_allclose(out['pooled'], found, atol=1e-6)
    for b in range(2):
      x = tokens.features[b][tokens.mask[b]]
      expected = oracles.netvlad(x, variables['params'])
      np.testing.assert_allclose(found[b], expected, atol=1e-5)

  def test_gating_works_without_a_projection(self):
    model = vlad.NetVLAD(5, features=0, gating=True)
    args = _tokens(), _weights(), None
    found, _ = compiled.apply(model, planted.variables(model, *args), *args)
    self.assertEqual(found.shape, (2, 30))


if __name__ == '__main__':
  absltest.main()
