# SPDX-License-Identifier: Apache-2.0
"""Variables for tests without compiling a model's initialisation."""

from flax import linen as nn
import jax
import numpy as np

from i2ploc.models import towers as towers_lib

POSITIVE = ('scale', 'var', 'gamma', 'power')


def variables(model: nn.Module, *args, seed: int = 0) -> dict:
  """Random numpy variables of the shapes that `model.init` would give.

  Compiling the initialisers costs seconds a model, most of a test's time.
  """
  return _planted(jax.eval_shape(model.init, jax.random.key(0), *args), seed)


def towers(model: towers_lib.Towers, seed: int = 0) -> dict:
  """The same of all towers of a model."""
  return _planted(towers_lib.shapes(model), seed)


def _planted(shapes, seed):
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    value = rng.normal(0.0, 0.3, shape.shape)
    if path[-1].key == 'log_scale':
      value = np.log(1 / 0.07)
    elif path[-1].key in POSITIVE:
      value = 1.0 + 0.1 * np.abs(value)
    elif path[-1].key == 'kernel':
      value = value * 3.0 / np.sqrt(np.prod(shape.shape[:-1]))
    return np.asarray(value, shape.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes)
