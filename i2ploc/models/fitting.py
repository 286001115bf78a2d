# SPDX-License-Identifier: Apache-2.0
"""What a model learns from a map without labels: vocabulary, whitening.

The variables of the collection 'map' are fitted to readings of the map alone
and belong to it: they are saved with its index. Initial values of `NetVLAD`
come from data in the same way.
"""

from collections.abc import Callable
from collections.abc import Iterable
import functools
import math
from typing import Any

import numpy as np

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.models import clustering
from i2ploc.models import towers as towers_lib
from i2ploc.models import vlad
from i2ploc.models import whitening

COLLECTION = 'map'
# Of rows of the map -> batches of these readings with their 'mask' [B].
Batches = Callable[[np.ndarray], Iterable[dict]]
# Of NetVLAD: what the second best cluster of an average token weighs beside its
# best.
SECOND_BEST = 0.01


def needs_fit(model: towers_lib.Towers, side: str | None = None) -> bool:
  """Whether something of a side has to be fitted to a map; None for any side.

  >>> needs_fit(towers_lib.Towers({}))
  False
  """
  sides = model.towers if side is None else (side,)
  towers = [model.towers[side] for side in sides]
  return any(_has_vocabulary(t) or _is_whitened(t) for t in towers)


def fit(
  model: towers_lib.Towers,
  side: str,
  variables: dict[str, Any],
  batches: Batches,
  count: int,
  *,
  seed: int = 0,
  max_images: int = 500,
  max_tokens: int = 100,
  max_descriptors: int = 2000,
) -> dict[str, Any]:
  """Variables whose collection 'map' is fitted to a map.

  First the vocabulary, by k-means of tokens that are centred if the model
  centres them; then the whitening, of the
  descriptors that the vocabulary gives. Readings are spread evenly over the
  map. Memory and time are bounded whatever the size of the map, and the same
  arguments give the same variables.

  Args:
    model: the towers.
    side: of the map. Other sides of the model are not touched: fit each.
    variables: of the model; not changed.
    batches: called with rows [M] of 0 .. count - 1, ascending; yields the
      side's batches of these readings in this order, each with 'mask' [B] of
      its real rows.
    count: number of readings of the map.
    seed: of what is drawn.
    max_images: readings whose tokens make the vocabulary.
    max_tokens: of each of these, drawn at random.
    max_descriptors: readings whose descriptors make the whitening.

  Returns:
    `variables` itself if there is nothing to fit.

  Raises:
    InputError: a map that is too small for the vocabulary or the whitening, or
      descriptors that are not finite.
  """
  tower = model.towers[side]
  for part in tower.parts:
    if not isinstance(part.aggregator, vlad.VLAD):
      continue
    tokens = sample_tokens(
      _with_tower(model, side, part),
      side,
      variables,
      batches,
      count,
      seed=seed,
      max_images=max_images,
      max_tokens=max_tokens,
    )
    fitted = {}
    if part.aggregator.centered:
      fitted['mean'] = tokens.mean(axis=0)
      tokens = _unit(tokens - fitted['mean'])
    num_clusters = part.aggregator.num_clusters
    fitted['vocabulary'] = clustering.kmeans(tokens, num_clusters, seed)
    variables = _with_fitted(variables, part.aggregator, fitted)
  if isinstance(tower.head, whitening.Whitening):
    embed = functools.partial(_embed(model, side), variables)
    rows = spread(count, max_descriptors)
    found = [
      np.asarray(embed(batch), np.float32)[batch['mask']]
      for batch in batches(rows)
    ]
    fitted = whitening.fit(np.concatenate(found), tower.head.features)
    variables = _with_fitted(variables, tower.head, fitted._asdict())
  return variables


def init_netvlad(
  model: towers_lib.Towers,
  side: str,
  variables: dict[str, Any],
  batches: Batches,
  count: int,
  **fields: int,
) -> dict[str, Any]:
  """Variables whose NetVLAD starts at the clusters of data, as in the paper.

  Arandjelovic et al., CVPR 2016, appendix A: with unit vectors u_k along the
  centres c_k of k-means, logits are alpha <x, u_k>, and alpha is such that the
  second best cluster of an average token weighs a hundredth of its best:
    alpha = -ln(0.01) / mean(best <x, u_k> - second best <x, u_k>).

  Args:
    model: the towers; the side's aggregator is a `NetVLAD` whose norm is 'none'
      or 'bias': others scale the logits again.
    side: as in `fit`.
    variables: as in `fit`.
    batches: as in `fit`.
    count: as in `fit`.
    **fields: seed, max_images and max_tokens, as in `fit`.

  Raises:
    InputError: another aggregator, or too few tokens.
  """
  aggregator = model.towers[side].aggregator
  norm = getattr(aggregator, 'norm', None)
  if not isinstance(aggregator, vlad.NetVLAD) or norm not in ('none', 'bias'):
    raise InputError(
      f'initial clusters are those of a NetVLAD with norm none or bias, and '
      f'the aggregator of {side!r} is {type(aggregator).__name__}'
      f'{"" if norm is None else f" with norm {norm!r}"}'
    )
  tokens = sample_tokens(model, side, variables, batches, count, **fields)
  seed = fields.get('seed', 0)
  centers = clustering.kmeans(tokens, aggregator.num_clusters, seed)
  directions = _unit(centers)
  best = np.sort(tokens @ directions.T, axis=1)[:, ::-1]
  alpha = -math.log(SECOND_BEST) / (best[:, 0] - best[:, 1]).mean()
  assign = {'kernel': alpha * directions.T}
  if norm == 'bias':
    assign['bias'] = np.zeros(len(centers), np.float32)
  fitted = {'assign': assign, 'centers': centers}
  return _with_fitted(variables, aggregator, fitted, 'params')


def sample_tokens(
  model: towers_lib.Towers,
  side: str,
  variables: dict[str, Any],
  batches: Batches,
  count: int,
  *,
  seed: int = 0,
  max_images: int = 500,
  max_tokens: int = 100,
) -> np.ndarray:
  """Tokens [N, D] of unit length, spread over a map; arguments as in `fit`."""
  encode = functools.partial(_encode(model, side), variables)
  rows = spread(count, max_images)
  found, done = [], 0
  for batch in batches(rows):
    features, mask = (np.asarray(x) for x in encode(batch))
    for x in (features[i][mask[i]] for i in np.flatnonzero(batch['mask'])):
      # By the row's own number: batches of another size draw the same.
      rng = np.random.default_rng([seed, int(rows[done])])
      drawn = rng.permutation(len(x))[:max_tokens]
      found.append(x[np.sort(drawn)])
      done += 1
  tokens = np.concatenate(found)
  if not np.isfinite(tokens).all():
    raise InputError(
      'tokens of the map are not finite; look for readings that are, and for '
      'weights that were not loaded'
    )
  return _unit(tokens)


def spread(count: int, limit: int) -> np.ndarray:
  """At most `limit` of the rows 0 .. count - 1, evenly.

  >>> spread(10, 4).tolist(), spread(3, 4).tolist()
  ([0, 3, 6, 9], [0, 1, 2])

  Raises:
    InputError: no row at all.
  """
  if count < 1 or limit < 1:
    raise InputError(
      f'a map of {count} readings, {limit} of them taken: nothing to fit to'
    )
  return np.linspace(0, count - 1, min(count, limit)).round().astype(int)


def _unit(x):
  """Vectors [N, D] at unit length."""
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _has_vocabulary(tower):
  return any(isinstance(one.aggregator, vlad.VLAD) for one in tower.parts)


def _is_whitened(tower):
  return isinstance(tower.head, whitening.Whitening)


def _with_tower(model, side, tower):
  """The model with another tower of a side; modules keep their names."""
  return model.clone(towers={**model.towers, side: tower})


def _with_fitted(variables, module, fitted, collection=COLLECTION):
  """A copy with other variables of a named module."""
  tree = dict(variables[collection])
  tree[module.name] = dict(tree[module.name]) | fitted
  return {**variables, collection: tree}


def _encode(model, side):
  """Compiled `variables, batch -> features, mask` of tokens, CLS left out.

  What follows the encoder is not computed.
  """

  def encode(variables, batch):
    tokens = model.apply(variables, batch, side=side)[1]['tokens']
    return tokens.features, tokens.mask

  return compilation.jit(encode)


def _embed(model, side):
  """Compiled `variables, batch -> descriptors` of a side without its head."""
  bare = _with_tower(model, side, model.towers[side]._replace(head=None))
  return compilation.jit(lambda *args: bare.apply(*args, side=side)[0])
