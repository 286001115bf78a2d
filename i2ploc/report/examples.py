# SPDX-License-Identifier: Apache-2.0
"""Example queries as pictures: what was retrieved, and where saliency lies."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from i2ploc.report import figures
from i2ploc.report import templates
from i2ploc.report import workdir as workdir_lib

Arrays = workdir_lib.Arrays

_WORDS = {'hit': 'right', 'miss': 'wrong', 'unknown': 'unknown'}


class Picture(NamedTuple):
  """A picture with what is written below it, and a verdict that frames it."""

  uri: str
  caption: str
  verdict: str = ''


class Strip(NamedTuple):
  """The pictures of one query.

  Attributes:
    title: of the query.
    facts: what is known of its answer.
    pictures: the query first.
    verdict: 'hit', 'miss', 'unknown' or ''.
  """

  title: str
  facts: list[str]
  pictures: list[Picture]
  verdict: str = ''

  @property
  def word(self) -> str:
    """The verdict in words."""
    return _WORDS.get(self.verdict, '')


def strips(
  examples: Arrays, count: int, width: int, radius: float
) -> templates.Markup:
  """Each query beside what was retrieved, failures first.

  Args:
    examples: the arrays of examples.npz.
    count: examples at most.
    width: pixels of a picture at most.
    radius: metres within which an answer is right.

  Returns:
    Nothing without examples.
  """
  if 'query_image' not in examples:
    return templates.Markup()
  scans = 'retrieved_depth' in examples
  pictures = _scans if scans else _photos
  return templates.render(
    'strips.html',
    ramp=_ramp(
      figures.DEPTH_COLORS,
      f'{figures.NEAR:g} m',
      f'{figures.FAR:g} m and more',
    )
    if scans
    else None,
    strips=[
      Strip(
        _title(examples, i),
        _facts(examples, i),
        pictures(examples, i, width, radius),
        _verdict(_first_distance(examples, i), radius),
      )
      for i in _failures_first(examples, radius)[:count]
    ],
  )


def overlays(
  examples: Arrays, count: int, width: int, radius: float
) -> templates.Markup:
  """Saliency over query and returns, of wrong and right examples in turn."""
  if not {'query_image', 'saliency_image'} <= set(examples):
    return templates.Markup()
  order = _failures_first(examples, radius)
  both_ends = np.stack([order, order[::-1]], 1).ravel().tolist()
  return templates.render(
    'strips.html',
    ramp=_ramp(
      figures.SALIENCY_COLORS, 'weight 0', f'{figures.TOP_WEIGHT:g} and more'
    ),
    strips=[
      Strip(_title(examples, i), [], _overlay(examples, i, width))
      for i in list(dict.fromkeys(both_ends))[:count]
    ],
  )


def _verdict(distance: float, radius: float) -> str:
  if np.isnan(distance):
    return 'unknown'
  return 'hit' if distance <= radius else 'miss'


def _first_distance(examples, i: int) -> float:
  """Metres between a query and its first answer, NaN if nobody knows."""
  distances = examples.get('distance_m')
  return float('nan') if distances is None else float(distances[i])


def _failures_first(examples, radius: float) -> np.ndarray:
  if 'distance_m' not in examples:
    return np.arange(len(examples['query_image']))
  return np.argsort(examples['distance_m'] <= radius, kind='stable')


def _ramp(colors: str, low: str, high: str) -> dict[str, str]:
  return {'low': low, 'high': high, 'colors': figures.gradient(colors)}


def _title(examples, i: int) -> str:
  return str(examples['title'][i]) if 'title' in examples else f'example {i}'


def _facts(examples, i: int) -> list[str]:
  distance = _first_distance(examples, i)
  facts = ['position unknown']
  if not np.isnan(distance):
    off = f'{distance:.1f} m off' if np.isfinite(distance) else 'another town'
    facts = [f'first answer {off}']
  if 'confidence' in examples and np.isfinite(examples['confidence'][i]):
    facts.append(f'confidence {100 * float(examples["confidence"][i]):.0f} %')
  if 'rank' in examples and examples['rank'][i] >= 0:
    rank = int(examples['rank'][i])
    place = f'at rank {rank}' if rank > 0 else 'beyond the first 20'
    facts.append(f'first right answer {place}')
  return facts


def _scans(examples, i: int, width: int, radius: float) -> list[Picture]:
  """The query, the retrieved scan and the true one."""
  del radius
  pictures = [_query(examples, i, width)]
  for caption, key in (
    ('Retrieved scan', 'retrieved_depth'),
    ('True scan', 'true_depth'),
  ):
    if key in examples:
      drawn = figures.depth_picture(examples[key][i])
      pictures.append(Picture(figures.drawing_uri(drawn, width), caption))
  return pictures


def _photos(examples, i: int, width: int, radius: float) -> list[Picture]:
  """The query, the photos found, and the nearest one if all of them miss."""
  width = max(width // 3, 160)
  pictures = [_query(examples, i, width)]
  distances = examples['answer_distances'][i]
  for k, image in enumerate(examples['answer_images'][i]):
    verdict = _verdict(float(distances[k]), radius)
    told = f'{k + 1}: {_WORDS[verdict]}'
    if np.isfinite(distances[k]):
      told += f', {distances[k]:.1f} m'
    told += f', similarity {examples["answer_similarities"][i, k]:.2f}'
    told += f' · {examples["answer_names"][i, k]}'
    pictures.append(Picture(figures.image_uri(image, width), told, verdict))
  if 'true_image' in examples and not (distances <= radius).any():
    uri = figures.image_uri(examples['true_image'][i], width)
    pictures.append(Picture(uri, 'nearest photo of the map'))
  return pictures


def _query(examples, i: int, width: int) -> Picture:
  return Picture(figures.image_uri(examples['query_image'][i], width), 'Query')


def _overlay(examples, i: int, width: int) -> list[Picture]:
  image = examples['query_image'][i]
  heat = figures.saliency_on_image(image, examples['saliency_image'][i])
  pictures = [
    _query(examples, i, width),
    Picture(figures.image_uri(heat, width), 'Saliency on the image'),
  ]
  if 'saliency_points' in examples:
    dots = figures.saliency_on_points(image, examples['saliency_points'][i])
    uri = figures.drawing_uri(dots, width)
    pictures.append(Picture(uri, 'Saliency on the LiDAR points'))
  return pictures


class Share(NamedTuple):
  """Saliency on one kind of things, percent.

  Attributes:
    kind: 'moving', 'movable', 'static' or another class.
    weight, area: of the saliency and of the tokens.
    weight_key, area_key: names of these numbers in results.json, or ''.
  """

  kind: str
  weight: float
  area: float
  weight_key: str = ''
  area_key: str = ''


def shares(results: Mapping[str, float]) -> templates.Markup:
  """Cards of weight against area, one row per sensor; percent."""
  sensors: dict[str, list[Share]] = {}
  for name in sorted(results, reverse=True):
    parts = name.split('/')
    area = name.removesuffix('_share') + '_area'
    if len(parts) < 4 or parts[-3] != 'saliency' or area not in results:
      continue
    if name.endswith('_share'):
      kind = parts[-1].removesuffix('_share')
      share = Share(kind, results[name], results[area], name, area)
      sensors.setdefault(parts[-2], []).append(share)
  for found in sensors.values():
    kinds = {one.kind: one for one in found}
    # Static is what neither moves nor may be gone tomorrow.
    rest = kinds.get('movable') or kinds.get('moving')
    if rest and 'static' not in kinds:
      found.append(Share('static', 100 - rest.weight, 100 - rest.area))
  if not sensors:
    return templates.Markup()
  return templates.render('shares.html', sensors=dict(sorted(sensors.items())))
