# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses between the descriptors of two modalities.

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
    recall_at_1 (of the rows, ties are misses), positive_similarity and
    negative_similarity (means over pairs).
  """
  positive, negative = relations > 0, relations < 0
  best_positive = similarities.max(-1, where=positive, initial=-jnp.inf)
  best_negative = similarities.max(-1, where=negative, initial=-jnp.inf)
  # A tie is a miss: collapsed descriptors must not look like success.
  hits = (best_positive > best_negative).mean()

  def mean(where):
    total = jnp.where(where, similarities, 0.0).sum()
    return total / jnp.maximum(where.sum(), 1)

  return {
    'recall_at_1': hits,
    'positive_similarity': mean(positive),
    'negative_similarity': mean(negative),
  }


def check_pairs(image: jax.Array, points: jax.Array) -> None:
  """Raises ValueError unless both are [B, D]."""
  if image.shape != points.shape or image.ndim != 2:
    raise InputError(
      f'image {image.shape} and points {points.shape}: expected both [B, D].'
    )


def compare(
  image: jax.Array, points: jax.Array, relations: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """All inner products of a batch, in float32 at full matmul precision.

  Whatever the inputs: at scale 100, products of TF32 or bfloat16 are off by
  more than the differences that matter.

  Args:
    image: [B, D].
    points: [B, D]; row i was paired with image i.
    relations: [B, B] in {+1, 0, -1}, image i to points j; None: pairs (i, i)
      are positive and all others negative.

  Returns:
    Similarities [B, B] and relations [B, B].

  Raises:
    InputError: shapes that do not fit.
  """
  check_pairs(image, points)
  size = image.shape[0]
  if relations is None:
    relations = 2 * jnp.eye(size, dtype=jnp.int8) - 1
  if relations.shape != (size, size):
    raise InputError(
      f'relations {relations.shape}: expected {(size, size)}, image to points.'
    )
  similarities = jnp.matmul(
    image.astype(jnp.float32),
    points.astype(jnp.float32).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  return similarities, relations


def info_nce(
  image: jax.Array,
  points: jax.Array,
  scale: jax.Array | float,
  relations: jax.Array | None = None,
  form: str = 'clip',
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Contrastive loss of image descriptors against point-cloud descriptors.

  Of S = scale image @ points^T, see `compare`.

  Args:
    image: [B, D] unit norm.
    points: [B, D] unit norm; row i was paired with image i.
    scale: inverse temperature.
    relations: [B, B] in {+1, 0, -1}, image i to points j, ignored pairs out of
      every sum; None: pairs (i, i) are positive and all others negative.
    form: 'clip', the mean of the losses of rows (image to points) and of
      columns; 'concatenated', one softmax over row i and column i together,
      the pair (i, i) counted once (SaliencyI2PLoc).

  Returns:
    The loss, 0 for a batch of one.
    Metrics: recall_at_1 (image to points, in the batch, ties are misses),
      scale, positive_similarity, negative_similarity (means of cosines).

  Raises:
    InputError: another form, or shapes that do not fit.

  References:
    Radford et al., Learning Transferable Visual Models From Natural Language
    Supervision, ICML 2021. Li et al., SaliencyI2PLoc, Information Fusion 2025.
  """
  similarities, relations = compare(image, points, relations)
  scale = jnp.asarray(scale, jnp.float32)
  logits = scale * similarities
  if form == 'clip':
    image_to_points = _row_losses(logits, relations)
    points_to_image = _row_losses(logits.T, relations.T)
    loss = (image_to_points + points_to_image) / 2
  elif form == 'concatenated':
    both = jnp.concatenate([logits, logits.T], axis=1)
    once = jnp.where(jnp.eye(len(image), dtype=bool), 0, relations.T)
    loss = _row_losses(both, jnp.concatenate([relations, once], axis=1))
  else:
    raise InputError(f"form '{form}': expected 'clip' or 'concatenated'.")
  return loss, batch_metrics(similarities, relations) | {'scale': scale}


def sigmoid(
  image: jax.Array,
  points: jax.Array,
  scale: jax.Array | float,
  bias: jax.Array | float,
  relations: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Every pair judged alone: does it show one place?

  1/B sum_ij softplus(-r_ij (scale image_i . points_j + bias)) over the pairs
  that are not ignored. Nothing is normalised over the batch: several positives
  of a row do not compete, and what is ignored leaves no trace.

  Args:
    image: [B, D] unit norm.
    points: [B, D] unit norm.
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
  similarities, relations = compare(image, points, relations)
  scale = jnp.asarray(scale, jnp.float32)
  bias = jnp.asarray(bias, jnp.float32)
  logits = scale * similarities + bias
  losses = jax.nn.softplus(jnp.where(relations > 0, -logits, logits))
  loss = jnp.where(relations != 0, losses, 0.0).sum() / len(image)
  found = {'scale': scale, 'bias': bias}
  return loss, batch_metrics(similarities, relations) | found
