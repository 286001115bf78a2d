# SPDX-License-Identifier: Apache-2.0
"""Arrays become pictures: SVG that takes its colours from CSS, or data URIs.

Charts are inline SVG without any colour of their own: the classes `line`,
`dot`, `grid`... and one colour class (`c-cross`, `c-hit`...) are the page's.
Sensor pictures are PNG where edges matter (LiDAR) and JPEG elsewhere.
"""

import base64
from collections.abc import Sequence
import io
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib import ticker
import numpy as np
from PIL import Image

from i2ploc.report import templates

WIDTH, HEIGHT = 440, 270  # of a chart, in units of which text has 13
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44
NEAR, FAR = 3.0, 80.0  # metres, ends of the colours of distance
MOST_MARKS = 2000  # of a kind in a drawing; more are thinned where they overlap
MOST_LEAPS = 200  # lines of right and of wrong answers among many photos
MOST_LABELS = 400  # of a drawing; more would weigh more than the picture
TOP_WEIGHT = 3.0  # saliency (mean 1) at the end of its colours
DEPTH_COLORS = 'turbo_r'
SALIENCY_COLORS = 'inferno'


class Series(NamedTuple):
  """One line of a chart.

  Attributes:
    label: for the legend.
    color: CSS class.
    x, y: [N], finite.
    style: 'line', 'smooth' (faint, with its running mean), 'dots' or 'dashed'.
    low, high: [N] ends of error bars, or None.
  """

  label: str
  color: str
  x: np.ndarray
  y: np.ndarray
  style: str = 'line'
  low: np.ndarray | None = None
  high: np.ndarray | None = None


def line_chart(
  series: Sequence[Series],
  *,
  title: str,
  x_label: str,
  y_range: tuple[float, float] | None = None,
  log_x: bool = False,
) -> templates.Markup:
  """A figure of lines with its title and legend.

  Args:
    series: at least one, none of them empty.
    title: what the y axis shows.
    x_label: what the x axis shows.
    y_range: its ends; None fits the data.
    log_x: logarithmic x axis.
  """
  axes = _Axes(series, y_range, log_x)
  parts = [axes.frame(x_label)]
  parts += [_drawn(axes, one) for one in series]
  return templates.render(
    'chart.html',
    title=title,
    width=WIDTH,
    height=HEIGHT,
    drawing=templates.Markup('').join(parts),
    series=series,
  )


class _Axes:
  """Data coordinates to SVG units, and the frame with ticks."""

  def __init__(self, series, y_range, log_x):
    self._log = log_x
    x = self._x_scale(np.concatenate([one.x for one in series]))
    bars = [bar for one in series for bar in (one.low, one.high)]
    y = np.concatenate(
      [*(one.y for one in series), *(bar for bar in bars if bar is not None)]
    )
    self._x = _widened(x.min(), x.max())
    self._y = y_range or _widened(y.min(), y.max(), 0.06)

  def _x_scale(self, x):
    x = np.asarray(x, float)
    return np.log10(np.maximum(x, 1e-9)) if self._log else x

  def place(self, x, y):
    """[N, 2] in SVG units."""
    low, high = self._x
    u = (self._x_scale(x) - low) / (high - low)
    low, high = self._y
    v = np.clip((np.asarray(y, float) - low) / (high - low), -0.02, 1.02)
    return np.stack(
      [
        LEFT + u * (WIDTH - LEFT - RIGHT),
        HEIGHT - BOTTOM - v * (HEIGHT - TOP - BOTTOM),
      ],
      axis=-1,
    )

  def _x_ticks(self):
    if not self._log:
      return round_ticks(*self._x)
    decades = range(int(np.floor(self._x[0])), int(np.ceil(self._x[1])) + 1)
    # More than ten numbers would run into each other.
    steps = (1, 2, 5) if self._x[1] - self._x[0] <= 3 else (1,)
    ticks = np.array([m * 10.0**d for d in decades for m in steps])
    inside = np.log10(ticks)
    return ticks[(inside >= self._x[0] - 1e-9) & (inside <= self._x[1] + 1e-9)]

  def frame(self, x_label):
    parts = []
    bottom = HEIGHT - BOTTOM
    for value in round_ticks(*self._y):
      y = self.place(1, value)[1]
      parts.append(
        f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="end" x="{LEFT - 7}" y="{y + 4:.1f}">{value:g}</text>'
      )
    for value in self._x_ticks():
      x = self.place(value, 0)[0]
      parts.append(
        f'<path class="axis" d="M{x:.1f} {bottom}v4"/>'
        f'<text class="mid" x="{x:.1f}" y="{bottom + 18}">{value:g}</text>'
      )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
      f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>'
      f'<text class="mid" x="{middle:.0f}" y="{HEIGHT - 6}">'
      f'{templates.escape(x_label)}</text>'
    )
    return templates.Markup(''.join(parts))


def _widened(low, high, margin=0.0):
  low, high = float(low), float(high)
  if high - low < 1e-9 * max(1.0, abs(high)):
    low, high = low - 0.5, high + 0.5
  return low - margin * (high - low), high + margin * (high - low)


def round_ticks(low: float, high: float) -> np.ndarray:
  """About five round numbers between two."""
  ticks = np.asarray(ticker.MaxNLocator(5).tick_values(low, high))
  slack = 1e-6 * (high - low)
  return ticks[(ticks >= low - slack) & (ticks <= high + slack)]


def _drawn(axes, one):
  at = axes.place(one.x, one.y)
  if one.style == 'smooth' and len(at) > 20:
    mean = axes.place(one.x, _running_mean(np.asarray(one.y, float)))
    return line(at, f'line faint {one.color}') + line(mean, f'line {one.color}')
  if one.style == 'dashed':
    return line(at, f'line dash {one.color}')
  drawn = line(at, f'line {one.color}')
  if one.low is not None:
    ends = np.stack([axes.place(one.x, one.low), axes.place(one.x, one.high)])
    bars = ''.join(
      f'M{a:.1f} {b:.1f}V{d:.1f}' for (a, b), (_, d) in zip(*ends, strict=True)
    )
    drawn += templates.Markup(f'<path class="bar {one.color}" d="{bars}"/>')
  if one.style == 'dots' or len(at) == 1:
    drawn += dots(at, f'dot {one.color}')
  return drawn


def _running_mean(y):
  """Centred mean over a fifteenth of the line, shorter at its ends."""
  half = max(2, len(y) // 30)
  total = np.concatenate([[0.0], np.cumsum(y)])
  low = np.maximum(np.arange(len(y)) - half, 0)
  high = np.minimum(np.arange(len(y)) + half + 1, len(y))
  return (total[high] - total[low]) / (high - low)


def line(at: np.ndarray, css: str, jumps: Sequence = ()) -> templates.Markup:
  """A polyline through [N, 2]; pieces start anew at the indices `jumps`."""
  if len(at) > 1500 and not len(jumps):
    at = at[np.linspace(0, len(at) - 1, 1500).astype(int)]
  starts = {0, *(int(i) for i in jumps)}
  d = ''.join(
    f'{"M" if i in starts else "L"}{x:.1f} {y:.1f}'
    for i, (x, y) in enumerate(at)
  )
  return templates.Markup(f'<path class="{css}" d="{d}"/>')


def apart(at: np.ndarray) -> np.ndarray:
  """Marks [N, ...] in SVG units without those that cover each other."""
  if len(at) <= MOST_MARKS:
    return at
  return np.unique(np.round(at), axis=0)


def dots(at: np.ndarray, css: str) -> templates.Markup:
  """Dots at [N, 2] as strokes without length: a tenth of a circle's bytes."""
  d = ''.join(f'M{x:.1f} {y:.1f}h0' for x, y in apart(at))
  return templates.Markup(f'<path class="{css}" d="{d}"/>' if d else '')


def crosses(at: np.ndarray, css: str, half: float = 4) -> templates.Markup:
  """Crosses at [N, 2], twice `half` wide."""
  stroke = (
    f'l{2 * half:g} {2 * half:g}m0 {-2 * half:g}l{-2 * half:g} {2 * half:g}'
  )
  d = ''.join(f'M{x - half:.1f} {y - half:.1f}{stroke}' for x, y in apart(at))
  return templates.Markup(f'<path class="{css} cross" d="{d}"/>' if d else '')


def _under_pointer(at, labels) -> templates.Markup:
  """Invisible circles that tell their names."""
  return templates.Markup('').join(
    templates.Markup(
      '<circle class="touch" cx="{:.1f}" cy="{:.1f}" r="9"><title>{}</title>'
      '</circle>'
    ).format(x, y, text)
    for (x, y), text in zip(at, labels, strict=True)
  )


class Trip(NamedTuple):
  """The queries of one town and where they were believed, metres x, y.

  Attributes:
    track: [M, 2] map readings, in the order of travel if it was a drive.
    queries: [Q, 2].
    believed: [Q, 2] position of the first answer, NaN if there is none.
    verdicts: [Q] 'hit', 'miss', 'none' or 'unknown'.
    drive: readings of the map follow each other; otherwise single photos.
  """

  track: np.ndarray
  queries: np.ndarray
  believed: np.ndarray
  verdicts: np.ndarray
  drive: bool = True


def trajectory_map(
  trip: Trip,
  *,
  label: str,
  picture_id: str | None = None,
  square: tuple[tuple[float, float], float] | None = None,
  labels: Sequence[str] = (),
) -> templates.Markup:
  """A town from above, north up, as SVG.

  Args:
    trip: what to draw; a line leads from each query to its answer.
    label: what the map shows, for screen readers.
    picture_id: id of an <image> of the square elsewhere in the page.
    square: center and side of that picture, metres.
    labels: of each query, under the pointer where there are few; or none.
  """
  low, high = _frame(trip)
  scale = 560 / (high - low).max()
  width, height = scale * (high - low)

  def place(points):
    flipped = np.stack([points[:, 0] - low[0], high[1] - points[:, 1]], 1)
    return scale * flipped

  parts = []
  # Of photos in thousands, marks are small and not every line is drawn.
  many = not trip.drive and len(trip.queries) > MOST_LABELS
  if picture_id and square:
    center, side = np.asarray(square[0], float), float(square[1])
    ((x, y),) = place((center + np.array([-0.5, 0.5]) * side)[None])
    parts.append(
      templates.Markup(
        f'<use href="#{picture_id}" x="{x:.1f}" y="{y:.1f}"'
        f' width="{scale * side:.1f}" height="{scale * side:.1f}"/>'
      )
    )
  track = place(trip.track)
  if trip.drive:
    jumps = _jumps(trip.track)
    parts += [line(track, 'halo', jumps), line(track, 'track', jumps)]
  else:
    if not many:
      parts.append(dots(track, 'spot-halo'))
    parts.append(dots(track, 'spot small c-track'))
  # What is wrong is drawn last, over the rest.
  kinds = ('unknown', 'none', 'hit', 'miss')
  answered = np.isfinite(trip.believed).all(1)
  for kind in ('hit', 'miss'):
    chosen = np.flatnonzero(answered & (trip.verdicts == kind))
    if many and len(chosen) > MOST_LEAPS:
      at = np.linspace(0, len(chosen) - 1, MOST_LEAPS).astype(int)
      chosen = chosen[at]
    ends = np.hstack(
      [place(trip.queries[chosen]), place(trip.believed[chosen])]
    )
    d = ''.join(f'M{a:.1f} {b:.1f}L{c:.1f} {e:.1f}' for a, b, c, e in ends)
    parts.append(templates.Markup(f'<path class="leap c-{kind}" d="{d}"/>'))
  if not many:
    parts.append(dots(place(trip.queries), 'spot-halo'))
  for kind in kinds:
    css = f'spot c-{kind if kind in ("hit", "miss") else "none"}'
    at = place(trip.queries[trip.verdicts == kind])
    if kind == 'miss':  # not by colour alone
      parts.append(crosses(at, css, 1.5 if many else 4))
    else:
      parts.append(dots(at, css))
  if 0 < len(labels) <= MOST_LABELS:
    parts.append(_under_pointer(place(trip.queries), labels))
  parts.append(scale_bar(scale, width, height))
  return templates.render(
    'drawing.html',
    css='map many' if many else 'map',
    width=round(width),
    height=round(height),
    label=label,
    parts=parts,
  )


def _frame(trip):
  """Two corners around everything, not thinner than 2 : 3."""
  everything = np.concatenate([trip.track, trip.queries, trip.believed])
  low, high = np.nanmin(everything, 0), np.nanmax(everything, 0)
  margin = 0.07 * max((high - low).max(), 1.0)
  low, high = low - margin, high + margin
  short = np.maximum((high - low).max() / 1.5 - (high - low), 0) / 2
  return low - short, high + short


def _jumps(track):
  """Where a track continues somewhere else."""
  step = np.hypot(*np.diff(track, axis=0).T)
  if not len(step):
    return np.zeros(0, int)
  usual = max(float(np.median(step)), 1.0)
  return np.flatnonzero(step > 6 * usual) + 1


def scale_bar(scale: float, width: float, height: float) -> templates.Markup:
  """A bar of a round length in a corner of a drawing, `scale` units a metre."""
  nice = np.array([m * 10.0**e for e in range(-2, 4) for m in (1, 2, 5)])
  metres = nice[np.argmin(np.abs(np.log(nice * scale / (0.22 * width))))]
  y, x = height - 14, 14
  return templates.Markup(
    f'<path class="scale-halo" d="M{x} {y:.1f}h{metres * scale:.1f}"/>'
    f'<path class="scale" d="M{x} {y:.1f}h{metres * scale:.1f}"/>'
    f'<text class="scale-text" x="{x}" y="{y - 7:.1f}">{metres:g} m</text>'
  )


def image_uri(image: np.ndarray, max_width: int) -> str:
  """A photograph uint8 [H, W, 3] as a JPEG data URI, not wider than asked."""
  return _uri(_shrunk(Image.fromarray(image), max_width), 'jpeg', quality=84)


def drawing_uri(image: np.ndarray, max_width: int) -> str:
  """A drawing with sharp dots as a PNG data URI of at most 128 colours."""
  picture = _shrunk(Image.fromarray(image), max_width)
  return _uri(
    picture.quantize(128, dither=Image.Dither.NONE), 'png', optimize=True
  )


def _shrunk(picture, max_width):
  if picture.width <= max_width:
    return picture
  height = max(1, round(picture.height * max_width / picture.width))
  return picture.resize((max_width, height), Image.Resampling.LANCZOS)


def _uri(picture, kind, **options):
  stream = io.BytesIO()
  picture.save(stream, kind, **options)
  text = base64.b64encode(stream.getvalue()).decode('ascii')
  return f'data:image/{kind};base64,{text}'


def depth_picture(depth: np.ndarray) -> np.ndarray:
  """Distances [H, W] (metres, 0 = no return) as colours on black, near = red.

  Returns:
    uint8 [H, W, 3]; dots grow over empty neighbours, the nearest wins.
  """
  depth = _grown(np.nan_to_num(depth, posinf=0.0, neginf=0.0), nearest=True)
  span = np.log(np.maximum(depth, NEAR) / NEAR) / np.log(FAR / NEAR)
  return _painted(
    np.full((*depth.shape, 3), 12.0), span, depth > 0, DEPTH_COLORS
  )


def saliency_on_image(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Weights [gh, gw] of mean 1 over a grey uint8 [H, W, 3]; hot = salient."""
  grid = Image.fromarray(np.nan_to_num(weights).astype(np.float32))
  size = (image.shape[1], image.shape[0])
  heat = np.asarray(grid.resize(size, Image.Resampling.BILINEAR))
  heat = np.clip(heat / TOP_WEIGHT, 0, 1)
  color = 255 * colormaps[SALIENCY_COLORS](heat)[..., :3]
  alpha = np.clip(0.15 + 0.9 * heat, 0, 0.8)[..., None]
  return ((1 - alpha) * _grey(image) + alpha * color).astype(np.uint8)


def saliency_on_points(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Weights [H, W] of LiDAR returns (0 = none) over a dark grey picture."""
  weights = _grown(np.nan_to_num(weights))
  return _painted(
    0.35 * _grey(image), weights / TOP_WEIGHT, weights > 0, SALIENCY_COLORS
  )


def gradient(name: str) -> str:
  """A colour map as a CSS gradient from left to right."""
  colors = 255 * colormaps[name](np.linspace(0, 1, 9))[:, :3]
  stops = ','.join('rgb({:.0f} {:.0f} {:.0f})'.format(*c) for c in colors)
  return f'linear-gradient(90deg,{stops})'


def _grey(image):
  grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
  return np.repeat(grey[..., None], 3, axis=-1)


def _painted(background, level, valid, colors):
  color = 255 * colormaps[colors](np.clip(level, 0, 1))[..., :3]
  return np.where(valid[..., None], color, background).astype(np.uint8)


def _grown(values, nearest=False):
  """Fills zeros from their 8 neighbours: the smallest or the largest."""
  empty = np.inf if nearest else 0.0
  padded = np.pad(np.where(values > 0, values, empty), 1, constant_values=empty)
  height, width = values.shape
  around = [
    padded[i : i + height, j : j + width] for i in range(3) for j in range(3)
  ]
  best = np.min(around, axis=0) if nearest else np.max(around, axis=0)
  best = np.where(np.isfinite(best), best, 0.0)
  return np.where(values > 0, values, best)
