# SPDX-License-Identifier: Apache-2.0
"""The interface between problems and the consensus, which knows no cameras.

Data are a pytree of arrays [N]: one number per leaf and datum, because that is
what vectorises. Models are a pytree too. All functions are written for one
model or one minimal sample. A search vmaps them with jax, in float32; the final
fit calls all but `solve` with numpy arrays, in float64, and gets such arrays
back (see `geometry.arrays`).
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax

from i2ploc.geometry import arrays

Model = Any
Data = Any
# Squared residual of a datum that a model cannot have made: beyond thresholds.
NEVER = 1e6
Array = arrays.Array


class Sides(NamedTuple):
  """What a datum consists of: a point, or a pair of points.

  Attributes:
    leaves: of the data, how many belong to each side, in their order.
    counted: sides in the unit of the residual: where two data are nearer there
      than the threshold, they are no more than one.
  """

  leaves: tuple[int, ...]
  counted: tuple[int, ...]


class Problem(NamedTuple):
  """Hypothesise, verify, refine.

  Attributes:
    sample_size: m, data of a minimal sample.
    models_per_sample: models that a batch of samples has room for, divided by
      its samples. At most the V slots of `solve`; less where a solver leaves
      most of them empty, because empty slots cost as much as models.
    dof: degrees of freedom of a model.
    example: gives some model, of numpy arrays: what a search begins with.
    solve: `sample -> models, valid`: a pytree like the data with leaves [m],
      to models with leading axis V and [V] bool. Models are finite, valid or
      not.
    residual: `model, data -> [N]`: squared residuals, finite. Where the model
      cannot have made the datum (a point behind the camera) they are `NEVER`.
    linearize: `model, data -> errors [E, N], jacobian [dof, E, N]`, for least
      squares: the sum of the squared errors over E is the residual wherever the
      model can have made the datum, and the Jacobian is their derivative by the
      step of `retract`, at zero, there. Finite everywhere.
    retract: `model, step [dof] -> model`: a nearby model. A zero step leaves
      the model as it is, except that rounding errors may be removed: a rotation
      is made orthonormal again.
    sides: of the data; None for points in the unit of the residual.
    degeneracy: `model, data, inliers [N], threshold -> reason, model`, in
      numpy: why the inliers leave the model undetermined, '' if they do not,
      and what they determine of it. None where inliers that are more than
      chance always do.
  """

  sample_size: int
  models_per_sample: int
  dof: int
  example: Callable[[], Model]
  solve: Callable[[Data], tuple[Model, jax.Array]]
  residual: Callable[[Model, Data], Array]
  linearize: Callable[[Model, Data], tuple[Array, Array]]
  retract: Callable[[Model, Array], Model]
  sides: Sides | None = None
  degeneracy: Callable[[Model, Data, Any, float], tuple[str, Model]] | None = (
    None
  )
