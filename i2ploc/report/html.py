# SPDX-License-Identifier: Apache-2.0
"""One self-contained page that shows what a workdir holds.

Pictures are data URIs, charts inline SVG, style and script inline: the file
opens anywhere, without a network. What is missing is said, together with the
command that makes it.
"""

from collections.abc import Mapping
import datetime
from html import escape
import json
import os
import pathlib
import platform
import string
from typing import NamedTuple

import numpy as np
from PIL import Image

from i2ploc import files
from i2ploc.report import charts
from i2ploc.report import examples
from i2ploc.report import figures
from i2ploc.report import hypotheses
from i2ploc.report import objects
from i2ploc.report import recall
from i2ploc.report import workdir as workdir_lib

MAX_BYTES = 6_000_000
SALIENCY_EXAMPLES = 6
_HERE = pathlib.Path(__file__).parent
_COMMAND = {
  'train': '--mode=train',
  'evaluate': '--mode=evaluate',
  'localize': "--mode=localize --query='IMAGES/*.png'",
}

Work = workdir_lib.Workdir


class _Detail(NamedTuple):
  """How much of the pictures fits: pixels wide, number of examples."""

  width: int
  examples: int


# From what a large screen can show to what always fits into MAX_BYTES.
_DETAILS = (
  _Detail(720, 24),
  _Detail(480, 18),
  _Detail(360, 12),
  _Detail(240, 6),
)


def write_report(workdir: str | os.PathLike) -> str:
  """Writes `report.html` into a workdir.

  Args:
    workdir: what --mode=train and --mode=evaluate wrote.

  Returns:
    The path of the page.

  Raises:
    MissingFileError: the workdir does not exist or holds nothing to show.
    InputError: a file of it cannot be read.
  """
  work = workdir_lib.load_workdir(workdir)
  for detail in _DETAILS:
    page = _page(work, detail)
    if len(page.encode('utf-8')) <= MAX_BYTES:
      break
  path = work.path / 'report.html'
  files.save_text(path, page)
  return str(path)


def _sections(work: Work, detail: _Detail) -> list[tuple[str, str, str]]:
  """Anchor, title and content of each."""
  if work.hypotheses:
    return [
      ('hypotheses', 'Hypotheses', hypotheses.section(work.hypotheses)),
      ('config', 'Configuration', _config(work)),
    ]
  if work.objects:
    return [
      *objects.sections(
        work.objects, work.results, work.path, detail.examples, detail.width
      ),
      ('answers', 'Localization answers', _answers(work, detail)),
      ('config', 'Configuration', _config(work)),
    ]
  return [
    ('recall', 'Recall', _recall(work)),
    ('maps', 'Where it was right', _maps(work)),
    ('retrievals', 'Retrievals', _retrievals(work, detail)),
    ('saliency', 'Saliency', _saliency(work, detail)),
    ('confidence', 'Confidence', _confidence(work)),
    ('answers', 'Localization answers', _answers(work, detail)),
    ('learning', 'Learning curves', _learning(work)),
    ('config', 'Configuration', _config(work)),
  ]


def _page(work: Work, detail: _Detail) -> str:
  sections = _sections(work, detail)
  links = ''.join(f'<a href="#{i}">{title}</a>' for i, title, _ in sections)
  body = _head(work) + f'<nav>{links}</nav>'
  body += ''.join(
    f'<section id="{i}"><h2>{title}</h2>{content}</section>'
    for i, title, content in sections
  )
  now = datetime.datetime.now().strftime('%Y-%m-%d %H:%M')
  body += (
    f'<footer>Written {now} by <code>main.py --mode=report</code> on'
    f' {escape(platform.system())} {escape(platform.machine())},'
    f' {os.cpu_count()} CPU cores, from {escape(str(work.path))}.</footer>'
  )
  template = string.Template((_HERE / 'template.html').read_text('utf-8'))
  return template.substitute(
    title=escape(f'{_name(work)} · i2ploc report'),
    style=(_HERE / 'style.css').read_text('utf-8'),
    body=body,
  )


def _name(work: Work) -> str:
  return str(work.config.get('name') or work.path.resolve().name)


def _missing(work: Work, file: str, mode: str) -> str:
  command = (
    f'python main.py {_COMMAND[mode]} --config=CONFIG --workdir={work.path}'
  )
  return (
    f'<p class="missing"><strong>{escape(file)}</strong> is missing. This makes'
    f' it: <code>{escape(command)}</code></p>'
  )


def _lead(text: str) -> str:
  return f'<p class="lead">{text}</p>'


def _head(work: Work) -> str:
  title = f'<h1>{escape(_name(work))}</h1>'
  if work.hypotheses:
    return f'<header>{title}{hypotheses.lead(work.hypotheses)}</header>'
  if work.objects:
    told = _lead(
      'Where was this camera image taken? Answered by the objects in it: boxes'
      ' of a detector against a map of named ellipsoids.'
    )
    return f'<header>{title}{told}{objects.headline(work.results)}</header>'
  facts = {}
  data = work.config.get('data')
  if isinstance(data, Mapping):
    told = ('name', 'dataset', 'size', 'train', 'test')
    facts['Data'] = ', '.join(
      f'{key} {data[key]}' for key in told if data.get(key)
    )
  towns = sorted(
    {str(t) for r in work.predictions.values() for t in r['towns']}
  )
  if towns:
    facts['Tested in'] = ', '.join(towns)
  if work.metrics:
    steps = max(int(record['step']) for record in work.metrics)
    facts['Trained'] = f'{steps} steps'
    if 'metrics.jsonl' in work.written:
      facts['Trained'] += f', until {work.written["metrics.jsonl"]}'
  if 'results.json' in work.written:
    facts['Evaluated'] = work.written['results.json']
  if work.answers:
    facts['Localized'] = (
      f'{len(work.answers)} images, {work.written["answers.jsonl"]}'
    )
  listed = ''.join(
    f'<dt>{key}</dt><dd>{escape(value)}</dd>' for key, value in facts.items()
  )
  tiles = recall.headline(work.results)
  return (
    f'<header>{title}'
    + _lead(
      'Where was this camera image taken? Answered by retrieval in a map'
      ' of LiDAR scans: one descriptor per image, one per scan.'
    )
    + (tiles or _missing(work, 'results.json', 'evaluate'))
    + f'<dl class="facts">{listed}</dl></header>'
  )


def _recall(work: Work) -> str:
  if not recall.rows_from_results(work.results):
    return _missing(work, 'results.json', 'evaluate')
  return (
    _lead(
      'Percent of answerable queries with a right map reading among the first'
      ' N; equal similarities count against the model. Below each rate its'
      ' 95 % interval (block bootstrap along the drive) and what chance'
      ' reaches, also the mark on the bar; in the rows of single towns'
      ' “rate / chance”.'
    )
    + recall.tables(work.results)
    + charts.error_charts(work.predictions)
  )


def _maps(work: Work) -> str:
  if not work.predictions:
    return _missing(work, 'predictions.npz', 'evaluate')
  return _lead(
    'Each town from above, north up. Queries whose first answer lies within'
    f' {charts.RADIUS:g} m are right; from the others a line leads to where'
    ' the model believed them to be.'
  ) + charts.town_maps(work.predictions, work.overviews)


def _retrievals(work: Work, detail: _Detail) -> str:
  shown = dict(work.examples)
  scale = _scale(work)
  if 'confidence' not in shown and scale:
    found = charts.example_confidences(shown, work.predictions, scale)
    if found is not None:
      shown['confidence'] = found
  return _lead(
    'Failures first. The LiDAR pictures show a scan as the camera of its own'
    ' vehicle would see it: the retrieved one, which should look like the'
    ' query, and the nearest one in the map.'
  ) + (
    examples.strips(shown, detail.examples, detail.width)
    or _missing(work, 'examples.npz', 'evaluate')
  )


def _saliency(work: Work, detail: _Detail) -> str:
  return (
    _lead(
      'Where the saliency weights of the tokens lie: on the query and on the'
      ' LiDAR returns of the true scan. A weight of 1 is the mean. Things that'
      ' move are no landmarks; a ratio below 1 says that the model looks at'
      ' them less than at the rest.'
    )
    + (
      examples.shares(work.results)
      or (
        '<p class="missing">No shares of weight and area: the data of this'
        ' evaluation has no labels of what moves.</p>'
        if work.results
        else _missing(work, 'results.json', 'evaluate')
      )
    )
    + (
      examples.overlays(work.examples, SALIENCY_EXAMPLES, detail.width)
      or _missing(work, 'examples.npz', 'evaluate')
    )
  )


def _scale(work: Work) -> float | None:
  """The inverse temperature that was logged last."""
  logged = [record['scale'] for record in work.metrics if 'scale' in record]
  return logged[-1] if logged else None


def _confidence(work: Work) -> str:
  if not work.predictions:
    return _missing(work, 'predictions.npz', 'evaluate')
  scale = _scale(work)
  if scale:
    about = (
      'The confidence of an answer is the share of the softmax over the'
      f' first {charts.NUM_RANKED} answers, at the learned scale'
      f' {scale:.1f}, that lies within {charts.RADIUS:g} m of it. A model that'
      ' knows what it knows follows the dashed diagonal.'
    )
  else:
    about = (
      'No scale was logged, so answers are ordered by their margin: the'
      ' similarity of the first answer over that of the best one elsewhere.'
    )
  return _lead(
    about + ' Camera queries that have a right answer in the map.'
  ) + charts.confidence_charts(work.predictions, scale)


def _learning(work: Work) -> str:
  if not work.metrics:
    return _missing(work, 'metrics.jsonl', 'train')
  return _lead(
    'Every logged step of training; the faint line is the value, the'
    ' strong one its running mean.'
  ) + charts.learning_curves(work.metrics)


def _config(work: Work) -> str:
  if not work.config:
    return _missing(work, 'config.json', 'train')
  text = json.dumps(work.config, indent=2, default=str)
  return (
    '<details><summary>Every field of the resolved config</summary>'
    f'<pre>{escape(text)}</pre></details>'
  )


def _answers(work: Work, detail: _Detail) -> str:
  if not work.answers:
    return _missing(work, 'answers.jsonl', 'localize')
  rows = [_answer_row(work, record) for record in work.answers]
  more = len(rows) - detail.examples
  return (
    _lead(
      'What <code>--mode=localize</code> answered last. The confidence assumes'
      ' that the image was taken somewhere in the map.'
    )
    + '<div class="scroll"><table class="answers"><thead><tr>'
    '<th class="text">Query</th><th class="text">First answer</th>'
    '<th>East, north, up (m)</th><th>Heading</th><th>Similarity</th>'
    '<th>Confidence</th><th class="text">Then</th></tr></thead><tbody>'
    + ''.join(rows[: detail.examples])
    + '</tbody></table></div>'
    + (f'<p class="lead">… and {more} more.</p>' if more > 0 else '')
  )


def _answer_row(work: Work, record: Mapping) -> str:
  query = str(record.get('query', ''))
  picture = _thumbnail(work, query)
  cells = f'<td class="text">{picture}<code>{escape(query)}</code></td>'
  answers = [a for a in record['answers'] if isinstance(a, Mapping)]
  if not answers:
    reason = escape(str(record.get('reason') or 'no answer'))
    return f'<tr>{cells}<td class="text" colspan="6">{reason}</td></tr>'
  first = answers[0]
  position = ', '.join(f'{x:.1f}' for x in first.get('position') or ())
  others = '<br>'.join(_place(a, with_confidence=True) for a in answers[1:4])
  heading = first.get('heading')
  degrees = '–' if heading is None else f'{np.degrees(heading):.0f}°'
  return (
    f'<tr>{cells}<td class="text">{_place(first)}</td>'
    f'<td>{position or "–"}</td>'
    f'<td>{degrees}</td><td>{_decimal(first.get("similarity"), 3)}</td>'
    f'<td>{_decimal(first.get("confidence"), 2)}</td>'
    f'<td class="text">{others or "–"}</td></tr>'
  )


def _place(answer: Mapping, *, with_confidence: bool = False) -> str:
  text = f'{answer.get("town", "?")}, frame {answer.get("frame", "?")}'
  if with_confidence:
    text += f' ({_decimal(answer.get("confidence"), 2)})'
  return escape(text)


def _decimal(value: float | None, digits: int) -> str:
  return '–' if value is None else f'{value:.{digits}f}'


def _thumbnail(work: Work, query: str) -> str:
  """The query as a small <img>, or '' if its file is gone or broken."""
  path = pathlib.Path(query)
  for place in (path, work.path / path, work.path / 'queries' / path.name):
    try:
      with Image.open(place) as picture:
        image = np.asarray(picture.convert('RGB'))
    except (OSError, ValueError):
      continue
    return f'<img class="photo" src="{figures.image_uri(image, 320)}" alt="">'
  return ''
