# SPDX-License-Identifier: Apache-2.0
"""The drawn parts of the page: curves, maps, errors and confidence."""

from collections.abc import Mapping
from collections.abc import Sequence
from html import escape
import re

import numpy as np

from i2ploc.report import figures
from i2ploc.report import recall
from i2ploc.report import workdir as workdir_lib

RADIUS = 10.0  # metres within which an answer is right
NUM_RANKED = 20  # answers of each query that an evaluation keeps
_COLORS = ('c-cross', 'c-opposite', 'c-sync', 'c-other', 'c-image', 'c-points')
_VALIDATION_RECALL = re.compile(r'recall@1_10m')

Arrays = workdir_lib.Arrays


def error_charts(predictions: Mapping[str, Arrays]) -> str:
  """How far off the first answers are, one chart per direction."""
  charts = []
  for direction in workdir_lib.DIRECTIONS:
    series = []
    for name, record in predictions.items():
      errors = np.sort(record['distances'][:, 0])
      if not name.endswith(f'/{direction}') or not np.isfinite(errors).any():
        continue
      share = 100 * np.arange(1, len(errors) + 1) / len(errors)
      near = np.isfinite(errors)
      color = recall.color_class(name.split('/')[-2])
      x = np.clip(errors[near], 0.5, None)
      series.append(
        figures.Series(
          recall.protocol_text(_protocol(name)), color, x, share[near]
        )
      )
    if series:
      charts.append(
        figures.line_chart(
          series,
          title='Queries (%) whose first answer is this near,'
          f' {recall.direction_text(direction)}',
          x_label='distance of the first answer (m)',
          y_range=(0, 100),
          log_x=True,
        )
      )
  return f'<div class="grid2 after">{"".join(charts)}</div>' if charts else ''


def _protocol(name: str) -> str:
  return name.split('/')[-2]


def town_maps(
  predictions: Mapping[str, Arrays],
  overviews: Mapping[str, workdir_lib.Overview],
) -> str:
  """A map of each town per protocol and direction, as panels of a switch."""
  ids = {town: f'overview-{i}' for i, town in enumerate(overviews)}
  # Each picture is in the page once and used by all maps of its town.
  store = ''.join(
    f'<symbol id="{ids[town]}" viewBox="0 0 100 100"><image width="100"'
    f' height="100" href="{figures.image_uri(view.image, 800)}"/></symbol>'
    for town, view in overviews.items()
  )
  panels = []
  for name, record in predictions.items():
    direction = recall.direction_text(name.split('/')[-1])
    label = escape(f'{recall.protocol_text(_protocol(name))}, {direction}')
    maps = ''.join(
      _town_map(record, town, ids.get(town), overviews.get(town))
      for town in dict.fromkeys(record['towns'].tolist())
    )
    panels.append(
      f'<div class="panel" data-label="{label}"><h3 class="panel-title">'
      f'{label}</h3><div class="maps">{maps}</div></div>'
    )
  return (
    '<p class="legend"><span class="key c-track">map drive</span>'
    '<span class="key round c-hit">right</span>'
    '<span class="key round c-miss">wrong</span>'
    '<span class="key round c-none">nothing in the map within'
    f' {RADIUS:g} m</span></p>'
    f'<svg class="store" aria-hidden="true"><defs>{store}</defs></svg>'
    f'<div class="switcher">{"".join(panels)}</div>'
  )


def _town_map(
  record: Arrays,
  town: str,
  picture_id: str | None,
  view: workdir_lib.Overview | None,
) -> str:
  asked = record['towns'] == town
  first = record['ranked_rows'][asked, 0]
  trip = figures.Trip(
    track=record['map_positions'][record['map_towns'] == town, :2],
    queries=record['query_positions'][asked, :2],
    believed=_positions(record, first),
    right=record['distances'][asked, 0] <= RADIUS,
    answerable=record['nearest'][asked] <= RADIUS,
  )
  trip = trip._replace(
    believed=np.where(first[:, None] < 0, trip.queries, trip.believed)
  )
  count = int(trip.answerable.sum())
  right = int((trip.right & trip.answerable).sum())
  drawing = figures.trajectory_map(
    trip,
    label=f'{town}: {right} of {count} queries right',
    picture_id=picture_id,
    square=(view.center, view.extent) if view else None,
  )
  return (
    f'<figure><h4>{escape(town)}</h4>{drawing}<figcaption>{right} of {count}'
    ' answerable queries right</figcaption></figure>'
  )


def _positions(record: Arrays, rows: np.ndarray) -> np.ndarray:
  """[..., 2] metres of map rows; any position for -1, which is no answer."""
  order = np.argsort(record['map_rows'])
  at = np.searchsorted(record['map_rows'], rows, sorter=order)
  return record['map_positions'][order[at.clip(max=len(order) - 1)], :2]


def confidence_charts(
  predictions: Mapping[str, Arrays], scale: float | None
) -> str:
  """Confidence against truth, and what answering only when sure would give.

  Args:
    predictions: the ranked answers.
    scale: the model's inverse temperature; None orders answers by margin, of
      which there is no reliability.
  """
  reliability, selective = [], []
  for name, record in predictions.items():
    asked = record['nearest'] <= RADIUS
    if not name.endswith('/image_to_points') or not asked.any():
      continue
    right = (record['distances'][:, 0] <= RADIUS)[asked]
    sure = _margin(record) if scale is None else _mass(record, scale)
    color = recall.color_class(_protocol(name))
    label = recall.protocol_text(_protocol(name))
    selective.append(_selective(label, color, sure[asked], right))
    if scale is not None:
      reliability.append(_reliability(label, color, sure[asked], right))
  charts = ''
  if reliability:
    ends = np.array([0.0, 1.0])
    ideal = figures.Series('ideal', 'c-chance', ends, 100 * ends, 'dashed')
    charts += figures.line_chart(
      [ideal, *reliability],
      title='Answers that are right (%)',
      x_label='confidence',
      y_range=(0, 100),
    )
  if selective:
    charts += figures.line_chart(
      selective,
      title='Right (%) among the answers the model is surest of',
      x_label='queries answered (%), surest first',
      y_range=(0, 100),
    )
  return f'<div class="grid2">{charts}</div>'


def example_confidences(
  examples: Arrays, predictions: Mapping[str, Arrays], scale: float
) -> np.ndarray | None:
  """[E] confidence of each example, found among the queries; nan if not."""
  if not {'query_position', 'distance_m'} <= set(examples):
    return None
  for name, record in predictions.items():
    if not name.endswith('/image_to_points'):
      continue
    # A query is known by where it was and how far off its answer is.
    asked = np.c_[record['query_positions'][:, :2], record['distances'][:, 0]]
    shown = np.c_[examples['query_position'], examples['distance_m']]
    apart = np.abs(shown[:, None] - asked).max(-1)
    found = apart.min(1) < 0.01
    if found.any():
      mass = _mass(record, scale)[apart.argmin(1)]
      return np.where(found, mass, np.nan)
  return None


def _near_first(record: Arrays) -> np.ndarray:
  """bool [Q, K], answers within the radius of the first one."""
  positions = _positions(record, record['ranked_rows'])
  step = positions - positions[:, :1]
  near = np.hypot(step[..., 0], step[..., 1]) <= RADIUS
  return near & (record['ranked_rows'] >= 0)


def _mass(record: Arrays, scale: float) -> np.ndarray:
  """[Q] softmax mass, among the ranked answers, near the first one."""
  similarities = record['similarities'].astype(np.float64)
  best = np.where(np.isfinite(similarities[:, :1]), similarities[:, :1], 0.0)
  posterior = np.exp(scale * (similarities - best))
  total = np.maximum(posterior.sum(1), 1e-12)
  return np.where(_near_first(record), posterior, 0).sum(1) / total


def _margin(record: Arrays) -> np.ndarray:
  """[Q] similarity of the first answer over the best one elsewhere."""
  similarities = record['similarities'].astype(np.float64)
  used = np.isfinite(similarities)
  elsewhere = np.where(used & ~_near_first(record), similarities, -np.inf)
  lowest = np.where(used, similarities, np.inf).min(1)
  other = np.where(np.isfinite(elsewhere).any(1), elsewhere.max(1), lowest)
  first = np.where(used[:, 0], similarities[:, 0], 0.0)
  return first - np.where(np.isfinite(other), other, 0.0)


def _selective(label, color, sure, right) -> figures.Series:
  hits = np.cumsum(right[np.argsort(-sure, kind='stable')])
  count = np.arange(1, len(right) + 1)
  # The first few answers are an average over nearly nothing.
  kept = slice(min(len(right) - 1, max(9, len(right) // 20)), None)
  return figures.Series(
    label,
    color,
    (100 * count / len(right))[kept],
    (100 * hits / count)[kept],
  )


def _reliability(label, color, sure, right) -> figures.Series:
  """Fraction right in ten bins, with its 95 % Wilson interval."""
  bins = np.clip((sure * 10).astype(int), 0, 9)
  count = np.bincount(bins, minlength=10)
  used = count > 0
  n = count[used]
  rate = np.bincount(bins, weights=right, minlength=10)[used] / n
  confidence = np.bincount(bins, weights=sure, minlength=10)[used] / n
  z = 1.96
  middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
  half /= 1 + z**2 / n
  return figures.Series(
    label,
    color,
    confidence,
    100 * rate,
    'dots',
    100 * (middle - half),
    100 * (middle + half),
  )


def learning_curves(metrics: Sequence[Mapping[str, float]]) -> str:
  """Loss, in-batch recall, validation recall and learning rate over steps."""
  names = list(dict.fromkeys(name for record in metrics for name in record))
  training = [name for name in names if not name.startswith('validation/')]
  validation = [
    name
    for name in names
    if name.startswith('validation/')
    and name.count('/') == 3
    and _VALIDATION_RECALL.fullmatch(name.rsplit('/', 1)[-1])
  ]
  return (
    '<div class="grid2">'
    + _curves(metrics, [n for n in training if 'loss' in n], 'Loss')
    + _curves(
      metrics,
      [n for n in training if 'recall' in n or 'accuracy' in n],
      'Recall inside the batch (%)',
    )
    + _curves(metrics, validation, 'Validation Recall@1 at 10 m (%)', 'dots')
    + _curves(metrics, [n for n in names if n == 'scale'], 'Scale (1 / T)')
    + '</div>'
  )


def _curves(metrics, names, title, style='smooth') -> str:
  series = []
  for name, color in zip(names[: len(_COLORS)], _COLORS, strict=False):
    at = [(r['step'], r[name]) for r in metrics if name in r and 'step' in r]
    x, y = np.asarray(at, float).T
    if title.endswith('(%)') and 'validation' not in name and y.max() <= 1:
      y = 100 * y
    series.append(figures.Series(_curve_label(name), color, x, y, style))
  if not series:
    return (
      f'<figure class="chart"><h4>{title}</h4><p class="missing">not logged'
      ' in metrics.jsonl</p></figure>'
    )
  bounds = (0, 100) if title.endswith('(%)') else None
  return figures.line_chart(series, title=title, x_label='step', y_range=bounds)


def _curve_label(name: str) -> str:
  parts = name.split('/')
  if parts[0] == 'validation' and len(parts) == 4:
    return f'{parts[1]}, {recall.direction_text(parts[2])}'
  return name
