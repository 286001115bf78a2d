# SPDX-License-Identifier: Apache-2.0
"""The drawn parts of the page: curves, maps, errors and confidence."""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from i2ploc.report import figures
from i2ploc.report import recall
from i2ploc.report import templates
from i2ploc.report import workdir as workdir_lib

_COLORS = ('c-cross', 'c-opposite', 'c-sync', 'c-other', 'c-image', 'c-points')

Arrays = workdir_lib.Arrays


def verdicts(
  record: Arrays, radius: float, has_length: bool = True
) -> np.ndarray:
  """What each first answer is.

  Args:
    record: the ranked answers of a protocol in one direction.
    radius: within which an answer is right.
    has_length: distances are between positions; otherwise they say right or
      wrong, and positions are not asked.

  Returns:
    [Q] 'hit', 'miss', 'none' (nothing in the map is within the radius) or
    'unknown' (where the query or its answer is).
  """
  first, nearest = record['distances'][:, 0], record['nearest']
  answered = record['ranked_rows'][:, 0] >= 0
  unknown = np.isnan(nearest) | (answered & np.isnan(first)) | np.isnan(radius)
  if has_length:
    answers = positions(record, record['ranked_rows'][:, 0])
    unknown |= np.isnan(record['query_positions'][:, :2]).any(1)
    unknown |= answered & np.isnan(answers).any(1)
  return np.select(
    [unknown, nearest > radius, first <= radius],
    ['unknown', 'none', 'hit'],
    'miss',
  )


def error_charts(
  predictions: Mapping[str, Arrays],
  unit: str = 'm',
  charts: Sequence[templates.Markup] = (),
) -> templates.Markup:
  """How far off the first answers are, one chart per direction.

  Args:
    predictions: the ranked answers, by protocol and direction.
    unit: of their distances.
    charts: what is shown beside.
  """
  charts = list(charts)
  for direction in dict.fromkeys(name.split('/')[-1] for name in predictions):
    series, photos = [], direction == recall.PHOTOS
    for name, record in predictions.items():
      errors = np.sort(record['distances'][:, 0])
      near = errors < workdir_lib.ELSEWHERE  # false of NaN, too
      if not name.endswith(f'/{direction}') or not near.any():
        continue
      share = 100 * np.arange(1, len(errors) + 1) / len(errors)
      series.append(
        figures.Series(
          recall.protocol_text(_protocol(name)),
          recall.color_class(_protocol(name)),
          np.clip(errors[near], 0.5, None),
          share[near],
        )
      )
    if series:
      charts.append(
        figures.line_chart(
          series,
          title='Queries (%) whose first answer is this near'
          + ('' if photos else f', {recall.direction_text(direction)}'),
          x_label=f'distance of the first answer ({unit})',
          y_range=(0, 100),
          log_x=True,
        )
      )
  return templates.render('grid.html', charts=charts)


def recall_chart(
  points: Mapping[str, Sequence[tuple[int, float]]],
) -> templates.Markup:
  """Recall and what chance reaches over N, of `recall.chart_points`."""
  series = []
  for name, color, style in (
    ('recall', 'c-other', 'dots'),
    ('chance', 'c-chance', 'dashed'),
  ):
    n, rate = np.array(points[name], float).T
    series.append(figures.Series(name, color, n, rate, style))
  return figures.line_chart(
    series,
    title='Queries (%) with a right answer among the first N',
    x_label='N',
    y_range=(0, 100),
    log_x=True,
  )


def _protocol(name: str) -> str:
  return name.split('/')[-2]


def town_maps(
  predictions: Mapping[str, Arrays],
  overviews: Mapping[str, workdir_lib.Overview],
  radius: float,
  names: Sequence[str] = (),
) -> templates.Markup:
  """A map of each town per protocol and direction, as panels of a switch.

  Args:
    predictions: the ranked answers, by protocol and direction.
    overviews: pictures of towns.
    radius: metres within which an answer is right.
    names: of the rows, of photos; they appear under the pointer.

  Returns:
    The panels; nothing where no position is known.
  """
  ids = {town: f'overview-{i}' for i, town in enumerate(overviews)}
  panels = {}
  for name, record in comparable(predictions).items():
    direction = name.split('/')[-1]
    maps = [
      _town_map(
        record,
        town,
        radius,
        drive=direction != 'image_to_image',
        picture_id=ids.get(town),
        view=overviews.get(town),
        names=names,
      )
      for town in dict.fromkeys(record['towns'].tolist())
    ]
    label = recall.protocol_text(_protocol(name))
    label += f', {recall.direction_text(direction)}'
    if any(maps):
      panels[label] = [drawn for drawn in maps if drawn]
  if not panels:
    return templates.Markup()
  return templates.render(
    'maps.html',
    panels=panels,
    # Each picture is in the page once and used by all maps of its town.
    pictures={
      ids[town]: figures.image_uri(view.image, 800)
      for town, view in overviews.items()
    },
    photos=all(name.endswith('image_to_image') for name in predictions),
    radius=f'{radius:g}',
  )


def comparable(predictions: Mapping[str, Arrays]) -> Mapping[str, Arrays]:
  """Without those that ask all towns at once: no map shows two of them."""
  return {
    name: record
    for name, record in predictions.items()
    if not _protocol(name).endswith('_one_pool')
  }


def _town_map(
  record: Arrays,
  town: str,
  radius: float,
  *,
  drive: bool,
  picture_id: str | None,
  view: workdir_lib.Overview | None,
  names: Sequence[str],
) -> dict | None:
  """Title, drawing and counts of a town; None if no position is known."""
  asked = record['towns'] == town
  asked &= np.isfinite(record['query_positions'][:, :2]).all(1)
  track = record['map_positions'][record['map_towns'] == town, :2]
  track = track[np.isfinite(track).all(1)]
  if not asked.any() or not len(track):
    return None
  if on_a_line(np.concatenate([track, record['query_positions'][asked, :2]])):
    return None  # `matches` shows it
  first = record['ranked_rows'][asked, 0]
  queries = record['query_positions'][asked, :2]
  believed = np.where(first[:, None] < 0, np.nan, positions(record, first))
  found = verdicts(record, radius)[asked]
  hits, misses = (int((found == word).sum()) for word in ('hit', 'miss'))
  told = f'{hits} of {hits + misses}'
  drawing = figures.trajectory_map(
    figures.Trip(track, queries, believed, found, drive),
    label=f'{town}: {told} queries right',
    picture_id=picture_id,
    square=(view.center, view.extent) if view else None,
    labels=_labels(record['query_rows'][asked], first, names),
  )
  drawn = figures.MOST_LEAPS
  few = (
    drive or len(queries) <= figures.MOST_LABELS or max(hits, misses) <= drawn
  )
  lines = '' if few else f'; lines of {drawn} right and {drawn} wrong at most'
  return {'town': town, 'drawing': drawing, 'told': told, 'lines': lines}


def _labels(queries, answers, names) -> Sequence[str]:
  """Which photo was taken for which."""
  if not len(names):
    return ()
  return [
    f'{names[query]} → {names[answer] if answer >= 0 else "nothing"}'
    for query, answer in zip(queries, answers, strict=True)
  ]


def on_a_line(points: np.ndarray) -> bool:
  """Whether positions [N, 2] differ along one axis alone, as numbers do."""
  extent = np.ptp(points, axis=0)
  return bool(extent.min() <= 1e-6 * extent.max())


def positions(record: Arrays, rows: np.ndarray) -> np.ndarray:
  """[..., 2] metres of map rows; any position for -1, which is no answer."""
  order = np.argsort(record['map_rows'])
  at = np.searchsorted(record['map_rows'], rows, sorter=order)
  return record['map_positions'][order[at.clip(max=len(order) - 1)], :2]


def confidence_charts(
  predictions: Mapping[str, Arrays], radius: float
) -> templates.Markup:
  """Confidence against truth, and what answering only when sure would give.

  Args:
    predictions: the ranked answers; those to images with confidences are
      drawn, over the queries that have a right answer in the map.
    radius: metres within which an answer is right.

  Returns:
    Two charts; nothing without confidences.
  """
  reliability, selective = [], []
  for name, record in predictions.items():
    found = verdicts(record, radius)
    sure = record.get('confidence', np.full(len(found), np.nan))
    asked = np.isin(found, ('hit', 'miss')) & np.isfinite(sure)
    if not name.split('/')[-1].startswith('image_to_') or not asked.any():
      continue
    sure, right = sure[asked], found[asked] == 'hit'
    color = recall.color_class(_protocol(name))
    label = recall.protocol_text(_protocol(name))
    selective.append(_selective(label, color, sure, right))
    reliability.append(_reliability(label, color, sure, right))
  if not reliability:
    return templates.Markup()
  ends = np.array([0.0, 1.0])
  ideal = figures.Series('ideal', 'c-chance', ends, 100 * ends, 'dashed')
  charts = [
    figures.line_chart(
      [ideal, *reliability],
      title='Answers that are right (%)',
      x_label='confidence',
      y_range=(0, 100),
    ),
    figures.line_chart(
      selective,
      title='Right (%) among the answers the model is surest of',
      x_label='queries answered (%), surest first',
      y_range=(0, 100),
    ),
  ]
  return templates.render('grid.html', charts=charts)


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


def learning_curves(
  metrics: Sequence[Mapping[str, float]], within: str
) -> templates.Markup:
  """Loss, in-batch recall, validation recall and scale over the steps.

  Args:
    metrics: the logged numbers.
    within: how near a right answer is, as names of numbers end; where that was
      not logged, what was.
  """
  names = list(dict.fromkeys(name for record in metrics for name in record))
  within = recall.measured(dict.fromkeys(names, 0.0), within)
  training = [name for name in names if not name.startswith('validation/')]
  validation = [
    name
    for name in names
    if name.startswith('validation/')
    and name.count('/') == 3
    and name.endswith(f'/recall@1_{within}')
  ]
  batch = [n for n in training if 'recall' in n or 'accuracy' in n]
  charts = [
    _curves(metrics, [n for n in training if 'loss' in n], 'Loss'),
    _curves(metrics, batch, 'Recall inside the batch (%)'),
    _curves(
      metrics,
      validation,
      f'Validation Recall@1 {recall.within_text(within)} (%)',
      'dots',
    ),
    _curves(metrics, [n for n in names if n == 'scale'], 'Scale (1 / T)'),
  ]
  return templates.render('grid.html', charts=charts)


def _curves(metrics, names, title, style='smooth') -> templates.Markup:
  series = []
  for name, color in zip(names[: len(_COLORS)], _COLORS, strict=False):
    at = [(r['step'], r[name]) for r in metrics if name in r and 'step' in r]
    x, y = np.asarray(at, float).T
    if title.endswith('(%)') and 'validation' not in name and y.max() <= 1:
      y = 100 * y
    series.append(figures.Series(_curve_label(name), color, x, y, style))
  if not series:
    return templates.render('no_chart.html', title=title)
  bounds = (0, 100) if title.endswith('(%)') else None
  return figures.line_chart(series, title=title, x_label='step', y_range=bounds)


def _curve_label(name: str) -> str:
  parts = name.split('/')
  if parts[0] == 'validation' and len(parts) == 4:
    return f'{parts[1]}, {recall.direction_text(parts[2])}'
  return name
