# SPDX-License-Identifier: Apache-2.0
"""Which pairs of a batch a loss looks at.

A miner turns relations into relations: a pair that does not count becomes 0,
which every loss ignores. So any miner serves any loss.

- 'all': every pair counts.
- 'informative': the pairs that another pair of their row contradicts, up to a
  margin (Wang et al., Multi-Similarity Loss with General Pair Weighting for
  Deep Metric Learning, CVPR 2019). A negative counts if it is
  more similar, by the margin, than the least similar positive is:
  S_in + margin > min_p S_ip. A positive counts if it is less similar, by the
  margin, than the most similar negative is: S_ip - margin < max_n S_in. A row
  without a positive, or without a negative, has nothing to contradict and no
  pair that counts.
- 'hardest': of each row the least similar positive and the most similar
  negative, the first of equal ones. Where one of them is missing, the other
  counts alone.

Pairs that are ignored take no part in the choice. The code released with
EarthLoc mines first, with neutral pairs as negatives, and removes them
afterwards; there a neutral pair decides which positives count.
"""

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError

FORMS = ('all', 'informative', 'hardest')


def check_form(form: str, margin: float) -> None:
  """Raises InputError for an unknown form or a margin out of range.

  Args:
    form: one of `FORMS`.
    margin: of 'informative', a difference of cosines.
  """
  if form not in FORMS:
    raise InputError(f'unknown mining {form!r}; known: {FORMS}')
  if not 0 <= margin <= 2:
    raise InputError(
      f'mining margin={margin}: expected a difference of cosines, from 0 to 2'
    )


def mine(
  similarities: jax.Array,
  relations: jax.Array,
  form: str,
  *,
  margin: float = 0.1,
) -> jax.Array:
  """Relations of the pairs that count; see the module.

  The choice has no gradient.

  >>> similarities = jnp.array([[0.9, 0.5, 0.45, 0.3, 0.6]])
  >>> relations = jnp.array([[1, 1, -1, -1, 0]])
  >>> mine(similarities, relations, 'informative').tolist()
  [[0, 1, -1, 0, 0]]

  Args:
    similarities: [B, M], larger is nearer; every row is mined alone.
    relations: [B, M] in {+1, 0, -1}.
    form: one of `FORMS`.
    margin: of 'informative'.

  Returns:
    [B, M] of the type of `relations`, which it equals or is 0.

  Raises:
    InputError: see `check_form`, or shapes that do not fit.
  """
  check_form(form, margin)
  if similarities.ndim != 2 or similarities.shape != relations.shape:
    raise InputError(
      f'similarities {similarities.shape} and relations {relations.shape}: '
      'expected both [B, M]'
    )
  if form == 'all':
    return relations
  positive, negative = relations > 0, relations < 0
  of_positives = jnp.where(positive, similarities, jnp.inf)
  of_negatives = jnp.where(negative, similarities, -jnp.inf)
  if form == 'informative':
    # Without any, the extreme is infinite, and nothing lies beyond it.
    least = of_positives.min(1, keepdims=True)
    most = of_negatives.max(1, keepdims=True)
    counts = (positive & (similarities - margin < most)) | (
      negative & (similarities + margin > least)
    )
  else:
    column = jnp.arange(similarities.shape[1])
    counts = (positive & (column == of_positives.argmin(1)[:, None])) | (
      negative & (column == of_negatives.argmax(1)[:, None])
    )
  return jnp.where(counts, relations, 0)
