# SPDX-License-Identifier: Apache-2.0
"""The training loop: takes iterators and callables, builds nothing.

A step is: when due plan new batches; train; and when due log, evaluate, save,
in this order. What is on disk at a checkpoint is therefore complete up to its
step, and a run that was killed at any moment continues from its newest
checkpoint to the parameters, the best checkpoint and the metrics of an
undisturbed run.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import signal
import threading
from typing import Any
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

import jax
import numpy as np

from i2ploc.errors import InputError
from i2ploc.training import checkpoint as checkpoint_lib
from i2ploc.training import metric_writer
from i2ploc.training import state as state_lib
from i2ploc.training import step as step_lib

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Batches(Protocol):
  """An endless iterator of batches that knows and can take its position."""

  def __next__(self) -> Mapping[str, Any]:
    """Returns the next batch."""

  def get_state(self) -> Any:
    """Returns the position: after the last batch that was returned."""

  def set_state(self, state: Any) -> None:
    """Continues from a position."""


@runtime_checkable
class PlannedBatches(Batches, Protocol):
  """Batches that are planned in rounds, with the model as it then is.

  Its state contains the plan of the round and not only the position in it: a
  run that continues inside of a round no longer has the model that planned it.
  """

  def refresh(self, variables: Mapping[str, Any]) -> None:
    """Plans a new round; the next batch is its first.

    The same variables and the same state give the same plan: a run that was
    saved at the end of a round plans the next one when it continues.

    Args:
      variables: the averaged ones, see `state.averaged_variables`. Their
        arrays are gone after the next step: what is kept has to be copied.
    """


class Evaluator(Protocol):
  """Measures variables."""

  def run(self, variables: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields names and values."""


class Interrupted(SystemExit):
  """A signal ended the run after a step that was saved.

  Not caught, it ends the process with the exit status of the signal.
  """


class _Finished(NamedTuple):
  """A step whose numbers may still be on the device."""

  step: int
  metrics: step_lib.Metrics
  batch_ids: dict[str, Any]


def train(
  state: state_lib.TrainState,
  batches: Batches,
  train_step: step_lib.TrainStep,
  *,
  num_steps: int,
  evaluators: Iterable[Evaluator],
  eval_every: int,
  best_metric: str,
  checkpoints: checkpoint_lib.Checkpoints,
  save_every: int,
  writer: metric_writer.MetricWriter,
  log_every: int = 10,
  id_keys: Sequence[str] = (),
  refresh_every: int = 0,
  started: Callable[[], None] = lambda: None,
) -> state_lib.TrainState:
  """Trains up to `num_steps`, from the newest checkpoint if there is one.

  Evaluates the averaged parameters, keeps the best of them by `best_metric`,
  and saves at every multiple of `save_every`, at the end, and when SIGTERM or
  Ctrl-C asks to stop (a second Ctrl-C stops at once). On return all
  checkpoints are on disk.

  Args:
    state: the initial state; it is donated.
    batches: the data; its position is saved and restored.
    train_step: see `step.make_train_step`.
    num_steps: the step at which training ends.
    evaluators: run at every multiple of `eval_every` and at the end.
    eval_every: steps.
    best_metric: the name under which an evaluator yields the value that
      chooses the best checkpoint. Must not be measured on test data.
    checkpoints: where to save and where to continue from.
    save_every: steps.
    writer: takes the metrics.
    log_every: steps between two lines of training metrics.
    id_keys: the batch's integer keys that name its readings in an error.
    refresh_every: steps of a round of planned batches, see `PlannedBatches`: a
      new one is planned before every step whose number, from 0, is a multiple.
      0 for batches that are not planned.
    started: called before the first step, once a checkpoint to continue from
      has turned out to fit state and data.

  Returns:
    The final state.

  Raises:
    Interrupted: a signal came; the same command continues.
    InputError: the loss, its gradient or the update is not finite, the data
      ended, an interval is not positive, a key of `id_keys` or `best_metric`
      does not exist, the checkpoint belongs to another model, or
      `refresh_every` does not suit the batches.
  """
  evaluators = tuple(evaluators)
  _check_intervals(
    num_steps=num_steps,
    eval_every=eval_every,
    save_every=save_every,
    log_every=log_every,
  )
  planned = _planned(batches, refresh_every)
  state = _resume(state, batches, checkpoints, writer, started)
  step, unchecked, metrics = int(state.step), None, {}
  with _signals() as received, contextlib.ExitStack() as stack:
    stack.callback(checkpoints.wait)
    while step < num_steps:
      if planned is not None and step % refresh_every == 0:
        planned.refresh(state_lib.averaged_variables(state))
      batch = _next_batch(batches, step, id_keys)
      state, on_device = train_step(state, batch)
      # The step before is read while this one runs, so the device never waits.
      if unchecked is not None:
        metrics = _checked(unchecked, checkpoints)
        writer.progress(step, num_steps, metrics, writer.tick(step))
      step += 1
      unchecked = _Finished(
        step, on_device, {key: batch[key] for key in id_keys}
      )
      stop = bool(received)
      at_end = step == num_steps
      save = at_end or stop or step % save_every == 0
      evaluate = at_end or step % eval_every == 0
      log = at_end or step % log_every == 0
      # A plan by a model that is not finite would hide why.
      plan = planned is not None and step % refresh_every == 0
      if not (save or evaluate or log or plan):
        continue
      metrics = _checked(unchecked, checkpoints)
      unchecked = None
      rate = writer.tick(step)
      writer.progress(step, num_steps, metrics, rate)
      if log:
        writer.write(step, metrics | {'steps_per_second': rate})
      if evaluate and evaluators:
        _evaluate(state, step, evaluators, best_metric, checkpoints, writer)
      if save:
        checkpoints.save(state, batches.get_state(), metrics)
      if stop:
        break
    if received:
      _interrupt(received[0], step, num_steps, checkpoints, writer)
  return state


def _check_intervals(**intervals):
  wrong = {name: value for name, value in intervals.items() if value < 1}
  if wrong:
    raise InputError(f'{wrong}: intervals are counted in steps, at least 1.')


def _planned(batches, refresh_every):
  """The batches, if rounds of them have to be planned."""
  if refresh_every < 0:
    raise InputError(
      f'refresh_every={refresh_every} counts steps: expected at least 1, or 0'
      ' for batches that are not planned.'
    )
  if not refresh_every:
    return None
  if not isinstance(batches, PlannedBatches):
    raise InputError(
      f'refresh_every={refresh_every}, but {type(batches).__name__} has no'
      ' `refresh`: use 0, or batches of a planner.'
    )
  return batches


def _resume(state, batches, checkpoints, writer, started):
  """Continues from the newest checkpoint, or starts."""
  if not checkpoints.steps():
    started()
    writer.resume(0)
    return state
  restored = checkpoints.restore_latest(state)
  batches.set_state(restored.data_state)
  started()
  writer.resume(restored.step)
  writer.announce(f'Continuing {checkpoints.directory} at step {restored.step}')
  return restored.value


def _next_batch(batches, step, id_keys):
  try:
    batch = next(batches)
  except StopIteration:
    raise InputError(
      f'The data ended after step {step}: training needs an endless iterator,'
      ' and at least one full batch of readings.'
    ) from None
  missing = sorted(set(id_keys) - set(batch))
  if missing:
    raise InputError(
      f'The batch has no {missing}, only {sorted(batch)}: correct id_keys.'
    )
  return batch


def _checked(finished, checkpoints):
  """Fetches a step's metrics; raises ValueError if they are not finite."""
  metrics = jax.device_get(finished.metrics)
  if not metrics.pop('all_finite'):
    steps = checkpoints.steps()
    saved = (
      f'The last finite checkpoint is {checkpoints.directory} step {steps[-1]}'
      if steps
      else 'No checkpoint was saved before'
    )
    ids = ', '.join(
      f'{key}={np.asarray(value).tolist()}'
      for key, value in finished.batch_ids.items()
    )
    values = ', '.join(
      f'{key}={metrics[key]}'
      for key in ('loss', 'gradient_norm', 'update_norm')
    )
    raise InputError(
      f'Training stopped at step {finished.step}: {values}. {saved}. The batch'
      f' was {ids or "not named (id_keys is empty)"}. Look at these readings,'
      ' lower the learning rate, or lengthen the warm-up.'
    )
  return {name: float(value) for name, value in metrics.items()}


def _evaluate(state, step, evaluators, best_metric, checkpoints, writer):
  """Measures the averaged parameters and keeps them if they are the best."""
  variables = state_lib.averaged_variables(state)
  results = {}
  for evaluator in evaluators:
    results |= {k: float(v) for k, v in evaluator.run(variables)}
  if best_metric not in results:
    raise InputError(
      f'best_metric={best_metric!r}, but the evaluators yield'
      f' {sorted(results)}: name one of these.'
    )
  writer.write(step, results)
  value = results[best_metric]
  best = checkpoints.save_best(state, value, results)
  writer.announce(
    f'step {step}: {best_metric} {value:.4g}' + (' (best so far)' * best)
  )


def _interrupt(number, step, num_steps, checkpoints, writer):
  checkpoints.wait()
  writer.announce(
    f'{signal.Signals(number).name}: stopped and saved after step'
    f' {step}/{num_steps} in {checkpoints.directory}. The same command'
    ' continues from there.'
  )
  raise Interrupted(128 + number)


@contextlib.contextmanager
def _signals():
  """Collects the signals that ask to stop."""
  received = []
  # Python delivers signals to the main thread only, and lets only it ask.
  if threading.current_thread() is not threading.main_thread():
    yield received
    return

  def handle(number, _):
    received.append(number)
    # A second SIGTERM means nothing: timeout(1) sends each signal twice.
    if number == signal.SIGINT:
      signal.signal(number, signal.default_int_handler)

  before = {n: signal.signal(n, handle) for n in _STOP_SIGNALS}
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
