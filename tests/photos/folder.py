# SPDX-License-Identifier: Apache-2.0
"""A folder of small photos for tests."""

import pathlib
import tempfile

from absl.testing import parameterized
from PIL import Image


class FolderTest(parameterized.TestCase):
  """With a temporary `root`."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='photos_'))
    )

  def save(self, name, value=0, size=(20, 30), exif=None) -> pathlib.Path:
    """A grey photo (H, W)."""
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new('RGB', size[::-1], (value,) * 3)
    image.save(path, exif=exif or Image.Exif())
    return path

  def write(self, name, *lines) -> pathlib.Path:
    """A text file."""
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(line + '\n' for line in lines), 'utf-8')
    return path

  def refuse(self, message, run, *args, error=ValueError, **options):
    """Expects an error of one line."""
    with self.assertRaisesRegex(error, message) as context:
      run(*args, **options)
    self.assertNotIn('\n', str(context.exception))
