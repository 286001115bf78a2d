# SPDX-License-Identifier: Apache-2.0
"""Released models: every tensor has its place, and descriptors are right.

Checkpoints of the authors' names and shapes; the numbers are ours.
"""

import gc
import pathlib
import tempfile
from unittest import mock
import weakref

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from benchmarks.parity_rows import aggregators as oracles
from i2ploc import factory
from i2ploc.models import queries
from i2ploc.models import towers as towers_lib
from i2ploc.models import views
from i2ploc.models.encoders import resnet
from i2ploc.models.encoders import vgg
from i2ploc.models.encoders import vit
from i2ploc.models.weights import published
from i2ploc.models.weights import released
from i2ploc.models.weights import resnet as resnet_lib
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib
from i2ploc.models.weights import vit as vit_lib
from tests.models.weights import released_tensors

FULL = {
  'cosplace_resnet18_512': (
    released_tensors.cosplace(18, 512),
    (512, 512),
    resnet.ResNet(depths=(2, 2, 2, 2), expansion=1, block_kind='basic'),
    512,
  ),
  'eigenplaces_resnet50_2048': (
    released_tensors.cosplace(),
    (512, 512),
    resnet.ResNet(),
    2048,
  ),
  'cosplace_resnet101_128': (
    released_tensors.cosplace(101, 128),
    (512, 512),
    resnet.ResNet(depths=(3, 4, 23, 3)),
    128,
  ),
  'eigenplaces_vgg16_512': (
    released_tensors.cosplace_vgg(),
    (512, 512),
    vgg.VGG(),
    512,
  ),
  'salad': (
    released_tensors.salad(),
    (322, 322),
    vit.ViT(width=768, depth=12, num_heads=12, patch_size=14),
    8448,
  ),
  'mixvpr_4096': (
    released_tensors.mixvpr(),
    (320, 320),
    resnet.ResNet(widths=(64, 128, 256), depths=(3, 4, 6)),
    4096,
  ),
  'mixvpr_128': (
    released_tensors.mixvpr(64, 2, row_bias=False),
    (320, 320),
    resnet.ResNet(widths=(64, 128, 256), depths=(3, 4, 6)),
    128,
  ),
  'boq_resnet50': (
    released_tensors.boq_resnet(),
    (384, 384),
    resnet.ResNet(widths=(64, 128, 256), depths=(3, 4, 6)),
    16384,
  ),
  'boq_dinov2': (
    released_tensors.boq_dinov2(),
    (322, 322),
    vit.ViT(width=768, depth=12, num_heads=12, patch_size=14, block=12),
    12288,
  ),
  'netvlad_resnet18_pitts30k': (
    released_tensors.deep_vg(),
    (480, 640),
    resnet.ResNet(
      widths=(64, 128, 256), depths=(2, 2, 2), expansion=1, block_kind='basic'
    ),
    64 * 256,
  ),
  'netvlad_resnet101_msls': (
    released_tensors.deep_vg(101),
    (480, 640),
    resnet.ResNet(widths=(64, 128, 256), depths=(3, 4, 23)),
    64 * 1024,
  ),
}


def _release(tensors):
  """The release of a checkpoint's tensors, which are of no other."""
  found = [r for r in published.RELEASES if r.matches(tensors)]
  (release,) = found
  return release


class FullSizeTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in FULL)
  def test_every_tensor_and_every_variable_has_its_place(self, name):
    shapes, image_size, encoder, features = FULL[name]
    tensors = tensors_lib.Tensors(released_tensors.constant(shapes), name)
    ((place, release),) = released.find(published.RELEASES, tensors).items()
    tensors = tensors.below(place)
    self.assertIs(release, _release(tensors))
    self.assertEqual(release.image_size(tensors), image_size)
    made = release.make_encoder(tensors)
    self.assertEqual(
      jax.tree.leaves(_shapes(made)), jax.tree.leaves(_shapes(encoder))
    )
    self.assertEqual(getattr(made, 'block', 0), getattr(encoder, 'block', 0))
    # Converting fails unless all are used or known, and all are filled.
    release.encoder_variables(tensors, made, image_size, name)
    model = _towers(made, release.make_aggregator(tensors), image_size)
    wanted = jax.eval_shape(
      lambda: model.init_with_output(
        jax.random.key(0), model.example(), 'image'
      )
    )
    (descriptor, _), variables = wanted
    self.assertEqual(descriptor.shape, (1, features))
    own = {
      k: tree['image_aggregator']
      for k, tree in variables.items()
      if 'image_aggregator' in tree
    }
    release.aggregator_variables(tensors, own, name)


def _shapes(encoder):
  images = np.zeros((1, 28, 28, 3), np.float32)
  return jax.eval_shape(encoder.init, jax.random.key(0), images)


def _towers(encoder, aggregator, size):
  tower = towers_lib.Tower(views.Image(size), encoder, aggregator)
  return towers_lib.Towers({'image': tower})


def _layer(tensors, name):
  """A Linear or a 1 x 1 convolution, for the oracles."""
  kernel = tensors[f'{name}.weight']
  layer = {'kernel': kernel.reshape(len(kernel), -1).T}
  if f'{name}.bias' in tensors:
    layer['bias'] = tensors[f'{name}.bias']
  return layer


def _norm(tensors, name):
  return {'scale': tensors[f'{name}.weight'], 'bias': tensors[f'{name}.bias']}


def _cosplace(tensors, out):
  params = {
    'power': tensors['aggregation.1.p'][0],
    'SectorHead_0': _layer(tensors, 'aggregation.3'),
  }
  return [oracles.gem(x, params) for x in out['tokens'].features]


def _salad(tensors, out):
  start = 'aggregator.'
  params = {'dustbin': tensors[f'{start}dust_bin']}
  for ours, theirs, last in (
    ('token', 'token_features', 2),
    ('feature', 'cluster_features', 3),
    ('score', 'score', 3),
  ):
    params[f'{ours}_hidden'] = _layer(tensors, f'{start}{theirs}.0')
    params[ours] = _layer(tensors, f'{start}{theirs}.{last}')
  pairs = zip(out['cls'], out['tokens'].features, strict=True)
  return [oracles.salad_descriptor(cls, x, params) for cls, x in pairs]


def _mixvpr(tensors, out):
  params = {
    'channels_layer': _layer(tensors, 'aggregator.channel_proj'),
    'rows_layer': _layer(tensors, 'aggregator.row_proj'),
  }
  for i in range(2):
    start = f'aggregator.mix.{i}.mix'
    params[f'norm{i}'] = _norm(tensors, f'{start}.0')
    params[f'expand{i}'] = _layer(tensors, f'{start}.1')
    params[f'contract{i}'] = _layer(tensors, f'{start}.3')
  return [oracles.mixvpr(x, params) for x in out['tokens'].features]


def _heads(tensors, name):
  """torch's MultiheadAttention."""
  return {
    'qkv': {
      'kernel': tensors[f'{name}.in_proj_weight'].T,
      'bias': tensors[f'{name}.in_proj_bias'],
    },
    'projection': _layer(tensors, f'{name}.out_proj'),
  }


def _boq(tensors, out):
  start = 'aggregator.'
  params = {
    'reduce': {
      'kernel': tensors[f'{start}proj_c.weight'].transpose(2, 3, 1, 0),
      'bias': tensors[f'{start}proj_c.bias'],
    },
    'norm': _norm(tensors, f'{start}norm_input'),
    'mix': _layer(tensors, f'{start}fc'),
  }
  for i in range(2):
    own = f'{start}boqs.{i}'
    cross = _heads(tensors, f'{own}.cross_attn')
    width = cross['qkv']['kernel'].shape[0]
    kernel, bias = cross['qkv']['kernel'], cross['qkv']['bias']
    params[f'block{i}'] = {
      'queries': tensors[f'{own}.queries'],
      'attention': _heads(tensors, f'{own}.encoder.self_attn'),
      'norm1': _norm(tensors, f'{own}.encoder.norm1'),
      'norm2': _norm(tensors, f'{own}.encoder.norm2'),
      'expand': _layer(tensors, f'{own}.encoder.linear1'),
      'contract': _layer(tensors, f'{own}.encoder.linear2'),
      'query_attention': _heads(tensors, f'{own}.self_attn'),
      'query_norm': _norm(tensors, f'{own}.norm_q'),
      'answer_norm': _norm(tensors, f'{own}.norm_out'),
      'cross_attention': {
        'query': {'kernel': kernel[:, :width], 'bias': bias[:width]},
        'key_value': {'kernel': kernel[:, width:], 'bias': bias[width:]},
        'projection': cross['projection'],
      },
    }
  grid = tuple(int(n) for n in out['grid'])
  return [oracles.boq(x, grid, params) for x in out['tokens'].features]


def _deep_vg(tensors, out):
  start = 'model_state_dict.module.aggregation.'
  params = {
    'assign': _layer(tensors, f'{start}conv'),
    'centers': tensors[f'{start}centroids'],
  }
  return [oracles.netvlad(x, params) for x in out['tokens'].features]


class BackboneTest(absltest.TestCase):
  """Other names of encoders that are known by theirs."""

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'model.safetensors'

  def _release(self, tensors, size):
    release = _release(tensors)
    model = release.make_encoder(tensors)
    return model, release.encoder_variables(tensors, model, size, 'it')

  def test_a_numbered_resnet_is_that_of_torchvision(self):
    tensors = released_tensors.random(
      released_tensors.cosplace(50, 12, (8, 8, 8, 8))
    )
    model, found = self._release(tensors, (64, 64))
    numbers = {
      '0': 'conv1',
      '1': 'bn1',
      **{str(4 + i): f'layer{1 + i}' for i in range(4)},
    }
    named = {}
    for name, tensor in tensors.items():
      place, number, *rest = name.split('.')
      if place == 'backbone':
        named['.'.join([numbers[number], *rest])] = tensor
    safetensors_numpy.save_file(named, self.path)
    again, expected = resnet_lib.load_resnet(self.path)
    self.assertEqual(model, again)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  def test_a_gain_is_another_last_layer(self):
    shapes = released_tensors.salad(192, 2)
    tensors = released_tensors.random(shapes)
    model, found = self._release(tensors, (518, 518))
    start = 'backbone.model.'
    plain = {
      name.removeprefix(start): tensor
      for name, tensor in tensors.items()
      if name.startswith(start)
    }
    del plain['mask_token']
    for name in [name for name in plain if name.endswith('.gamma')]:
      gain = plain.pop(name)
      last = {'ls1': 'attn.proj', 'ls2': 'mlp.fc2'}[name.split('.')[2]]
      layer = name.rsplit('.', 2)[0] + f'.{last}'
      plain[f'{layer}.weight'] = gain[:, None] * plain[f'{layer}.weight']
      plain[f'{layer}.bias'] = gain * plain[f'{layer}.bias']
    safetensors_numpy.save_file(plain, self.path)
    again, expected = vit_lib.load_vit(self.path, (518, 518))
    self.assertEqual(model, again)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected
    )


NARROW = (8, 8, 16)
SMALL = {
  'cosplace': (
    released_tensors.cosplace(18, 12, (8, 8, 8, 16)),
    (64, 96),
    _cosplace,
  ),
  'eigenplaces': (
    released_tensors.cosplace(50, 12, (8, 8, 8, 8)),
    (64, 96),
    _cosplace,
  ),
  'cosplace_vgg': (
    released_tensors.cosplace_vgg(12, (8, 8, 8, 8, 16)),
    (64, 96),
    _cosplace,
  ),
  'salad': (
    released_tensors.salad(64, 2, 5, 6, 7, 20),
    (42, 56),
    _salad,
  ),
  'mixvpr': (
    released_tensors.mixvpr(6, 3, 4, 2, NARROW),
    (64, 64),
    _mixvpr,
  ),
  'boq_resnet': (
    released_tensors.boq_resnet(128, 5, 4, NARROW),
    (64, 96),
    _boq,
  ),
  'boq_dinov2': (
    released_tensors.boq_dinov2(64, 5, 4, 64, 2),
    (42, 56),
    _boq,
  ),
  'netvlad': (released_tensors.deep_vg(18, 5, NARROW), (64, 96), _deep_vg),
}


class SmallSizeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'whatever.safetensors'

  def _saved(self, name):
    shapes, size, _ = SMALL[name]
    tensors = released_tensors.random(shapes)
    safetensors_numpy.save_file(tensors, self.path)
    return tensors, size

  def _model(self, size, **fields):
    named = dict(name='published', checkpoint=str(self.path))
    defaults = dict(
      image=named,
      points=None,
      aggregator=named,
      dtype='float32',
      image_size=size,
      saliency='none',
    )
    return factory.make_model(**defaults | fields)

  @parameterized.named_parameters((name, name) for name in SMALL)
  def test_descriptors_are_those_of_the_formulas(self, name):
    tensors, size = self._saved(name)
    model = self._model(size)
    variables = published.load_variables(self.path, model)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *size, 3), np.uint8)
    found, out = jax.jit(lambda *args: model.apply(*args, side='image'))(
      variables, {'image': images}
    )
    expected = SMALL[name][2](tensors, jax.device_get(out))
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
    # Not the same for any image.
    self.assertGreater(np.abs(found[0] - found[1]).max(), 1e-4)
    self.assertEqual(published.normalization(self.path), published.IMAGENET)

  @parameterized.named_parameters((name, name) for name in SMALL)
  def test_strangers_and_missing_tensors_are_named(self, name):
    tensors, size = self._saved(name)
    model = self._model(size)
    start = 'model_state_dict.module.' if name == 'netvlad' else ''
    safetensors_numpy.save_file(
      tensors | {f'{start}backbone.adapter.weight': np.ones(3, np.float32)},
      self.path,
    )
    with self.assertRaisesRegex(ValueError, 'Unknown.*backbone.adapter.wei'):
      published.load_variables(self.path, model)
    ends = '.running_var', '.gamma', 'backbone.28.bias'
    last = max(k for k in tensors if k.endswith(ends))
    fewer = {k: v for k, v in tensors.items() if k != last}
    safetensors_numpy.save_file(fewer, self.path)
    with self.assertRaisesRegex(ValueError, 'Missing in it: '):
      published.load_variables(self.path, model)

  def test_a_checkpoint_is_read_once_and_then_forgotten(self):
    _, size = self._saved('salad')
    opened = self.enterContext(
      mock.patch.object(
        tensor_files.safetensors,
        'safe_open',
        wraps=tensor_files.safetensors.safe_open,
      )
    )
    read = []

    def remember(releases, tensors):
      read.append(weakref.ref(tensors))
      return find(releases, tensors)

    find = released.find
    self.enterContext(mock.patch.object(released, 'find', remember))
    published.load_variables(self.path, self._model(size))
    opened.assert_called_once()
    gc.collect()
    self.assertGreater(len(read), 2)
    self.assertEqual({tensors() for tensors in read}, {None})

  def test_the_encoder_of_a_release_goes_with_any_aggregator(self):
    self._saved('salad')
    model = self._model((42, 56), aggregator=dict(name='vlad', num_clusters=3))
    variables = published.load_variables(self.path, model)
    words = variables['map']['image_aggregator']['vocabulary']
    self.assertTrue(np.isnan(words).all())

  def test_another_form_of_the_same_aggregator_is_named(self):
    self._saved('salad')
    model = self._model((42, 56), aggregator=dict(name='salad', hidden=20))
    with self.assertRaisesRegex(ValueError, "SALAD with {'num_clusters': 5"):
      published.load_variables(self.path, model)

  def test_another_size_than_the_authors_is_said_or_refused(self):
    self._saved('mixvpr')
    self.assertEqual(published.image_size(self.path), (64, 64))
    with self.assertRaisesRegex(ValueError, "one size, its authors' 64 x 64"):
      self._model((64, 96))
    self.assertIsNotNone(self._model((64, 64)))
    self._saved('salad')
    self.assertEqual(published.image_size(self.path), (322, 322))
    with self.assertLogs(level='WARNING') as logs:
      self.assertIsNotNone(self._model((42, 70)))
    self.assertIn(
      'images of 322 x 322, and image_size is 42 x 70', *logs.output
    )
    with self.assertNoLogs(level='WARNING'):
      self._model((322, 322))

  def test_an_encoder_alone_has_no_aggregator(self):
    shapes = released_tensors.named_resnet('', 50, NARROW)
    tensors = released_tensors.random(shapes)
    safetensors_numpy.save_file(tensors, self.path)
    self.assertIsNone(published.image_size(self.path))
    with self.assertRaisesRegex(ValueError, 'no aggregator that is known'):
      published.make_aggregator(self.path)

  def test_an_encoder_that_is_not_known_is_named(self):
    tensors = {
      'backbone.0.weight': np.ones((8, 3, 3, 3), np.float32),
      'backbone.0.bias': np.ones(8, np.float32),
      'backbone.1.weight': np.ones(8, np.float32),
      'aggregation.1.p': np.ones(1, np.float32),
      'aggregation.3.weight': np.ones((4, 8), np.float32),
      'aggregation.3.bias': np.ones(4, np.float32),
    }
    safetensors_numpy.save_file(tensors, self.path)
    with self.assertRaisesRegex(ValueError, 'neither a ResNet nor a VGG'):
      published.make_encoder(self.path)

  def test_options_of_an_encoder_are_fixed_by_its_release(self):
    self._saved('salad')
    with self.assertRaisesRegex(ValueError, 'no block; it takes no options'):
      published.make_encoder(self.path, block=1)

  def test_sizes_follow_the_tensors(self):
    self._saved('boq_dinov2')
    made = published.make_aggregator(self.path)
    self.assertEqual(made, queries.BoQ(64, num_queries=5, rows=4, hidden=256))


if __name__ == '__main__':
  absltest.main()
