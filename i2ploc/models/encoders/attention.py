# SPDX-License-Identifier: Apache-2.0
"""Multi-head self-attention in memory linear in the number of tokens.

Nothing needs all N x N probabilities: what follows needs the attended values,
and `saliency` the row of the CLS token. So a long sequence goes through the
kernel of cuDNN where there is one, and elsewhere block by block of queries:
each block sees all keys, so that its softmax is the exact one, and is computed
again in the backward pass (Rabe and Staats, Self-attention Does Not Need
O(n^2) Memory, 2021).
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError

# Stands for minus infinity in masked logits: a row whose keys are all masked
# becomes uniform instead of NaN.
MASKED = -1e9
# Up to here the whole matrix is fastest: blocks of a small one are overhead.
PLAIN_TOKENS = 256
# Queries per block, about. On two CPU cores 128 to 256 are best at 2,000 to
# 3,000 tokens, and twice as fast as one product with a matrix beyond the cache;
# the 257 tokens of a ViT/14 take 1.6 times as long in blocks of 128.
BLOCK = 256


def residual_init(scale: float) -> nn.initializers.Initializer:
  """Xavier uniform times `scale`, for the last layer of a residual branch."""
  return nn.initializers.variance_scaling(scale**2, 'fan_avg', 'uniform')


def _logits(query, key, mask):
  """q k^T / sqrt(d) of the allowed keys, [B, H, Q, N] float32."""
  query = query * query.shape[-1] ** -0.5
  logits = jnp.einsum('bhqd,bhnd->bhqn', query, key).astype(jnp.float32)
  if mask is not None:
    mask = mask[:, None] if mask.ndim == 3 else mask[:, None, None]
    logits = jnp.where(mask, logits, MASKED)
  return logits


def probabilities(
  query: jax.Array, key: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
  """softmax(q k^T / sqrt(d)) over the keys.

  Args:
    query: [B, H, Q, d].
    key: [B, H, N, d].
    mask: [B, N] bool, keys that may be attended to, or [B, Q, N], those that
      each query may attend to; None for all.

  Returns:
    [B, H, Q, N] float32, rows sum to one.
  """
  return jax.nn.softmax(_logits(query, key, mask), axis=-1)


def _product(equation, x, y):
  """float32 einsum of x, which may be rounded to y's type, and y."""
  return jnp.einsum(
    equation, x.astype(y.dtype), y, preferred_element_type=jnp.float32
  )


def _has_cudnn(query):
  """Whether cuDNN has a kernel for these queries where this will run."""
  half = query.dtype in (jnp.bfloat16, jnp.float16)
  fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
  if not (half and fits and jax.default_backend() == 'gpu'):
    return False
  return 'cuda' in jax.devices()[0].client.platform_version


def _cudnn(query, key, value, mask):
  """Attended values [B, N, H, d] by the flash attention of cuDNN."""
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  lengths = None
  if mask is not None:
    # A mask proper would be a bias of N x N; a kernel for lengths has none.
    lengths = jnp.maximum(mask.sum(axis=1), 1).astype(jnp.int32)
  return jax.nn.dot_product_attention(
    query, key, value, key_value_seq_lengths=lengths, implementation='cudnn'
  )


def _split(x, num_blocks):
  """[B, H, N, d] as [num_blocks, B, H, Q, d], padded with zeros."""
  batch, num_heads, length, depth = x.shape
  # As many rows in each as will do: few are padded.
  block = -(-length // num_blocks)
  padding = num_blocks * block - length
  x = jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))
  x = x.reshape(batch, num_heads, num_blocks, block, depth)
  return jnp.moveaxis(x, 2, 0)


def _join(blocks, length):
  """Undoes `_split`."""
  x = jnp.moveaxis(blocks, 0, 2)
  return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, :length]


def _row_maximum(x):
  """max(x, -1, keepdims=True), in a form that XLA's CPU compiler vectorises.

  A reduction along rows compares one number after another there, and takes
  twice as long as the exponentials (jaxlib 0.10.2). Halves may overlap.
  """
  while x.shape[-1] > 32:
    half = -(-x.shape[-1] // 2)
    x = jnp.maximum(x[..., :half], x[..., -half:])
  return jnp.max(x, axis=-1, keepdims=True)


def _exponentials(query, key, mask, top=None):
  """exp(logits - top), top being the row's maximum, and top."""
  logits = _logits(query, key, mask)
  if top is None:
    top = _row_maximum(logits)
  return jnp.exp(logits - top), top


@jax.custom_vjp
def _blocked(query, key, value, mask):
  """Attended values [B, H, N, d], one block of queries at a time."""
  return _blocked_forward(query, key, value, mask)[0]


def _blocked_forward(query, key, value, mask):
  length = query.shape[2]

  def attend_block(query):
    weights, top = _exponentials(query, key, mask)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # Divided afterwards: one pass less over Q x N numbers.
    return _product('bhqn,bhnd->bhqd', weights, value) / total, top, total

  blocks = _split(query, max(1, round(length / BLOCK)))
  y, top, total = jax.lax.map(attend_block, blocks)
  y = _join(y, length)
  return y.astype(value.dtype), (query, key, value, mask, y, top, total)


def _blocked_backward(saved, dy):
  query, key, value, mask, y, top, total = saved
  num_blocks, length = top.shape[0], query.shape[2]
  dy = dy.astype(jnp.float32)
  inner = jnp.sum(dy * y, axis=-1, keepdims=True)

  def step(carry, block):
    dkey, dvalue = carry
    query, dy, inner, top, total = block
    weights, _ = _exponentials(query, key, mask, top)
    dy = (dy / total).astype(value.dtype)
    dvalue += _product('bhqn,bhqd->bhnd', weights, dy)
    dlogits = _product('bhqd,bhnd->bhqn', dy, value) - inner / total
    dlogits = weights * dlogits
    if mask is not None:
      dlogits = jnp.where(mask[:, None, None], dlogits, 0.0)
    dlogits *= query.shape[-1] ** -0.5
    dkey += _product('bhqn,bhqd->bhnd', dlogits, query)
    return (dkey, dvalue), _product('bhqn,bhnd->bhqd', dlogits, key)

  # In float32 whatever the inputs: many blocks are added.
  zeros = jnp.zeros(key.shape, jnp.float32)
  blocks = (*(_split(x, num_blocks) for x in (query, dy, inner)), top, total)
  (dkey, dvalue), dquery = jax.lax.scan(step, (zeros, zeros), blocks)
  dquery = _join(dquery, length).astype(query.dtype)
  return dquery, dkey.astype(key.dtype), dvalue.astype(value.dtype), None


_blocked.defvjp(_blocked_forward, _blocked_backward)


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attended values, and where the first token looks.

  Args:
    query: [B, H, N, d].
    key: [B, H, N, d].
    value: [B, H, N, d].
    mask: [B, N] bool, tokens that may be attended to, which come before those
      that may not; or [B, N, N], those that each query may attend to, which
      costs the whole matrix; None for all.

  Returns:
    y: [B, N, H, d].
    attention: [B, H, N] float32, probabilities of the first query's row. Costs
      nothing under jit where it is not used.
  """
  per_query = mask is not None and mask.ndim == 3
  if query.shape[2] <= PLAIN_TOKENS or per_query:
    attention = probabilities(query, key, mask)
    y = jnp.einsum('bhqn,bhnd->bqhd', attention.astype(value.dtype), value)
    return y, attention[:, :, 0]
  if _has_cudnn(query):
    y = _cudnn(query, key, value, mask)
  else:
    y = jnp.swapaxes(_blocked(query, key, value, mask), 1, 2)
  return y, probabilities(query[:, :, :1], key, mask)[:, :, 0]


class Attention(nn.Module):
  """Multi-head self-attention that tells where the CLS token looks.

  Attributes:
    width: D.
    num_heads: H.
    qkv_bias: whether queries, keys and values have a bias.
    residual_init_scale: factor on the initial output projection.
    dtype: of the computation; softmax is always float32.
  """

  width: int
  num_heads: int
  qkv_bias: bool = True
  residual_init_scale: float = 1.0
  dtype: jnp.dtype = jnp.float32

  def setup(self) -> None:
    """Creates the layers."""
    if self.width % self.num_heads:
      raise InputError(
        f'width {self.width} is not a multiple of num_heads {self.num_heads}'
      )
    self.qkv = nn.Dense(
      3 * self.width,
      use_bias=self.qkv_bias,
      kernel_init=nn.initializers.xavier_uniform(),
      dtype=self.dtype,
    )
    self.projection = nn.Dense(
      self.width,
      kernel_init=residual_init(self.residual_init_scale),
      dtype=self.dtype,
    )

  def query_key_value(
    self, x: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values [B, H, N, D / H] of x [B, N, D]."""
    split = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
    query, key, value = jnp.moveaxis(split, (2, 3), (0, 2))
    return query, key, value

  def __call__(
    self, x: jax.Array, mask: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Attends.

    Args:
      x: [B, N, D], the CLS token first.
      mask: see `attend`.

    Returns:
      y: [B, N, D].
      attention: [B, H, N] float32, probabilities of the CLS token's row.
    """
    y, attention = attend(*self.query_key_value(x), mask)
    return self.projection(y.reshape(*x.shape[:2], -1)), attention
