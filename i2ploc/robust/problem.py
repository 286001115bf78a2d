# SPDX-License-Identifier: Apache-2.0
"""What a consensus needs to know of a problem, and nothing of cameras.

Data are a pytree of arrays [N]: one number per leaf and datum, because that is
what vectorises. Models are a pytree too. All functions are written for one
model or one minimal sample and vmapped by the caller.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax

Model = Any
Data = Any


class Problem(NamedTuple):
  """Hypothesise, verify, refine.

  Attributes:
    sample_size: m, data of a minimal sample.
    num_solutions: V, at most, of the solver.
    dof: degrees of freedom of a model.
    solve: `sample -> models, valid`: a pytree like the data with leaves [m],
      to models with leading axis V and [V] bool. Never NaN.
    residual: `model, data -> [N]`: squared residuals; infinite where the model
      cannot have made the datum (a point behind the camera).
    errors: `model, data -> [E, N]`: what `residual` is the squared length of,
      differentiable; for least squares.
    retract: `model, step [dof] -> model`: a model near by; zero changes
      nothing but rounding errors, of a rotation for one.
  """

  sample_size: int
  num_solutions: int
  dof: int
  solve: Callable[[Data], tuple[Model, jax.Array]]
  residual: Callable[[Model, Data], jax.Array]
  errors: Callable[[Model, Data], jax.Array]
  retract: Callable[[Model, jax.Array], Model]
