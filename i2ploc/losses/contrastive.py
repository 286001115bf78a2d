# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses between the descriptors of two sides, a and b.

Written for several positives per row and an ignore band, because a batch of
places is not a batch of captions: neighbours on one street are right answers.
With one positive per row these are the textbook losses.

Several positives: each competes with the negatives only, and a row is the mean
over its positives p of -log(e^{s_p} / (e^{s_p} + sum_negatives e^{s_n})).
The alternatives were rejected for what they ask of places: positives inside
one another's denominator (SupCon, L_out) repel each other, and the optimum
of a row is log(number of positives); the sum of the positives inside the
logarithm is content with the easiest one, the reading of the same moment, and
leaves the one from another day, which localization is about, hardly any
gradient.
"""

import math

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError


@jax.custom_vjp
def _clamp_above(value: jax.Array, limit: float) -> jax.Array:
  return jnp.minimum(value, limit)


def _clamp_above_forward(value, limit):
  return jnp.minimum(value, limit), value >= limit


def _clamp_above_backward(at_limit, gradient):
  # Descent steps against the gradient: a negative one pushes further out.
  return jnp.where(at_limit & (gradient < 0), 0.0, gradient), None


_clamp_above.defvjp(_clamp_above_forward, _clamp_above_backward)


def clamped_scale(log_scale: jax.Array, max_scale: float = 100.0) -> jax.Array:
  """min(exp(log_scale), max_scale), the factor on the similarities.

  At the limit the gradient that would push `log_scale` further is dropped and
  the one that leads back is kept; a plain minimum would hold it there forever.

  >>> round(float(clamped_scale(jnp.log(20.0))), 3)
  20.0
  >>> round(float(clamped_scale(jnp.log(500.0))), 3)
  100.0
  """
  return jnp.exp(_clamp_above(log_scale, math.log(max_scale)))


def _row_losses(logits: jax.Array, relations: jax.Array) -> jax.Array:
  """Mean over the rows [B, M] that have a positive; see the module."""
  positive = relations > 0
  # -inf in a row without negatives, whose loss and gradient are then 0.
  negatives = jax.nn.logsumexp(logits, axis=-1, where=relations < 0)
  # softplus(a - s) = -log(e^s / (e^s + e^a)), without overflow at any scale.
  margins = jax.nn.softplus(negatives[:, None] - logits)
  num_positives = positive.sum(-1)
  rows = jnp.where(positive, margins, 0.0).sum(-1)
  rows = rows / jnp.maximum(num_positives, 1)
  return rows.sum() / jnp.maximum((num_positives > 0).sum(), 1)


def batch_metrics(
  similarities: jax.Array, relations: jax.Array
) -> dict[str, jax.Array]:
  """How a batch would be retrieved.

  Args:
    similarities: [B, M] of queries to what they are compared with.
    relations: [B, M] in {+1, 0, -1}.

  Returns:
    recall_at_1 (of the rows that have a positive, ties are misses),
    positive_similarity and negative_similarity (means over pairs).
  """
  positive, negative = relations > 0, relations < 0
  best_positive = similarities.max(-1, where=positive, initial=-jnp.inf)
  best_negative = similarities.max(-1, where=negative, initial=-jnp.inf)
  # A tie is a miss: collapsed descriptors must not look like success.
  hits = (best_positive > best_negative).sum()

  def mean(where):
    total = jnp.where(where, similarities, 0.0).sum()
    return total / jnp.maximum(where.sum(), 1)

  return {
    'recall_at_1': hits / jnp.maximum(positive.any(-1).sum(), 1),
    'positive_similarity': mean(positive),
    'negative_similarity': mean(negative),
  }


def check_pairs(a: jax.Array, b: jax.Array) -> None:
  """Raises InputError unless both are [B, D]."""
  if a.shape != b.shape or a.ndim != 2:
    raise InputError(f'a {a.shape} and b {b.shape}: expected both [B, D].')


def compare(
  a: jax.Array, b: jax.Array, relations: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """All inner products of a batch, in float32 at full matmul precision.

  Whatever the inputs: at scale 100, products of TF32 or bfloat16 are off by
  more than the differences that matter.

  Args:
    a: [B, D].
    b: [B, D]; its row i was paired with that of a.
    relations: [B, B] in {+1, 0, -1}, a_i to b_j; None: pairs (i, i) are
      positive and all others negative.

  Returns:
    Similarities [B, B] and relations [B, B].

  Raises:
    InputError: shapes that do not fit.
  """
  check_pairs(a, b)
  size = a.shape[0]
  if relations is None:
    relations = 2 * jnp.eye(size, dtype=jnp.int8) - 1
  if relations.shape != (size, size):
    raise InputError(
      f'relations {relations.shape}: expected {(size, size)}, a to b.'
    )
  similarities = jnp.matmul(
    a.astype(jnp.float32),
    b.astype(jnp.float32).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  return similarities, relations


def info_nce(
  a: jax.Array,
  b: jax.Array,
  scale: jax.Array | float,
  relations: jax.Array | None = None,
  form: str = 'clip',
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Contrastive loss of the descriptors of one side against the other's.

  Of S = scale a @ b^T, see `compare`.

  >>> a = jnp.eye(3)
  >>> loss, metrics = info_nce(a, a, scale=10.0)
  >>> round(float(loss), 6), float(metrics['recall_at_1'])
  (9.1e-05, 1.0)

  A row whose other positive, b_1, is a right answer too:

  >>> relations = jnp.array([[1, 1, -1], [0, 1, -1], [-1, -1, 1]])
  >>> loss, _ = info_nce(a, a, scale=10.0, relations=relations)
  >>> round(float(loss), 3)
  0.116

  Args:
    a: [B, D] unit norm.
    b: [B, D] unit norm; its row i was paired with that of a.
    scale: inverse temperature.
    relations: [B, B] in {+1, 0, -1}, a_i to b_j, ignored pairs out of every
      sum; None: pairs (i, i) are positive and all others negative. For a model
      of one side b is a, and the diagonal is 0.
    form: 'clip', the mean of the losses of rows (a to b) and of columns;
      'concatenated', one softmax over row i and column i together, the pair
      (i, i) counted once (SaliencyI2PLoc); of one side, where both are the
      same, it counts every negative twice.

  Returns:
    The loss, 0 for a batch of one.
    Metrics: recall_at_1 (a to b, in the batch, ties are misses), scale,
      positive_similarity, negative_similarity (means of cosines).

  Raises:
    InputError: another form, or shapes that do not fit.

  References:
    Radford et al., Learning Transferable Visual Models From Natural Language
    Supervision, ICML 2021. Li et al., SaliencyI2PLoc, Information Fusion 2025.
  """
  similarities, relations = compare(a, b, relations)
  scale = jnp.asarray(scale, jnp.float32)
  logits = scale * similarities
  if form == 'clip':
    loss = _row_losses(logits, relations)
    loss = (loss + _row_losses(logits.T, relations.T)) / 2
  elif form == 'concatenated':
    both = jnp.concatenate([logits, logits.T], axis=1)
    once = jnp.where(jnp.eye(len(a), dtype=bool), 0, relations.T)
    loss = _row_losses(both, jnp.concatenate([relations, once], axis=1))
  else:
    raise InputError(f"form '{form}': expected 'clip' or 'concatenated'.")
  return loss, batch_metrics(similarities, relations) | {'scale': scale}


def sigmoid(
  a: jax.Array,
  b: jax.Array,
  scale: jax.Array | float,
  bias: jax.Array | float,
  relations: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Every pair judged alone: does it show one place?

  1/B sum_ij softplus(-r_ij (scale a_i . b_j + bias)) over the pairs that are
  not ignored. Nothing is normalised over the batch: several positives of a row
  do not compete, and what is ignored leaves no trace.

  >>> a = jnp.eye(3)
  >>> loss, metrics = sigmoid(a, a, scale=10.0, bias=-5.0)
  >>> round(float(loss), 4), float(metrics['recall_at_1'])
  (0.0201, 1.0)

  Args:
    a: [B, D] unit norm.
    b: [B, D] unit norm.
    scale: on the similarities.
    bias: log odds of a pair of unrelated descriptors; about -log B, so that
      many negatives do not drown few positives at the start.
    relations: see `info_nce`.

  Returns:
    The loss, a sum over pairs per row of the batch.
    Metrics: those of `info_nce`, and bias.

  Raises:
    InputError: shapes that do not fit.

  References:
    Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, eq. 2.
  """
  similarities, relations = compare(a, b, relations)
  scale = jnp.asarray(scale, jnp.float32)
  bias = jnp.asarray(bias, jnp.float32)
  logits = scale * similarities + bias
  losses = jax.nn.softplus(jnp.where(relations > 0, -logits, logits))
  loss = jnp.where(relations != 0, losses, 0.0).sum() / len(a)
  found = {'scale': scale, 'bias': bias}
  return loss, batch_metrics(similarities, relations) | found
