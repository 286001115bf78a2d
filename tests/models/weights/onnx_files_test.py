# SPDX-License-Identifier: Apache-2.0
"""ONNX files: weights arrive under the names of their layers."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.models.weights import onnx_files
from tests.models.weights import onnx_file

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(4, 6)).astype(np.float32)
BIAS = RNG.normal(size=6).astype(np.float32)


class OnnxFilesTest(parameterized.TestCase):
  def test_named_weights_keep_their_name_and_type(self):
    tensors = {
      'dense.bias': BIAS,
      'half': MATRIX.astype(np.float16),
      'count': np.asarray([7, -3], np.int64),
      'number': np.asarray(2.5, np.float64),
    }
    found = onnx_files.read_weights(onnx_file.model(tensors))
    self.assertEqual(set(found), set(tensors))
    for name, tensor in tensors.items():
      self.assertEqual(found[name].dtype, tensor.dtype)
      np.testing.assert_array_equal(found[name], tensor)

  def test_a_nameless_factor_is_the_weight_of_its_node_transposed(self):
    found = onnx_files.read_weights(
      onnx_file.model(
        {'onnx::MatMul_7': MATRIX, 'fc.bias': BIAS},
        [
          onnx_file.node('MatMul', '/block.0/fc/MatMul', 'x', 'onnx::MatMul_7'),
          onnx_file.node('Add', '/block.0/fc/Add', 'fc.bias', 'y'),
        ],
      )
    )
    self.assertEqual(set(found), {'block.0.fc.weight', 'fc.bias'})
    np.testing.assert_array_equal(found['block.0.fc.weight'], MATRIX.T)

  def test_what_else_is_nameless_is_called_after_its_node(self):
    cube = MATRIX.reshape(1, 4, 6)
    found = onnx_files.read_weights(
      onnx_file.model(
        {'onnx::Concat_1': cube},
        [onnx_file.node('Concat', '/embed/Concat_6', 'onnx::Concat_1')],
      )
    )
    np.testing.assert_array_equal(found['embed.Concat_6'], cube)

  def test_wherever_a_file_ends_it_is_noticed(self):
    content = onnx_file.model({'dense.weight': MATRIX})
    for size in range(len(content)):
      with self.subTest(size):
        with self.assertRaises((ValueError, IndexError)):
          onnx_files.read_weights(content[:size])

  def test_weights_in_another_file_are_named(self):
    content = onnx_file.model({'dense.weight': None})
    with self.assertRaisesRegex(ValueError, 'in another file'):
      onnx_files.read_weights(content)


if __name__ == '__main__':
  absltest.main()
