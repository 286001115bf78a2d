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
# Draws after which a search that is not over asks whether it can still succeed.
_FIRST_DRAWS = 1024
# Second searches among the inliers, if the deviation of their noise is less
# than that part of the threshold; their scale is so many deviations, and wider
# for few data.
_SHARPENINGS, _SHARPER, _SCALE, _LEAST_SCALE = 2, 0.5, 1.5, 1e-4
_WIDER = 3.0
# The deviation from the median of residuals, and its least part of their root
# mean square.
_TO_DEVIATION, _LEAST_RATIO = 1.4826, 1 / 3
# Random data, of which few agree with any model.
_NUM_RANDOM = 8192
# A rival is looked for among at least half as many data as agree with the first
# model, so that it can matter, and at most three times as many, so that a few
# samples find it.
_LEAST_OTHERS, _MOST_OTHERS = 0.5, 3.0
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

    Args:
      problem: what to solve.
      measurements: of B problems; their sizes may differ.
      threshold: residual of an inlier, at most.

    Returns:
      B results.

    Raises:
      InputError: see `find`.
    """
    given = [_checked(one, threshold, self) for one in measurements]
    found = [_too_few(problem, one) for one in given]
    places = [i for i, answer in enumerate(found) if answer is None]
    results = _results(problem, [given[i] for i in places], threshold, self)
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


class _Given(NamedTuple):
  """The usable data of a problem, best first.

  Attributes:
    columns: [L, N], the leaves of the data.
    tree: their structure.
    rows: [N], their places in the caller's order.
    total: of the caller's data.
    has_scores: whether the order means something.
  """

  columns: np.ndarray
  tree: Any
  rows: np.ndarray
  total: int
  has_scores: bool

  @property
  def data(self) -> Any:
    """The pytree of [N]."""
    return jax.tree.unflatten(self.tree, list(self.columns))

  def only(self, chosen: np.ndarray) -> '_Given':
    """Some of the data [N], in no order that means anything."""
    columns, rows = self.columns[:, chosen], self.rows[chosen]
    return self._replace(columns=columns, rows=rows, has_scores=False)


def _results(problem, given, threshold, search):
  """The results of problems that have enough data."""
  states = _searched(problem, given, threshold, search)
  states = _sharpened(problem, given, states, threshold, search)
  fitted = [
    _fitted(problem, *one, threshold) for one in zip(given, states, strict=True)
  ]
  rivals = _rivals(problem, given, fitted, threshold, search)
  return [
    _result(problem, *one)
    for one in zip(given, states, fitted, rivals, strict=True)
  ]


def _asked(problem, given, threshold, search):
  """What the device is given; columns [L, N] for data, a seed for the key."""
  name = _sampler_name(search.sampler, problem.sample_size, given)
  count = len(given.rows)
  columns = _padded(given.columns)
  return consensus.Asked(
    _sampler(name, count, problem.sample_size, columns.shape[1]),
    columns,
    np.int32(count),
    np.float32(threshold),
    np.float32(scoring.NO_SCALE),
    np.uint32(search.seed % 2**32),
  )


def _padded(columns):
  """Columns [L, N], in float32 and padded to a capacity."""
  count = columns.shape[1]
  padded = np.zeros((len(columns), capacity(count)), np.float32)
  padded[:, :count] = columns
  return padded


def _searched(problem, given, threshold, search):
  """States at the end of searches, on the host.

  A search that is not over after its first draws ends where it would have found
  any model with so many inliers that it could be valid: images that show
  nothing in common need not cost more than all others.
  """
  settings = search.settings
  trees = [one.tree for one in given]
  asked = [_asked(problem, one, threshold, search) for one in given]
  limit = min(settings.max_draws, _FIRST_DRAWS)
  states = [_start(problem, mine.data.shape[1]) for mine in asked]
  limits = [limit] * len(given)
  states = _advanced(problem, settings, trees, asked, states, limits)
  left = [
    i
    for i, (one, state) in enumerate(zip(given, states, strict=True))
    if state.draws < min(state.needed, _most_draws(problem, one, search))
  ]
  limits = [
    _limit(problem, given[i], states[i], threshold, settings) for i in left
  ]
  rest = ([part[i] for i in left] for part in (trees, asked, states))
  found = _advanced(problem, settings, *rest, limits)
  for i, state in zip(left, found, strict=True):
    states[i] = state
  return states


def _most_draws(problem, given, search):
  """Draws after which nothing new comes, or no more are wanted."""
  most, size = search.settings.max_draws, problem.sample_size
  if _sampler_name(search.sampler, size, given) == 'exhaustive':
    most = min(most, math.comb(len(given.rows), size))
  return most


def _limit(problem, given, state, threshold, settings):
  """Draws that would have found any model which can be valid."""
  if not np.isfinite(state.cost):
    return settings.max_draws
  data, model = given.data, _on_host(state.model)
  agree = np.asarray(problem.residual(model, data)) < threshold**2
  share = evidence.chance(
    problem,
    model,
    data,
    evidence.chosen(data, agree),
    threshold,
    _NUM_RANDOM,
  )
  count, size = len(given.rows), problem.sample_size
  least = evidence.smallest_valid(count, size, share, problem.models_per_sample)
  needed = stopping.ransac_draws(least, count, size, settings.confidence)
  if size <= _SMALL_SAMPLE:
    needed = max(needed, _CHEAP_DRAWS)
  return int(min(settings.max_draws, needed))


def _sharpened(problem, given, states, threshold, search):
  """States after a second search, among the inliers of the first.

  Within a threshold that is several times as wide as the noise, the best model
  may be one that is not near the truth. A few samples of inliers alone, whose
  models are judged at the noise that these show, find the better ones
  (Chum et al., LO-RANSAC, 2003, with a scale that is measured here).
  """
  states = list(states)
  for turn in range(_SHARPENINGS):
    asked = [
      _asked_again(problem, *one, threshold, search, _SHARPER + turn)
      for one in zip(given, states, strict=True)
    ]
    places = [i for i, one in enumerate(asked) if one is not None]
    if not places:
      break
    some = [asked[i] for i in places]
    found = _advanced(
      problem,
      search.settings,
      [given[i].tree for i in places],
      [one for one, _ in some],
      [
        _start(problem, asked[i][0].data.shape[1])._replace(
          draws=np.int32(turn)
        )
        for i in places
      ],
      [turn + 1] * len(places),
    )
    for i, state, (_, cost) in zip(places, found, some, strict=True):
      if state.cost < cost:
        states[i] = states[i]._replace(model=state.model)
  return states


def _asked_again(problem, given, state, threshold, search, most):
  """What to ask among the inliers, and the cost of the model that is known.

  None where these are few, or where the deviation of their noise, in
  thresholds, is more than `most`: then the threshold is as good a scale.
  """
  if not np.isfinite(state.cost):
    return None
  limit = threshold**2
  squared = np.asarray(problem.residual(_on_host(state.model), given.data))
  agree = squared < limit
  count = int(np.count_nonzero(agree))
  if count <= problem.sample_size + 1:
    return None
  near = squared[agree] / limit
  middle = np.partition(near, count // 2)[count // 2] * _TO_DEVIATION**2
  noise = math.sqrt(max(middle, near.mean() * _LEAST_RATIO**2))
  # A model of few data has followed their noise, and the best of many models
  # more so: the scale of few is wider.
  noise /= math.sqrt(1 - problem.sample_size / count)
  if noise > most:
    return None
  few = 1 + _WIDER * problem.sample_size / count
  scale = max(_SCALE * few * noise, _LEAST_SCALE)
  # Samples are of the inliers, which come first; all data judge the models.
  order = np.argsort(~agree, kind='stable')
  uniform = search._replace(sampler='uniform')
  asked = _asked(problem, given.only(order), threshold, uniform)
  sampler = _sampler('uniform', count, problem.sample_size, asked.data.shape[1])
  asked = asked._replace(sampler=sampler, scale=np.float32(scale))
  costs = scoring.COSTS[search.settings.score](squared, limit)
  return asked, scoring.scaled(costs, scale).sum()


def _fitted(problem, given, state, threshold):
  """The last fit and the evidence for it; None where no sample gave a model."""
  if not np.isfinite(state.cost):
    return None
  data = given.data
  fit = final.fit(problem, _on_host(state.model), data, threshold)
  proof = evidence.weigh(
    problem, fit.model, data, fit.inliers, threshold, fit.covariance
  )
  return fit, proof


def _rivals(problem, given, fitted, threshold, search):
  """The best models of the other data, and their evidence; None if chance.

  A few draws: a rival that they miss has few of the other data.
  """
  found = [None] * len(given)
  if not search.rival:
    return found
  asked = [
    fit and _asked_others(problem, one, *fit, threshold)
    for one, fit in zip(given, fitted, strict=True)
  ]
  places = [i for i, one in enumerate(asked) if one]
  others = [asked[i] for i in places]
  # A turn of a list of all samples would try those of the first data alone.
  uniform = search._replace(sampler='uniform')
  parts = [_asked(problem, one, threshold, uniform) for one, _ in others]
  states = _advanced(
    problem,
    search.settings,
    [one.tree for one, _ in others],
    parts,
    [_start(problem, part.data.shape[1]) for part in parts],
    [1] * len(others),
  )
  for i, state, (one, least) in zip(places, states, others, strict=True):
    if state.found[-1] < least:
      continue
    fit, proof = _fitted(problem, one, state, threshold)
    if proof.valid:
      count = int(np.count_nonzero(fit.inliers))
      found[i] = result.Rival(proof.model, count), proof
  return found


def _asked_others(problem, given, fit, proof, threshold):
  """The other data, and the inliers that a rival needs; None if too few."""
  if not proof.valid:
    return None
  apart = evidence.others(problem, fit.model, given.data, threshold)
  count = int(np.count_nonzero(apart))
  least = evidence.smallest_valid(
    count, problem.sample_size, proof.share, problem.models_per_sample
  )
  if least > count:
    return None
  share = count / max(proof.num_inliers, 1)
  if not _LEAST_OTHERS < share < _MOST_OTHERS:
    return None
  return given.only(apart), least


def _result(problem, given, state, fitted, rival):
  """The result of one problem, in the caller's order."""
  num_draws = int(state.draws)
  if fitted is None:
    reason = f'no sample of {problem.sample_size} gave a model'
    return result.failure(given.total, problem.dof, reason, num_draws)
  fit, proof = fitted
  inliers = np.zeros(given.total, bool)
  inliers[given.rows] = fit.inliers
  covariance = fit.covariance
  if not proof.valid:
    covariance = np.full_like(covariance, np.inf)
  second, other = rival or (None, None)
  return result.Result(
    model=proof.model,
    inliers=inliers,
    covariance=covariance,
    cost=fit.cost,
    num_draws=num_draws,
    valid=proof.valid,
    reason=proof.reason,
    rival=second,
    confidence=evidence.confidence(proof, other),
  )


def _on_host(model):
  """A model in float64."""
  return jax.tree.map(np.float64, model)


@functools.lru_cache(maxsize=64)
def _start(problem, capacity):
  """`consensus.start` on the device, where it stays."""
  return jax.device_put(consensus.start(problem, capacity))


def _advanced(problem, settings, trees, asked, states, limits):
  """States after more draws, on the host."""
  given = [
    (mine, state, np.int32(limit))
    for mine, state, limit in zip(asked, states, limits, strict=True)
  ]
  if jax.default_backend() == 'cpu':
    return [
      jax.tree.map(np.asarray, _advance(problem, tree, settings, *one))
      for tree, one in zip(trees, given, strict=True)
    ]
  found = [None] * len(given)
  # Problems of one capacity share a program.
  sizes = [one.data.shape[1] for one in asked]
  for size in sorted(set(sizes)):
    places = [i for i, other in enumerate(sizes) if other == size]
    for first in range(0, len(places), _TOGETHER):
      some = places[first : first + _TOGETHER]
      stacked = _stacked([given[i] for i in some])
      together = jax.device_get(
        _advance_each(problem, trees[0], settings, *stacked)
      )
      for row, place in enumerate(some):
        found[place] = jax.tree.map(operator.itemgetter(row), together)
  return found


def _stacked(given):
  """Always as many: another number of problems would be another program."""
  *most, _ = given[0]
  given = [*given, *[(*most, np.int32(0))] * (_TOGETHER - len(given))]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *given)


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


def _sampler_name(name, size, given):
  if name != 'auto':
    return name
  if math.comb(len(given.rows), size) <= _FEW_SAMPLES:
    return 'exhaustive'
  return 'prosac' if given.has_scores else 'uniform'


def _sampler(name, num_data, size, capacity):
  """A sampler of numpy arrays and of tables that stay on the device."""
  if name == 'prosac':
    growth = _growth(num_data, size, capacity)
  else:
    growth = _no_growth(capacity)
  listed = _nothing_listed(size)
  if name == 'exhaustive':
    most = max(math.comb(num_data, size), _FEW_SAMPLES)
    listed = samplers.make_exhaustive(num_data, size, most)
  number = np.asarray(num_data, np.int32)
  return samplers.Either(listed, samplers.Prosac(number, growth))


@functools.lru_cache(maxsize=256)
def _growth(num_data, size, capacity):
  return jax.device_put(samplers.make_prosac(num_data, size, capacity).growth)


@functools.cache
def _no_growth(capacity):
  return jax.device_put(samplers.make_uniform(0, capacity).growth)


@functools.cache
def _nothing_listed(size):
  nothing = np.asarray(0, np.int32)
  samples = jax.device_put(np.zeros((_FEW_SAMPLES, size), np.int32))
  return samplers.Exhaustive(nothing, samples, nothing)


def _too_few(problem, given):
  """The result where there are no data beyond a sample; else None."""
  count, size = len(given.rows), problem.sample_size
  if count > size:
    return None
  reason = f'{count} data, but more than {size} are needed'
  return result.failure(given.total, problem.dof, reason)


def _checked(measurements, threshold, search):
  """Usable data, best first; InputError for unsound ones."""
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
  rows = np.flatnonzero(usable)
  if len(rows) < total:
    columns = columns[:, rows]
  if not math.isfinite(columns.sum()):
    spoiled = ~np.isfinite(columns).all(axis=0)
    if spoiled.any():
      raise InputError(
        f'{spoiled.sum()} data or scores are not finite, first row '
        f'{rows[spoiled][0]}; leave them out'
      )
  if scores is not None:
    order = np.argsort(-columns[-1], kind='stable')
    columns, rows = columns[: len(leaves), order], rows[order]
  return _Given(columns, tree, rows, total, scores is not None)
