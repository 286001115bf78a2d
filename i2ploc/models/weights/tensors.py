# SPDX-License-Identifier: Apache-2.0
"""The tensors of a file: which networks it holds, and what was used of it.

Training scripts save more than a network: two encoders, a student and its
teacher, a copy that is averaged over steps, an optimizer. A network is found
by names that it must have, wherever they begin; of several, the one that was
asked for is taken, see `choose`.
"""

from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Mapping
import contextlib
import contextvars
import os
from typing import NamedTuple

from absl import logging
import numpy as np

from i2ploc.errors import InputError

# Names that a message shows; the others are counted.
_SHOWN = 6
_COUNTER = '.num_batches_tracked'  # of torch's BatchNorm: of no use to anyone


class _Use(NamedTuple):
  """What a file holds, and what of it became part of a model."""

  names: set[str]
  taken: set[str]


_uses: contextvars.ContextVar[dict[str, _Use] | None] = contextvars.ContextVar(
  'uses', default=None
)


class Tensors(dict[str, np.ndarray]):
  """Arrays by name, of a file or of a part of it.

  Attributes:
    origin: the file.
    start: what precedes the names in it, such as 'teacher.'.
  """

  def __init__(
    self, arrays: Mapping[str, np.ndarray], origin: str, start: str = ''
  ):
    super().__init__(arrays)
    self.origin, self.start = origin, start

  def below(self, place: str) -> 'Tensors':
    """Those whose names begin with 'PLACE.', without it; all of ''."""
    if not place:
      return self
    start = f'{place}.'
    inside = {
      name.removeprefix(start): tensor
      for name, tensor in self.items()
      if name.startswith(start)
    }
    return Tensors(inside, self.origin, self.start + start)

  def places(self, name: str) -> list[str]:
    """What stands in front of a name, each time it is there; '' for nothing.

    >>> tensors = dict.fromkeys(('ema.conv.weight', 'conv.weight'), np.ones(1))
    >>> Tensors(tensors, 'file').places('conv.weight')
    ['ema', '']
    """
    end = f'.{name}'
    return [
      one.removesuffix(name).removesuffix('.')
      for one in self
      if one == name or one.endswith(end)
    ]

  def take(self, names: Iterable[str]) -> None:
    """Says that tensors became part of a model."""
    uses = _uses.get()
    if uses is not None and self.origin in uses:
      uses[self.origin].taken.update(self.start + name for name in names)


def note_reading(tensors: Tensors) -> None:
  """Says that a file was read."""
  uses = _uses.get()
  if uses is not None:
    names = {tensors.start + name for name in tensors}
    use = uses.setdefault(tensors.origin, _Use(set(), set()))
    use.names.update(names)


@contextlib.contextmanager
def telling_unused() -> Generator[None]:
  """Logs a line of each file read inside, if not all of it became a model."""
  if _uses.get() is not None:
    yield
    return
  token = _uses.set({})
  try:
    yield
    for origin, (names, taken) in (_uses.get() or {}).items():
      if rest := names - taken:
        logging.warning(
          '%s: %d of %d tensors are not used: %s',
          origin,
          len(rest),
          len(names),
          listed(rest),
        )
  finally:
    _uses.reset(token)


def listed(names: Iterable[str]) -> str:
  """The first names in order, counters last, and how many more there are.

  >>> listed(['b', 'a'])
  'a, b'
  """
  names = sorted(names, key=lambda name: (name.endswith(_COUNTER), name))
  more = len(names) - _SHOWN
  shown = ', '.join(names[:_SHOWN])
  return f'{shown} and {more} more' if more > 0 else shown


def pick(tensors: Tensors, places: Iterable[str], part: str | None) -> Tensors:
  """The tensors of the network that is meant, without those of others in it.

  Args:
    tensors: of a file.
    places: see `choose`.
    part: see `choose`.

  Raises:
    InputError: see `choose`.
  """
  places = list(places)
  place = choose(tensors.origin, places, part)
  inside = tensors.below(place)
  start = f'{place}.' if place else ''
  others = tuple(
    f'{one.removeprefix(start)}.'
    for one in places
    if one != place and one.startswith(start)
  )
  if not others:
    return inside
  own = {k: v for k, v in inside.items() if not k.startswith(others)}
  return Tensors(own, inside.origin, inside.start)


def choose(
  path: str | os.PathLike, places: Iterable[str], part: str | None
) -> str:
  """Which network of a file is meant.

  Args:
    path: of the file, for the message.
    places: what stands in front of each network's names.
    part: of the place that was asked for, its beginning at least, up to a dot;
      None for the only one there is, '' for the one that has nothing in front.

  Returns:
    One of the places; `part` where there is none.

  Raises:
    InputError: several may be meant, or none.
  """
  places = list(dict.fromkeys(places))
  if not places:
    return part or ''
  if part in places:
    return part or ''
  found = places
  if part is not None:
    found = [place for place in places if place.startswith(f'{part}.')]
  if len(found) == 1:
    return found[0]
  names = ', '.join(f'{path}#{place}' for place in sorted(found or places))
  if not found:
    raise InputError(f'{path}#{part}: no network begins there; known: {names}.')
  raise InputError(
    f'{path} holds {len(found)} networks: name the one that is meant, of '
    f'{names}.'
  )
