# SPDX-License-Identifier: Apache-2.0
"""Models of one or more sensors: the towers, by the side that they describe.

A `Tower` is a view, an encoder, a saliency, an aggregator and perhaps a head:
it makes one descriptor of each reading of its side. A model, `Towers`, is a
mapping of towers by side name: {'image', 'points'} for images against LiDAR
scans, {'image'} for photos against photos, {'image', 'rendering'} for photos
against renderings of a mesh, {'image', 'text'} for crops and captions.
All descriptors of a model lie in one space. `CompiledTowers` has them as
compiled functions.

Towers take built modules; `factory` makes them of a config.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import math
from typing import Any
from typing import NamedTuple

from flax import linen as nn
from flax.core import frozen_dict
import jax
import jax.numpy as jnp

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.models import aggregators
from i2ploc.models import views as views_lib
from i2ploc.models.encoders import normalization

Batch = dict[str, jax.Array]
# Parts of a sector by which a turn may miss a whole number of sectors.
TURN_TOLERANCE = 1e-3
# Attributes of an aggregator that tell one sector from the others.
_TELLS_SECTORS_APART = ('per_sector_head', 'output_batch_norm', 'gating')


class Tower(NamedTuple):
  """One side of a model.

  Attributes:
    view: what it sees of a batch, see `views`.
    encoder: of what the view shows: `inputs, train -> features, out`.
    aggregator: of the encoder's tokens, see `aggregators`.
    saliency: weighs the tokens, see `saliency`; None: all count 1.
    aggregate_cls: whether the CLS token is aggregated as well, the first of the
      tokens and in no direction, hence without sectors alone. An aggregator
      that needs it gets it all the same.
    head: of the descriptor, such as `whitening.Whitening`; None: the descriptor
      itself.
    beside: towers that see the same readings in other ways, as other layers or
      networks. Their descriptors follow that of this tower, and the whole has
      unit length: similarities are the mean of those of all.
  """

  view: views_lib.View
  encoder: nn.Module
  aggregator: nn.Module
  saliency: nn.Module | None = None
  aggregate_cls: bool = False
  head: nn.Module | None = None
  beside: 'tuple[Tower, ...]' = ()

  @property
  def parts(self) -> 'tuple[Tower, ...]':
    """The tower itself and those beside it, each alone and without a head."""
    return tuple(
      one._replace(head=None, beside=()) for one in (self, *self.beside)
    )

  @property
  def has_unit_descriptors(self) -> bool:
    """Whether descriptors are made to be compared by their angle alone."""
    return getattr(self.head or self.aggregator, 'normalized', True)

  @property
  def with_cls(self) -> bool:
    """Whether the aggregator gets the CLS token."""
    return self.aggregate_cls or getattr(self.aggregator, 'needs_cls', False)

  @property
  def num_headings(self) -> int:
    """S if turning is a shift of S sectors, see `turn`; 0 if it is not.

    The sectors must go around the whole circle, and nothing may tell one from
    the others.
    """
    if any(getattr(self.aggregator, x, False) for x in _TELLS_SECTORS_APART):
      return 0
    if self.head is not None or self.beside:
      return 0
    around = getattr(self.view, 'projection', None) == 'equirectangular'
    return self.aggregator.num_sectors if around else 0

  def num_sectors_turned(self, yaw: float) -> int:
    """How many sectors `yaw` radians are.

    Raises:
      InputError: if these are no whole sectors, or `num_headings` is 0.
    """
    if not self.num_headings:
      raise InputError(
        'turning is no shift of sectors: these are not around the circle, or '
        'not alike; embed the turned readings'
      )
    turned = yaw * self.num_headings / (2 * math.pi)
    if abs(turned - round(turned)) > TURN_TOLERANCE:
      raise InputError(
        f'a view turned by {yaw:g} radians, but with {self.num_headings} '
        f'sectors views are multiples of {2 * math.pi / self.num_headings:g}; '
        'change the views or num_sectors'
      )
    return round(turned)

  def turn(self, descriptors: jax.Array, yaw: float) -> jax.Array:
    """Descriptors of the same places for a vehicle that has turned left.

    What was ahead is then on the right: every sector takes the place of another
    one. Exact as far as the encoder sees a thing alike in all directions, and
    the camera stands on the axis of the turn.

    Args:
      descriptors: [..., D].
      yaw: radians, counter-clockwise from above, whole sectors.

    Returns:
      [..., D].

    Raises:
      InputError: see `num_sectors_turned`.
    """
    shift = self.num_sectors_turned(yaw)
    shape = descriptors.shape
    sectors = descriptors.reshape(*shape[:-1], self.num_headings, -1)
    return jnp.roll(sectors, shift, axis=-2).reshape(shape)

  def check(self, side: str) -> None:
    """Raises InputError unless its parts fit each other."""
    self.view.check()
    has_cls = self.encoder.has_cls
    if self.saliency is not None and not has_cls:
      raise InputError(
        f'a saliency reads the attention of a CLS token, and the {side} '
        'encoder has none (depth 0, use_cls=False, or no transformer); give it '
        "a block and a CLS token, or choose saliency 'none'"
      )
    if not self.with_cls:
      if getattr(self.aggregator, 'pool', None) == 'cls':
        raise InputError("pool 'cls' without aggregate_cls: set both")
    elif not has_cls:
      raise InputError(
        f'the CLS token is to be aggregated, but the {side} encoder has no CLS '
        'token; choose another pooling'
      )
    elif self.aggregator.num_sectors:
      raise InputError(
        'aggregate_cls with sectors: a CLS token lies in no direction; set '
        'num_sectors to 0 or aggregate_cls to False'
      )

    for one in self.beside:
      self._check_beside(one, side)

  def _check_beside(self, other, side):
    other.check(side)
    if other.beside or other.head is not None:
      raise InputError(
        f'a tower beside that of {side!r} has a head or further towers; the'
        ' first tower has them'
      )
    sizes = [getattr(one.view, 'size', None) for one in (self, other)]
    if type(other.view) is not type(self.view) or sizes[0] != sizes[1]:
      raise InputError(
        f'towers of {side!r} see {type(self.view).__name__} {sizes[0]} and'
        f' {type(other.view).__name__} {sizes[1]}: expected the same'
      )

  def named(self, side: str) -> 'Tower':
    """The same, with names for the modules that have none.

    The names are those of their variables: `image`, `image_aggregator`,
    `image_saliency`, `image_head`; those of the first tower beside it begin
    with `image_1`. A module with a name keeps it.
    """

    def name(module, own):
      if module is None or module.name is not None:
        return module
      return module.clone(name=own)

    return self._replace(
      encoder=name(self.encoder, side),
      aggregator=name(self.aggregator, f'{side}_aggregator'),
      saliency=name(self.saliency, f'{side}_saliency'),
      head=name(self.head, f'{side}_head'),
      beside=tuple(
        one.named(f'{side}_{i}') for i, one in enumerate(self.beside, 1)
      ),
    )


class Towers(nn.Module):
  """Descriptors of every side, and the scale of their similarities.

  Attributes:
    towers: by side name. All are checked on construction.
    initial_temperature: of the similarities; its inverse is learned, as its
      logarithm `log_scale`, see `losses.contrastive.clamped_scale`.
    initial_bias: of the similarities, for losses that want one; it is learned,
      as `similarity_bias`.

  `out` of a tower, and not of those beside it: tokens, saliency [B, N], bounds,
  and what its encoder, its view and its aggregator give (attention, sequence,
  grid, centers, pooled...). Of sequences of T images, tokens and saliency are
  [B, T * N], frame by frame, and what the encoder gives has B * T rows.
  """

  towers: Mapping[str, Tower]
  initial_temperature: float = 0.07
  initial_bias: float | None = None

  # Modules of `towers` keep their names, see `Tower.named`.
  preserve_adopted_names = True

  def __post_init__(self):
    named = {side: tower.named(side) for side, tower in self.towers.items()}
    # Frozen: a hashable model can be a static argument of jax.jit.
    self.towers = frozen_dict.freeze(named)
    for side, tower in self.towers.items():
      tower.check(side)
    super().__post_init__()

  @property
  def has_unit_descriptors(self) -> bool:
    """Whether descriptors are made to be compared by their angle alone."""
    return all(t.has_unit_descriptors for t in self.towers.values())

  @property
  def image_view(self) -> views_lib.Image:
    """What the 'image' tower sees."""
    view = self.towers['image'].view
    if not isinstance(view, views_lib.Image):
      raise InputError(
        f"the side 'image' sees {type(view).__name__}, no images"
      )
    return view

  def example(self) -> Batch:
    """A batch of one reading of every side, of zeros."""
    batch = {}
    for tower in self.towers.values():
      batch |= tower.view.example()
    return batch

  def setup(self) -> None:
    """Creates what the sides have in common."""
    init = nn.initializers.constant(-math.log(self.initial_temperature))
    self.log_scale = self.param('log_scale', init, ())
    if self.initial_bias is not None:
      bias = nn.initializers.constant(self.initial_bias)
      self.similarity_bias = self.param('similarity_bias', bias, ())

  def __call__(
    self,
    batch: Batch,
    side: str,
    train: bool = False,
    yaw: jax.Array | float = 0.0,
  ) -> tuple[jax.Array, dict]:
    """Describes one side of a batch.

    Args:
      batch: the readings that the side's view needs.
      side: a key of `towers`.
      train: whether BatchNorm uses the batch, and what is random is drawn from
        the streams that the caller gives ('points', 'cutout', 'dropout').
      yaw: scalar or [B], radians, added to the viewing direction,
        counter-clockwise from above: pi describes a place of the map as a
        camera of opposite heading would see it. Scans can be turned, and
        images from above by quarters of a turn.

    Returns:
      descriptor: [B, D], unit length unless the aggregator leaves it.
      out: see the class.
    """
    tower = self.towers[side]

    def draw(stream):
      return self.make_rng(stream) if train and self.has_rng(stream) else None

    descriptor, out = self._describe(tower, batch, train, yaw, draw)
    if tower.beside:
      others = [
        self._describe(one, batch, train, yaw, draw)[0] for one in tower.beside
      ]
      descriptor = jnp.concatenate([descriptor, *others], axis=-1)
      descriptor = normalization.unit(descriptor)
    if tower.head is not None:
      descriptor = tower.head(descriptor)
    return descriptor, out

  def _describe(
    self, tower: Tower, batch: Batch, train: bool, yaw: Any, draw: Any
  ) -> tuple[jax.Array, dict]:
    """Descriptors and `out` of one tower, without its head."""
    out: dict[str, Any]
    shown = tower.view.show(batch, yaw, draw)
    features, out = tower.encoder(*shown.inputs, train)
    tokens, out = tower.view.place(shown, features, out)
    length = tokens.mask.shape[1]
    if tower.saliency is None:
      weights = jnp.ones((len(tokens.mask), 1 + length))
    else:
      weights = tower.saliency(tower.encoder, out, tokens.mask)
    weighted = aggregators.join_frames(tokens, weights[:, 1:], shown.frames)
    out |= dict(tokens=weighted[0], saliency=weighted[1], bounds=shown.bounds)
    if tower.with_cls:
      tokens = aggregators.Tokens(
        out['sequence'],
        jnp.pad(tokens.azimuth, ((0, 0), (1, 0))),
        jnp.pad(tokens.mask, ((0, 0), (1, 0)), constant_values=True),
        tokens.grid,
      )
      weighted = aggregators.join_frames(tokens, weights, shown.frames)
    descriptor, pooled = tower.aggregator(*weighted, shown.bounds, train)
    return descriptor, out | pooled

  def every_side(
    self, batch: Batch, train: bool = False
  ) -> dict[str, tuple[jax.Array, dict]]:
    """Descriptors and `out` by side; `init` of this method makes variables."""
    return {side: self(batch, side, train) for side in self.towers}


def shapes(model: Towers) -> Any:
  """Shapes and dtypes of a model's variables; nothing is computed."""
  init = functools.partial(model.init, method='every_side')
  return jax.eval_shape(init, jax.random.key(0), model.example())


def image_and_text(
  image: nn.Module,
  text: nn.Module,
  view: views_lib.Image,
  features: int,
  **fields: Any,
) -> Towers:
  """Towers {'image', 'text'} as of CLIP.

  Radford et al., Learning Transferable Visual Models From Natural Language
  Supervision, ICML 2021: the CLS token of an image and the end token of a text,
  each projected without a bias and brought to unit length.

  Args:
    image: encoder of images, with a CLS token.
    text: encoder of texts.
    view: of images.
    features: width of the descriptors.
    **fields: the other attributes of `Towers`.
  """

  def head(side):
    return aggregators.FirstToken(features, name=f'{side}_projection')

  towers = {
    'image': Tower(view, image, head('image'), aggregate_cls=True),
    'text': Tower(views_lib.Text(text.max_length), text, head('text')),
  }
  return Towers(towers, **fields)


class CompiledTowers:
  """A model and its sides as compiled functions.

  Attributes:
    model: the linen module.
    sides: names of its towers.
    map_side: the side that a map is made of.
    views: radians, the viewing directions in which a reading of the map is
      described.
  """

  def __init__(
    self, model: Towers, map_side: str, views: tuple[float, ...] = (0.0,)
  ):
    """Checks the views; nothing is compiled, and no parameter exists yet.

    Raises:
      InputError: a side that the model does not have, or views that it cannot
        describe.
    """
    if map_side not in model.towers:
      raise InputError(
        f'the map is of {map_side!r}, and the model has {list(model.towers)}'
      )
    self.model, self.map_side, self.views = model, map_side, tuple(views)
    tower = model.towers[map_side]
    for yaw in self.views:
      if tower.num_headings:
        tower.num_sectors_turned(yaw)
      elif yaw and not tower.view.can_turn:
        raise InputError(
          f'views={self.views}: readings of {map_side!r} cannot be turned; '
          'expected (0.0,)'
        )

  @property
  def sides(self) -> tuple[str, ...]:
    """Names of the towers."""
    return tuple(self.model.towers)

  @property
  def has_unit_descriptors(self) -> bool:
    """See `Towers`."""
    return self.model.has_unit_descriptors

  def init(self, key: jax.Array) -> Any:
    """Fresh variables."""
    init = functools.partial(self.model.init, method='every_side')
    return jax.jit(init)({'params': key}, self.model.example())

  @functools.cache  # noqa: B019  towers live as long as the program
  def embed(
    self, side: str, views: tuple[float, ...] | None = None
  ) -> Callable[[Any, Batch], jax.Array]:
    """The compiled descriptors of a side.

    Args:
      side: a key of the towers.
      views: radians, viewing directions; None for straight ahead.

    Returns:
      `variables, batch -> [B, D]`; with views -> [B, V, D], one descriptor per
      view.
    """
    if views is None:
      return compilation.jit(lambda *args: self._apply(side, *args)[0])
    tower = self.model.towers[side]

    def embed(variables, batch):
      if tower.num_headings:
        ahead = self._apply(side, variables, batch)[0]
        seen = [tower.turn(ahead, yaw) for yaw in views]
      else:
        seen = [self._apply(side, variables, batch, yaw)[0] for yaw in views]
      return jnp.stack(seen, axis=1)

    return compilation.jit(embed)

  @functools.cache  # noqa: B019
  def out(self, side: str) -> Callable[[Any, Batch], dict]:
    """The compiled `variables, batch -> out` of a side, looking ahead."""
    return compilation.jit(lambda *args: self._apply(side, *args)[1])

  def _apply(self, side, variables, batch, yaw=0.0):
    return self.model.apply(variables, batch, side=side, yaw=yaw)
