# SPDX-License-Identifier: Apache-2.0
"""Published CLIP checkpoints: what is found in them, and what is missing."""

import json
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import huggingface_hub
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from i2ploc.models.weights import clip as clip_lib
from tests import shared
from tests.models.weights import torch_file

GOLDEN = 'clip_tiny'


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder) / 'clip'
    shutil.copytree(shared.GOLDEN / GOLDEN, self.folder)
    self.folder.chmod(0o755)
    self.io = np.load(self.folder / 'io.npz')

  def _write(self, name, fields):
    file = self.folder / name
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(fields))

  def test_texts_and_images_become_the_reference_descriptors(self):
    encoder = clip_lib.load_encoder(self.folder)
    found = encoder.encode_texts([str(text) for text in self.io['texts']])
    np.testing.assert_allclose(found, self.io['text_embeds'], atol=1e-5)
    mean, std = np.array(clip_lib.IMAGE_MEAN), np.array(clip_lib.IMAGE_STD)
    # What was normalised there was no image of bytes.
    x = self.io['pixel_values'].transpose(0, 2, 3, 1) * std + mean
    found = encoder._image(encoder.variables, x.astype(np.float32))
    np.testing.assert_allclose(found, self.io['image_embeds'], atol=1e-5)
    self.assertEqual(encoder.name, str(self.folder))

  def test_half_precision_is_near(self):
    encoder = clip_lib.load_encoder(self.folder, 'bfloat16')
    found = encoder.encode_texts([str(text) for text in self.io['texts']])
    apart = np.abs(found - self.io['text_embeds']).max()
    self.assertBetween(apart, 1e-5, 3e-2)

  def test_weights_of_torch_are_the_same(self):
    _, expected = clip_lib.load_clip(self.folder)
    file = self.folder / 'model.safetensors'
    tensors = safetensors_numpy.load_file(file)
    file.unlink()
    # The position numbers that old checkpoints keep are no weights.
    tensors['text_model.embeddings.position_ids'] = np.arange(24)
    tensors['vision_model.embeddings.position_ids'] = np.arange(17)
    torch_file.save(tensors, self.folder / 'pytorch_model.bin')
    _, found = clip_lib.load_clip(self.folder)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  def test_a_name_is_found_in_the_cache_of_the_hub(self):
    with mock.patch.object(
      huggingface_hub, 'snapshot_download', return_value=str(self.folder)
    ):
      encoder = clip_lib.load_encoder('openai/clip-vit-base-patch32')
    self.assertEqual(encoder.name, 'openai/clip-vit-base-patch32')

  def test_missing_weights_are_named(self):
    with self.assertRaisesRegex(FileNotFoundError, '/nowhere/at/all'):
      clip_lib.load_encoder('/nowhere/at/all')

  def test_an_unfinished_folder_is_named(self):
    (self.folder / 'model.safetensors').unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'holds none of'):
      clip_lib.load_clip(self.folder)
    (self.folder / 'config.json').unlink()
    with self.assertRaisesRegex(
      FileNotFoundError, 'config.json does not exist'
    ):
      clip_lib.load_clip(self.folder)

  def test_a_tokenizer_is_needed_for_texts_alone(self):
    for name in ('tokenizer.json', 'merges.txt'):
      (self.folder / name).unlink()
    clip_lib.load_clip(self.folder)
    with self.assertRaisesRegex(FileNotFoundError, 'tokenizer.json or vocab'):
      clip_lib.load_encoder(self.folder)

  def test_other_models_are_refused(self):
    self._write('config.json', {'model_type': 'siglip'})
    with self.assertRaisesRegex(ValueError, "a 'siglip'; expected 'clip'"):
      clip_lib.load_clip(self.folder)

  def test_what_does_not_fit_is_one_message(self):
    file = self.folder / 'model.safetensors'
    tensors = safetensors_numpy.load_file(file)
    file.unlink()
    del tensors['text_projection.weight']
    tensors['text_model.encoder.layers.7.extra'] = np.zeros(3, np.float32)
    safetensors_numpy.save_file(tensors, file)
    with self.assertRaises(ValueError) as caught:
      clip_lib.load_clip(self.folder)
    message = str(caught.exception)
    self.assertIn('Missing in it: text_projection.weight.', message)
    self.assertIn('Unknown to the model: text_model.encoder.layers.7', message)

  def test_the_legacy_end_token_is_the_highest(self):
    file = self.folder / 'config.json'
    fields = json.loads(file.read_text())
    model, _ = clip_lib.load_clip(self.folder)
    self.assertEqual(model.towers['text'].encoder.end, 216)
    fields['text_config']['eos_token_id'] = 2
    self._write('config.json', fields)
    model, _ = clip_lib.load_clip(self.folder)
    self.assertIsNone(model.towers['text'].encoder.end)


class PreparationTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.file = self.folder / 'preprocessor_config.json'

  @parameterized.parameters(
    ({}, 32, (32, 32)),
    ({'size': 28, 'crop_size': 24}, 28, (24, 24)),
    (
      {
        'size': {'shortest_edge': 28},
        'crop_size': {'height': 24, 'width': 20},
        'image_mean': [0.1, 0.2, 0.3],
      },
      28,
      (24, 20),
    ),
  )
  def test_old_and_new_files_say_the_same(self, fields, short_side, size):
    self.file.write_text(json.dumps(fields))
    found = clip_lib.read_preparation(self.folder, 32)
    self.assertEqual((found.short_side, found.size), (short_side, size))
    mean = fields.get('image_mean', clip_lib.IMAGE_MEAN)
    self.assertEqual(found.mean, tuple(mean))

  @parameterized.parameters(
    '[]', '{"size": {"width": 3}}', '{"crop', '{"size": "x"}'
  )
  def test_damaged_files_are_named(self, text):
    self.file.write_text(text)
    with self.assertRaisesRegex(
      ValueError, 'preprocessor_config.json does not'
    ):
      clip_lib.read_preparation(self.folder, 32)


if __name__ == '__main__':
  absltest.main()
