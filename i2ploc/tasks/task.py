# SPDX-License-Identifier: Apache-2.0
"""What a task hands to the verbs; it never calls them.

Everything that reads data or a workdir is a function: a config whose model
cannot be is refused before any data is read or generated.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

import jax

from i2ploc.localization import answer
from i2ploc.localization import query_files
from i2ploc.training import loop
from i2ploc.training import optimizer as optimizer_lib
from i2ploc.training import step as step_lib


class Training(NamedTuple):
  """What is trained, on what, and how it is measured.

  Attributes:
    init: key to fresh variables, 'params' among them.
    batches: opens the data: a resumable iterator, see `training.loop`.
    embed: see `training.step.make_train_step`.
    loss: see `training.step.make_train_step`.
    optimizer: see `training.optimizer`.
    evaluators: opens those whose numbers choose the best checkpoint.
    id_keys: fields of a batch that say which readings it holds.
    prepare: fresh variables to those that a run starts from, where these follow
      from data.
    refresh_every: steps of a round of batches that are planned, see
      `training.loop`; 0 for batches that need no plan.
  """

  init: Callable[[jax.Array], Mapping[str, Any]]
  batches: Callable[[], loop.Batches]
  embed: step_lib.Embed
  loss: step_lib.Loss
  optimizer: optimizer_lib.Optimizer
  evaluators: Callable[[], Sequence[loop.Evaluator]]
  id_keys: tuple[str, ...]
  prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda x: x
  refresh_every: int = 0


class Evaluation(NamedTuple):
  """What was measured.

  Attributes:
    results: numbers by flat name, for results.json.
    lines: a table of them for people.
    facts: what a page must say of how they were measured, plain: `radius` and
      `unit` of a right answer; `similarity`, the `scale` that a model learned
      for it, and `confidence`, where that comes from, in words.
    skipped: what took no part, a line each.
  """

  results: Mapping[str, float]
  lines: Iterable[str] = ()
  facts: Mapping[str, Any] = {}
  skipped: Sequence[str] = ()


class Localizer(NamedTuple):
  """What answers queries.

  Attributes:
    stages: in order, see `localization.answer`.
    camera: that queries come from unless they bring their own; None where no
      calibration is needed.
    with_boxes: whether queries come with the boxes of a detector.
    num_images: that a query holds at most, the last ones of its folder.
  """

  stages: tuple[answer.Stage, ...]
  camera: query_files.Camera | None = None
  with_boxes: bool = False
  num_images: int = 1


class Task(NamedTuple):
  """A config's model, map and questions; None where there is nothing to do.

  Attributes:
    training: what to train.
    evaluate: measures on the test data; leaves in the workdir what a report
      shows beside the results.
    index: makes the map in the workdir, and says how large it is.
    localizer: opens the map of a workdir.
  """

  training: Training | None = None
  evaluate: Callable[[pathlib.Path], Evaluation] | None = None
  index: Callable[[pathlib.Path], str] | None = None
  localizer: Callable[[pathlib.Path], Localizer] | None = None
