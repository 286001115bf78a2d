# SPDX-License-Identifier: Apache-2.0
"""Example queries as pictures: what was retrieved, and where saliency lies."""

from collections.abc import Mapping
from html import escape

import numpy as np

from i2ploc.report import charts
from i2ploc.report import figures
from i2ploc.report import workdir as workdir_lib

_KINDS = {
  'moving': '<strong>moving</strong> things',
  'movable': '<strong>movable</strong> things, parked cars too',
  'static': '<strong>static</strong> things',
}

Arrays = workdir_lib.Arrays


def strips(examples: Arrays, count: int, width: int) -> str:
  """Query, retrieved and true scan of some examples, failures first.

  Args:
    examples: the arrays of examples.npz.
    count: examples at most.
    width: pixels of a picture at most.
  """
  if 'query_image' not in examples:
    return ''
  order = _failures_first(examples)[:count]
  near, far = f'{figures.NEAR:g} m', f'{figures.FAR:g} m and more'
  return _ramp(figures.DEPTH_COLORS, near, far) + ''.join(
    _strip(examples, i, width) for i in order
  )


def overlays(examples: Arrays, count: int, width: int) -> str:
  """Saliency over query and returns, of wrong and right examples in turn."""
  if not {'query_image', 'saliency_image'} <= set(examples):
    return ''
  order = _failures_first(examples)
  both_ends = np.stack([order, order[::-1]], 1).ravel().tolist()
  ramp = _ramp(
    figures.SALIENCY_COLORS, 'weight 0', f'{figures.TOP_WEIGHT:g} and more'
  )
  return ramp + ''.join(
    _overlay(examples, i, width) for i in list(dict.fromkeys(both_ends))[:count]
  )


def _failures_first(examples) -> np.ndarray:
  if 'distance_m' not in examples:
    return np.arange(len(examples['query_image']))
  return np.argsort(examples['distance_m'] <= charts.RADIUS, kind='stable')


def _ramp(colors: str, low: str, high: str) -> str:
  return (
    f'<div class="ramp">{low}<i style="background:{figures.gradient(colors)}">'
    f'</i>{high}</div>'
  )


def _strip(examples, i: int, width: int) -> str:
  pictures = [
    ('Query', figures.image_uri(examples['query_image'][i], width))
  ] + [
    (
      caption,
      figures.drawing_uri(figures.depth_picture(examples[key][i]), width),
    )
    for caption, key in (
      ('Retrieved scan', 'retrieved_depth'),
      ('True scan', 'true_depth'),
    )
    if key in examples
  ]
  return (
    '<article class="strip"><div class="strip-head">'
    f'{_strip_facts(examples, i)}</div>{_triple(pictures)}</article>'
  )


def _triple(pictures) -> str:
  shown = ''.join(
    f'<figure><img class="photo" src="{uri}" alt="{caption}">'
    f'<figcaption>{caption}</figcaption></figure>'
    for caption, uri in pictures
  )
  return f'<div class="triple">{shown}</div>'


def _strip_facts(examples, i: int) -> str:
  facts = []
  if 'distance_m' in examples:
    distance = float(examples['distance_m'][i])
    kind = 'hit' if distance <= charts.RADIUS else 'miss'
    word = 'right' if kind == 'hit' else 'wrong'
    facts.append(f'<span class="badge {kind}">{word}</span>')
  facts.append(f'<h4>{escape(_title(examples, i))}</h4>')
  if 'distance_m' in examples:
    off = f'{distance:.1f} m off' if np.isfinite(distance) else 'another town'
    facts.append(f'<span>first answer {off}</span>')
  if 'confidence' in examples:
    percent = 100 * float(examples['confidence'][i])
    if np.isfinite(percent):
      facts.append(f'<span>confidence {percent:.0f} %</span>')
  if 'rank' in examples:
    rank = int(examples['rank'][i])
    place = f'at rank {rank}' if rank > 0 else 'beyond the first 20'
    facts.append(f'<span>first right answer {place}</span>')
  return ''.join(facts)


def _title(examples, i: int) -> str:
  return str(examples['title'][i]) if 'title' in examples else f'example {i}'


def _overlay(examples, i: int, width: int) -> str:
  image = examples['query_image'][i]
  pictures = [('Query', figures.image_uri(image, width))]
  heat = figures.saliency_on_image(image, examples['saliency_image'][i])
  pictures.append(('Saliency on the image', figures.image_uri(heat, width)))
  if 'saliency_points' in examples:
    dots = figures.saliency_on_points(image, examples['saliency_points'][i])
    uri = figures.drawing_uri(dots, width)
    pictures.append(('Saliency on the LiDAR points', uri))
  return (
    f'<article class="strip"><div class="strip-head"><h4>'
    f'{escape(_title(examples, i))}</h4></div>{_triple(pictures)}</article>'
  )


def shares(results: Mapping[str, float]) -> str:
  """Cards of weight against area, one row per sensor; percent."""
  rows: dict[str, dict[str, tuple[str, str]]] = {}
  for name in sorted(results, reverse=True):
    parts = name.split('/')
    area = name.removesuffix('_share') + '_area'
    if len(parts) >= 4 and parts[-3] == 'saliency' and area in results:
      if name.endswith('_share'):
        kind = parts[-1].removesuffix('_share')
        rows.setdefault(parts[-2], {})[kind] = name, area
  return ''.join(
    f'<div class="shares">{_sensor_cards(results, sensor, rows[sensor])}</div>'
    for sensor in sorted(rows)
  )


def _sensor_cards(
  results: Mapping[str, float],
  sensor: str,
  kinds: Mapping[str, tuple[str, str]],
) -> str:
  cards = [
    _share_card(sensor, kind, results[share], results[area], share, area)
    for kind, (share, area) in kinds.items()
  ]
  # Static is what neither moves nor may be gone tomorrow.
  rest = kinds.get('movable') or kinds.get('moving')
  if rest and 'static' not in kinds:
    share, area = (100 - results[name] for name in rest)
    cards.append(_share_card(sensor, 'static', share, area))
  return ''.join(cards)


def _share_card(
  sensor: str,
  kind: str,
  weight: float,
  area: float,
  weight_key: str = '',
  area_key: str = '',
) -> str:
  def row(label, value, key, color):
    return (
      f'<div class="row {color}"><span>{label}</span><span class="meter">'
      f'<i style="width:{min(max(value, 0), 100):.1f}%"></i></span>'
      f'<span data-key="{escape(key)}">{value:.1f} %</span></div>'
    )

  ratio = f'{weight / area:.2f} ×' if area > 0 else '–'
  return (
    f'<div class="share"><div class="big">{ratio}</div><p>saliency on'
    f' {_KINDS.get(kind, escape(kind))}, {escape(sensor)}</p>'
    + row('share of weight', weight, weight_key, f'c-{escape(sensor)}')
    + row('share of area', area, area_key, 'c-chance')
    + '</div>'
  )
