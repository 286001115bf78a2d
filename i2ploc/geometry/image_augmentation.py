# SPDX-License-Identifier: Apache-2.0
"""Changes of images alone: crops, views from above, and borrowed colours.

Where image, cloud and calibration have to agree, see `augmentation`: after
these, an image has no calibration.
"""

import math

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import augmentation
from i2ploc.geometry import cropping
from i2ploc.geometry import homography
from i2ploc.geometry import panorama
from i2ploc.geometry import rigid

# Logarithm of the largest change of a crop's aspect, and how often a crop that
# does not fit is drawn anew, both as in torchvision.
_LOG_ASPECT = math.log(4 / 3)
_ATTEMPTS = 10
_CORNERS = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
# Deviations of a channel, in 0..1, below which it is one colour.
_FLAT = 1e-4


def random_resized_crop(
  key: jax.Array, images: jax.Array, min_area: float = 0.5
) -> jax.Array:
  """A random part of each image, at the image's size.

  The part has `min_area` to all of the area, and its ratio of width to height
  is 3/4 to 4/3 of the image's, evenly in its logarithm: of square images as
  torchvision's RandomResizedCrop draws it, and others are not stretched
  further. Interpolation is linear; no part is larger than its image, so that
  nothing has to be averaged.

  Args:
    key: PRNG key.
    images: [B, H, W, C] float.
    min_area: in (0, 1], least part of the area that is kept.

  Returns:
    [B, H, W, C].
  """
  chex.assert_rank(images, 4)
  batch, height, width, channels = images.shape
  keys = jax.random.split(key, 3)
  draws = (_ATTEMPTS, batch)
  area = jax.random.uniform(keys[0], draws, minval=min_area, maxval=1.0)
  aspect = jnp.exp(
    jax.random.uniform(keys[1], draws, minval=-_LOG_ASPECT, maxval=_LOG_ASPECT)
  )
  sides = jnp.sqrt(area[..., None] * jnp.stack([aspect, 1 / aspect], axis=-1))
  # The first that fits; all of the image if none does.
  sides = jnp.concatenate([sides, jnp.ones((1, batch, 2))])
  first = (sides <= 1.0).all(-1).argmax(0)
  side = jnp.take_along_axis(sides, first[None, :, None], axis=0)[0]
  low = jax.random.uniform(keys[2], (batch, 2)) * (1.0 - side)
  windows = jnp.concatenate([low, low + side], axis=-1)
  windows = windows * jnp.asarray([width, height] * 2)
  fill = (0.0,) * channels  # no window reaches beyond its image
  return cropping.crop(images, windows[:, None], (height, width), fill)[:, 0]


def overhead_views(
  key: jax.Array,
  images: jax.Array,
  variant: jax.Array,
  *,
  max_rotation: float = jnp.pi / 4,
  crop: float = 0.875,
  perspective: float = 0.5,
  jitter: float = 0.9,
) -> jax.Array:
  """Another view from above, one for all images of a variant.

  Berton et al., EarthLoc: Astronaut photography localization by indexing Earth
  from space, 2024, "year-wise augmentation": each tile exists in several years,
  and what is drawn is drawn once per year. Two tiles then differ by what they
  show and not by how they are seen, and a tile's years differ in both.

  As released: a rotation about the middle, a square part at a random place, a
  perspective whose corners move inwards by up to `perspective` / 2 of the
  sides, of which the largest upright square without background is kept, and
  `augmentation.color_jitter`. The geometry is one homography, interpolated once
  and linearly. Where the image does not reach after the rotation, it is black
  before the jitter.

  Args:
    key: PRNG key.
    images: [B, H, W, 3] float in 0..1.
    variant: [B] int32; images of equal variants are changed alike.
    max_rotation: to either side, radians.
    crop: side of the part over that of the image; released 700 of 800 pixels.
    perspective: in [0, 1), "distortion scale" of torchvision.
    jitter: strength of the colour jitter.

  Returns:
    [B, H, W, 3] in 0..1.
  """
  chex.assert_rank(images, 4)
  chex.assert_shape(variant, images.shape[:1])

  def view(image, variant):
    where, colors, *places = jax.random.split(
      jax.random.fold_in(key, variant), 4
    )
    pixels = _seen_from_above(
      where, places, image.shape[:2], max_rotation, crop, perspective
    )
    size = jnp.asarray([image.shape[1], image.shape[0]])
    inside = ((pixels >= 0.0) & (pixels <= size)).all(-1, keepdims=True)
    seen = jnp.where(inside, panorama.sample(image, pixels), 0.0)
    return augmentation.color_jitter(colors, seen[None], jitter)[0]

  return jax.vmap(view)(images, variant)


def _seen_from_above(key, keys, shape, max_rotation, crop, perspective):
  """Where the pixels [H, W, 2] of a view lie in its image."""
  height, width = shape
  size = jnp.asarray([width, height], jnp.float32)
  corners = jnp.asarray(_CORNERS)
  inwards = jnp.sign(0.5 - corners) * perspective / 2
  moved = corners + inwards * jax.random.uniform(keys[0], (4, 2))
  # Unit squares: of the tilted picture, and of the part before it was tilted.
  part_from_tilted, _ = homography.from_four(moved, corners)
  low = jnp.maximum(moved[0], moved[jnp.array([3, 1]), jnp.array([0, 1])])
  high = jnp.minimum(moved[2], moved[jnp.array([1, 3]), jnp.array([0, 1])])
  half = (high - low).min() / 2
  rows, columns = jnp.mgrid[:height, :width] + 0.5
  grid = jnp.stack([columns / width, rows / height], axis=-1)
  tilted = (low + high) / 2 + half * (2.0 * grid - 1.0)
  homogeneous = jnp.concatenate([tilted, jnp.ones_like(grid[..., :1])], -1)
  part = jnp.matmul(homogeneous, part_from_tilted.T, precision=rigid.EXACT)
  part = part[..., :2] / part[..., 2:]
  corner = jax.random.uniform(keys[1], (2,)) * (1.0 - crop)
  offset = (corner + crop * part - 0.5) * size
  angle = jax.random.uniform(key, minval=-max_rotation, maxval=max_rotation)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  x, y = jnp.moveaxis(offset, -1, 0)
  turned = jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
  return size / 2 + turned


def mix_statistics(
  key: jax.Array, images: jax.Array, donors: jax.Array, share: float
) -> tuple[jax.Array, jax.Array]:
  """Gives images the mean and deviation of channels of a donor in the batch.

  Adaptive instance normalisation (Huang and Belongie, Arbitrary style transfer
  in real-time, 2017, equation 8) of the pixels themselves:

    AdaIN(x, y) = sd(y) (x - mean(x)) / sd(x) + mean(y)

  With a few images of the target domain as donors these are pseudo-targets, as
  AdaGeo makes them by style transfer (Moreno Berton et al., Adaptive-attentive
  geolocalization from few queries, 2021), without a network to be trained.

  Args:
    key: PRNG key.
    images: [B, H, W, C] float in 0..1.
    donors: [B] bool, images of the target domain; they stay as they are.
    share: probability that any other image is changed.

  Returns:
    images: [B, H, W, C] in 0..1; all as they were if there is no donor.
    changed: [B] bool, which images now look like the target domain's.
  """
  chex.assert_shape(donors, images.shape[:1])
  which, whose = jax.random.split(key)
  chosen = jax.random.bernoulli(which, share, donors.shape)
  changed = chosen & ~donors & donors.any()
  odds = jnp.where(donors, 0.0, -jnp.inf)
  donor = jax.random.categorical(whose, odds, shape=donors.shape)
  mean = images.mean((1, 2), keepdims=True)
  variance = ((images - mean) ** 2).mean((1, 2), keepdims=True)
  deviation = jnp.sqrt(jnp.maximum(variance, _FLAT**2))
  scale = deviation[donor] / deviation
  moved = jnp.clip((images - mean) * scale + mean[donor], 0.0, 1.0)
  return jnp.where(changed[:, None, None, None], moved, images), changed
