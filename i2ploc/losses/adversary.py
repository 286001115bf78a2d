# SPDX-License-Identifier: Apache-2.0
"""An adversary that features must not tell their domain to.

A small classifier learns to name the domain of a feature (day, night, rain),
while the features learn that it cannot: between the two, gradients change their
sign.
"""

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError

# Widths of the hidden layers, as in AdaGeo.
_HIDDEN = (50, 20)


@jax.custom_vjp
def reverse_gradient(x: jax.Array, weight: float) -> jax.Array:
  """x itself; its gradient is multiplied by -weight.

  Args:
    x: of any shape.
    weight: has no gradient.

  Returns:
    x.

  References:
    Ganin and Lempitsky, Unsupervised Domain Adaptation by Backpropagation,
    ICML 2015.
  """
  del weight
  return x


def _reverse_forward(x, weight):
  return x, weight


def _reverse_backward(weight, gradient):
  return -weight * gradient, None


reverse_gradient.defvjp(_reverse_forward, _reverse_backward)


def init_classifier(
  key: jax.Array, features: int, num_domains: int
) -> dict[str, dict[str, jax.Array]]:
  """Parameters of the classifier: layers of 50, 20 and `num_domains`.

  Args:
    key: PRNG key.
    features: D.
    num_domains: K.

  Returns:
    By layer 'dense_0', 'dense_1' and 'dense_2': kernel [in, out], bias [out].

  Raises:
    InputError: fewer than two domains.
  """
  if num_domains < 2:
    raise InputError(
      f'{num_domains} domains: expected at least two to tell apart'
    )
  widths = (features, *_HIDDEN, num_domains)
  draw = jax.nn.initializers.lecun_normal()
  keys = jax.random.split(key, len(widths) - 1)
  return {
    f'dense_{i}': {
      'kernel': draw(keys[i], widths[i : i + 2], jnp.float32),
      'bias': jnp.zeros(widths[i + 1]),
    }
    for i in range(len(widths) - 1)
  }


def classify(
  params: dict[str, dict[str, jax.Array]], features: jax.Array
) -> jax.Array:
  """Logits of the domains, with ReLU between the layers.

  Args:
    params: see `init_classifier`.
    features: [B, D].

  Returns:
    [B, K] float32.
  """
  x = features.astype(jnp.float32)
  for i in range(len(params)):
    layer = params[f'dense_{i}']
    x = x if i == 0 else jax.nn.relu(x)
    x = x @ layer['kernel'] + layer['bias']
  return x


def domain_adversary(
  params: dict[str, dict[str, jax.Array]],
  features: jax.Array,
  domain: jax.Array,
  *,
  weight: float = 0.1,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Cross-entropy of the domain classifier, against which features learn.

  The value is the mean cross-entropy L, without weight. Its gradient by
  `params` is dL/dparams: the classifier learns at full strength. Its gradient
  by `features` is -weight dL/dfeatures. So it is added as it is to the loss
  that it accompanies. The code released with AdaGeo weighs both by 0.1.

  >>> params = init_classifier(jax.random.key(0), 3, 2)
  >>> domain = jnp.array([0, 1, 0, 1])
  >>> loss, metrics = domain_adversary(params, jnp.zeros((4, 3)), domain)
  >>> round(float(loss), 3), float(metrics['domain_accuracy'])  # undecided
  (0.693, 0.0)

  Args:
    params: see `init_classifier`, of K domains.
    features: [B, D], such as the mean of the tokens of an image.
    domain: [B] int; rows outside 0 to K - 1 do not count.
    weight: on the gradient that reaches the features.
    mask: [B] bool, rows that count; None: all.

  Returns:
    The loss, 0 if no row counts.
    Metrics: domain_loss, which is that value, and domain_accuracy (ties are
      misses). Features without a trace of the domain leave the classifier at
      chance.

  Raises:
    InputError: a negative weight, or shapes that do not fit.

  References:
    Berton et al., AdaGeo, WACV 2021.
  """
  if not weight >= 0:
    raise InputError(
      f'weight={weight}: expected at least 0, the sign is changed here'
    )
  rows = features.shape[:1]
  for name, found in ('domain', domain), ('mask', mask):
    if found is not None and (features.ndim != 2 or found.shape != rows):
      raise InputError(
        f'features {features.shape} and {name} {found.shape}: expected '
        '[B, D] and [B]'
      )
  logits = classify(params, reverse_gradient(features, weight))
  own = jnp.arange(logits.shape[1]) == domain[:, None]
  counts = own.any(1) if mask is None else own.any(1) & mask
  own_logit = jnp.where(own, logits, 0.0).sum(1)
  losses = jax.nn.logsumexp(logits, axis=1) - own_logit
  best_other = logits.max(1, where=~own, initial=-jnp.inf)

  def mean(values):
    total = jnp.where(counts, values, 0.0).sum()
    return total / jnp.maximum(counts.sum(), 1)

  loss = mean(losses)
  accuracy = mean(own_logit > best_other)
  return loss, {'domain_loss': loss, 'domain_accuracy': accuracy}
