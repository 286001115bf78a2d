# SPDX-License-Identifier: Apache-2.0
"""`pip install .` gives a library that stands alone."""

import ast
import pathlib
import subprocess
import sys
import tomllib

from absl.testing import absltest
from absl.testing import parameterized

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Distributions by the module that they install, where the names differ.
_MODULES = {
  'orbax-checkpoint': 'orbax',
  'pillow': 'PIL',
  'pyyaml': 'yaml',
  'absl-py': 'absl',
  'tensorflow-datasets': 'tensorflow_datasets',
}
# Asked for inside of one function, which says what to install.
_OPTIONAL = {
  *('ultralytics', 'huggingface_hub', 'h5py', 'trimesh', 'embreex'),
  'pypcd4',
}

_ALONE = """
import importlib, pkgutil, sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in {blocked!r}:
      raise ModuleNotFoundError(f'{{name}} is blocked')

sys.meta_path.insert(0, Blocked())
import i2ploc
for module in pkgutil.walk_packages(i2ploc.__path__, 'i2ploc.'):
  if not module.name.startswith('i2ploc.report.'):
    importlib.import_module(module.name)
"""

_POSE = """
import numpy as np
from i2ploc.geometry import lens
from i2ploc.robust import absolute_pose

rng = np.random.default_rng(0)
points = rng.uniform(-2, 2, (40, 3)) + [0, 0, 6]
camera = np.array([[500, 0, 320], [0, 500, 240], [0, 0, 1.0]])
pixels = points @ camera.T
pixels = pixels[:, :2] / pixels[:, 2:]
pixels[:10] = rng.uniform(0, 480, (10, 2))
found = absolute_pose.absolute_pose(
  points, pixels, lens.Lens('pinhole', camera), threshold=1.0
)
assert found.valid, found.reason
assert found.inliers[10:].all()
"""


def _project():
  return tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def _modules(requirements):
  names = (name.split('>')[0].split('=')[0] for name in requirements)
  return {_MODULES.get(name, name) for name in names}


def _third_party(*tops):
  """Top-level modules from elsewhere, by the first file that imports them."""
  own = {'i2ploc', 'input_pipeline', 'configs'}
  found = {}
  for top in tops:
    path = ROOT / top
    for file in sorted(path.rglob('*.py')) if path.is_dir() else [path]:
      for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
          names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
          names = [str(node.module)]
        for name in names:
          found.setdefault(name.split('.')[0], file.relative_to(ROOT))
  return {
    name: str(file)
    for name, file in found.items()
    if name not in own | _OPTIONAL | set(sys.stdlib_module_names)
  }


class RequirementsTest(absltest.TestCase):
  def test_what_the_library_imports_is_required(self):
    extras = _project()['optional-dependencies']
    known = _modules(_project()['dependencies'] + extras['weights'])
    pages = _modules(extras['report'])
    for name, file in _third_party('i2ploc').items():
      allowed = known | pages if file.startswith('i2ploc/report') else known
      self.assertIn(name, allowed, file)

  def test_what_the_program_imports_is_required(self):
    extras = _project()['optional-dependencies']
    known = _modules(_project()['dependencies'] + extras['data'])
    found = _third_party('input_pipeline', 'configs', 'main.py')
    for name, file in found.items():
      self.assertIn(name, known, file)

  def test_nothing_is_required_in_vain(self):
    extras = _project()['optional-dependencies']
    used = set(_third_party('i2ploc', 'input_pipeline', 'configs', 'main.py'))
    required = _project()['dependencies'] + extras['report'] + extras['data']
    # Written by tensorflow-datasets, as which it is imported.
    self.assertEqual(_modules(required) - used, {'array_record'})


class LibraryTest(parameterized.TestCase):
  def test_it_needs_neither_the_program_nor_the_extras(self):
    project = _project()
    blocked = {'tensorflow', 'torch', 'input_pipeline', 'configs', 'main'}
    for extra in project['optional-dependencies'].values():
      blocked |= _modules(extra)
    code = _ALONE.format(blocked=blocked) + _POSE
    done = subprocess.run(
      [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])


if __name__ == '__main__':
  absltest.main()
