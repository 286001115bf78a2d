# SPDX-License-Identifier: Apache-2.0
"""Success of robust estimation by sampler, score and budget, measured.

Every cell of a grid is a number of planted problems, the same for every sampler
and score, solved on device by one call.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.evaluation import planted_problems
from i2ploc.geometry import arrays
from i2ploc.robust import consensus
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import samplers
from i2ploc.robust import scoring

SAMPLERS = ('prosac', 'uniform')
_RESAMPLES = 1000

Row = Mapping[str, Any]


class Method(NamedTuple):
  """What is measured by one compiled program.

  Attributes:
    problem: of `planted_problems.KINDS`.
    num_data: N.
    sampler: of `SAMPLERS`.
    score: of `scoring.COSTS`.
  """

  problem: str
  num_data: int
  sampler: str
  score: str


class Cell(NamedTuple):
  """The data and the budget of a measurement.

  Attributes:
    outliers: share of the data.
    noise: standard deviation, pixels or centimetres.
    budget: samples, at most.
  """

  outliers: float
  noise: float
  budget: int


class Grid(NamedTuple):
  """All combinations of methods and cells.

  Attributes:
    problem: see `Method`.
    num_data: see `Method`.
    sampler: see `Method`.
    score: see `Method`.
    outliers: see `Cell`.
    noise: see `Cell`.
    budget: see `Cell`.
  """

  problem: Sequence[str]
  num_data: Sequence[int]
  sampler: Sequence[str]
  score: Sequence[str]
  outliers: Sequence[float]
  noise: Sequence[float]
  budget: Sequence[int]

  def methods(self) -> Iterator[Method]:
    """All methods."""
    return itertools.starmap(Method, itertools.product(*self[:4]))

  def cells(self) -> Iterator[Cell]:
    """The cells of each method."""
    return itertools.starmap(Cell, itertools.product(*self[4:]))

  @property
  def num_cells(self) -> int:
    """Number of cells of all methods together."""
    return math.prod(map(len, self))


class Trials(NamedTuple):
  """How every cell is measured.

  Attributes:
    threshold: residual of an inlier, at most, pixels or centimetres.
    num_problems: B, planted per cell.
    seed: of problems and samples.
  """

  threshold: float
  num_problems: int
  seed: int


class Limited(NamedTuple):
  """The first samples of a sampler; another limit does not compile anew.

  Attributes:
    sampler: of the samples.
    num_samples: int32 scalar, the limit.
  """

  sampler: samplers.Sampler
  num_samples: jax.Array

  @property
  def num_data(self) -> arrays.Array:
    """See `samplers.Sampler`."""
    return self.sampler.num_data

  def draw(
    self, key: jax.Array, start: jax.Array, count: int, size: int
  ) -> tuple[jax.Array, jax.Array]:
    """See `samplers.Sampler.draw`."""
    indices, valid = self.sampler.draw(key, start, count, size)
    number = start + jnp.arange(count, dtype=jnp.int32)
    return indices, valid & (number < self.num_samples)

  def needed(
    self,
    found: jax.Array,
    draws: jax.Array,
    size: int,
    confidence: float,
    chance: float,
  ) -> arrays.Array:
    """See `samplers.Sampler.needed`."""
    return self.sampler.needed(found, draws, size, confidence, chance)


def _identity(row):
  """The cell of a row."""
  return tuple(row[name] for name in (*Method._fields, *Cell._fields))


def _sampler(method, sample_size):
  if method.sampler not in SAMPLERS:
    raise InputError(f'unknown sampler {method.sampler!r}; known: {SAMPLERS}')
  if method.num_data < sample_size:
    raise InputError(
      f'num_data={method.num_data}, but a sample holds {sample_size}'
    )
  if method.sampler == 'uniform':
    return samplers.Uniform(jnp.asarray(method.num_data, jnp.int32))
  return samplers.make_prosac(method.num_data, sample_size, method.num_data)


def make_solver(
  problem: problem_lib.Problem,
  sampler: samplers.Sampler,
  settings: consensus.Settings,
) -> compilation.Jitted:
  """A function that solves many problems in one call.

  Args:
    problem: what to solve.
    sampler: of the samples.
    settings: how to search.

  Returns:
    `data [B, N], threshold, budget, keys [B] -> estimates [B]`.
  """

  def solve(data, threshold, budget, keys):
    same = Limited(sampler, budget), threshold
    same = jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (len(keys), *leaf.shape)), same
    )
    return consensus.estimate_each(
      problem, same[0], data, same[1], keys, settings
    )

  return compilation.jit(solve)


def rows(
  grid: Grid,
  trials: Trials,
  settings: consensus.Settings,
  saved: Sequence[Row] = (),
) -> Iterator[Row]:
  """Measures cell after cell.

  Args:
    grid: what to measure.
    trials: problems per cell, their threshold and seed.
    settings: of the search; score and draws are those of the grid.
    saved: rows that are not measured again.

  Yields:
    A row of plain values: the cell (the fields of Method and Cell), `success`,
    percent, with its 95 % Wilson interval, `error`, the median of successes,
    with its 95 % bootstrap interval, None where there is no success, `draws`,
    the mean number of samples, `valid`, percent, `hypotheses_per_second`,
    `milliseconds` per problem and `compile_seconds`, once per method.

  Raises:
    InputError: unknown names, or fewer data than a sample holds.
  """
  known = {_identity(row): row for row in saved}
  # All methods are checked first: an error must not appear after an hour.
  _check(grid, trials)
  methods = [
    (method, _prepared(method, grid, settings)) for method in grid.methods()
  ]
  for method, (kind, sampler, found) in methods:
    solver = None
    for cell in grid.cells():
      row = method._asdict() | cell._asdict()
      if _identity(row) in known:
        yield known[_identity(row)]
        continue
      planted = planted_problems.plant(
        kind,
        method.num_data,
        cell.outliers,
        cell.noise,
        trials.num_problems,
        trials.seed,
      )
      arguments = _arguments(kind, planted, cell, trials)
      if solver is None:
        solver, seconds = _compiled(kind, sampler, found, arguments)
      started = time.perf_counter()
      answers = jax.block_until_ready(solver(*arguments))
      elapsed = time.perf_counter() - started
      row |= _measures(kind, planted, cell, answers, elapsed, trials.seed)
      yield row | {'compile_seconds': seconds}


def _check(grid, trials):
  for name, values in grid._asdict().items():
    if not len(values):
      raise InputError(f'grid.{name} is empty: give at least one value')
  if min(grid.budget) < 1 or trials.num_problems < 1 or trials.threshold <= 0:
    raise InputError(
      f'budget={min(grid.budget)}, num_problems={trials.num_problems} and '
      f'threshold={trials.threshold:g} must be positive'
    )


def _prepared(method, grid, settings):
  """Kind, sampler and settings of a method."""
  kind = planted_problems.kind_of(method.problem)
  scoring.check_score(method.score)
  sampler = _sampler(method, kind.problem.sample_size)
  return (
    kind,
    sampler,
    settings._replace(score=method.score, max_draws=max(grid.budget)),
  )


def _arguments(kind, planted, cell, trials):
  keys = jax.random.split(jax.random.key(trials.seed), trials.num_problems)
  arguments = (
    planted.data,
    np.float32(trials.threshold * kind.unit),
    np.int32(cell.budget),
    keys,
  )
  return jax.device_put(arguments)


def _compiled(kind, sampler, settings, arguments):
  """The solver of a method, and the seconds that it took to compile."""
  started = time.perf_counter()
  jitted: Any = make_solver(kind.problem, sampler, settings)
  solver = jitted.lower(*arguments).compile()
  seconds = time.perf_counter() - started
  jax.block_until_ready(solver(*arguments))  # a first run is slower
  return solver, seconds


def _measures(kind, planted, cell, answers, elapsed, seed):
  """The measured fields of a row, of the answers to B problems."""
  answers = jax.device_get(answers)
  right, errors = planted_problems.success(
    kind, answers.model, planted.truth, answers.valid
  )
  draws = np.minimum(answers.num_draws, cell.budget)
  low, high = _wilson(int(right.sum()), len(right))
  error, error_low, error_high = _median(errors[right], seed)
  return {
    'success': 100 * float(right.mean()),
    'success_low': 100 * low,
    'success_high': 100 * high,
    'error': error,
    'error_low': error_low,
    'error_high': error_high,
    'draws': float(draws.mean()),
    'valid': 100 * float(answers.valid.mean()),
    'hypotheses_per_second': float(draws.sum() / elapsed),
    'milliseconds': 1e3 * elapsed / len(right),
  }


def _wilson(count, total):
  """95 % interval of a share (Wilson, 1927)."""
  z = 1.96
  share = count / total
  middle = share + z**2 / (2 * total)
  half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
  scale = 1 + z**2 / total
  return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def _median(values, seed):
  """The median and its 95 % bootstrap interval; three None without values."""
  if not len(values):
    return None, None, None
  rng = np.random.default_rng(seed)
  drawn = rng.choice(values, (_RESAMPLES, len(values)))
  low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
  return float(np.median(values)), float(low), float(high)
