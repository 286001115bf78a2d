# SPDX-License-Identifier: Apache-2.0
"""What configs call published networks and their layers.

NAME                  as `sources.find` takes it; its last features
NAME@8                what leaves block 8 of a transformer, or stage 8 of a
                      convolutional network, counted from 1
NAME@9.value          queries, keys or values of a transformer's block
NAME@7+NAME@8+OTHER   towers beside each other, see `towers.Tower.beside`
"""

import os
import re
from typing import NamedTuple

_LAYER = re.compile(r'(.+)@([1-9]\d*)(?:\.(token|query|key|value))?')


class Named(NamedTuple):
  """One network.

  Attributes:
    checkpoint: as `sources.find` takes it.
    layer: block or stage; None for the last features.
    facet: of a block; '' for its tokens.
  """

  checkpoint: str
  layer: int | None = None
  facet: str = ''


def split(name: str | os.PathLike) -> list[str]:
  """The names of towers beside each other; a path with a '+' stays whole.

  >>> split('dinov2_small@7+dinov2_small@8')
  ['dinov2_small@7', 'dinov2_small@8']
  """
  is_one = os.path.exists(parse(name).checkpoint)
  return [str(name)] if is_one else str(name).split('+')


def parse(name: str | os.PathLike) -> Named:
  """A network and its layer; a path with an '@' stays whole.

  >>> parse('dinov2_small@9.value')
  Named(checkpoint='dinov2_small', layer=9, facet='value')
  >>> parse('dinov2_small').layer is None
  True
  """
  match = None if os.path.exists(name) else _LAYER.fullmatch(str(name))
  if match is None:
    return Named(str(name))
  return Named(match[1], int(match[2]), match[3] or '')
