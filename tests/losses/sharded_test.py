# SPDX-License-Identifier: Apache-2.0
"""Losses over the devices of a mesh."""

import json
import os
import pathlib
import subprocess
import sys

from absl.testing import absltest
import jax
import numpy as np

from i2ploc.losses import sharded
from i2ploc.losses import tiled

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _mesh(name='data'):
  kinds = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((1,), (name,), axis_types=kinds)


class ShardedTest(absltest.TestCase):
  def test_eight_devices_agree_with_one_on_value_metrics_and_gradients(self):
    flags = '--xla_force_host_platform_device_count=8'
    result = subprocess.run(
      [sys.executable, '-m', 'tests.losses.eight_devices'],
      cwd=ROOT,
      env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    apart = json.loads(result.stdout)
    self.assertIn('39 rows over 8 devices', apart.pop('error'))
    self.assertLen(apart, 4)
    for case, difference in apart.items():
      self.assertLess(difference, 2e-6, case)

  def test_a_mesh_of_one_device_is_one_device(self):
    image, points = np.random.default_rng(0).normal(size=(2, 6, 4))

    def loss(image, mesh=None):
      given = {} if mesh is None else dict(mesh=mesh, axis_name='data')
      library = tiled if mesh is None else sharded
      return library.sigmoid(image, points, 2.0, -1.0, tile=4, **given)[0]

    expected = jax.jit(jax.value_and_grad(loss))(image)
    found = jax.jit(jax.value_and_grad(lambda x: loss(x, _mesh())))(image)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  def test_an_axis_that_the_mesh_lacks_is_named(self):
    rows = np.ones((4, 2), np.float32)
    with self.assertRaisesRegex(ValueError, "axis_name='data': .*'model'"):
      sharded.info_nce(rows, rows, 1.0, mesh=_mesh('model'), axis_name='data')


if __name__ == '__main__':
  absltest.main()
