# SPDX-License-Identifier: Apache-2.0
"""Rules of conversion, and one message for everything that does not fit."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.weights import load

RNG = np.random.default_rng(0)


def _tensors(**shapes):
  return {
    name.replace('_', '.'): RNG.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def _filled(rules, tensors):
  """Params of the module 'm' that the rules make, whatever their shapes."""
  made = {}
  for rule in rules:
    sources = [tensors[source] for source in rule.sources]
    made[rule.path.removeprefix('params/m/')] = rule.transform(*sources)
  return {'params': made}


class LayersTest(parameterized.TestCase):
  def test_dense_is_linear(self):
    tensors = _tensors(a_weight=(5, 3), a_bias=(5,))
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    variables = _filled(load.dense('params/m', 'a'), tensors)
    expected = x @ tensors['a.weight'].T + tensors['a.bias']
    found = nn.Dense(5).apply(variables, x)
    np.testing.assert_allclose(found, expected, atol=1e-6)

  def test_several_layers_lie_side_by_side_in_their_order(self):
    tensors = _tensors(q_weight=(4, 3), k_weight=(2, 3))
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    rules = load.dense('params/m', 'q', 'k', bias=False)
    found = nn.Dense(6, use_bias=False).apply(_filled(rules, tensors), x)
    expected = [x @ tensors[f'{name}.weight'].T for name in 'qk']
    np.testing.assert_allclose(found, np.concatenate(expected, 1), atol=1e-6)

  @parameterized.parameters(False, True)
  def test_convolution(self, bias):
    tensors = _tensors(a_weight=(4, 3, 2, 5), a_bias=(4,))
    image = RNG.normal(size=(1, 2, 5, 3)).astype(np.float32)
    rules = load.conv('params/m', 'a', bias)
    module = nn.Conv(4, (2, 5), padding='VALID')
    found = module.apply(_filled(rules, tensors), image)[0, 0, 0]
    weight = tensors['a.weight'].transpose(0, 2, 3, 1)
    expected = (weight * image[0]).sum((1, 2, 3)) + bias * tensors['a.bias']
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_a_gain_multiplies_what_the_layer_gives(self):
    tensors = _tensors(a_weight=(3, 3), a_bias=(3,), gain=(3,))
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    rules = load.dense('params/m', 'a')
    plain = nn.Dense(3).apply(_filled(rules, tensors), x)
    scaled = load.scaled(rules, 'gain')
    found = nn.Dense(3).apply(_filled(scaled, tensors), x)
    np.testing.assert_allclose(found, plain * tensors['gain'], atol=1e-6)


class ConvertTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tensors = _tensors(a_weight=(5, 3), a_bias=(5,), n_weight=(5,))
    self.tensors['n.bias'] = np.ones(5, np.float16)
    self.rules = [
      *load.dense('params/dense', 'a'),
      *load.norm('params/norm', 'n'),
    ]
    shape = jax.ShapeDtypeStruct
    self.shapes = {
      'params': {
        'dense': {
          'kernel': shape((3, 5), jnp.float32),
          'bias': shape((5,), jnp.bfloat16),
        },
        'norm': {
          'scale': shape((5,), jnp.float32),
          'bias': shape((5,), jnp.float32),
        },
      }
    }

  def _convert(self, **fields):
    return load.convert(self.tensors, self.rules, self.shapes, **fields)

  def test_structure_dtypes_and_values(self):
    converted = self._convert()
    jax.tree.map(
      lambda x, like: self.assertEqual((x.shape, x.dtype), like),
      converted,
      jax.tree.map(lambda x: (x.shape, x.dtype), self.shapes),
    )
    kernel = converted['params']['dense']['kernel']
    np.testing.assert_array_equal(kernel, self.tensors['a.weight'].T)
    self.assertTrue(kernel.flags.owndata)

  def test_everything_that_does_not_fit_in_one_message(self):
    del self.tensors['a.bias'], self.tensors['n.weight']
    self.tensors['a.weight'] = np.ones((5, 4))
    self.tensors['n.bias'] = np.ones((2, 2))
    self.tensors |= {'head.weight': np.ones(1), 'a.gamma': np.ones(1)}
    with self.assertRaises(ValueError) as caught:
      self._convert(name='weights.bin')
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    self.assertIn('weights.bin does not fit', message)
    self.assertIn('Missing in it: a.bias, n.weight.', message)
    self.assertIn('Unknown to the model: a.gamma, head.weight.', message)
    self.assertIn(
      'a.weight (5, 4) gives (4, 5) for params/dense/kernel (3, 5)', message
    )
    self.assertIn('n.bias (2, 2) gives (2, 2)', message)

  def test_a_tensor_that_cannot_be_turned_is_of_another_shape(self):
    self.rules[0] = self.rules[0]._replace(
      transform=lambda w: w.transpose(2, 3, 1, 0)
    )
    with self.assertRaisesRegex(ValueError, r'a.weight \(5, 3\) fails'):
      self._convert()

  @parameterized.parameters(np.nan, np.inf)
  def test_a_layer_that_is_not_finite(self, value):
    self.tensors['a.weight'][2, 1] = value
    with self.assertRaisesRegex(ValueError, r'Not finite: a\.weight\. Take'):
      self._convert()

  @parameterized.parameters('a.weight', 'n.weight')
  def test_a_layer_of_zeros(self, name):
    self.tensors[name] = np.zeros_like(self.tensors[name])
    with self.assertRaisesRegex(ValueError, f'All zeros: {name}\\. Take'):
      self._convert()

  def test_biases_may_be_zero_and_what_is_not_used_may_be_anything(self):
    self.tensors['a.bias'] = np.zeros(5, np.float32)
    self.tensors['n.bias'] = np.zeros(5, np.float32)
    self.tensors['head.weight'] = np.full(3, np.nan)
    self._convert(ignore=('head.*',))

  def test_a_quantised_layer(self):
    self.tensors['a.weight'] = np.ones((5, 3), np.int8)
    with self.assertRaisesRegex(ValueError, r'Integers: a\.weight\.'):
      self._convert()

  def test_a_gain_of_another_shape_is_not_spread(self):
    self.tensors['gain'] = np.ones(1, np.float32)
    self.rules[:2] = load.scaled(self.rules[:2], 'gain')
    with self.assertRaisesRegex(
      ValueError, r'Other shapes: .*gain \(1,\) fails'
    ):
      self._convert()

  def test_many_names_are_counted(self):
    self.tensors |= {f'head.{i}': np.ones(1) for i in range(10, 40)}
    with self.assertRaisesRegex(
      ValueError, 'Unknown to the model: head.10, .*head.15 and 24 more'
    ):
      self._convert()

  def test_what_is_ignored_may_be_there_or_not(self):
    self.tensors['n.num_batches_tracked'] = np.ones(())
    self._convert(ignore=('*.num_batches_tracked', 'head.*'))
    with self.assertRaisesRegex(ValueError, 'Unknown.*num_batches_tracked'):
      self._convert(ignore=('head.*',))

  def test_without_a_rule_arrays_stay_and_shapes_are_missing(self):
    self.shapes['params']['scale'] = np.float32(3)
    self.assertEqual(self._convert()['params']['scale'], 3)
    self.shapes['params']['scale'] = jax.ShapeDtypeStruct((), jnp.float32)
    with self.assertRaisesRegex(ValueError, 'Missing.*for params/scale'):
      self._convert()

  def test_a_deeper_checkpoint_has_unknown_tensors(self):
    del self.shapes['params']['norm']
    with self.assertRaisesRegex(ValueError, 'Unknown.*: n.bias, n.weight'):
      self._convert()

  def test_the_given_variables_are_left_alone(self):
    shapes = self.shapes
    self.shapes = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    self._convert()
    for leaf in jax.tree.leaves(self.shapes):
      np.testing.assert_array_equal(leaf, 0)


if __name__ == '__main__':
  absltest.main()
