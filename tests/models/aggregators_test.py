# SPDX-License-Identifier: Apache-2.0
"""Aggregators: parity with the released NetVLAD, laws of sectors."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models import aggregators
from tests import shared
from tests.models import planted

KEY = jax.random.key(0)
BOUNDS = (jnp.full(2, -0.8), jnp.full(2, 0.8))
ALL = (aggregators.Mean, aggregators.GeM, aggregators.NetVLAD)


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
  if kind is aggregators.NetVLAD:
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

  compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))
  return lambda t, w: compiled(variables, t.features, t.azimuth, w, t.mask)


class ReleasedNetVLADTest(parameterized.TestCase):
  VARIANTS = {
    'bn': dict(norm='batch', gating=True),
    'nogate': dict(norm='batch', gating=False),
    'bias': dict(norm='bias', gating=True),
  }

  def _variables(self, golden, variant):
    """Our variables from the released names."""

    def read(name):
      return golden[f'{variant}/param/{name}']

    params = {
      'assign': {'kernel': read('cluster_weights')},
      'centers': read('cluster_weights2')[0].T,
      'SectorHead_0': {'kernel': read('hidden1_weights')},
    }
    norms = {'output_norm': 'bn2'}
    if variant == 'bias':
      params['assign']['bias'] = read('cluster_biases')
    else:
      norms['assign_norm'] = 'bn1'
    if variant != 'nogate':
      params['gate'] = {'kernel': read('context_gating.gating_weights')}
    if variant == 'bias':
      params['gate']['bias'] = read('context_gating.gating_biases')
    if variant == 'bn':
      norms['gate_norm'] = 'context_gating.bn1'
    statistics = {}
    for ours, theirs in norms.items():
      params[ours] = dict(
        scale=read(f'{theirs}.weight'), bias=read(f'{theirs}.bias')
      )
      statistics[ours] = dict(
        mean=read(f'{theirs}.running_mean'), var=read(f'{theirs}.running_var')
      )
    return {'params': params, 'batch_stats': statistics}

  @parameterized.product(
    variant=('bn', 'nogate', 'bias'),
    mode=('eval', 'train'),
    weighting=('none', 'w', 'wsmall'),
  )
  def test_values_and_gradients_equal_the_release(
    self, variant, mode, weighting
  ):
    golden = np.load(shared.require('golden/saliency_netvlad.npz'))
    case = f'{variant}/{mode}/{weighting}'
    model = aggregators.NetVLAD(
      num_clusters=8,
      features=16,
      output_batch_norm=True,
      channel_major=True,
      epsilon=1e-12,
      **self.VARIANTS[variant],
    )
    x = golden['x']
    name = dict(w='token_weight', wsmall='token_weight_small').get(weighting)
    weights = jax.nn.sigmoid(golden[name]) if name else np.ones(x.shape[:2])
    variables = self._variables(golden, variant)

    def score(x):
      tokens = aggregators.Tokens(
        x, np.zeros(x.shape[:2], np.float32), np.ones(x.shape[:2], bool)
      )
      bounds = (jnp.zeros(len(x)), jnp.ones(len(x)))
      (descriptor, out), changed = model.apply(
        variables,
        tokens,
        weights.astype(np.float32),
        bounds,
        mode == 'train',
        mutable='batch_stats',
      )
      return (descriptor * golden['cotangent']).sum(), (
        descriptor,
        out,
        changed['batch_stats'],
      )

    grad, (descriptor, out, changed) = jax.jit(jax.grad(score, has_aux=True))(x)
    # In training BatchNorm sees five rows: README section 1 allows 5e-5.
    atol = 1e-5 if mode == 'eval' else 5e-5
    np.testing.assert_allclose(
      out['assignment'], golden[f'{case}/assign'], atol=1e-5
    )
    np.testing.assert_allclose(
      out['residuals'][:, 0].swapaxes(1, 2),
      golden[f'{case}/vlad_intranorm_BCK'],
      atol=1e-5,
    )
    # At their trained scale: BatchNorm of five rows can blow outputs up.
    np.testing.assert_allclose(
      out['pooled'], golden[f'{case}/out'], atol=atol, rtol=atol
    )
    np.testing.assert_allclose(descriptor, golden[f'{case}/out_l2'], atol=atol)
    # Ours normalises its tokens: of the gradient the radial part is gone.
    expected = golden[f'{case}/grad_x']
    expected = expected - x * (x * expected).sum(-1, keepdims=True)
    np.testing.assert_allclose(grad, expected, atol=atol, rtol=1e-3)
    if mode == 'train':
      prefix = f'{case}/buffer_after/bn2.running'
      np.testing.assert_allclose(
        changed['output_norm']['mean'], golden[f'{prefix}_mean'], atol=1e-5
      )
      # Not equal on purpose: torch keeps the unbiased variance, flax the
      # biased one; their updates differ by n / (n - 1) with n = 5 rows.
      old = 0.9 * golden[f'{variant}/param/bn2.running_var']
      ours = changed['output_norm']['var'] - old
      theirs = golden[f'{prefix}_var'] - old
      np.testing.assert_allclose(ours * 5 / 4, theirs, atol=1e-5, rtol=1e-4)


class PoolingTest(parameterized.TestCase):
  @parameterized.product(kind=ALL, num_sectors=(0, 4))
  def test_order_of_tokens_does_not_matter(self, kind, num_sectors):
    apply, tokens, weights = _model(kind, num_sectors), _tokens(), _weights()
    order = np.random.default_rng(1).permutation(30)
    moved = aggregators.Tokens(*(x[:, order] for x in tokens))
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
    model = aggregators.NetVLAD(num_clusters=3, features=8, num_sectors=4)
    variables = planted.variables(model, tokens, weights, BOUNDS)
    _, out = model.apply(variables, tokens, weights, BOUNDS)
    norm = np.linalg.norm(tokens.features, axis=-1, keepdims=True)
    x, centers = tokens.features / norm, variables['params']['centers']
    share = aggregators.sector_membership(tokens.azimuth, BOUNDS, 4)
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
      return model.apply({'params': params}, tokens, ones, BOUNDS)[1]['pooled']

    np.testing.assert_allclose(
      pool(1.0), tokens.features.mean(1), rtol=1e-3, atol=1e-3
    )
    self.assertTrue(np.all(pool(1.0) < pool(3.0)))
    self.assertTrue(np.all(pool(3.0) < tokens.features.max(1)))


class SectorTest(parameterized.TestCase):
  def test_membership_is_a_partition_inside_and_nothing_outside(self):
    azimuth = jnp.tile(jnp.linspace(-1.0, 1.0, 201), (2, 1))
    share = aggregators.sector_membership(azimuth, BOUNDS, 5)
    inside = np.abs(azimuth) <= 0.8
    np.testing.assert_allclose(share.sum(-1), inside, atol=1e-6)
    # The centre of a sector is wholly its own.
    centers = -0.8 + 0.32 * (jnp.arange(5) + 0.5)
    own = aggregators.sector_membership(jnp.tile(centers, (2, 1)), BOUNDS, 5)
    np.testing.assert_allclose(own[0], np.eye(5), atol=1e-5)

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
      apply = _model(aggregators.NetVLAD, num_sectors)
      one, _ = apply(tokens, weights, BOUNDS)
      other, _ = apply(mirrored, weights, BOUNDS)
      self.assertEqual(np.abs(one - other).max() > 1e-2, num_sectors > 0)

  def test_a_descriptor_must_divide_into_sectors(self):
    model = aggregators.NetVLAD(features=10, num_sectors=4)
    with self.assertRaisesRegex(ValueError, 'multiple of num_sectors'):
      model.init(KEY, _tokens(), _weights(), BOUNDS)

  def test_unknown_norms_are_named(self):
    model = aggregators.NetVLAD(norm='instance')
    with self.assertRaisesRegex(ValueError, "norm is 'instance'"):
      model.init(KEY, _tokens(), _weights(), BOUNDS)


if __name__ == '__main__':
  absltest.main()
