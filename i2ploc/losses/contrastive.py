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


def _metrics(
  similarities: jax.Array, relations: jax.Array, scale: jax.Array
) -> dict[str, jax.Array]:
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
    'scale': scale,
    'positive_similarity': mean(positive),
    'negative_similarity': mean(negative),
  }


def info_nce(
  image: jax.Array,
  points: jax.Array,
  scale: jax.Array | float,
  relations: jax.Array | None = None,
  form: str = 'clip',
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Contrastive loss of image descriptors against point-cloud descriptors.

  S = scale image @ points^T, computed in float32 at full matmul precision
  whatever the inputs: at scale 100 TF32 or bfloat16 products are off by more
  than the differences that matter.

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
    ValueError: another form, or shapes that do not fit.

  References:
    Radford et al., Learning Transferable Visual Models From Natural Language
    Supervision, ICML 2021. Li et al., SaliencyI2PLoc, Information Fusion 2025.
  """
  size = image.shape[0]
  if image.shape != points.shape or image.ndim != 2:
    raise ValueError(
      f'image {image.shape} and points {points.shape}: expected both [B, D].'
    )
  own = jnp.eye(size, dtype=bool)
  if relations is None:
    relations = jnp.where(own, 1, -1)
  if relations.shape != (size, size):
    raise ValueError(
      f'relations {relations.shape}: expected {(size, size)}, image to points.'
    )
  scale = jnp.asarray(scale, jnp.float32)
  similarities = jnp.matmul(
    image.astype(jnp.float32),
    points.astype(jnp.float32).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  logits = scale * similarities
  if form == 'clip':
    image_to_points = _row_losses(logits, relations)
    points_to_image = _row_losses(logits.T, relations.T)
    loss = (image_to_points + points_to_image) / 2
  elif form == 'concatenated':
    both = jnp.concatenate([logits, logits.T], axis=1)
    once = jnp.where(own, 0, relations.T)
    loss = _row_losses(both, jnp.concatenate([relations, once], axis=1))
  else:
    raise ValueError(f"form '{form}': expected 'clip' or 'concatenated'.")
  return loss, _metrics(similarities, relations, scale)
