# SPDX-License-Identifier: Apache-2.0
"""How to look for a model: numpy in, numpy out, over `consensus`.

A search puts data in the order of their scores, pads them to a capacity that
one program serves, and looks for a model on the device, in float32. What it
finds is fitted on all data (`final`), and weighed against chance (`evidence`).
"""

from collections.abc import Sequence
import functools
import math
import operator
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.robust import consensus
from i2ploc.robust import evidence
from i2ploc.robust import final
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result
from i2ploc.robust import samplers
from i2ploc.robust import scoring
from i2ploc.robust import stopping

SAMPLERS = ('auto', 'uniform', 'prosac', 'exhaustive')
# 'auto' tries every sample where there are no more than one run would draw.
_FEW_SAMPLES = 1024
# Data of the smallest program, and how many times as many the next one has.
_CAPACITY, _GROWTH = 4096, 4
# Turns after which a search that is not over asks whether it can still succeed,
# and their finalists.
_FIRST_TURNS, _FIRST_FINALISTS = 16, 16
# Second searches among the inliers, if the deviation of their noise is less
# than that part of the threshold; their scale is so many deviations.
_SHARPENINGS, _SHARPER, _SCALE, _LEAST_SCALE = 2, 0.5, 1.5, 1e-4
# From the median of residuals to the deviation.
_TO_DEVIATION = 1.4826
# Random data, of which few agree with any model.
_NUM_RANDOM = 8192
# A rival is not looked for among so many times more data than agree with the
# first model.
_MOST_OTHERS = 3
# Problems that an accelerator solves together.
_TOGETHER = 256
# Samples of so few data cost so little that as many are always drawn: a model
# may be right and yet not be told from chance.
_SMALL_SAMPLE, _CHEAP_DRAWS = 3, 20_000


class Measurements(NamedTuple):
  """The data of one problem.

  Attributes:
    data: pytree of numpy arrays [N], as the problem reads them.
    usable: [N] bool, data that may be used; None for all.
    scores: [N], higher is better; None if unknown.
  """

  data: Any
  usable: np.ndarray | None = None
  scores: np.ndarray | None = None


class Search(NamedTuple):
  """How to look for a model.

  Attributes:
    sampler: of `SAMPLERS`. 'auto' tries every sample of few data; else it is
      'prosac' where data have scores, and 'uniform' where they have none.
    seed: of the samples.
    settings: of the consensus; another value compiles anew.
    rival: whether to look for a second model among the data that do not agree
      with the first; without it no confidence knows of one.
  """

  sampler: str = 'auto'
  seed: int = 0
  settings: consensus.Settings = consensus.DEFAULT
  rival: bool = True

  def find(
    self,
    problem: problem_lib.Problem,
    data: Any,
    threshold: float,
    *,
    usable: np.ndarray | None = None,
    scores: np.ndarray | None = None,
  ) -> result.Result:
    """The model that most data agree with.

    Args:
      problem: what to solve.
      data: pytree of numpy arrays [N], as the problem reads them.
      threshold: residual of an inlier, at most.
      usable: [N] bool, data that may be used; None for all.
      scores: [N], higher is better; they turn 'auto' into PROSAC.

    Returns:
      The result. Too few or degenerate data are no error: they give
      `valid=False` and a reason.

    Raises:
      InputError: lengths that differ, data that are not finite, a threshold
        that is not positive, an unknown sampler or cost.
    """
    measurements = Measurements(data, usable, scores)
    (found,) = self.find_each(problem, [measurements], threshold)
    return found

  def find_each(
    self,
    problem: problem_lib.Problem,
    measurements: Sequence[Measurements],
    threshold: float,
  ) -> list[result.Result]:
    """`find` for many problems in one call.

    Their sizes may differ, but all are padded to the largest and share a
    sampler: group problems of very different sizes.

    Args:
      problem: what to solve.
      measurements: of B problems.
      threshold: residual of an inlier, at most.

    Returns:
      B results.

    Raises:
      InputError: see `find`.
    """
    checked = [_checked(one, threshold, self) for one in measurements]
    found = [_too_few(problem, one) for one in checked]
    places = [i for i, answer in enumerate(found) if answer is None]
    if places:
      some = [checked[i] for i in places]
      results = _results(problem, some, threshold, self)
      for i, one in zip(places, results, strict=True):
        found[i] = one
    return found


DEFAULT = Search()


def capacity(num_data: int) -> int:
  """The number of data to pad to."""
  size = _CAPACITY
  while size < num_data:
    size *= _GROWTH
  return size


class _Checked(NamedTuple):
  """Sound measurements as columns [L, N]; the rows to use, best ones first."""

  columns: np.ndarray
  tree: Any
  rows: np.ndarray
  has_scores: bool

  @property
  def data(self):
    """The usable data, in the caller's order."""
    kept = self.columns
    if len(self.rows) < kept.shape[1]:
      kept = kept[:, np.sort(self.rows)]
    return jax.tree.unflatten(self.tree, list(kept))


def _results(problem, checked, threshold, search):
  """The results of problems that have enough data."""
  asked = [_asked(problem, one, threshold, search) for one in checked]
  states = _searched(problem, checked, asked, threshold, search.settings)
  states = [
    _sharpened(problem, *one, threshold, search.settings)
    for one in zip(checked, asked, states, strict=True)
  ]
  return [
    _result(problem, *one, threshold, search)
    for one in zip(checked, states, strict=True)
  ]


def _asked(problem, checked, threshold, search):
  """What the device is given; columns [L, N] for data, a seed for the key."""
  name = _sampler_name(search.sampler, problem.sample_size, checked)
  columns = _padded(checked.columns[:, checked.rows])
  count, size = len(checked.rows), columns.shape[1]
  return consensus.Asked(
    _sampler(name, count, problem.sample_size, size),
    columns,
    np.int32(count),
    np.float32(threshold),
    np.float32(scoring.NO_SCALE),
    np.uint32(search.seed),
  )


def _padded(columns):
  """Columns [L, N], in float32 and padded to a capacity."""
  count = columns.shape[1]
  padded = np.zeros((len(columns), capacity(count)), np.float32)
  padded[:, :count] = columns
  return padded


def _short(settings):
  """Settings of a search that has just begun, or is not to be long."""
  batch = min(settings.first_batch, settings.batch)
  finalists = min(settings.finalists, _FIRST_FINALISTS)
  return settings._replace(batch=batch, finalists=finalists)


def _searched(problem, checked, asked, threshold, settings):
  """States at the end of searches, on the host.

  A search that is not over after its first draws ends where it would have found
  any model with so many inliers that it could be valid: images that show
  nothing in common need not cost more than all others.
  """
  states = [
    _begin(problem, one.tree, mine.data.shape[1])
    for one, mine in zip(checked, asked, strict=True)
  ]
  first = _short(settings)
  limits = [min(settings.max_draws, _FIRST_TURNS * first.batch)] * len(asked)
  states = _advanced(problem, checked, asked, states, limits, first)
  left, limits = [], []
  for i, (one, state) in enumerate(zip(checked, states, strict=True)):
    if state.draws < min(state.needed, settings.max_draws):
      left.append(i)
      limits.append(_limit(problem, one, state, threshold, settings))
  again = _advanced(
    problem,
    *([some[i] for i in left] for some in (checked, asked, states)),
    limits,
    settings,
  )
  for i, state in zip(left, again, strict=True):
    states[i] = state
  return states


def _sharpened(problem, checked, asked, state, threshold, settings):
  """The state after a second search, among the inliers of the first.

  Within a threshold that is several times as wide as the noise, the best model
  may be one that is not near the truth. A few samples of inliers alone, whose
  models are judged at the noise that these show, find the better ones
  (Chum et al., LO-RANSAC, 2003, with a scale that is measured here).
  """
  if not np.isfinite(state.cost):
    return state
  columns = checked.columns[:, checked.rows]
  data = jax.tree.unflatten(checked.tree, list(columns))
  for turn in range(_SHARPENINGS):
    model = jax.tree.map(np.float64, state.model)
    parts = np.asarray(problem.residual(model, data)) / threshold**2
    agree = parts < 1
    count = int(np.count_nonzero(agree))
    if count <= problem.sample_size + 1:
      return state
    near = parts[agree]
    noise = math.sqrt(
      max(
        np.partition(near, count // 2)[count // 2] * _TO_DEVIATION**2,
        near.mean() / 9,
      )
    )
    if noise > _SHARPER and not turn:
      return state
    scale = max(_SCALE * noise, _LEAST_SCALE)
    order = np.argsort(~agree, kind='stable')
    mine = asked._replace(
      sampler=_sampler(
        'uniform', count, problem.sample_size, asked.data.shape[1]
      ),
      data=_padded(columns[:, order]),
      scale=np.float32(scale),
    )
    cost = scoring.scaled(np.minimum(parts, 1.0), scale).sum()
    begin = _begin(problem, checked.tree, asked.data.shape[1])._replace(
      draws=np.int32(turn)
    )
    (found,) = _advanced(
      problem, [checked], [mine], [begin], [turn + 1], _short(settings)
    )
    if found.cost < cost:
      state = state._replace(model=found.model)
  return state


def _limit(problem, checked, state, threshold, settings):
  """Draws that would have found any model which can be valid."""
  if not np.isfinite(state.cost):
    return settings.max_draws
  data, model = checked.data, jax.tree.map(np.float64, state.model)
  agree = np.asarray(problem.residual(model, data)) < threshold**2
  share = evidence.chance(
    problem,
    model,
    data,
    evidence.chosen(data, agree),
    threshold,
    _NUM_RANDOM,
  )
  least = evidence.smallest_valid(
    len(checked.rows), problem.sample_size, share, problem.models_per_sample
  )
  needed = stopping.ransac_draws(
    least, len(checked.rows), problem.sample_size, settings.confidence
  )
  if problem.sample_size <= _SMALL_SAMPLE:
    needed = max(needed, _CHEAP_DRAWS)
  return int(min(settings.max_draws, needed))


def _advanced(problem, checked, asked, states, limits, settings):
  """States after more draws, on the host."""
  if jax.default_backend() == 'cpu':
    return [
      jax.device_get(
        _advance(problem, one.tree, settings, mine, state, np.int32(limit))
      )
      for one, mine, state, limit in zip(
        checked, asked, states, limits, strict=True
      )
    ]
  found = []
  for first in range(0, len(asked), _TOGETHER):
    part = slice(first, first + _TOGETHER)
    given = [
      (mine, state, np.int32(limit))
      for mine, state, limit in zip(
        asked[part], states[part], limits[part], strict=True
      )
    ]
    # Always as many: another number of problems would be another program.
    given += [given[0][:-1] + (np.int32(0),)] * (_TOGETHER - len(given))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *given)
    together = _advance_each(problem, checked[0].tree, settings, *stacked)
    together = jax.device_get(together)
    found += [
      jax.tree.map(operator.itemgetter(i), together)
      for i in range(len(asked[part]))
    ]
  return found


def _advance_one(problem, tree, settings, asked, state, limit):
  asked = asked._replace(
    data=jax.tree.unflatten(tree, list(asked.data)),
    key=jax.random.key(asked.key),
  )
  return consensus.advance(problem, settings, asked, state, limit)


_STATIC = ('problem', 'tree', 'settings')
_advance = compilation.jit(_advance_one, quick=True, static_argnames=_STATIC)


@functools.partial(compilation.jit, quick=True, static_argnames=_STATIC)
def _advance_each(problem, tree, settings, *given):
  return jax.vmap(functools.partial(_advance_one, problem, tree, settings))(
    *given
  )


@functools.lru_cache(maxsize=64)
def _begin(problem, tree, size):
  """The state before the first draw, as numpy arrays."""
  data = jax.tree.unflatten(
    tree, [jax.ShapeDtypeStruct((size,), np.float32)] * tree.num_leaves
  )
  state = jax.eval_shape(functools.partial(consensus.start, problem), data)
  state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
  endless = np.asarray(np.inf, np.float32)
  return state._replace(cost=endless, needed=endless)


def _result(problem, checked, state, threshold, search):
  """The result of one problem, in the caller's order."""
  total, num_draws = checked.columns.shape[1], int(state.draws)
  if not np.isfinite(state.cost):
    size = problem.sample_size
    reason = f'no sample of {size} gave a model'
    return result.failure(total, problem.dof, reason, num_draws)
  data = checked.data
  model = jax.tree.map(np.float64, state.model)
  fit = final.fit(problem, model, data, threshold)
  proof = evidence.weigh(
    problem, fit.model, data, fit.inliers, threshold, fit.covariance
  )
  rival, other = None, None
  if proof.valid and search.rival:
    rival, other = _rival(problem, checked, fit, proof, threshold, search)
  chosen = np.zeros(total, bool)
  chosen[np.sort(checked.rows)] = fit.inliers
  return result.Result(
    proof.model,
    chosen,
    fit.covariance if proof.valid else np.full_like(fit.covariance, np.inf),
    fit.cost,
    num_draws,
    proof.valid,
    proof.reason,
    rival,
    evidence.confidence(proof, other),
  )


def _rival(problem, checked, fit, proof, threshold, search):
  """The best model of the other data, and its evidence; None, None if chance.

  One turn: a rival that it misses has few of the other data.
  """
  apart = evidence.others(problem, fit.model, checked.data, threshold)
  count = int(np.count_nonzero(apart))
  least = evidence.smallest_valid(
    count, problem.sample_size, proof.share, problem.models_per_sample
  )
  if least > count or count > _MOST_OTHERS * proof.num_inliers:
    return None, None
  others = _Checked(
    checked.columns[:, np.sort(checked.rows)[apart]],
    checked.tree,
    np.arange(count),
    False,
  )
  asked = _asked(problem, others, threshold, search)
  begin = _begin(problem, checked.tree, asked.data.shape[1])
  (state,) = _advanced(
    problem, [others], [asked], [begin], [1], _short(search.settings)
  )
  if state.found[-1] < least:
    return None, None
  model = jax.tree.map(np.float64, state.model)
  second = final.fit(problem, model, others.data, threshold)
  other = evidence.weigh(
    problem,
    second.model,
    others.data,
    second.inliers,
    threshold,
    second.covariance,
  )
  if not other.valid:
    return None, None
  return result.Rival(other.model, int(second.inliers.sum())), other


def _sampler_name(name, size, checked):
  if name != 'auto':
    return name
  if math.comb(len(checked.rows), size) <= _FEW_SAMPLES:
    return 'exhaustive'
  return 'prosac' if checked.has_scores else 'uniform'


@functools.lru_cache(maxsize=1024)
def _sampler(name, num_data, size, capacity):
  """A sampler on the device, which nothing had to be compiled for."""
  number = np.asarray(num_data, np.int32)
  listed = samplers.Exhaustive(
    number, np.zeros((_FEW_SAMPLES, size), np.int32), np.int32(0)
  )
  if name == 'exhaustive':
    most = max(math.comb(num_data, size), _FEW_SAMPLES)
    listed = samplers.make_exhaustive(num_data, size, most)
  if name == 'prosac':
    drawn = samplers.make_prosac(num_data, size, capacity)
  else:
    drawn = samplers.make_uniform(num_data, capacity)
  return jax.device_put(samplers.Either(listed, drawn))


def _too_few(problem, checked):
  """The result where there are no data beyond a sample; else None."""
  count, size = len(checked.rows), problem.sample_size
  if count > size:
    return None
  reason = f'{count} data, but more than {size} are needed'
  return result.failure(checked.columns.shape[1], problem.dof, reason)


def _checked(measurements, threshold, search):
  """Measurements with their rows in order; InputError for unsound ones."""
  if search.sampler not in SAMPLERS:
    raise InputError(f'unknown sampler {search.sampler!r}; known: {SAMPLERS}')
  scoring.check_score(search.settings.score)
  if not (np.isfinite(threshold) and threshold > 0):
    raise InputError(f'the threshold must be positive, not {threshold}')
  data, usable, scores = measurements
  leaves, tree = jax.tree.flatten(data)
  named = [np.asarray(leaf, np.float64) for leaf in leaves]
  total = len(named[0])
  usable = np.ones(total, bool) if usable is None else np.asarray(usable, bool)
  if scores is not None:
    named.append(np.asarray(scores, np.float64))
  for column in [*named, usable]:
    if column.shape != (total,):
      raise InputError(
        f'data, scores and usable must be [N]: {list(column.shape)} beside '
        f'{total} data'
      )
  columns = np.stack(named)
  spoiled = usable & ~np.isfinite(columns).all(axis=0)
  if spoiled.any():
    raise InputError(
      f'{spoiled.sum()} data or scores are not finite, first row '
      f'{np.flatnonzero(spoiled)[0]}; leave them out'
    )
  rows = np.flatnonzero(usable)
  if scores is not None:
    rows = rows[np.argsort(-columns[-1, rows], kind='stable')]
  return _Checked(columns[: len(leaves)], tree, rows, scores is not None)
