# SPDX-License-Identifier: Apache-2.0
"""Vision transformer with a patch or a convolutional stem.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; the convolutional
stem after Xiao et al., Early Convolutions Help Transformers See Better,
NeurIPS 2021. Departs from them: the stem is a residual trunk, residual branches
can start near zero, and no normalisation looks across samples, so that a
gradient cache over micro-batches is exact. The encoders of both sensors are
built from the `Block` of this file.

With their options these modules also hold the published ViT, DINOv2 and CLIP
encoders, see `weights`.
"""

from collections.abc import Sequence
import functools
import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models.encoders import attention
from i2ploc.models.encoders import convolution


def sequence_mask(mask: jax.Array | None, use_cls: bool) -> jax.Array | None:
  """Token mask [B, N] with a true entry in front for the CLS token."""
  if mask is None or not use_cls:
    return mask
  return jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)


# erfc(z) = t (a1 + t (a2 + ...)) exp(-z^2) for z >= 0 and t = 1 / (1 + p z), to
# 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
_ERFC = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_ERFC_P = 0.3275911


def _tail(x):
  """Share of the normal distribution beyond |x|, and its density at x."""
  z = jnp.abs(x) * 0.5**0.5
  t = 1 / (1 + _ERFC_P * z)
  series = _ERFC[-1]
  for coefficient in _ERFC[-2::-1]:
    series = series * t + coefficient
  bell = jnp.exp(-z * z)
  return 0.5 * series * t * bell, bell * (2 * math.pi) ** -0.5


@jax.custom_jvp
def _gelu_series(x):
  """x times the normal distribution function, to 4e-7."""
  tail, _ = _tail(x)
  return jnp.maximum(x, 0.0) - jnp.abs(x) * tail


@_gelu_series.defjvp
def _gelu_series_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  tail, density = _tail(x)
  slope = jnp.where(x > 0, 1 - tail, tail) + x * density
  return _gelu_series(x), slope * dx


def _gelu(x):
  """The exact GELU; XLA's erf takes 1.6 times as long on CPU."""
  if x.dtype == jnp.float32 and jax.default_backend() == 'cpu':
    return _gelu_series(x)
  return nn.gelu(x, approximate=False)


def _quick_gelu(x):
  return x * nn.sigmoid(1.702 * x)


def _swiglu(x):
  gate, x = jnp.split(x, 2, axis=-1)
  return nn.silu(gate) * x


# Of what an adapter adds, as its authors set it.
ADAPTER_SCALE = 0.1
# What a token can be: what leaves a block, or one of its projections.
FACETS = ('token', 'query', 'key', 'value')
MLPS = {
  'gelu': _gelu,
  'quick_gelu': _quick_gelu,
  'swiglu': _swiglu,
}


class Adapter(nn.Module):
  """A bottleneck beside the MLP of a block, to train in its place.

  Chen et al., AdaptFormer, NeurIPS 2022: 0.1 times W_up relu(W_down x), each
  layer with a bias, x being what the MLP gets. W_up starts at zero, so that a
  network starts as it is without.

  Attributes:
    width: D.
    features: of the bottleneck.
    dtype: of the computation.
  """

  width: int
  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps normalised x [B, N, D] to what is added to the block's."""
    # As the authors' code: uniform within one over the root of the inputs.
    down_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    y = nn.Dense(
      self.features, kernel_init=down_init, dtype=self.dtype, name='down'
    )(x)
    y = nn.Dense(
      self.width,
      kernel_init=nn.initializers.zeros,
      dtype=self.dtype,
      name='up',
    )(nn.relu(y))
    return ADAPTER_SCALE * y


class Block(nn.Module):
  """Pre-norm transformer block.

  Attributes:
    width: D.
    num_heads: H.
    mlp_ratio: hidden width of the MLP over D.
    qkv_bias: see `attention.Attention`.
    epsilon: of both LayerNorms.
    residual_init_scale: factor on the initial last layer of both branches.
    dtype: of the computation.
    mlp: what is between its layers: 'gelu', 'quick_gelu' (CLIP), or 'swiglu',
      where the first layer also makes the gates of the second (Shazeer, GLU
      Variants Improve Transformer, 2020).
    bottleneck: width of an `Adapter` beside the MLP; 0 for none.
  """

  width: int
  num_heads: int
  mlp_ratio: float = 4.0
  qkv_bias: bool = True
  epsilon: float = 1e-6
  residual_init_scale: float = 1.0
  dtype: jnp.dtype = jnp.float32
  mlp: str = 'gelu'
  bottleneck: int = 0

  def setup(self) -> None:
    """Creates the layers."""
    if self.mlp not in MLPS:
      raise InputError(f'unknown mlp {self.mlp!r}; known: {sorted(MLPS)}')
    hidden = round(self.width * self.mlp_ratio)
    self.norm1 = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
    self.attention = attention.Attention(
      self.width,
      self.num_heads,
      self.qkv_bias,
      self.residual_init_scale,
      self.dtype,
    )
    self.norm2 = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
    self.expand = nn.Dense(
      2 * hidden if self.mlp == 'swiglu' else hidden,
      kernel_init=nn.initializers.xavier_uniform(),
      dtype=self.dtype,
    )
    self.contract = nn.Dense(
      self.width,
      kernel_init=attention.residual_init(self.residual_init_scale),
      dtype=self.dtype,
    )
    if self.bottleneck:
      self.adapter = Adapter(self.width, self.bottleneck, self.dtype)

  def __call__(
    self, x: jax.Array, mask: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Returns x [B, N, D] and the CLS token's attention [B, H, N]."""
    y, cls_row = self.attention(self.norm1(x), mask)
    x = x + y
    normed = self.norm2(x)
    y = self.contract(MLPS[self.mlp](self.expand(normed)))
    if self.bottleneck:
      y = y + self.adapter(normed)
    return x + y, cls_row

  def query_key(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Queries and keys [B, H, N, D / H] of x as given, norm1 skipped."""
    return self.attention.query_key_value(x)[:2]

  def facet(self, x: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    """A projection of x, and where the CLS token looks.

    Args:
      x: [B, N, D], what the block takes.
      name: 'query', 'key' or 'value'.

    Returns:
      The projection [B, N, D], its heads side by side, and the CLS token's
      attention [B, H, N].
    """
    query, key, value = self.attention.query_key_value(self.norm1(x))
    cls_row = attention.probabilities(query[:, :, :1], key)[:, :, 0]
    chosen = dict(query=query, key=key, value=value)[name]
    return jnp.swapaxes(chosen, 1, 2).reshape(x.shape), cls_row


def run_blocks(
  blocks: Sequence[Block],
  x: jax.Array,
  position: jax.Array | None = None,
  mask: jax.Array | None = None,
  remat: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
  """Applies blocks one after another.

  Args:
    blocks: alike but for their parameters.
    x: [B, N, D].
    position: [B, N, D], added at the input of every block; None adds nothing.
    mask: see `attention.attend`.
    remat: keep only what lies between the blocks for the backward pass, which
      then computes each of them again.

  Returns:
    x: [B, N, D].
    attention: [B, H, N], the CLS token's row in the last block; None without a
      block.
  """

  def step(x, block):
    return block(x if position is None else x + position, mask)

  if not remat or not blocks or blocks[0].is_initializing():
    cls_row = None
    for block in blocks:
      x, cls_row = step(x, block)
    return x, cls_row
  # A scan, and not `nn.remat`: on CPU, XLA merges what that computes again with
  # what was computed before, and keeps everything.
  block = blocks[0].unbind()[0]
  params = jax.tree.map(
    lambda *leaves: jnp.stack(leaves),
    *(block.variables['params'] for block in blocks),
  )

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def body(x, params):
    return step(x, block.bind({'params': params}))

  x, cls_rows = jax.lax.scan(body, x, params)
  return x, cls_rows[-1]


class ConvStem(nn.Module):
  """Residual convolutional trunk: one downsampling and one block per stage.

  Attributes:
    widths: channels of each stage.
    strides: (down, across) downsampling of each stage.
    residual_init_scale: factor on the initial last layer of each branch.
    dtype: of the computation.
  """

  widths: tuple[int, ...]
  strides: tuple[tuple[int, int], ...]
  residual_init_scale: float = 1.0
  dtype: jnp.dtype = jnp.float32

  def _branch(self, x):
    """Norm, convolution, activation, convolution."""
    # One norm, not two: on CPU each costs as much as a convolution.
    width = x.shape[-1]
    x = nn.LayerNorm(dtype=self.dtype)(x)
    x = convolution.Conv(width, (3, 3), dtype=self.dtype)(x)
    init = attention.residual_init(self.residual_init_scale)
    return convolution.Conv(
      width, (3, 3), use_bias=False, kernel_init=init, dtype=self.dtype
    )(nn.relu(x))

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / down, W / across, widths[-1]]."""
    for width, stride in zip(self.widths, self.strides, strict=True):
      # Windows of 2 s - 1 overlap: neighbouring cells share their border.
      kernel = tuple(2 * s - 1 for s in stride)
      x = convolution.Conv(width, kernel, stride, dtype=self.dtype)(x)
      x = x + self._branch(x)
    return x


class ViT(nn.Module):
  """Tokens of an image, or of anything on a grid.

  Attributes:
    width: D.
    depth: number of blocks; 0 leaves the stem alone (no CLS, no attention).
    num_heads: H.
    patch_size: pixels per token and axis, without a convolutional stem.
    stem_widths: channels of the convolutional stem's stages; empty for the
      plain patch projection.
    stem_strides: (down, across) of each; the product takes the place of
      `patch_size`. Bearing is worth finer columns than rows.
    use_cls: whether a CLS token attends with the others (if there is a block).
    mlp_ratio: see `Block`.
    qkv_bias: see `Block`.
    epsilon: of all LayerNorms outside the stem.
    residual_init_scale: see `Block`; near 0 helps training from scratch.
    remat: recompute blocks in the backward pass, for memory.
    dtype: of the computation.
    mlp: see `Block`.
    num_registers: learned tokens that attend with the others and stand for no
      place; they appear nowhere in `out` (Darcet et al., Vision Transformers
      Need Registers, ICLR 2024).
    pre_norm: whether there is a LayerNorm before the first block too (CLIP).
    norm_cls_only: whether the last norm leaves all but the CLS token as they
      are (CLIP).
    block: 0 for tokens after the last norm; i in 1..depth for what leaves the
      i-th block, without a norm. The blocks after it are not run, and are no
      parameters.
    facet: what a token is, of FACETS: 'token', or the 'query', 'key' or
      'value' that the i-th block makes of it, bias included, heads side by side
      (Keetha et al., AnyLoc, RA-L 2023, count blocks from 0).
    adapter: width of the `Adapter` of every block; 0 for none. Their parameters
      are 'adapter' of a block, and no checkpoint has them.

  `out`: cls [B, D] and attention [B, H, N], its row in the last block that runs
  (with a CLS token), sequence [B, N, D] all tokens, CLS first; grid (rows,
  columns).
  """

  width: int = 384
  depth: int = 12
  num_heads: int = 6
  patch_size: int = 16
  stem_widths: tuple[int, ...] = ()
  stem_strides: tuple[tuple[int, int], ...] = ()
  use_cls: bool = True
  mlp_ratio: float = 4.0
  qkv_bias: bool = True
  epsilon: float = 1e-6
  residual_init_scale: float = 1.0
  remat: bool = False
  dtype: jnp.dtype = jnp.float32
  mlp: str = 'gelu'
  num_registers: int = 0
  pre_norm: bool = False
  norm_cls_only: bool = False
  block: int = 0
  facet: str = 'token'
  adapter: int = 0

  @property
  def has_cls(self) -> bool:
    """Whether the sequence starts with a CLS token."""
    return self.use_cls and self.depth > 0

  def _check_block(self):
    if not 0 <= self.block <= self.depth:
      raise InputError(
        f'block {self.block} of a ViT of {self.depth} blocks: give 1 to '
        f'{self.depth}, or 0 for tokens after the last norm'
      )
    if self.facet not in FACETS:
      raise InputError(f'unknown facet {self.facet!r}; known: {FACETS}')
    if self.facet != 'token' and not self.block:
      raise InputError(
        f'the facet {self.facet!r} is that of a block: give block, 1 to '
        f'{self.depth}'
      )

  def setup(self) -> None:
    """Creates the layers."""
    self._check_block()
    if self.stem_widths:
      self.stem = ConvStem(
        tuple(self.stem_widths),
        tuple((down, across) for down, across in self.stem_strides),
        self.residual_init_scale,
        self.dtype,
      )
      self.embed = nn.Dense(self.width, dtype=self.dtype)
    else:
      patch = (self.patch_size, self.patch_size)
      self.embed = convolution.Conv(
        self.width, patch, patch, padding='VALID', dtype=self.dtype
      )
    self.blocks = [
      Block(
        self.width,
        self.num_heads,
        self.mlp_ratio,
        self.qkv_bias,
        self.epsilon,
        self.residual_init_scale,
        self.dtype,
        self.mlp,
        self.adapter,
      )
      for _ in range(self.block or self.depth)
    ]
    norm = functools.partial(nn.LayerNorm, self.epsilon, dtype=self.dtype)
    self.norm = norm()
    if self.pre_norm:
      self.first_norm = norm()

  def _grid(self, images):
    """Token grid of `images`, which must tile."""
    chex.assert_rank(images, 4)
    height, width = images.shape[1:3]
    down = across = self.patch_size
    if self.stem_widths:
      down, across = map(math.prod, zip(*self.stem_strides, strict=True))
    if height % down or width % across:
      raise InputError(
        f'images of {height} x {width} pixels do not tile into patches of '
        f'{down} x {across}; resize or crop them to multiples of it'
      )
    return height // down, width // across

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool = False
  ) -> tuple[jax.Array, dict]:
    """Encodes.

    Args:
      images: [B, H, W, C] float, about unit scale; H, W multiples of the patch.
      train: unused: nothing here differs between training and evaluation.

    Returns:
      tokens: [B, N, D] float32 in row-major order, CLS excluded.
      out: see the class.
    """
    del train
    grid = self._grid(images)
    x = images.astype(self.dtype)
    x = self.embed(self.stem(x) if self.stem_widths else x)
    x = x.reshape(x.shape[0], -1, self.width)
    init = nn.initializers.normal(0.02)
    x = x + self.param('position', init, (1, *x.shape[1:])).astype(x.dtype)
    x = self._join_learned_tokens(x, init)
    if self.pre_norm:
      x = self.first_norm(x)
    out = {'grid': grid}
    x, cls_row = self._run_blocks(x)
    x = out['sequence'] = self._last_norm(self._drop_registers(x, axis=1))
    if self.has_cls:
      out['cls'] = x[:, 0]
      out['attention'] = self._drop_registers(cls_row, axis=2)
    return x[:, int(self.has_cls) :], out

  def _run_blocks(self, x):
    """What leaves the last block that is wanted, and its CLS token's row."""
    if self.facet == 'token':
      return run_blocks(self.blocks, x, remat=self.remat)
    x, _ = run_blocks(self.blocks[:-1], x, remat=self.remat)
    return self.blocks[-1].facet(x, self.facet)

  def _join_learned_tokens(self, x, init):
    """x [B, N, D] behind the CLS token and the registers."""
    learned = {'cls': int(self.has_cls), 'registers': self.num_registers}
    front = []
    for name, count in learned.items():
      if count:
        token = self.param(name, init, (1, count, self.width))
        shape = (x.shape[0], *token.shape[1:])
        front.append(jnp.broadcast_to(token.astype(x.dtype), shape))
    return jnp.concatenate([*front, x], axis=1)

  def _drop_registers(self, x, axis):
    """x without its entries for registers, which follow the CLS token's."""
    if not self.num_registers:
      return x
    start = int(self.has_cls)
    return jnp.delete(x, slice(start, start + self.num_registers), axis)

  def _last_norm(self, x):
    """Normalised tokens [B, N, D], in float32; those of a block as they are."""
    if self.block:
      return x.astype(jnp.float32)
    if not (self.norm_cls_only and self.has_cls):
      return self.norm(x).astype(jnp.float32)
    x = jnp.concatenate([self.norm(x[:, :1]), x[:, 1:]], axis=1)
    return x.astype(jnp.float32)

  def last_query_key(self, sequence: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Queries and keys of the last block that runs; see `saliency`."""
    return self.blocks[-1].query_key(sequence)
