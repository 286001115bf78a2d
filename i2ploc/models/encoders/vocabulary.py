# SPDX-License-Identifier: Apache-2.0
"""Texts as numbers, one per word of a closed vocabulary.

For models that are trained here, on captions of a known grammar; the list of
words is part of a model's config, and so of its checkpoints. Published models
bring tokenizers of their own, see `weights.clip`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import re

import numpy as np

from i2ploc.errors import InputError

Tokenize = Callable[[Sequence[str]], np.ndarray]
START, END = 0, 1  # the end also fills up what is behind it
SPECIAL = 2


def size(words: Sequence[str]) -> int:
  """How many tokens there are."""
  return SPECIAL + len(words)


def split(text: str) -> list[str]:
  """The words of a text: lower case, without hyphens and punctuation."""
  return re.findall(r'[a-z0-9]+', text.lower())


def make_tokenize(words: Sequence[str], max_length: int) -> Tokenize:
  """Returns the function that numbers texts.

  Args:
    words: the vocabulary; a word's number follows from its place.
    max_length: N, tokens of a row, those for start and end included.

  Returns:
    `texts -> [B, N] int32`, which raises InputError for a word outside of the
    vocabulary, which the encoder has never seen, and for a text too long.

  Raises:
    InputError: a word appears twice, or would be split.
  """
  wrong = [w for w in words if split(w) != [w] or list(words).count(w) > 1]
  if wrong:
    raise InputError(
      f'{wrong} in a vocabulary: expected different words of lower-case '
      'letters and digits'
    )
  numbers = {word: SPECIAL + i for i, word in enumerate(words)}

  def tokenize(texts: Sequence[str]) -> np.ndarray:
    rows = np.full((len(texts), max_length), END, np.int32)
    for row, text in zip(rows, texts, strict=True):
      found = split(text)
      unknown = [word for word in found if word not in numbers]
      if unknown:
        raise InputError(
          f'{text!r}: this model was not taught {unknown}; it knows '
          f'{", ".join(sorted(numbers))}'
        )
      if len(found) > max_length - 2:
        raise InputError(
          f'{text!r} has {len(found)} words, and this model reads '
          f'{max_length - 2}: shorten it'
        )
      row[: len(found) + 1] = [START, *(numbers[word] for word in found)]
    return rows

  return tokenize
