# SPDX-License-Identifier: Apache-2.0
"""A CLIP is trained, measured and found again, as a user does it."""

import contextlib
import io
import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from configs import clip
from i2ploc import factory
from i2ploc import verbs
from i2ploc.geometry import cropping
from i2ploc.learning import embeddings
from i2ploc.learning import objectives
from i2ploc.losses import contrastive
from i2ploc.retrieval import relations
from i2ploc.tasks import captions
from i2ploc.training import checkpoint
from i2ploc.training import state as state_lib
from input_pipeline.sources import crops
from tests import configs_test
from tests import shared
from tests.input_pipeline import labelled_frames
from tests.models import planted
from tests.tasks import recorder


class Data:
  """Stands for a `source.Source` of the painted dataset."""

  def __init__(self, fields, roles=('train', 'validation', 'test')):
    dataset = labelled_frames.dataset()
    self._crops = crops.Crops(dataset, labelled_frames.SIZE, **fields)
    self._roles = roles
    self.frames, self.queries = dataset.frames, dataset.queries

  def has(self, role):
    return role in self._roles

  def split(self, role):
    del role
    return self

  def crops(self, role):
    del role
    return self._crops


def _small_config():
  config = clip.get_config('size=tiny')
  config.model.image_size = (16, 16)
  config.model.image.update(width=8, depth=1, num_heads=2)
  config.model.image.update(stem_widths=(), stem_strides=())
  config.model.image.patch_size = 8
  config.model.text.update(width=8, depth=1, num_heads=2)
  config.model.features = 8
  config.train.update(batch_size=4, num_steps=3, eval_every=3, save_every=2)
  # Muon is tested elsewhere, and takes long to compile.
  config.optimizer.update(warmup_steps=1, matrix_learning_rate=0.0)
  config.evaluation.num_frames = 2
  return config


class CaptionsTaskTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = str(pathlib.Path(tempfile.mkdtemp()) / 'run')
    cls.config = _small_config()
    cls.read = set()
    config = recorder.Recorder(cls.config, cls.read)
    cls.data = Data(cls.config.data.crops)
    with contextlib.redirect_stdout(io.StringIO()) as cls.printed:
      verbs.train(config, cls.data, cls.workdir)

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(pathlib.Path(cls.workdir).parent)
    super().tearDownClass()

  def test_every_leaf_of_the_config_is_read(self):
    leaves = set(configs_test.leaves(self.config))
    leaves = {name for name in leaves if not name.startswith('data.')}
    self.assertEmpty(leaves - self.read - {'name'})  # messages have it

  def test_results_are_numbers_beside_chance(self):
    path = pathlib.Path(self.workdir) / 'results.json'
    results = json.loads(path.read_text())
    for protocol in ('sync', 'cross'):
      for name in ('caption@1', 'association@3', 'association@1_chance'):
        self.assertBetween(results[f'test/{protocol}/{name}'], 0.0, 100.0)
    self.assertIn('landmark among the first 3', self.printed.getvalue())
    self.assertIn(f'weights: {self.workdir}, step 3', self.printed.getvalue())

  def test_a_workdir_is_an_encoder(self):
    encoder = captions.load_encoder(self.workdir)
    texts = encoder.encode_texts(['a red van', 'a green bin'])
    self.assertEqual(texts.shape, (2, 8))
    image, found = self.data.crops('test').frame(1)
    np.testing.assert_allclose(
      np.linalg.norm(encoder.encode_boxes(image, found.box), axis=1),
      1,
      atol=1e-4,
    )
    with self.assertRaisesRegex(ValueError, r"not taught \['elephant'\]"):
      encoder.encode_texts(['an elephant'])

  def test_a_published_checkpoint_is_an_encoder_too(self):
    path = shared.GOLDEN / 'clip_tiny'
    expected = np.load(path / 'io.npz')
    encoder = captions.load_encoder(str(path))
    found = encoder.encode_texts([str(text) for text in expected['texts']])
    np.testing.assert_allclose(found, expected['text_embeds'], atol=1e-5)

  def test_a_folder_without_a_run_is_named(self):
    with tempfile.TemporaryDirectory() as folder:
      (pathlib.Path(folder) / 'checkpoints').mkdir()
      with self.assertRaisesRegex(FileNotFoundError, 'train into'):
        captions.load_encoder(folder)

  def test_the_checkpoint_says_what_model_it_is(self):
    with tempfile.TemporaryDirectory() as folder:
      copied = pathlib.Path(folder) / 'run'
      shutil.copytree(self.workdir, copied)
      # Whatever became of the config beside it.
      (copied / 'config.json').write_text('{"model": {"features": 99}}')
      encoder = captions.load_encoder(str(copied))
      self.assertEqual(encoder.encode_texts(['a red van']).shape, (1, 8))

  def test_a_config_of_another_model_is_refused(self):
    config = _small_config()
    config.model.image_mean = (0.5, 0.5, 0.5)
    with self.assertRaisesRegex(ValueError, 'model.image_mean: .*0.45.*0.5'):
      verbs.evaluate(config, self.data, self.workdir)

  def test_a_run_of_another_task_is_no_encoder(self):
    with tempfile.TemporaryDirectory() as folder:
      other = checkpoint.Checkpoints(
        pathlib.Path(folder) / 'checkpoints',
        provenance={'config': {'task': 'places'}},
      )
      state = state_lib.init_state(
        {'w': jnp.ones(2)}, {}, lambda _: (), jax.random.key(0)
      )
      other.save(state, None, {})
      other.close()
      with self.assertRaisesRegex(ValueError, "the task 'places', not of a"):
        captions.load_encoder(folder)

  def test_verbs_that_it_has_not_are_refused(self):
    with self.assertRaisesRegex(
      ValueError, "no 'index'; it has .'train', 'eva"
    ):
      verbs.index(self.config, self.data, self.workdir)


class CaptionFactoryTest(parameterized.TestCase):
  def test_equal_texts_are_right_answers_and_padding_is_none(self):
    tokens = jnp.array([[0, 4, 1], [0, 5, 1], [0, 4, 1], [0, 4, 1]])
    mask = jnp.array([True, True, True, False])
    found = relations.from_texts(tokens, mask, tokens, mask)
    expected = [[1, -1, 1, 0], [-1, 1, -1, 0], [1, -1, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(found, expected)

  def test_the_loss_knows_them(self):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    image, text = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    tokens = np.array([[[0], [1], [0]], [[2], [1], [3]]])
    mask = np.array([[True, True, True], [True, True, False]])
    texts = tokens.reshape(6, 1), mask.reshape(6)
    related = relations.from_texts(*texts, *texts)
    loss = objectives.make_text_loss(name='info_nce', form='clip')
    found, metrics = loss(
      {'log_scale': jnp.float32(1.0)},
      {
        'image': embeddings.Embedding(image, image),
        'text': embeddings.Embedding(text, text),
      },
      {'tokens': tokens, 'mask': mask},
    )
    expected, _ = contrastive.info_nce(
      image.reshape(6, 4), text.reshape(6, 4), np.exp(1.0), related
    )
    self.assertAlmostEqual(float(found), float(expected), places=5)
    self.assertIn('recall_at_1', metrics)
    in_tiles, _ = objectives.make_text_loss(
      name='info_nce', form='clip', tile=4
    )(
      {'log_scale': jnp.float32(1.0)},
      {
        'image': embeddings.Embedding(image, image),
        'text': embeddings.Embedding(text, text),
      },
      {'tokens': tokens, 'mask': mask},
    )
    self.assertAlmostEqual(float(in_tiles), float(expected), places=5)

  def test_training_sees_the_crops_that_evaluation_sees(self):
    config = _small_config()
    model, tokenize = captions._make(config.model.to_dict())
    data = Data(config.data.crops)
    batch = next(data.crops('train').train_batches(2, 0, tokenize, workers=0))
    variables = planted.towers(model)
    view = model.towers['image'].view
    plain = dict(color_jitter=0.0, mirror=False, box_jitter=0.0)
    embed = embeddings.make_crop_embed(model, margin=0.15, **plain)

    @jax.jit
    def both(variables, batch):
      found, _ = embed(variables['params'], {}, batch, jax.random.key(1))
      windows = cropping.windows(batch['box'][:1], 0.15)
      image = batch['image'][:1] / 255.0
      seen = cropping.crop(image, windows, (16, 16), view.mean)
      whole = {'image': seen[0], 'tokens': batch['tokens'][1]}
      return found, model.apply(variables, whole, method='every_side')

    found, expected = both(variables, batch)
    self.assertEqual(found['image'].descriptor.shape, (2, 8, 8))
    for i, side in enumerate(('image', 'text')):
      np.testing.assert_allclose(
        found[side].descriptor[i], expected[side][0], atol=1e-4
      )

  @parameterized.parameters(
    (dict(name='triplet'), "Unknown loss 'triplet'; known: .'info_nce'"),
    (dict(name='info_nce', shape='x'), 'shape'),
  )
  def test_wrong_losses_are_named(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      objectives.make_text_loss(**fields)

  @parameterized.parameters(
    (dict(image=dict(name='alexnet')), "Unknown image encoder 'alexnet'"),
    (dict(text=dict(wide=3)), 'wide'),
    (dict(colour=3), 'colour'),
  )
  def test_wrong_models_are_named(self, fields, message):
    fields = _small_config().model.to_dict() | fields
    with self.assertRaisesRegex(ValueError, message):
      factory.make_model(**fields)


if __name__ == '__main__':
  absltest.main()
