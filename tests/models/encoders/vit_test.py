# SPDX-License-Identifier: Apache-2.0
"""ViT: sizes, laws of attention, stems."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.encoders import vit
from tests.models import planted

KEY = jax.random.key(0)
SMALL = dict(width=12, depth=2, num_heads=3, patch_size=8)
STEM = dict(stem_widths=(4, 8), stem_strides=((4, 4), (2, 2)))


def _images(channels=3, height=16, width=32):
  return jax.random.uniform(KEY, (2, height, width, channels))


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, variables, *args):
  return model.apply(variables, *args)


def _run(model, *args):
  """Value and `out` at random variables."""
  return _apply(model, planted.variables(model, *args), *args)


def _num_parameters(model, images):
  variables = jax.eval_shape(model.init, KEY, images)
  return sum(x.size for x in jax.tree.leaves(variables))


@jax.jit
def _normed(params, x):
  return nn.LayerNorm(1e-6).apply({'params': params}, x)


@jax.jit
def _placed_patches(params, images):
  """[B, N, D]: projected patches and their positions."""
  patch = (SMALL['patch_size'], SMALL['patch_size'])
  embed = nn.Conv(SMALL['width'], patch, patch, padding='VALID')
  x = embed.apply({'params': params['embed']}, images)
  return x.reshape(len(x), -1, SMALL['width']) + params['position']


def _joined(params, images):
  """[B, 1 + N, D]: what the first block takes."""
  patches = _placed_patches(params, images)
  cls = np.broadcast_to(params['cls'], (len(patches), 1, SMALL['width']))
  return np.concatenate([cls, patches], axis=1)


class ViTTest(parameterized.TestCase):
  @parameterized.parameters(
    # The released image branch; its CLS token has a position of its own (384).
    (dict(), 512, 1024, 22_376_832 - 384),
    # Patches, positions, CLS, norm and two blocks of 12 D^2 + 13 D.
    (dict(SMALL), 16, 32, 2316 + 96 + 12 + 24 + 2 * 1884),
    # Convolutions 592 and 296, branches 300 and 1176, projection 108.
    (dict(SMALL, **STEM), 16, 32, 2472 + 96 + 12 + 24 + 2 * 1884),
    (dict(SMALL, depth=0, **STEM), 16, 32, 2472 + 96 + 24),
    # The gates, 12 x 48 + 48 a block, the registers and the first norm.
    (
      dict(SMALL, mlp='swiglu', num_registers=4, pre_norm=True),
      16,
      32,
      2316 + 96 + 12 + 24 + 2 * (1884 + 624) + 48 + 24,
    ),
  )
  def test_parameter_counts(self, fields, height, width, expected):
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    self.assertEqual(_num_parameters(vit.ViT(**fields), images), expected)

  @parameterized.product(stem=(False, True), channels=(1, 3, 5), depth=(0, 1))
  def test_any_channels_any_stem_any_depth(self, stem, channels, depth):
    fields = dict(SMALL, depth=depth, **(STEM if stem else {}))
    tokens, out = _run(vit.ViT(**fields), _images(channels))
    self.assertEqual(tokens.shape, (2, 8, 12))
    self.assertEqual(tuple(map(int, out['grid'])), (2, 4))
    self.assertEqual('attention' in out, depth > 0)
    self.assertEqual(out['sequence'].shape[1], 8 + (depth > 0))

  def test_attention_rows_sum_to_one_and_include_the_cls_token(self):
    _, out = _run(vit.ViT(**SMALL), _images())
    self.assertEqual(out['attention'].shape, (2, 3, 9))
    np.testing.assert_allclose(out['attention'].sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(out['cls'], out['sequence'][:, 0])

  def test_tokens_are_row_major_over_the_grid(self):
    model = vit.ViT(**dict(SMALL, depth=0))
    images = _images()
    variables = planted.variables(model, images)
    tokens, _ = _apply(model, variables, images)
    changed = images.at[:, 8:, 16:24].add(1.0)
    moved, _ = _apply(model, variables, changed)
    differs = np.abs(moved - tokens).max((0, 2)) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(differs), [1 * 4 + 2])

  def test_samples_do_not_influence_each_other(self):
    model = vit.ViT(**SMALL, **STEM)
    images = _images()
    variables = planted.variables(model, images)
    both, _ = _apply(model, variables, images)
    alone, _ = _apply(model, variables, images[:1])
    np.testing.assert_allclose(both[:1], alone, atol=2e-6)

  def test_zero_residual_scale_starts_as_the_identity(self):
    block = vit.Block(12, 3, residual_init_scale=0.0)
    x = jax.random.normal(KEY, (2, 5, 12))
    y, _ = _apply(block, jax.jit(block.init)(KEY, x), x)
    np.testing.assert_array_equal(y, x)

  def test_remat_and_bfloat16_change_cost_not_meaning(self):
    plain = vit.ViT(**SMALL)
    images = _images()
    variables = planted.variables(plain, images)
    expected, _ = _apply(plain, variables, images)
    remat, _ = _apply(vit.ViT(**SMALL, remat=True), variables, images)
    np.testing.assert_allclose(remat, expected, atol=1e-6)
    half, _ = _apply(vit.ViT(**SMALL, dtype=jnp.bfloat16), variables, images)
    self.assertEqual(half.dtype, jnp.float32)
    np.testing.assert_allclose(half, expected, atol=0.1)

  def test_masked_tokens_are_not_attended_to(self):
    block = vit.Block(12, 3)
    x = jax.random.normal(KEY, (2, 5, 12))
    mask = jnp.asarray([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    variables = planted.variables(block, x, mask)
    y, attention = _apply(block, variables, x, mask)
    np.testing.assert_array_equal(attention[0, :, 3:], 0.0)
    short, _ = _apply(block, variables, x[:1, :3])
    np.testing.assert_allclose(y[:1, :3], short, atol=1e-6)
    self.assertTrue(np.isfinite(attention).all())

  @parameterized.parameters('gelu', 'quick_gelu', 'swiglu')
  def test_mlps_are_their_formulas(self, mlp):
    # 31.992 of 32: a ratio need not be exact.
    block = vit.Block(12, 3, mlp_ratio=2.666, mlp=mlp)
    x = jax.random.normal(KEY, (2, 5, 12))
    variables = planted.variables(block, x)
    params = jax.tree.map(np.array, variables['params'])
    params['attention']['projection'] = jax.tree.map(
      np.zeros_like, params['attention']['projection']
    )
    y, _ = _apply(block, {'params': params}, x)
    hidden = _normed(params['norm2'], x) @ params['expand']['kernel']
    hidden += params['expand']['bias']
    if mlp == 'swiglu':
      gate, hidden = hidden[..., :32], hidden[..., 32:]
      hidden = gate / (1 + np.exp(-gate)) * hidden
    elif mlp == 'quick_gelu':
      hidden = hidden / (1 + np.exp(-1.702 * hidden))
    else:
      hidden = hidden * (1 + jax.scipy.special.erf(hidden / 2**0.5)) / 2
    self.assertEqual(hidden.shape[-1], 32)
    contract = params['contract']
    expected = x + hidden @ contract['kernel'] + contract['bias']
    np.testing.assert_allclose(y, expected, atol=2e-5)

  def test_an_adapter_is_its_formula_beside_the_mlp(self):
    bare, block = vit.Block(12, 3), vit.Block(12, 3, bottleneck=5)
    x = jax.random.normal(KEY, (2, 5, 12))
    variables = planted.variables(block, x)
    y, _ = _apply(block, variables, x)
    params = jax.tree.map(np.asarray, variables['params'])
    adapter = params.pop('adapter')
    without, _ = _apply(bare, {'params': params}, x)
    # What the MLP gets: x behind the attention, at its norm.
    silent = jax.tree.map(np.zeros_like, params['contract'])
    attended, _ = _apply(bare, {'params': {**params, 'contract': silent}}, x)
    normed = np.asarray(_normed(params['norm2'], attended))
    down, up = adapter['down'], adapter['up']
    expected = np.asarray(without).copy()
    for b, n in np.ndindex(2, 5):
      hidden = np.maximum(normed[b, n] @ down['kernel'] + down['bias'], 0.0)
      expected[b, n] += 0.1 * (hidden @ up['kernel'] + up['bias'])
    np.testing.assert_allclose(y, expected, atol=2e-5)
    self.assertGreater(np.abs(y - without).max(), 1e-2)

  @parameterized.parameters(False, True)
  def test_adapters_start_as_nothing_and_learn(self, remat):
    images, target = _images(), jax.random.normal(KEY, (2, 8, 12))
    plain, model = vit.ViT(**SMALL), vit.ViT(**SMALL, adapter=4, remat=remat)
    variables = jax.jit(model.init)(KEY, images)
    shared = jax.tree.map(lambda x: x, variables['params'])
    for i in range(2):
      del shared[f'blocks_{i}']['adapter']
    expected, _ = _apply(plain, {'params': shared}, images)
    found, _ = _apply(model, variables, images)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    added = _num_parameters(model, images) - _num_parameters(plain, images)
    self.assertEqual(added, 2 * (2 * 12 * 4 + 4 + 12))

    def total(variables):
      return (model.apply(variables, images)[0] * target).sum()

    grads = jax.jit(jax.grad(total))(variables)['params']
    for i in range(2):
      up = grads[f'blocks_{i}']['adapter']['up']
      self.assertGreater(np.abs(up['kernel']).max(), 0.0)

  def test_gelu_and_its_slope_are_exact_in_float32(self):
    x = np.linspace(-9, 9, 10_001).astype(np.float32)
    gelu = vit.MLPS['gelu']
    found, slope = jax.jit(jax.vmap(jax.value_and_grad(gelu)))(x)
    wide = x.astype(np.float64)
    share = np.asarray([(1 + math.erf(z / 2**0.5)) / 2 for z in wide])
    density = np.exp(-(wide**2) / 2) / (2 * np.pi) ** 0.5
    np.testing.assert_allclose(found, wide * share, atol=6e-7)
    np.testing.assert_allclose(slope, share + wide * density, atol=6e-7)
    half = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_array_equal(gelu(half), nn.gelu(half, False))

  def test_registers_attend_and_appear_nowhere(self):
    model = vit.ViT(**dict(SMALL, depth=1), num_registers=3)
    images = _images()
    variables = planted.variables(model, images)
    tokens, out = _apply(model, variables, images)
    params = variables['params']
    front = [params['cls'], params['registers']]
    front = [np.broadcast_to(x, (2, *x.shape[1:])) for x in front]
    x, row = _apply(
      vit.Block(12, 3),
      {'params': params['blocks_0']},
      np.concatenate([*front, _placed_patches(params, images)], axis=1),
    )
    x = _normed(params['norm'], x)
    kept = [0, *range(4, 12)]
    np.testing.assert_allclose(out['sequence'], x[:, kept], atol=2e-5)
    np.testing.assert_allclose(out['attention'], row[:, :, kept], atol=2e-5)
    np.testing.assert_allclose(tokens, x[:, 4:], atol=2e-5)

  def test_a_norm_before_the_blocks(self):
    model = vit.ViT(**dict(SMALL, depth=0), pre_norm=True)
    images = _images()
    variables = planted.variables(model, images)
    tokens, _ = _apply(model, variables, images)
    params = variables['params']
    x = _normed(params['first_norm'], _placed_patches(params, images))
    expected = _normed(params['norm'], x)
    np.testing.assert_allclose(tokens, expected, atol=2e-5)

  def test_a_norm_of_the_cls_token_alone_leaves_the_others(self):
    images = _images()
    variables = planted.variables(vit.ViT(**SMALL), images)
    expected, all_normed = _apply(vit.ViT(**SMALL), variables, images)
    model = vit.ViT(**SMALL, norm_cls_only=True)
    tokens, out = _apply(model, variables, images)
    np.testing.assert_allclose(out['cls'], all_normed['cls'], atol=1e-6)
    normed = _normed(variables['params']['norm'], tokens)
    np.testing.assert_allclose(normed, expected, atol=1e-5)
    self.assertGreater(np.abs(tokens - expected).max(), 0.1)

  def test_a_block_is_what_leaves_it_and_the_rest_is_not_there(self):
    images = _images()
    whole = planted.variables(vit.ViT(**SMALL), images)
    x = _joined(whole['params'], images)
    for i in (1, 2):
      model = vit.ViT(**SMALL, block=i)
      shapes = jax.eval_shape(model.init, KEY, images)['params']
      blocks = {f'blocks_{j}' for j in range(i)}
      self.assertEqual(set(shapes), blocks | {'cls', 'embed', 'position'})
      params = {name: whole['params'][name] for name in shapes}
      tokens, out = _apply(model, {'params': params}, images)
      block = {'params': whole['params'][f'blocks_{i - 1}']}
      x, row = _apply(vit.Block(12, 3), block, x)
      np.testing.assert_allclose(out['sequence'], x, atol=2e-5)
      np.testing.assert_allclose(out['attention'], row, atol=2e-5)
      np.testing.assert_array_equal(tokens, out['sequence'][:, 1:])
      np.testing.assert_array_equal(out['cls'], out['sequence'][:, 0])

  @parameterized.parameters('query', 'key', 'value')
  def test_facets_are_projections_heads_side_by_side(self, facet):
    images = _images()
    whole = planted.variables(vit.ViT(**SMALL), images)['params']
    model = vit.ViT(**SMALL, block=2, facet=facet)
    shapes = jax.eval_shape(model.init, KEY, images)['params']
    self.assertEqual(set(shapes['blocks_1']), {'norm1', 'attention'})
    self.assertEqual(set(shapes['blocks_1']['attention']), {'qkv'})
    params = {name: whole[name] for name in shapes}
    block = whole['blocks_1']
    params['blocks_1'] = {
      'norm1': block['norm1'],
      'attention': {'qkv': block['attention']['qkv']},
    }
    tokens, out = _apply(model, {'params': params}, images)
    x = _joined(whole, images)
    x, _ = _apply(vit.Block(12, 3), {'params': whole['blocks_0']}, x)
    qkv = params['blocks_1']['attention']['qkv']
    y = _normed(params['blocks_1']['norm1'], x) @ qkv['kernel'] + qkv['bias']
    start = 12 * ('query', 'key', 'value').index(facet)
    expected = y[..., start : start + 12]
    np.testing.assert_allclose(out['sequence'], expected, atol=2e-5)
    np.testing.assert_array_equal(tokens, out['sequence'][:, 1:])
    # The row is that of the block that was cut short.
    variables = {'params': whole | {'norm': params['blocks_1']['norm1']}}
    _, all_of_it = _apply(vit.ViT(**SMALL), variables, images)
    np.testing.assert_allclose(
      out['attention'], all_of_it['attention'], atol=2e-5
    )

  @parameterized.parameters(
    (dict(SMALL, block=3), 'block 3 of a ViT of 2 blocks: give 1 to 2'),
    (dict(SMALL, block=-1), 'block -1 of a ViT of 2 blocks'),
    (dict(SMALL, facet='keys', block=1), "unknown facet 'keys'.*'query'"),
    (dict(SMALL, facet='key'), "facet 'key' is that of a block"),
    (dict(SMALL, mlp='relu'), "unknown mlp 'relu'; known: .*swiglu"),
    (dict(SMALL), 'images of 16 x 36 pixels'),
    (dict(SMALL, num_heads=5), 'not a multiple of num_heads 5'),
  )
  def test_impossible_sizes_are_named(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      images = _images(width=36 if 'images' in message else 32)
      jax.eval_shape(vit.ViT(**fields).init, KEY, images)


if __name__ == '__main__':
  absltest.main()
