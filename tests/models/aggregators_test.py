# SPDX-License-Identifier: Apache-2.0
"""Aggregators: laws of pooling and of sectors."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity_rows import aggregators as oracles
from i2ploc import factory
from i2ploc.models import aggregators
from i2ploc.models import vlad
from tests.models import planted
from tests.testing import compiled

KEY = jax.random.key(0)
sector_membership = compiled.function(aggregators.sector_membership)
sector_weights = compiled.function(aggregators.sector_weights)
BOUNDS = (np.full(2, -0.8, np.float32), np.full(2, 0.8, np.float32))
ALL = (aggregators.Mean, aggregators.GeM, vlad.NetVLAD)


def _tokens(seed=0, batch=2, length=30, width=6):
  rng = np.random.default_rng(seed)
  return aggregators.Tokens(
    rng.normal(size=(batch, length, width)).astype(np.float32),
    rng.uniform(-0.75, 0.75, (batch, length)).astype(np.float32),
    np.ones((batch, length), bool),
  )


def _weights(seed=0, batch=2, length=30):
  rng = np.random.default_rng(seed)
  return rng.uniform(0.2, 2.0, (batch, length)).astype(np.float32)


@functools.cache
def _model(kind, num_sectors=0, **fields):
  if kind is vlad.NetVLAD:
    fields = dict(num_clusters=3) | fields
  model = kind(features=8, num_sectors=num_sectors, **fields)
  variables = planted.variables(model, _tokens(), _weights(), BOUNDS)
  return jax.jit(functools.partial(model.apply, variables))


@functools.cache
def _value_and_grad(kind, num_sectors):
  """Sum of the descriptors and its gradients by everything continuous."""
  model = kind(features=8, num_sectors=num_sectors)
  variables = planted.variables(model, _tokens(), _weights(), BOUNDS)

  def total(variables, features, azimuth, weights, mask):
    tokens = aggregators.Tokens(features, azimuth, mask)
    return model.apply(variables, tokens, weights, BOUNDS)[0].sum()

  run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))
  return lambda t, w: run(variables, t.features, t.azimuth, w, t.mask)


class PoolingTest(parameterized.TestCase):
  @parameterized.product(kind=ALL, num_sectors=(0, 4))
  def test_order_of_tokens_does_not_matter(self, kind, num_sectors):
    apply, tokens, weights = _model(kind, num_sectors), _tokens(), _weights()
    order = np.random.default_rng(1).permutation(30)
    moved = jax.tree.map(lambda x: x[:, order], tokens)
    one, _ = apply(tokens, weights, BOUNDS)
    other, _ = apply(moved, weights[:, order], BOUNDS)
    np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1.0, rtol=1e-5)

  @parameterized.product(kind=ALL, num_sectors=(0, 4))
  def test_masked_tokens_and_weightless_tokens_change_nothing(
    self, kind, num_sectors
  ):
    apply, tokens, weights = _model(kind, num_sectors), _tokens(), _weights()
    one, _ = apply(tokens, weights, BOUNDS)
    for mask, weight in ((False, 1.0), (True, 0.0)):
      extra = aggregators.Tokens(
        np.concatenate([tokens.features, _tokens(5).features], axis=1),
        np.concatenate([tokens.azimuth, tokens.azimuth], axis=1),
        np.concatenate([tokens.mask, np.full((2, 30), mask)], axis=1),
      )
      padded = np.concatenate([weights, np.full((2, 30), weight)], axis=1)
      other, _ = apply(extra, padded.astype(np.float32), BOUNDS)
      np.testing.assert_allclose(one, other, atol=1e-6)

  @parameterized.product(kind=ALL, num_sectors=(0, 4))
  def test_only_relative_weights_count(self, kind, num_sectors):
    apply, tokens, weights = _model(kind, num_sectors), _tokens(), _weights()
    one, _ = apply(tokens, weights, BOUNDS)
    scaled, _ = apply(tokens, 5.0 * weights, BOUNDS)
    peaked, _ = apply(tokens, weights**4, BOUNDS)
    np.testing.assert_allclose(scaled, one, atol=2e-3)
    self.assertGreater(np.abs(peaked - one).max(), 1e-2)

  @parameterized.product(
    kind=ALL, num_sectors=(0, 4), case=('masked', 'zero', 'outside', 'one')
  )
  def test_degenerate_tokens_are_finite_with_their_gradients(
    self, kind, num_sectors, case
  ):
    tokens, weights = _tokens(), _weights()
    if case == 'masked':
      tokens = tokens._replace(mask=np.zeros((2, 30), bool))
    elif case == 'zero':
      tokens = tokens._replace(features=np.zeros((2, 30, 6), np.float32))
    elif case == 'outside':
      tokens = tokens._replace(azimuth=np.full((2, 30), 2.0, np.float32))
    else:
      tokens = tokens._replace(mask=np.tile(np.arange(30) == 3, (2, 1)))

    value, grads = _value_and_grad(kind, num_sectors)(tokens, weights)
    self.assertTrue(np.isfinite(value))
    finite = jax.tree.map(lambda g: bool(np.isfinite(g).all()), grads)
    self.assertTrue(all(jax.tree.leaves(finite)))

  def test_netvlad_equals_the_loop_over_residuals(self):
    tokens, weights = _tokens(), _weights()
    model = vlad.NetVLAD(num_clusters=3, features=8, num_sectors=4)
    variables = planted.variables(model, tokens, weights, BOUNDS)
    _, out = compiled.apply(model, variables, tokens, weights, BOUNDS)
    norm = np.linalg.norm(tokens.features, axis=-1, keepdims=True)
    x, centers = tokens.features / norm, variables['params']['centers']
    share = sector_membership(tokens.azimuth, BOUNDS, 4)
    for b, s, k in np.ndindex(2, 4, 3):
      residual = sum(
        weights[b, i]
        * share[b, i, s]
        * out['assignment'][b, i, k]
        * (x[b, i] - centers[k])
        for i in range(30)
      )
      expected = residual / np.linalg.norm(residual)
      np.testing.assert_allclose(out['residuals'][b, s, k], expected, atol=1e-4)

  def test_gem_lies_between_the_mean_and_the_maximum(self):
    tokens = _tokens()
    tokens = tokens._replace(features=np.abs(tokens.features))
    ones = np.ones((2, 30), np.float32)

    def pool(power):
      model = aggregators.GeM(features=6, initial_power=power)
      params = {
        'power': jnp.asarray(power),
        'SectorHead_0': {'kernel': jnp.eye(6)},
      }
      variables = {'params': params}
      _, out = compiled.apply(model, variables, tokens, ones, BOUNDS)
      return out['pooled']

    np.testing.assert_allclose(
      pool(1.0), tokens.features.mean(1), rtol=1e-3, atol=1e-3
    )
    self.assertTrue(np.all(pool(1.0) < pool(3.0)))
    self.assertTrue(np.all(pool(3.0) < tokens.features.max(1)))

  @parameterized.parameters(aggregators.Mean, aggregators.GeM)
  def test_without_features_the_pooled_tokens_are_the_descriptor(self, kind):
    tokens, weights = _tokens(), _weights()
    whole = kind(features=6)
    variables = planted.variables(whole, tokens, weights, BOUNDS)
    variables['params']['SectorHead_0']['kernel'] = np.eye(6, dtype=np.float32)
    expected, _ = compiled.apply(whole, variables, tokens, weights, BOUNDS)
    del variables['params']['SectorHead_0']
    found, _ = compiled.apply(
      kind(features=0), variables, tokens, weights, BOUNDS
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    sectors, _ = compiled.apply(
      kind(features=0, num_sectors=4), variables, tokens, weights, BOUNDS
    )
    self.assertEqual(sectors.shape, (2, 24))

  def test_gem_in_the_form_of_cosplace(self):
    model = aggregators.GeM(5, epsilon=1e-6, unit_tokens=True, use_bias=True)
    args = _tokens(), np.ones((2, 30), np.float32), None
    variables = planted.variables(model, *args)
    found, _ = compiled.apply(model, variables, *args)
    for b in range(2):
      expected = oracles.gem(args[0].features[b], variables['params'])
      np.testing.assert_allclose(found[b], expected, atol=1e-5)

  @parameterized.parameters((False, (2,)), (True, (4, 2)))
  def test_a_bias_is_of_the_sectors_or_of_each(self, per_sector, shape):
    model = aggregators.GeM(
      8, num_sectors=4, per_sector_head=per_sector, use_bias=True
    )
    args = _tokens(), _weights(), BOUNDS
    variables = planted.variables(model, *args)
    bias = variables['params']['SectorHead_0']['bias']
    self.assertEqual(bias.shape, shape)
    _, one = compiled.apply(model, variables, *args)
    variables['params']['SectorHead_0']['bias'] = np.zeros_like(bias)
    _, none = compiled.apply(model, variables, *args)
    expected = np.broadcast_to(bias, (4, 2)).ravel()
    np.testing.assert_allclose(
      one['pooled'] - none['pooled'], np.tile(expected, (2, 1)), atol=1e-5
    )

  def test_the_first_token_alone_is_projected(self):
    tokens = _tokens()
    model = aggregators.FirstToken(features=4)
    variables = planted.variables(model, tokens, _weights(), None)
    found, out = compiled.apply(model, variables, tokens, _weights(), None)
    expected = tokens.features[:, 0] @ variables['params']['kernel']
    np.testing.assert_allclose(out['pooled'], expected, atol=1e-5)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    others = tokens._replace(
      features=np.concatenate(
        [tokens.features[:, :1], _tokens(3).features[:, 1:]], axis=1
      )
    )
    again, _ = compiled.apply(model, variables, others, _weights(), None)
    np.testing.assert_array_equal(again, found)


def _published(name):
  """A small form of what a config names, and how it is fed."""
  small = {
    'boq': dict(channels=8, num_queries=3, rows=2, kernel_size=1),
    'first': dict(features=4),
    'fusion': dict(inner=dict(name='mean', features=8), form='transformer'),
    'gem': dict(features=8),
    'mean': dict(features=8),
    'mixvpr': dict(grid=(5, 6), channels=4, rows=2, depth=2),
    'netvlad': dict(num_clusters=3, features=8),
    'projection': dict(features=8),
    'salad': dict(num_clusters=3, cluster_features=4, hidden=8),
    'vlad': dict(num_clusters=3),
  }
  return factory.AGGREGATORS[name](**small[name])


# Made of checkpoints: one of the others.
NAMES = sorted(set(factory.AGGREGATORS) - {'published'})
# The order of the tokens says where they are.
ORDERED = {'first', 'mixvpr'}


@functools.cache
def _named(name):
  model = _published(name)
  variables = planted.variables(model, _tokens(), _weights(), None)
  return jax.jit(functools.partial(model.apply, variables))


class EveryAggregatorTest(parameterized.TestCase):
  """What holds for whatever a config may name."""

  @parameterized.parameters(*NAMES)
  def test_a_descriptor_does_not_depend_on_the_batch(self, name):
    apply, tokens, weights = _named(name), _tokens(batch=5), _weights(batch=5)
    together, _ = apply(tokens, weights, None)
    for i in range(5):
      alone, _ = apply(
        jax.tree.map(lambda x, i=i: x[i : i + 1], tokens),
        weights[i : i + 1],
        None,
      )
      np.testing.assert_allclose(together[i], alone[0], atol=2e-6)
    lengths = np.linalg.norm(together, axis=1)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-4)

  @parameterized.parameters(*NAMES)
  def test_what_is_masked_says_nothing(self, name):
    apply, tokens, weights = _named(name), _tokens(), _weights()
    mask = np.ones((2, 30), bool)
    mask[0, 20:], mask[1, 5:9] = False, False
    other = np.where(mask[..., None], tokens.features, 90.0)
    one, _ = apply(tokens._replace(mask=mask), weights, None)
    two, _ = apply(
      tokens._replace(features=other.astype(np.float32), mask=mask),
      weights,
      None,
    )
    np.testing.assert_allclose(one, two, atol=1e-6)
    if name != 'first':  # of which no token is masked here
      whole, _ = apply(tokens, weights, None)
      self.assertGreater(np.abs(whole - one).max(), 1e-3)

  @parameterized.parameters(*sorted(set(NAMES) - ORDERED))
  def test_padding_and_order_say_nothing(self, name):
    apply, tokens, weights = _named(name), _tokens(), _weights()
    one, _ = apply(tokens, weights, None)
    # The first may be a CLS token, and stays.
    order = np.append(0, 1 + np.random.default_rng(1).permutation(34))
    longer = jax.tree.map(
      lambda x: np.concatenate([x, x[:, :5]], axis=1)[:, order],
      tokens._replace(mask=tokens.mask),
    )
    mask = np.tile(order < 30, (2, 1))
    weights = np.concatenate([weights, weights[:, :5]], axis=1)[:, order]
    two, _ = apply(longer._replace(mask=mask), weights, None)
    np.testing.assert_allclose(one, two, atol=2e-6)

  @parameterized.parameters(*NAMES)
  def test_nothing_at_all_is_finite(self, name):
    tokens = _tokens()._replace(mask=np.zeros((2, 30), bool))
    found, _ = _named(name)(tokens, _weights(), None)
    self.assertTrue(np.isfinite(found).all())

  def test_all_are_here(self):
    self.assertContainsSubset(
      ('boq', 'gem', 'mixvpr', 'netvlad', 'salad', 'vlad'), NAMES
    )


class SectorTest(parameterized.TestCase):
  def test_membership_is_a_partition_inside_and_nothing_outside(self):
    azimuth = np.tile(np.linspace(-1.0, 1.0, 201, dtype=np.float32), (2, 1))
    share = sector_membership(azimuth, BOUNDS, 5)
    inside = np.abs(azimuth) <= 0.8
    np.testing.assert_allclose(share.sum(-1), inside, atol=1e-6)
    # The centre of a sector is wholly its own.
    centers = -0.8 + 0.32 * (np.arange(5, dtype=np.float32) + 0.5)
    own = sector_membership(np.tile(centers, (2, 1)), BOUNDS, 5)
    np.testing.assert_allclose(own[0], np.eye(5), atol=1e-5)

  @parameterized.product(num_sectors=(1, 2, 5), left=(-np.pi, 0.4))
  def test_a_circle_has_no_seam(self, num_sectors, left):
    bounds = (np.full(1, left), np.full(1, left + 2 * np.pi))
    azimuth = np.linspace(-np.pi, np.pi, 401)[None]
    member = functools.partial(
      sector_membership, bounds=bounds, num_sectors=num_sectors
    )
    share = np.asarray(member(azimuth)[0])
    np.testing.assert_allclose(share.sum(-1), 1.0, atol=1e-5)
    # Everywhere as steep as between any two centres.
    step = np.abs(np.diff(share, axis=0)).max()
    self.assertLess(step, 1.01 * num_sectors / 400)
    np.testing.assert_allclose(share[0], share[-1], atol=1e-5)
    # Turning by a sector passes every share on, from the last to the first.
    turned = member(azimuth + 2 * np.pi / num_sectors)[0]
    np.testing.assert_allclose(turned, np.roll(share, 1, axis=1), atol=1e-5)

  def test_circles_and_fields_may_share_a_batch(self):
    bounds = (np.asarray([-np.pi, -0.8]), np.asarray([np.pi, 0.8]))
    azimuth = np.tile([-3.14, -0.79, 0.0, 3.14], (2, 1))
    share = sector_membership(azimuth, bounds, 4)
    expected = [
      [0.5, 0, 0, 0.5],
      [0, 1, 0, 0],
      [0, 0.5, 0.5, 0],
      [0.5, 0, 0, 0.5],
    ]
    np.testing.assert_allclose(share[0], expected, atol=5e-3)
    expected = [[0] * 4, [1, 0, 0, 0], [0, 0.5, 0.5, 0], [0] * 4]
    np.testing.assert_allclose(share[1], expected, atol=1e-6)

  @parameterized.product(kind=ALL, per_sector=(False, True))
  def test_a_token_only_touches_the_slices_of_its_sectors(
    self, kind, per_sector
  ):
    apply = _model(kind, 4, per_sector_head=per_sector)
    tokens, weights = _tokens(), _weights()
    centers = -0.8 + 0.4 * (np.arange(4) + 0.5)
    azimuth = np.tile(centers[np.arange(30) % 4], (2, 1)).astype(np.float32)
    moved = azimuth.copy()
    moved[:, 0] = centers[2]  # from sector 0 to sector 2
    one = apply(tokens._replace(azimuth=azimuth), weights, BOUNDS)[1]['pooled']
    other = apply(tokens._replace(azimuth=moved), weights, BOUNDS)[1]['pooled']
    differs = np.abs(one - other).reshape(2, 4, 2).max((0, 2)) > 1e-6
    np.testing.assert_array_equal(differs, [True, False, True, False])

  @parameterized.parameters(*ALL)
  def test_turning_by_one_sector_shifts_the_slices(self, kind):
    apply, tokens, weights = _model(kind, 4), _tokens(), _weights()
    azimuth = np.random.default_rng(0).uniform(-0.6, 0.2, (2, 30))
    turned = tokens._replace(azimuth=(azimuth + 0.4).astype(np.float32))
    tokens = tokens._replace(azimuth=azimuth.astype(np.float32))
    one = apply(tokens, weights, BOUNDS)[1]['pooled'].reshape(2, 4, 2)
    other = apply(turned, weights, BOUNDS)[1]['pooled'].reshape(2, 4, 2)
    np.testing.assert_allclose(other[:, 1:], one[:, :3], atol=1e-5)
    self.assertGreater(np.abs(other[:, :3] - one[:, :3]).max(), 1e-2)

  def test_pooling_all_tokens_forgets_bearing_and_sectors_keep_it(self):
    tokens, weights = _tokens(), _weights()
    mirrored = tokens._replace(azimuth=-tokens.azimuth)
    for num_sectors in (0, 4):
      apply = _model(vlad.NetVLAD, num_sectors)
      one, _ = apply(tokens, weights, BOUNDS)
      other, _ = apply(mirrored, weights, BOUNDS)
      self.assertEqual(np.abs(one - other).max() > 1e-2, num_sectors > 0)

  def test_a_descriptor_must_divide_into_sectors(self):
    model = vlad.NetVLAD(features=10, num_sectors=4)
    with self.assertRaisesRegex(ValueError, 'multiple of num_sectors'):
      jax.eval_shape(model.init, KEY, _tokens(), _weights(), BOUNDS)

  def test_unknown_norms_are_named(self):
    model = vlad.NetVLAD(norm='instance')
    with self.assertRaisesRegex(ValueError, "norm is 'instance'"):
      jax.eval_shape(model.init, KEY, _tokens(), _weights(), BOUNDS)


if __name__ == '__main__':
  absltest.main()
