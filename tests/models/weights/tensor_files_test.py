# SPDX-License-Identifier: Apache-2.0
"""Files of tensors: what is in them arrives, what is wrong is named."""

import collections
import gc
import json
import os
import pathlib
import pickle
import tempfile
import weakref
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np
from safetensors import numpy as safetensors_numpy

from i2ploc.models.weights import tensor_files
from tests.models.weights import onnx_file
from tests.models.weights import torch_file

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(4, 6)).astype(np.float32)
WEIGHTS = {
  'dense.weight': MATRIX,
  'dense.half': MATRIX.astype(np.float16),
  'dense.brain': MATRIX.astype(ml_dtypes.bfloat16),
  'double': MATRIX.astype(np.float64),
  'count': np.array(7),
  'flags': np.array([True, False]),
}


class _Harmful:
  """Leaves a mark where a pickle is run."""

  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return os.mkdir, (self.mark,)


class TensorFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)

  def _assert_tensors(self, found, expected):
    self.assertEqual(set(found), set(expected))
    for name, array in expected.items():
      self.assertEqual(found[name].dtype, array.dtype, name)
      np.testing.assert_array_equal(found[name], array, name)

  def _torch(self, content):
    path = self.folder / 'weights.pth'
    torch_file.save(content, path)
    return path

  def _old_torch(self, content):
    path = self.folder / 'old.pth'
    torch_file.save_old(content, path)
    return path

  def _safetensors(self):
    path = self.folder / 'model.safetensors'
    safetensors_numpy.save_file(WEIGHTS, path)
    return path

  def test_what_is_in_use_is_not_read_again(self):
    path = self._safetensors()
    tensors = tensor_files.read_tensors(path)
    again = tensor_files.read_tensors(path)
    self.assertIs(again, tensors)
    name = next(iter(tensors))
    with self.assertRaisesRegex(ValueError, 'read-only'):
      tensors[name][...] = 0
    # Another file, though in the same place.
    safetensors_numpy.save_file({'other': np.ones(2, np.float32)}, path)
    self.assertEqual(set(tensor_files.read_tensors(path)), {'other'})
    alive = weakref.ref(tensors)
    del tensors, again
    gc.collect()
    self.assertIsNone(alive())

  def test_safetensors_and_torch_files_hold_the_same(self):
    found = tensor_files.read_tensors(self._safetensors())
    self._assert_tensors(found, WEIGHTS)
    for path in (self._torch(WEIGHTS), self._old_torch(WEIGHTS)):
      found = tensor_files.read_tensors(path)
      self._assert_tensors(found, WEIGHTS)

  def test_onnx_files_are_read_by_the_name_of_the_layer(self):
    path = self.folder / 'model.onnx'
    path.write_bytes(onnx_file.model({'net.dense.weight': MATRIX}))
    found = tensor_files.read_tensors(path, 'net')
    self._assert_tensors(found, {'dense.weight': MATRIX})
    path.write_bytes(path.read_bytes()[:40])
    with self.assertRaisesRegex(ValueError, 'model.onnx is no whole ONNX'):
      tensor_files.read_tensors(path)

  def test_the_content_decides_not_the_name(self):
    path = self._safetensors().rename(self.folder / 'weights.pth')
    self._assert_tensors(tensor_files.read_tensors(path), WEIGHTS)

  def test_views_of_a_shared_storage(self):
    views = {
      'transposed': MATRIX.T,
      'part': MATRIX[1:3, ::2],
      'row': MATRIX[2],
      'number': MATRIX[3, 5, ...],
      'empty': MATRIX[:0],
      'repeated': np.broadcast_to(MATRIX[1], (3, 6)),
    }
    for path in (self._torch(views), self._old_torch(views)):
      found = tensor_files.read_tensors(path)
      self._assert_tensors(found, views)

  def test_training_checkpoints_hold_more_than_weights(self):
    wrapped = collections.OrderedDict(
      {f'module.{name}': array for name, array in WEIGHTS.items()}
    )
    wrapped._metadata = {'': {'version': 1}}
    path = self._torch(
      {
        'base_model': wrapped,
        'optimizer': {'state': {0: {'step': MATRIX}}, 'param_groups': [1e-3]},
        'epoch': 3,
        'best_metrics': {'recall': np.float64(78.9), 'name': 'R@1'},
      }
    )
    found = tensor_files.read_tensors(path, 'base_model')
    self._assert_tensors(found, WEIGHTS)
    found = tensor_files.read_tensors(path)
    self.assertIn('optimizer.state.0.step', found)
    found = tensor_files.read_tensors(path, 'base_model.module.dense')
    self.assertEqual(set(found), {'weight', 'half', 'brain'})
    with self.assertRaisesRegex(ValueError, "'model'.*: base_model, optimizer"):
      tensor_files.read_tensors(path, 'model')

  def test_a_prefix_is_a_whole_part_of_a_name(self):
    path = self._safetensors()
    self.assertLen(tensor_files.read_tensors(path, 'dense'), 3)
    with self.assertRaisesRegex(ValueError, "below 'den'.*count, dense"):
      tensor_files.read_tensors(path, 'den')

  def test_folders_in_one_part_or_several(self):
    whole = self._safetensors()
    self._assert_tensors(tensor_files.read_tensors(self.folder), WEIGHTS)
    names = sorted(WEIGHTS)
    parts = {'a.safetensors': names[:2], 'b.safetensors': names[2:]}
    index = {}
    for part, names in parts.items():
      tensors = {name: WEIGHTS[name] for name in names}
      safetensors_numpy.save_file(tensors, self.folder / part)
      index |= dict.fromkeys(names, part)
    whole.unlink()
    file = self.folder / 'model.safetensors.index.json'
    file.write_text(json.dumps({'weight_map': index}))
    self._assert_tensors(tensor_files.read_tensors(self.folder), WEIGHTS)
    (self.folder / 'b.safetensors').unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'b.safetensors does not'):
      tensor_files.read_tensors(self.folder)
    file.write_text('{"weight_map"')
    with self.assertRaisesRegex(ValueError, 'index.json is no index'):
      tensor_files.read_tensors(self.folder)

  def test_wherever_a_file_ends_it_is_named(self):
    for path in (
      self._safetensors(),
      self._torch(WEIGHTS),
      self._old_torch(WEIGHTS),
    ):
      content = path.read_bytes()
      part = self.folder / f'part_of_{path.name}'
      for size in np.linspace(0, len(content) - 1, 40, dtype=int):
        with self.subTest(f'{path.name} {size}'):
          part.write_bytes(content[:size])
          with self.assertRaisesRegex(ValueError, part.name):
            tensor_files.read_tensors(part)

  def test_a_flipped_bit_in_a_storage_is_found(self):
    path = self._torch(WEIGHTS)
    content = bytearray(path.read_bytes())
    content[content.find(MATRIX.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with self.assertRaisesRegex(ValueError, 'weights.pth .*CRC'):
      tensor_files.read_tensors(path)

  @parameterized.parameters(
    (0, (5, 6), (6, 1)),
    (1, (4, 6), (6, 1)),
    (23, (2,), (1,)),
    (-1, (1,), (1,)),
    (9, (2,), (-1,)),
    (0, (2, 3), (1,)),
  )
  def test_tensors_beyond_their_storage_are_refused(self, *view):
    path = self._torch({'x': torch_file.tensor(MATRIX.reshape(-1), *view)})
    with self.assertRaisesRegex(ValueError, 'weights.pth is no whole'):
      tensor_files.read_tensors(path)

  def test_a_pickle_runs_nothing(self):
    mark = self.folder / 'harm'
    content = {'weight': MATRIX, 'x': _Harmful(str(mark))}
    for path in (self._torch(content), self._old_torch(content)):
      with self.assertRaisesRegex(ValueError, r'\.pth .*\.mkdir.* refused'):
        tensor_files.read_tensors(path)
    self.assertFalse(mark.exists())
    # The planted harm is real.
    with zipfile.ZipFile(self._torch(_Harmful(str(mark)))) as archive:
      pickle.loads(archive.read('archive/data.pkl'))
    self.assertTrue(mark.exists())

  @parameterized.parameters(
    (b'<!DOCTYPE html><html>', 'neither safetensors, ONNX nor'),
    (b'', 'neither safetensors, ONNX nor'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    (pickle.dumps({'weight': 1}), 'is a pickle, and not one of torch'),
  )
  def test_foreign_files_are_named_with_a_remedy(self, content, message):
    path = self.folder / 'foreign.bin'
    path.write_bytes(content)
    with self.assertRaisesRegex(ValueError, f'foreign.bin .*{message}'):
      tensor_files.read_tensors(path)

  def test_what_is_not_there_is_named(self):
    with self.assertRaisesRegex(FileNotFoundError, 'nowhere does not exist'):
      tensor_files.read_tensors(self.folder / 'nowhere')
    with self.assertRaisesRegex(FileNotFoundError, 'model.safetensors'):
      tensor_files.read_tensors(self.folder)


if __name__ == '__main__':
  absltest.main()
