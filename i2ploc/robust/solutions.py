# SPDX-License-Identifier: Apache-2.0
"""The models of many minimal samples, without the empty slots of a solver.

A solver returns V slots per sample and seldom fills them all. Scoring costs far
more than moving, so the models of a batch are moved together, into an array
smaller than all slots. If a batch finds more models than fit, its last samples
do not count, and the caller draws on from there: a sample counts only if all
of its models are kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.robust import problem as problem_lib


class Solutions(NamedTuple):
  """The models of S samples.

  Attributes:
    models: pytree with leading axis R, sample by sample.
    valid: [R] bool, which of them are models.
    sample: int32 [R], the sample that a model is of.
    num_samples: int32, samples that count: all models of the first
      `num_samples` are here, and none of the others.
  """

  models: problem_lib.Model
  valid: jax.Array
  sample: jax.Array
  num_samples: jax.Array


def gather(
  models: problem_lib.Model, valid: jax.Array, models_per_sample: int
) -> Solutions:
  """The valid models of a batch, one after another.

  Args:
    models: pytree with leading axes [S, V].
    valid: [S, V] bool.
    models_per_sample: R / S; but there is room for the V models of one sample
      at least, so that one sample counts.
  """
  count, slots = valid.shape
  room = min(max(count * models_per_sample, slots), valid.size)
  models = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), models)
  if room == valid.size:
    sample = jnp.arange(valid.size, dtype=jnp.int32) // slots
    num_samples = jnp.asarray(count, jnp.int32)
    return Solutions(models, valid.reshape(-1), sample, num_samples)
  # Those that are valid, in their order; then the places of the others.
  place = jnp.arange(valid.size, dtype=jnp.int32)
  order = jnp.where(valid.reshape(-1), place, place + valid.size)
  rows = jax.lax.sort(order)[:room]
  found = jnp.sum(valid, dtype=jnp.int32)
  sample = jnp.where(rows < valid.size, rows, 0) // slots
  # If not all fit, the sample after the last one kept may have been cut.
  cut = jnp.where(found > room, sample[-1], count)
  whole = jnp.sum(jnp.where(place // slots <= cut, order < valid.size, False))
  num_samples = jnp.where((found > room) & (whole == room), cut + 1, cut)
  kept = (rows < valid.size) & (sample < num_samples)
  rows = jnp.where(rows < valid.size, rows, 0)
  return Solutions(
    jax.tree.map(lambda leaf: leaf[rows], models), kept, sample, num_samples
  )
