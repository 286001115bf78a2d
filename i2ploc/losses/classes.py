# SPDX-License-Identifier: Apache-2.0
"""Classification as a proxy for retrieval: cosines to class weights, a margin.

A cell of the ground is a class. Neighbouring cells see the same things and must
not compete, so classes are split into groups whose classes lie apart, and every
group has a classifier of its own. A batch asks the classifier of one group, or
is made of equal blocks, each of which asks one (`num_heads`).

With theta_j between a descriptor and the weight of class j of its group, and y
its own class, the logits are s (cos theta_j - m [j = y]): the own class has to
win by a margin.
"""

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError

# Smaller squared lengths are those of weights that have no direction.
_NO_LENGTH = 1e-12


def check_margin(scale: float, margin: float) -> None:
  """Raises InputError for a scale or a margin that makes no sense.

  Args:
    scale: s, above 0.
    margin: m, of cosines: at least 0 and below 2.
  """
  if not scale > 0:
    raise InputError(f'scale={scale}: expected a factor above 0 on the cosines')
  if not 0 <= margin < 2:
    raise InputError(
      f'margin={margin}: expected a difference of cosines, at least 0 and '
      'below 2'
    )


def init_classes(
  key: jax.Array, num_groups: int, num_classes: int, features: int
) -> jax.Array:
  """Weights of all classes, drawn as CosPlace does (Xavier, uniform).

  Only their directions matter to the loss. Their length decides how far one
  step of Adam turns them.

  Args:
    key: PRNG key.
    num_groups: G.
    num_classes: C, of the largest group; the others are padded.
    features: D, of a descriptor.

  Returns:
    [G, C, D] float32.
  """
  draw = jax.nn.initializers.glorot_uniform(
    in_axis=-1, out_axis=-2, batch_axis=0
  )
  return draw(key, (num_groups, num_classes, features), jnp.float32)


def cosine_margin(
  x: jax.Array,
  weights: jax.Array,
  group: jax.Array,
  label: jax.Array,
  num_classes: jax.Array,
  *,
  scale: float = 30.0,
  margin: float = 0.4,
  num_heads: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Cross-entropy over the classes of a group, the own one with a margin.

  >>> weights = jnp.eye(3)[None]
  >>> loss, metrics = cosine_margin(
  ...     jnp.eye(3)[:1], weights, jnp.array([0]), jnp.array([0]),
  ...     jnp.array([2]), scale=1.0, margin=0.4)
  >>> round(float(loss), 3)  # ln(1 + e^-(1 - 0.4)); class 2 is padding
  0.437

  Args:
    x: [B, D] unit norm.
    weights: [G, C, D], of any length; see `init_classes`.
    group: [B] int, whose classifier is asked: the group of the first row of a
      block is that of the block, and rows of another one do not count.
    label: [B] int, class within the group; rows with a label that the group
      lacks do not count.
    num_classes: [G] int; classes from there on are padding and in no sum.
    scale: s; 30 in CosPlace, 100 in EigenPlaces.
    margin: m, a difference of cosines.
    num_heads: equal blocks of the batch, one after the other, each of one
      group. Their losses are added: 1 in CosPlace; 2 in EigenPlaces, lateral
      and frontal views.

  Returns:
    The loss: of each block the mean over its rows that count, 0 without any,
      and the sum of the blocks. Groups without a block have no gradient.
    Metrics, means over all rows that count: accuracy (the own class is the
      nearest, without margin; ties are misses), own_cosine.

  Raises:
    InputError: see `check_margin`, or shapes that do not fit.

  References:
    Wang et al., CosFace, CVPR 2018, eq. 4. Berton et al., CosPlace, CVPR 2022,
    and EigenPlaces, ICCV 2023.
  """
  check_margin(scale, margin)
  _check_shapes(x, weights, group, label, num_classes, num_heads)
  width = x.shape[1]
  x = x.astype(jnp.float32).reshape(num_heads, -1, width)
  group, label = (v.reshape(num_heads, -1) for v in (group, label))
  asked = group[:, 0]
  chosen = weights[asked].astype(jnp.float32)
  squared = (chosen**2).sum(-1, keepdims=True)
  chosen *= jax.lax.rsqrt(jnp.maximum(squared, _NO_LENGTH))
  # Full precision: the scale makes TF32 visible, see `contrastive.compare`.
  cosines = jnp.einsum(
    'hbd,hcd->hbc', x, chosen, precision=jax.lax.Precision.HIGHEST
  )
  size = num_classes[asked][:, None]
  counts = (group == asked[:, None]) & (group >= 0)
  counts &= (label >= 0) & (label < size)
  number = jnp.arange(weights.shape[1])
  own = number == label[..., None]
  other = (number < size[..., None]) & ~own
  own_cosine = jnp.where(own, cosines, 0.0).sum(-1)
  others = jax.nn.logsumexp(scale * cosines, axis=-1, where=other)
  losses = jax.nn.softplus(others - scale * (own_cosine - margin))
  num_rows = jnp.maximum(counts.sum(1), 1)
  loss = (jnp.where(counts, losses, 0.0).sum(1) / num_rows).sum()
  nearest_other = cosines.max(-1, where=other, initial=-jnp.inf)

  def mean(values):
    total = jnp.where(counts, values, 0.0).sum()
    return total / jnp.maximum(counts.sum(), 1)

  return loss, {
    # A tie is a miss: collapsed descriptors must not look like success.
    'accuracy': mean(own_cosine > nearest_other),
    'own_cosine': mean(own_cosine),
  }


def _check_shapes(x, weights, group, label, num_classes, num_heads):
  if x.ndim != 2 or weights.ndim != 3 or x.shape[1] != weights.shape[2]:
    raise InputError(
      f'x {x.shape} and weights {weights.shape}: expected [B, D] and [G, C, D]'
    )
  for name, found, expected in (
    ('group', group, x.shape[:1]),
    ('label', label, x.shape[:1]),
    ('num_classes', num_classes, weights.shape[:1]),
  ):
    if found.shape != expected:
      raise InputError(f'{name} {found.shape}: expected {expected}')
  if num_heads < 1 or len(x) % num_heads:
    raise InputError(
      f'num_heads={num_heads}, a batch of {len(x)}: expected equal blocks'
    )
