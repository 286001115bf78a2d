# SPDX-License-Identifier: Apache-2.0
"""What configs call published networks and their layers.

NAME                  as `sources.find` takes it; its last features
NAME@8                what leaves block 8 of a transformer, or stage 8 of a
                      convolutional network, counted from 1
NAME@9.value          queries, keys or values of a transformer's block
NAME#teacher          of a file that holds several networks the one whose
                      names begin so, see `tensors.choose`; NAME#teacher@8
NAME@7+NAME@8+OTHER   towers beside each other, see `towers.Tower.beside`
"""

import os
import re
from typing import NamedTuple

_PART = re.compile(r'(.+)#([\w.\-]*)')
_LAYER = re.compile(r'(.+)@([1-9]\d*)(?:\.(token|query|key|value))?')


class Named(NamedTuple):
  """One network.

  Attributes:
    checkpoint: as `sources.find` takes it.
    layer: block or stage; None for the last features.
    facet: of a block; '' for its tokens.
    part: of a file, in front of the network's names; None for its only one.
  """

  checkpoint: str
  layer: int | None = None
  facet: str = ''
  part: str | None = None


def split(name: str | os.PathLike) -> list[str]:
  """The names of towers beside each other; a path with a '+' stays whole.

  >>> split('dinov2_small@7+dinov2_small@8')
  ['dinov2_small@7', 'dinov2_small@8']
  """
  is_one = os.path.exists(parse(name).checkpoint)
  return [str(name)] if is_one else str(name).split('+')


def parse(name: str | os.PathLike) -> Named:
  """A network and its layer; a path with an '@' or a '#' stays whole.

  >>> parse('dinov2_small@9.value')
  Named(checkpoint='dinov2_small', layer=9, facet='value', part=None)
  >>> parse('dino.pth#teacher')
  Named(checkpoint='dino.pth', layer=None, facet='', part='teacher')
  >>> parse('dinov2_small').layer is None
  True
  """
  name, layer, facet, part = str(name), None, '', None
  if match := _split_off(_LAYER, name):
    name, layer, facet = match[1], int(match[2]), match[3] or ''
  if match := _split_off(_PART, name):
    name, part = match[1], match[2]
  return Named(name, layer, facet, part)


def _split_off(pattern, name):
  return None if os.path.exists(name) else pattern.fullmatch(name)
