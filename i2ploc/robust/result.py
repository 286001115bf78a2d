# SPDX-License-Identifier: Apache-2.0
"""The result of a robust estimate: the same fields for every problem."""

from collections.abc import Callable
from typing import Generic
from typing import NamedTuple
from typing import Self
from typing import TypeVar

import numpy as np

Model = TypeVar('Model')


class Rival(NamedTuple, Generic[Model]):
  """The best model of the data that are out of reach of the first one.

  Attributes:
    model: pytree of float64 arrays, as `Result.model`.
    num_inliers: data within the threshold.
  """

  model: Model
  num_inliers: int


class Result(NamedTuple, Generic[Model]):
  """A model and the evidence for it; data are in the caller's order.

  The functions of a problem return subclasses, whose properties name the model
  and its frames: `found.camera_from_map` is the `model` of an `AbsolutePose`,
  and None unless that is valid.

  Attributes:
    model: pytree of float64 arrays: the best one, trusted or not; None where no
      sample gave one.
    inliers: [N] bool, data within the threshold.
    covariance: [dof, dof] of the step of the problem's `retract` at the model,
      from the inliers' own residuals; infinite where these do not determine
      the model.
    cost: sum of min(r^2, t^2) / t^2 over the usable data; infinite without a
      model.
    num_draws: minimal samples drawn.
    valid: whether the model can be trusted, see `evidence`.
    reason: why not; empty if valid.
    rival: the best other model, where data that do not agree with this one
      support another more than chance would.
    confidence: from 0 to 1, the model's share of the support that it and its
      rival have beyond chance; 0 unless valid.
  """

  model: Model | None
  inliers: np.ndarray
  covariance: np.ndarray
  cost: float
  num_draws: int
  valid: bool
  reason: str
  rival: Rival[Model] | None = None
  confidence: float = 0.0

  @property
  def num_inliers(self) -> int:
    """Data within the threshold."""
    return int(np.sum(self.inliers))

  def changed(
    self,
    change: Callable[[Model], Model],
    step: np.ndarray | None = None,
  ) -> Self:
    """The result in other coordinates.

    Args:
      change: `model -> model` in these coordinates; of the rival's, too.
      step: [dof, dof], from steps at the model to those there; None if they
        are the same.
    """
    model, covariance, rival = self.model, self.covariance, self.rival
    if model is not None:
      model = change(model)
    if rival is not None:
      rival = rival._replace(model=change(rival.model))
    if step is not None and np.isfinite(covariance).all():
      covariance = step @ covariance @ step.T
    return self._replace(model=model, covariance=covariance, rival=rival)

  @property
  def trusted(self) -> Model | None:
    """The model; None unless `valid`."""
    return self.model if self.valid else None


def failure(num_data: int, dof: int, reason: str, num_draws: int = 0) -> Result:
  """The result where no model was found.

  Args:
    num_data: N.
    dof: degrees of freedom of a model.
    reason: why there is none.
    num_draws: minimal samples drawn.
  """
  return Result(
    model=None,
    inliers=np.zeros(num_data, bool),
    covariance=np.full((dof, dof), np.inf),
    cost=np.inf,
    num_draws=num_draws,
    valid=False,
    reason=reason,
  )
