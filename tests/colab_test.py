# SPDX-License-Identifier: Apache-2.0
"""Every notebook runs from top to bottom."""

import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / 'colab').glob('*.ipynb'))


def _cells(path: pathlib.Path) -> list[dict]:
  return json.loads(path.read_text())['cells']


def _run(path: pathlib.Path) -> None:
  """Executes the code of a notebook, one cell after the other.

  In this process: a kernel of its own would import and compile everything
  again.
  """
  namespace = {'__name__': '__main__'}
  for i, cell in enumerate(_cells(path)):
    if cell['cell_type'] == 'code':
      code = compile(''.join(cell['source']), f'{path.name}, cell {i}', 'exec')
      exec(code, namespace)


class NotebooksTest(absltest.TestCase):
  def test_notebooks_run(self):
    self.enterContext(mock.patch.object(sys, 'path', list(sys.path)))
    plt.switch_backend('agg')
    settings = {
      'I2PLOC_DATA': str(
        pathlib.Path(tempfile.gettempdir(), 'i2ploc_test_data')
      ),
      # What the first of them trains, the others find.
      'I2PLOC_WORKDIR': self.enterContext(tempfile.TemporaryDirectory()),
      'I2PLOC_STEPS': '4',
      'I2PLOC_PROBLEMS': '8',
      # Of no published weights: random ones stand in.
      'I2PLOC_ENCODER': 'offline',
    }
    self.enterContext(mock.patch.dict(os.environ, settings))
    self.assertNotEmpty(NOTEBOOKS)
    for path in NOTEBOOKS:
      with self.subTest(path.name):
        self.assertLessEqual(len(_cells(path)), 12)
        plt.close('all')
        with (
          contextlib.chdir(path.parent),
          contextlib.redirect_stdout(io.StringIO()),
        ):
          _run(path)
        self.assertNotEmpty(plt.get_fignums())
        plt.close('all')

  def test_notebooks_are_committed_without_outputs(self):
    for path in NOTEBOOKS:
      for cell in _cells(path):
        self.assertEmpty(cell.get('outputs', ()), path)


if __name__ == '__main__':
  absltest.main()
