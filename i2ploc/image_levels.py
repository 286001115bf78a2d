# SPDX-License-Identifier: Apache-2.0
"""Samples of more than 8 bits, and floats, as the 8 bits that a model sees.

White is what the file says. Where it does not say, cameras of 10, 12 or 14 bits
put their samples into 16 as they are, and white is that of the smallest depth
which holds the brightest sample: a picture none of whose 65,536 levels is above
4,095 comes from 12 bits. Levels are scaled, never cut off.
"""

import numpy as np

from i2ploc.errors import InputError

# Bits a sample that sensors have and people store, in 8 or 16.
DEPTHS = (8, 10, 12, 14, 16)
# Above 1 a float is a number of levels; a picture of this few is black, so what
# lies between has no known white.
_FEWEST_LEVELS = 16


def white_of(brightest: float) -> int:
  """The level of white in an image whose brightest sample is given.

  >>> white_of(4000)
  4095

  Raises:
    InputError: of more than 16 bits.
  """
  for bits in DEPTHS:
    if brightest < 1 << bits:
      return (1 << bits) - 1
  raise InputError(
    f'a level of {brightest:g}, expected at most {(1 << DEPTHS[-1]) - 1}'
  )


def from_integers(levels: np.ndarray, white: int | None = None) -> np.ndarray:
  """Integers as uint8 of the same shape.

  Args:
    levels: of any integer type, 0 is black.
    white: the level of white, where the file says it; None if not known.

  Raises:
    InputError: negative levels, or more than 16 bits.
  """
  low, high = int(levels.min()), int(levels.max())
  if low < 0:
    raise InputError(f'a level of {low}, expected none below 0')
  white = max(white_of(high), white or 0)
  # A table: a photo of 100 megapixels would not fit as wider integers.
  table = (np.arange(white + 1) * 255 + white // 2) // white
  return table.astype(np.uint8)[levels]


def from_floats(levels: np.ndarray) -> np.ndarray:
  """Floats in 0..1, or in the range of integers, as uint8 of the same shape.

  Raises:
    InputError: NaN, infinite or negative levels, or a range that is neither.
  """
  low, high = float(levels.min()), float(levels.max())  # NaN if one is
  if not (low >= 0 and high < np.inf):
    raise InputError(
      f'floats from {low:g} to {high:g}, expected 0 to 1, or levels of '
      f'{", ".join(map(str, DEPTHS))} bits'
    )
  if 1 < high < _FEWEST_LEVELS:
    raise InputError(
      f'floats up to {high:g}, and their white is not known: scale them to 0..1'
    )
  white = 1 if high <= 1 else white_of(high)
  return (levels * np.float32(255 / white) + np.float32(0.5)).astype(np.uint8)
