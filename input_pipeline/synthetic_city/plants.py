# SPDX-License-Identifier: Apache-2.0
"""Trees, hedges and fences."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic_city import assembly
from input_pipeline.synthetic_city import primitives


class Species(NamedTuple):
  """What trees of a kind look like; (low, high) ranges in metres.

  Attributes:
    name: in descriptions.
    trunk: height of the trunk.
    radius: of the trunk.
    crown: horizontal radius of the crown.
    tall: crown height over its horizontal diameter.
    color: of the leaves.
    bark: colour of the trunk.
    crowns: largest number of ellipsoids in the crown.
  """

  name: str
  trunk: tuple[float, float]
  radius: tuple[float, float]
  crown: tuple[float, float]
  tall: tuple[float, float]
  color: tuple[float, float, float]
  bark: tuple[float, float, float]
  crowns: int


SPECIES = (
  Species('lime', (2.2, 3.0), (0.14, 0.26), (1.6, 2.6), (1.1, 1.5),
          (0.13, 0.27, 0.06), (0.17, 0.13, 0.10), 2),
  Species('birch', (2.0, 3.2), (0.09, 0.15), (1.1, 1.8), (1.6, 2.2),
          (0.24, 0.36, 0.09), (0.66, 0.65, 0.61), 1),
  Species('poplar', (1.4, 2.0), (0.15, 0.25), (1.0, 1.5), (3.2, 4.5),
          (0.12, 0.25, 0.08), (0.24, 0.20, 0.16), 1),
  Species('maple', (2.1, 2.8), (0.16, 0.30), (1.9, 3.1), (0.9, 1.2),
          (0.17, 0.24, 0.06), (0.20, 0.15, 0.11), 3),
  Species('fir', (0.6, 1.2), (0.12, 0.22), (1.2, 2.0), (2.4, 3.4),
          (0.05, 0.13, 0.07), (0.16, 0.10, 0.07), 1),
  Species('cherry', (1.5, 2.0), (0.08, 0.14), (1.1, 1.7), (0.9, 1.1),
          (0.26, 0.24, 0.10), (0.24, 0.13, 0.10), 1),
)  # fmt: skip
EVERGREEN = 'fir'


def plant(
  parts: assembly.Assembly,
  xy: Sequence[float] | np.ndarray,
  species: Species,
  rng: np.random.Generator,
  scale: float = 1.0,
) -> None:
  """Plants a tree: a trunk and one to three ellipsoids of leaves."""
  crown = scale * rng.uniform(*species.crown)
  trunk = scale * rng.uniform(*species.trunk)
  radius = scale * rng.uniform(*species.radius)
  tall = 2 * crown * rng.uniform(*species.tall)
  size = 'tall' if trunk + tall > 8.5 else 'small' if trunk + tall < 5 else ''
  words = (size, f'{species.name}-like tree')
  instance = parts.thing('tree', ' '.join(w for w in words if w))
  ground = float(parts.height(xy))
  look: dict[str, Any] = {
    'yaw': 0.0,
    'semantic': 'vegetation',
    'instance': instance,
  }
  parts.add(
    primitives.CYLINDER, xy, ground - 0.2,
    (2 * radius, 2 * radius, trunk + 0.3 * tall + 0.2), material='bark',
    color=species.bark, **look,
  )  # fmt: skip
  # Firs keep their colour in autumn: hedges do not turn, leaves do.
  material = 'hedge' if species.name == EVERGREEN else 'leaves'
  color = np.clip(species.color * rng.uniform(0.75, 1.25, 3), 0.02, 0.6)
  count = int(rng.integers(1, species.crowns + 1))
  for i in range(count):
    part = 1.0 if i == 0 else rng.uniform(0.55, 0.8)
    shift = np.zeros(2) if i == 0 else rng.normal(0, 0.5 * crown, 2)
    lift = 0.0 if i == 0 else rng.uniform(0.1, 0.4) * tall
    parts.add(
      primitives.ELLIPSOID, np.asarray(xy) + np.clip(shift, -crown, crown),
      ground + trunk + lift, (2 * crown * part, 2 * crown * part, tall * part),
      material=material, color=color * rng.uniform(0.85, 1.15), **look,
      seed=int(rng.integers(1, 2**32)),
    )  # fmt: skip


def barrier(
  parts: assembly.Assembly,
  start: np.ndarray,
  end: np.ndarray,
  kind: str,
  tall: float,
  color: Sequence[float],
) -> None:
  """A hedge, wooden fence, metal fence or wall between two points [2].

  Args:
    parts: receives it.
    start: [2], world.
    end: [2], world.
    kind: 'hedge', 'wooden fence', 'metal fence' or 'wall'.
    tall: metres.
    color: albedo.
  """
  material, thick, semantic = {
    'hedge': ('hedge', 0.7, 'vegetation'),
    'wooden fence': ('wood_fence', 0.08, 'fence'),
    'metal fence': ('metal', 0.06, 'fence'),
    'wall': ('brick_facade', 0.3, 'fence'),
  }[kind]
  span = end - start
  length = float(np.hypot(*span))
  # Long ones step down a slope in pieces.
  pieces = max(1, int(np.ceil(length / 14)))
  high = 'high' if tall > 1.6 else 'low'
  instance = parts.thing(
    'hedge' if kind == 'hedge' else 'fence', f'{high} {kind}'
  )
  for i in range(pieces):
    middle = start + span * (i + 0.5) / pieces
    ends = np.stack(
      [start + span * i / pieces, start + span * (i + 1) / pieces]
    )
    low = parts.height(ends).min() - 0.1
    top = float(parts.height(middle)) + tall
    parts.add(
      primitives.BOX, middle, low, (length / pieces, thick, top - low),
      yaw=float(np.arctan2(span[1], span[0])), material=material, color=color,
      semantic=semantic, instance=instance,
    )  # fmt: skip
