# SPDX-License-Identifier: Apache-2.0
"""Losses, aggregators and solvers show by an example how they are called."""

from collections.abc import Iterator
import doctest
import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

from i2ploc import geometry
from i2ploc import localization
from i2ploc import losses
from i2ploc import models
from i2ploc import retrieval
from i2ploc import robust

# How solvers of `geometry` are named.
_SOLVER_NAME = re.compile(
  r'g?p\d\w*|fit\w*|align\w*'
  r'|from_(homography|two|three|four|five|six|seven|eight)'
)


def _modules(package: ModuleType) -> Iterator[ModuleType]:
  for info in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):
    yield importlib.import_module(info.name)


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
  """Functions and classes that `module` itself defines."""
  for name, value in vars(module).items():
    if getattr(value, '__module__', None) == module.__name__:
      if not name.startswith('_') and callable(value):
        yield name, inspect.unwrap(value)


def _parameters(value: Any) -> tuple[str, ...]:
  return tuple(inspect.signature(value).parameters)


def is_loss(value: Any) -> bool:
  """A value, perhaps with metrics, of the descriptors of two sides."""
  sides = [name.partition('_')[0] for name in _parameters(value)[:2]]
  if not inspect.isfunction(value) or sides != ['a', 'b']:
    return False
  returned = str(inspect.signature(value).return_annotation)
  return 'dict' in returned or returned.endswith("jax.Array'>")


def is_aggregator(value: Any) -> bool:
  """A linen module that makes descriptors of tokens."""
  return (
    inspect.isclass(value)
    and issubclass(value, nn.Module)
    and 'tokens' in _parameters(value.__call__)
  )


def is_robust_solver(value: Any) -> bool:
  """A function that searches for a model among outliers."""
  return inspect.isfunction(value) and 'search' in _parameters(value)


def subjects() -> list[tuple[str, Any]]:
  """All that must have an example, by full name."""
  found = []
  for package, wanted in (
    (losses, is_loss),
    (robust, is_robust_solver),
  ):
    for module in _modules(package):
      found += [(module, n, v) for n, v in _public(module) if wanted(v)]
  for module in _modules(models):
    found += [(module, n, v) for n, v in _public(module) if is_aggregator(v)]
  for module in _modules(geometry):
    found += [
      (module, n, v) for n, v in _public(module) if _SOLVER_NAME.fullmatch(n)
    ]
  return [(f'{module.__name__}.{name}', value) for module, name, value in found]


def documented_modules() -> list[str]:
  """Modules whose examples are run: those of all subjects, and some more."""
  found = {name.rpartition('.')[0] for name, _ in subjects()}
  for package in (losses, models, retrieval, localization):
    for module in _modules(package):
      if '>>> ' in inspect.getsource(module):
        found.add(module.__name__)
  return sorted(found)


class ExamplesTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name, v) for name, v in subjects())
  def test_there_is_an_example(self, name, value):
    self.assertIn('>>> ', inspect.getdoc(value) or '', name)

  @parameterized.named_parameters((name, name) for name in documented_modules())
  def test_the_examples_give_what_they_say(self, name):
    found = doctest.testmod(
      importlib.import_module(name), optionflags=doctest.ELLIPSIS
    )
    self.assertEqual(found.failed, 0)
    self.assertGreater(found.attempted, 0)


class SubjectsTest(parameterized.TestCase):
  def test_each_kind_is_found(self):
    names = {name for name, _ in subjects()}
    self.assertContainsSubset(
      (
        'i2ploc.losses.contrastive.info_nce',
        'i2ploc.losses.metric.triplet',
        'i2ploc.losses.relational.hyperbolic_consistency',
        'i2ploc.models.vlad.NetVLAD',
        'i2ploc.models.projection.ProjectionHead',
        'i2ploc.robust.planes.plane',
        'i2ploc.geometry.p3p.p3p',
        'i2ploc.geometry.fundamental.from_seven',
        'i2ploc.geometry.alignment.align_triangles',
      ),
      names,
    )

  @parameterized.parameters(
    'i2ploc.losses.contrastive.check_pairs',
    'i2ploc.losses.contrastive.batch_metrics',
    'i2ploc.models.aggregators.SectorHead',
    'i2ploc.robust.planes.retract',
    'i2ploc.geometry.camera.project',
  )
  def test_what_stands_for_itself_needs_none(self, name):
    self.assertNotIn(name, {name for name, _ in subjects()})


if __name__ == '__main__':
  absltest.main()
