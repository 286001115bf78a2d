# SPDX-License-Identifier: Apache-2.0
"""Every row of the parity table, and that the table would tell."""

import contextlib
import io
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from benchmarks.parity_rows import comparison
from benchmarks.parity_rows import table
from tests import shared

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What needs more than the repository: a scan of KITTI, published weights.
OUTSIDE = (
  'liploc_realscan_range.npz',
  'published/dinov2_small',
  'published/efficientnet_lite0',
)


class ParityTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (module.name.replace(' ', '_'), module) for module in table.MODULES
  )
  def test_within_tolerance(self, module):
    try:
      rows = comparison.rows(module, table.find_folder(module))
    except FileNotFoundError as error:
      self.assertIn(module.reference, OUTSIDE)
      self.skipTest(str(error))
    self.assertNotEmpty(rows)
    beyond = [table.line(row) for row in rows if not row.ok]
    self.assertEmpty(beyond)


class DifferenceTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.25, 0.5, 0.25),
    (-0.5, 0.5, 1.0),
    (200.0, 100.0, 1.0),  # relative to 100
    (np.float32(0.1), 0.1, np.float64(np.float32(0.1)) - 0.1),
  )
  def test_is_absolute_up_to_one_and_relative_beyond(self, a, b, expected):
    found = comparison.difference([np.ones(3), a], [np.ones(3), b])
    self.assertAlmostEqual(found, expected, places=12)

  @parameterized.parameters(
    (np.ones(3), np.ones(2)),
    (np.ones((1, 3)), np.ones(3)),
    (np.full(3, np.nan), np.ones(3)),
    (np.ones(3), np.full(3, np.nan)),
    (np.full(3, np.nan), np.full(3, np.nan)),
    (np.full(3, np.inf), np.full(3, np.inf)),
    ({'a': np.ones(3)}, {'b': np.ones(3)}),
    ([np.ones(3)], [np.ones(3), np.ones(3)]),
  )
  def test_what_cannot_be_compared_is_infinitely_far(self, found, expected):
    self.assertEqual(comparison.difference(found, expected), np.inf)

  def test_the_worst_comparison_of_a_quantity_counts(self):
    def compare(path):
      self.assertEqual(path, pathlib.Path('golden/x.npz'))
      for value in (0.0, 0.3, 0.1):
        yield comparison.Comparison('values', value, 0.0, 0.2)
      yield comparison.Comparison('indices', np.arange(3), np.arange(3), 0.0)

    module = comparison.Module('part', 'x.npz', compare)
    values, indices = comparison.rows(module, pathlib.Path('golden'))
    self.assertEqual((values.difference, values.ok), (0.3, False))
    self.assertEqual((indices.difference, indices.ok), (0.0, True))
    self.assertIn('FAIL', table.line(values))
    self.assertIn('ok', table.line(indices))


class CommandTest(parameterized.TestCase):
  def _run(self, *args):
    return subprocess.run(
      [sys.executable, 'benchmarks/parity.py', *args],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )

  def test_a_row_beyond_its_tolerance_exits_with_one(self):
    golden = np.load(shared.GOLDEN / 'torch_bicubic.npz')
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    arrays = dict(golden)
    name = 'position embeddings'
    args = (f'--golden={folder}', f'--module={name}')
    np.savez(folder / 'torch_bicubic.npz', **arrays)
    good = self._run(*args, f'--json={folder / "good.json"}')
    self.assertEqual(good.returncode, 0, good.stderr)
    self.assertIn('2 rows, 0 beyond', good.stdout)
    self.assertIn('"ok": true', (folder / 'good.json').read_text())
    arrays['bicubic_aa0_7x10'] = arrays['bicubic_aa0_7x10'] + 1e-4
    np.savez(folder / 'torch_bicubic.npz', **arrays)
    bad = self._run(*args)
    self.assertEqual(bad.returncode, 1)
    self.assertIn('FAIL', bad.stdout)
    self.assertIn('2 rows, 1 beyond', bad.stdout)


class TableTest(absltest.TestCase):
  def test_an_unknown_module_is_named(self):
    message = r"unknown modules \['LIP'\]; known: \['Net"
    with self.assertRaisesRegex(ValueError, message):
      table.select(['LIP'])

  def test_outputs_that_are_nowhere_are_said_to_be_missing(self):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      rows = table.show(table.select(['DINOv2']), [pathlib.Path('/nowhere')])
    self.assertEmpty(rows)
    self.assertRegex(
      printed.getvalue(), 'DINOv2 +not compared: no dinov2_tiny in /nowhere'
    )


if __name__ == '__main__':
  absltest.main()
