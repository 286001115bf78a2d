# SPDX-License-Identifier: Apache-2.0
"""Which frames of which sequences: the grammar of splits, for every reader.

A split is written

  [spaced: | disjoint:] SEQUENCE[slice] + SEQUENCE[slice] ...

as in '00[:3000]+05', 'spaced:0002+0004' or 'disjoint:0000[-1501:]'. A slice is
Python's, over the frames of the sequence that have a pose and a sensor: of a
complete sequence the first frames are those of the lowest numbers, of a partial
copy they are not. `spaced` keeps frames more than a few metres of path apart,
and `disjoint` lets these frames ask and all others answer; without a rule all
frames do both.

What differs between the datasets is what a sequence is called and which splits
have names of their own: a `Grammar`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import re
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import schema

RULES = ('spaced', 'disjoint')
_PART = re.compile(r'([^][]+)(?:\[(-?\d+)?:(-?\d+)?\])?', re.ASCII)


class Part(NamedTuple):
  """A sequence and the slice of its frames."""

  sequence: str
  frames: slice


class Split(NamedTuple):
  """A split as written.

  Attributes:
    rule: 'all', 'spaced' or 'disjoint'.
    parts: in the order written.
  """

  rule: str
  parts: tuple[Part, ...]

  def only(self, keep: Callable[[str], bool]) -> 'Split':
    """The parts whose sequence `keep` says yes to."""
    kept = tuple(part for part in self.parts if keep(part.sequence))
    return Split(self.rule, kept)

  def __str__(self) -> str:
    """The split as it would be written; `parse` reads it back."""
    rule = f'{self.rule}:' if self.rule in RULES else ''
    return rule + '+'.join(map(_written, self.parts))


def _written(part: Part) -> str:
  bounds = part.frames.start, part.frames.stop
  if bounds == (None, None):
    return part.sequence
  start, stop = ('' if bound is None else bound for bound in bounds)
  return f'{part.sequence}[{start}:{stop}]'


class Grammar(NamedTuple):
  """How one dataset's splits are written.

  Attributes:
    dataset: its name in messages.
    sequence: the full name of a sequence as written, or None if it is none.
    example: a split or two, for messages.
    published: names of splits and what they stand for.
  """

  dataset: str
  sequence: Callable[[str], str | None]
  example: str
  published: Mapping[str, str]

  def parse(self, text: str) -> Split:
    """Reads a split, or looks up the name of a published one.

    Raises:
      InputError: neither; the message shows the grammar.
    """
    written = self.published.get(text, text)
    rule, colon, listed = written.partition(':')
    if not colon or rule not in RULES:
      rule, listed = 'all', written
    parts = [self._part(item, text) for item in listed.split('+')]
    sequences = [part.sequence for part in parts]
    if len(set(sequences)) < len(sequences):
      raise InputError(f'{text!r}: a sequence is listed twice in {sequences}.')
    return Split(rule, tuple(parts))

  def _part(self, item: str, text: str) -> Part:
    match = _PART.fullmatch(item)
    sequence = self.sequence(match[1]) if match else None
    if match is None or sequence is None:
      names = f', or one of {list(self.published)}' if self.published else ''
      raise InputError(
        f'{text!r} is not a split of {self.dataset}: {item!r} is no sequence. '
        f'Expected e.g. {self.example}{names}.'
      )
    bounds = [int(bound) if bound else None for bound in match.groups()[1:]]
    return Part(sequence, slice(*bounds))


def numbered(width: int) -> Callable[[str], str | None]:
  """Names of sequences that are numbers of up to `width` digits."""

  def sequence(text: str) -> str | None:
    fits = re.fullmatch(rf'\d{{1,{width}}}', text, re.ASCII)
    return f'{int(text):0{width}d}' if fits else None

  return sequence


def spaced(position: np.ndarray, spacing: float) -> np.ndarray:
  """Frames after which more than `spacing` has been driven since the last one.

  Args:
    position: [F, 2] of consecutive frames, metres.
    spacing: metres of path, not of distance: a loop does not end where it
      began.

  Returns:
    [F] bool; the first frame is one.
  """
  steps = np.linalg.norm(np.diff(position, axis=0), axis=1)
  chosen = np.zeros(len(position), bool)
  driven = np.inf
  for i, step in enumerate(np.append(0.0, steps)[: len(position)]):
    driven += step
    if driven > spacing:
      chosen[i], driven = True, 0.0
  return chosen


def apply(
  frames: schema.FrameTable, split: Split, spacing: float
) -> tuple[np.ndarray, np.ndarray | None]:
  """Rows of a table whose drives are the split's sequences, in its order.

  Args:
    frames: one drive per part of the split, all their frames.
    split: see `Grammar.parse`.
    spacing: metres, see `spaced`.

  Returns:
    rows: [N] that belong to the split.
    queries: [N] bool, which of them ask; None if all do.

  Raises:
    InputError: a slice is empty.
  """
  rows, chosen = [], []
  for part, drive in zip(
    split.parts, dict.fromkeys(frames.drive.tolist()), strict=True
  ):
    every = np.flatnonzero(frames.drive == drive)
    members = every[part.frames]
    if not len(members):
      raise InputError(
        f'{drive}[{part.frames.start}:{part.frames.stop}] is empty; it has '
        f'{len(every)} frames.'
      )
    rows.append(members)
    chosen.append(spaced(frames.position[members, :2], spacing))
  rows, chosen = np.concatenate(rows), np.concatenate(chosen)
  if split.rule == 'spaced':
    return rows[chosen], None
  return rows, chosen if split.rule == 'disjoint' else None
