# SPDX-License-Identifier: Apache-2.0
"""Sequences described frame by frame, and the descriptors of frames fused.

Late fusion of place recognition by sequences (Mereu et al., Learning Sequential
Descriptors for Sequence-based Visual Place Recognition, RA-L 2022). Fusing the
tokens of all frames instead needs no class: see `aggregators`.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.models import aggregators
from i2ploc.models import vlad
from i2ploc.models.encoders import normalization
from i2ploc.models.encoders import vit

FORMS = ('concatenation', 'mean', 'delta', 'transformer')


def delta_weights(frames: int) -> np.ndarray:
  """Weight [T] of each frame of a temporal difference.

  Garg et al., Delta Descriptors, RA-L 2020: -2 / T in the first half of the
  sequence and 2 / T in the second. The middle frame of an odd T counts 0, so
  that weights always sum to 0, and reversing a sequence changes the sign.

  >>> delta_weights(4).tolist(), (5 * delta_weights(5)).tolist()
  ([-0.5, -0.5, 0.5, 0.5], [-2.0, -2.0, 0.0, 2.0, 2.0])

  Raises:
    InputError: a single frame.
  """
  if frames < 2:
    raise InputError(
      f'a difference in time of {frames} frame; give sequences of 2 or more, '
      'or another form of fusion'
    )
  sign = np.sign(np.arange(frames) - (frames - 1) / 2)
  return np.asarray(sign * 2 / frames, np.float32)


def positions(frames: int, width: int) -> np.ndarray:
  """Sines and cosines [T, D] of the number of a frame.

  Vaswani et al., Attention Is All You Need, NeurIPS 2017, for any T; sines
  first.
  """
  rate = 1e4 ** (-np.arange(0, width, 2) / width)
  angle = np.arange(frames)[:, None] * rate
  waves = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
  return np.asarray(waves[:, :width], np.float32)


class Fusion(nn.Module):
  """One descriptor of the descriptors of the frames of a sequence.

  >>> place = jnp.zeros((1, 6)), jnp.ones((1, 6), bool)
  >>> grid = aggregators.Grid(1, 2, frames=3)
  >>> x = jnp.repeat(jnp.eye(3)[None], 2, axis=1)  # two cells a frame
  >>> tokens = aggregators.Tokens(x, *place, grid)
  >>> model = Fusion(aggregators.Mean(features=0), form='delta')
  >>> descriptor, _ = model.apply({}, tokens, jnp.ones((1, 6)), None)
  >>> [round(x, 3) for x in descriptor[0].tolist()]
  [-0.707, 0.0, 0.707]

  Attributes:
    inner: the aggregator that describes a frame, without sectors.
    form: of FORMS, of the descriptors z_t of T frames, before the fused one is
      brought to unit length:
      'concatenation', z_1 ... z_T side by side: only sequences of the same T
      compare;
      'mean', whatever their order;
      'delta', a difference in time, see `delta_weights`: T of at least 2;
      'transformer', the mean after one pre-norm block over the frames, which
      knows their order by `positions`. These are only for the block to see and
      are taken away behind it. The block starts as the identity, hence the
      fusion as 'mean'.
    num_heads: of the block; divides the width of a descriptor.

  `out`: pooled [B, features] before its normalisation.
  """

  inner: nn.Module
  form: str
  num_heads: int = 4

  def __post_init__(self):
    if self.form not in FORMS:
      raise InputError(f'form of fusion is {self.form!r}; known: {FORMS}')
    if isinstance(self.inner, vlad.VLAD):
      raise InputError(
        'fusion of VLAD: its words are fitted to tokens of a map; take VLAD '
        'itself, which pools the tokens of all frames'
      )
    if getattr(self.inner, 'num_sectors', 0):
      raise InputError(
        'fusion of sectors: those of different frames show different things; '
        'set num_sectors of the inner aggregator to 0'
      )
    super().__post_init__()

  @property
  def num_sectors(self) -> int:
    """There are none."""
    return 0

  @property
  def needs_cls(self) -> bool:
    """Whether the first of a frame's tokens must be its CLS token."""
    return getattr(self.inner, 'needs_cls', False)

  @property
  def pool(self) -> str | None:
    """What of a frame is pooled, where the inner aggregator says so."""
    return getattr(self.inner, 'pool', None)

  @nn.compact
  def __call__(
    self,
    tokens: aggregators.Tokens,
    weights: jax.Array,
    bounds: aggregators.Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Fuses; arguments and results as in `aggregators.FirstToken`.

    Raises:
      InputError: 'delta' of single images.
    """
    del bounds  # of sectors, of which there are none
    frames = tokens.frames
    each, weights = aggregators.split_frames(tokens, weights)
    z, _ = self.inner(each, weights, None, train)
    z = z.reshape(-1, frames, z.shape[-1])
    if self.form == 'concatenation':
      pooled = z.reshape(len(z), -1)
    elif self.form == 'delta':
      pooled = jnp.einsum('t,btd->bd', delta_weights(frames), z)
    else:
      if self.form == 'transformer':
        z = self._related(z)
      pooled = jnp.mean(z, axis=1)
    return normalization.unit(pooled), {'pooled': pooled}

  def _related(self, z):
    """Descriptors [B, T, D] that know of each other."""
    frames, width = z.shape[1:]
    place = positions(frames, width)
    block = vit.Block(
      width, self.num_heads, residual_init_scale=0.0, name='block'
    )
    # Numbers of a unit vector are small beside the waves.
    x = z * width**0.5 + place
    related = block(x)[0] - place
    # Where nothing was seen, the biases alone say nothing.
    seen = jnp.any(z != 0, axis=(1, 2), keepdims=True)
    return jnp.where(seen, related, 0.0)
