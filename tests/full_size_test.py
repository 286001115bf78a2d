# SPDX-License-Identifier: Apache-2.0
"""The full-size benchmark does what it says, and its peer is the release."""

import contextlib
import importlib.util
import io
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from benchmarks import full_size
from benchmarks import steps
from tests import shared

HAS_TORCH = importlib.util.find_spec('torch') is not None


def _tiny_config():
  config = full_size.make_config(released=True, remat=False, quick=True)
  config.model.image.depth = config.model.points.depth = 1
  config.model.points.num_groups = 40
  return config


class FullSizeTest(parameterized.TestCase):
  def test_given_farthest_points_the_descriptors_are_those_of_the_model(self):
    config = _tiny_config()
    batch = steps.make_batch(config, 1)
    samples, _ = full_size.time_grouping(config, batch['points'][0, :, :3])
    runs, temporary = full_size.serve_ours(
      'forward', config, batch, samples, weights=''
    )
    self.assertEqual(set(runs), set(temporary))
    towers = steps.make_towers(config)
    variables = towers.init(jax.random.key(0))
    expected = towers.embed('points')(variables, batch)
    np.testing.assert_allclose(runs['points'](), expected, atol=1e-6)
    # Other centres, another descriptor: the given ones are used.
    runs, _ = full_size.serve_ours('forward', config, batch, samples * 0, '')
    self.assertGreater(np.abs(runs['points']() - expected).max(), 1e-3)

  def test_the_table_shows_ratios_where_there_is_a_peer(self):
    numbers = {'farthest_points/ours/wall': 0.05}
    for kind, runs in full_size.RUNS.items():
      for name in ('ours', 'torch'):
        numbers[f'{kind}/{name}/peak'] = 2.0
        for run in runs:
          numbers[f'{run}/{name}/wall'] = 3.0 if name == 'ours' else 4.0
          numbers[f'{run}/{name}/cpu'] = 6.0
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      full_size.show_sample(numbers)
    lines = printed.getvalue().splitlines()
    self.assertRegex(lines[1], 'image branch, s +3.00 +4.00 +0.75$')
    self.assertRegex(lines[-1], 'farthest points, s +0.05$')


@unittest.skipUnless(HAS_TORCH, 'torch is not installed')
class PeerTest(absltest.TestCase):
  def test_the_peer_is_the_released_network(self):
    import safetensors.torch
    import torch

    from benchmarks import torch_saliency

    golden = np.load(shared.GOLDEN / 'saliency_full.npz')
    weights = shared.GOLDEN / 'saliency_full.safetensors'
    images, points = (
      torch.tensor(golden[name][:, 0]) for name in ('image', 'point_cloud')
    )
    np.testing.assert_array_equal(
      torch_saliency.farthest_point_sampling(points, 32),
      golden['eval_w/fps_idx'],
    )
    for fused in (True, False):
      model = torch_saliency.SaliencyI2PLoc(
        image_width=96,
        image_heads=6,
        num_patches=32,
        points_width=48,
        points_heads=3,
        depth=3,
        num_groups=32,
        group_size=8,
        pointnet_features=64,
        num_clusters=8,
        features=32,
        fused=fused,
      ).eval()
      model.load_state_dict(safetensors.torch.load_file(weights))
      with torch.no_grad():
        found = model.embed_image(images), model.embed_points(points)
      for side, descriptor in zip(('img', 'pts'), found, strict=True):
        expected = golden[f'eval_w/{side}_desc']
        np.testing.assert_allclose(descriptor, expected, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
