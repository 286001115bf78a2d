# SPDX-License-Identifier: Apache-2.0
"""Every notebook runs from top to bottom."""

import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import nbclient
import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[1]


class NotebooksTest(absltest.TestCase):
  def test_notebooks_run(self):
    data = pathlib.Path(tempfile.gettempdir()) / 'i2ploc_test_data'
    # What the first of them trains, the others find.
    workdir = self.enterContext(tempfile.TemporaryDirectory())
    for path in sorted((ROOT / 'colab').glob('*.ipynb')):
      with self.subTest(path.name):
        notebook = nbformat.read(path, as_version=4)
        self.assertLessEqual(len(notebook.cells), 12)
        settings = {
          'I2PLOC_DATA': str(data),
          'I2PLOC_WORKDIR': workdir,
          'I2PLOC_STEPS': '4',
          'I2PLOC_PROBLEMS': '8',
        }
        with mock.patch.dict(os.environ, settings):
          nbclient.NotebookClient(
            notebook,
            timeout=600,
            resources={'metadata': {'path': str(path.parent)}},
          ).execute()
        figures = [
          output
          for cell in notebook.cells
          for output in cell.get('outputs', ())
          if 'image/png' in output.get('data', {})
        ]
        self.assertNotEmpty(figures)

  def test_notebooks_are_committed_without_outputs(self):
    for path in sorted((ROOT / 'colab').glob('*.ipynb')):
      for cell in nbformat.read(path, as_version=4).cells:
        self.assertEmpty(cell.get('outputs', ()), path)


if __name__ == '__main__':
  absltest.main()
