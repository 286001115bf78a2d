# SPDX-License-Identifier: Apache-2.0
"""One self-contained page that shows what a workdir holds.

Pictures are data URIs, charts inline SVG, style and script inline: the file
opens anywhere, without a network. What is missing is said, together with the
command that makes it.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import datetime
import json
import math
import os
import pathlib
import platform
from typing import Any
from typing import NamedTuple

from i2ploc import files
from i2ploc.report import answers
from i2ploc.report import charts
from i2ploc.report import examples
from i2ploc.report import hypotheses
from i2ploc.report import matches
from i2ploc.report import objects
from i2ploc.report import photos
from i2ploc.report import recall
from i2ploc.report import templates
from i2ploc.report import thumbnails
from i2ploc.report import workdir as workdir_lib

MAX_BYTES = 6_000_000
SALIENCY_EXAMPLES = 6
_HERE = pathlib.Path(__file__).parent
_COMMAND = {
  'train': '--mode=train',
  'evaluate': '--mode=evaluate',
  'localize': "--mode=localize --query='IMAGES/*.png'",
}
# What a reader of its numbers must know of an encoder.
_WARNINGS = {
  'focus_vit_s14': (
    'focus_vit_s14 is a DINOv2 ViT-S/14 that was fine-tuned to find what is'
    ' salient in a picture. It stands in where DINOv2 itself could not be'
    ' fetched: its numbers are not those of DINOv2.'
  ),
}

_RESIZED = {
  'stretch': 'stretched',
  'crop': 'the middle, as large as it can be',
  'five_crops': 'five crops, whose mean counts',
  'nearest_crop': 'five crops, of which the nearest counts',
}

_SIMILARITIES = {'cosine': 'cosine', 'dot': 'dot product, of any size'}
_FIELDS = {'num_clusters': '{} words', 'features': '{} numbers'}
_POOLINGS = {
  'default': 'as suits the network',
  'first': 'cls token',
  'published': 'as the released network was trained',
  'vlad': 'VLAD in words of the map',
}

Work = workdir_lib.Workdir
Markup = templates.Markup


class _Detail(NamedTuple):
  """How much of the pictures fits: pixels wide, number of examples."""

  width: int
  examples: int


class _Section(NamedTuple):
  """A part of the page; the lead says what its content shows."""

  anchor: str
  title: str
  lead: str
  content: Markup


# From what a large screen can show to what always fits into MAX_BYTES.
_DETAILS = (
  _Detail(720, 24),
  _Detail(480, 18),
  _Detail(360, 12),
  _Detail(240, 6),
)


def write_report(
  workdir: str | os.PathLike[str], data_dir: str | None = None
) -> str:
  """Writes `report.html` into a workdir.

  Args:
    workdir: what --mode=train and --mode=evaluate wrote.
    data_dir: where the photos of a map lie, which are shown beside the queries
      that found them; None for where the workdir says that they are.

  Returns:
    The path of the page.

  Raises:
    MissingFileError: the workdir does not exist or holds nothing to show.
    InputError: a file of it cannot be read.
  """
  work = workdir_lib.load_workdir(pathlib.Path(workdir))
  folders = [pathlib.Path(), work.path]
  if data_dir:
    folders.append(pathlib.Path(data_dir).expanduser())
  if work.photos is not None:
    folders.append(work.photos.folder)
  files.check_folder(work.path)
  for detail in _DETAILS:
    page = _page(work, detail, folders)
    if len(page.encode('utf-8')) <= MAX_BYTES:
      break
  path = work.path / 'report.html'
  files.save_text(path, page)
  return str(path)


def _page(work: Work, detail: _Detail, folders: list[pathlib.Path]) -> str:
  return templates.render(
    'page.html',
    title=_name(work),
    photos=work.map_side == 'image' and not work.objects,
    # Written by us: a style sheet, with nothing to escape.
    style=Markup((_HERE / 'style.css').read_text('utf-8')),
    head=_head(work),
    sections=_sections(work, detail, folders),
    now=datetime.datetime.now().strftime('%Y-%m-%d %H:%M'),
    machine=f'{platform.system()} {platform.machine()}',
    num_cores=os.cpu_count(),
    workdir=work.path,
  )


def _name(work: Work) -> str:
  return str(work.config.get('name') or work.path.resolve().name)


def _within(work: Work) -> str:
  """What the page counts as right first: as the workdir says, if measured."""
  return recall.measured(work.results, work.within)


def _missing(work: Work, file: str, mode: str) -> Markup:
  command = (
    f'python main.py {_COMMAND[mode]} --config=CONFIG --workdir={work.path}'
  )
  return templates.render('missing.html', file=file, command=command)


def _head(work: Work) -> Markup:
  """What the page is about: the question, the main figures, the facts."""
  if work.hypotheses:
    return hypotheses.lead(work.hypotheses)
  of_photos, facts = work.map_side == 'image', {}
  if work.objects:
    question = (
      'Where was this camera image taken? Answered by the objects in it: boxes'
      ' of a detector against a map of named ellipsoids.'
    )
    tiles = objects.headline(work.results)
  else:
    question = (
      'Where was this photo taken? The photos of a map answer: those whose'
      ' descriptors are the most similar.'
      if of_photos
      else 'Where was this camera image taken? Answered by retrieval in a map'
      ' of LiDAR scans: one descriptor per image, one per scan.'
    )
    tiles = recall.headline(work.results, _within(work)) or _no_rates(work)
    facts = _facts(work)
  return templates.render(
    'head.html',
    question=question,
    tiles=tiles,
    facts=facts,
    skipped=work.evaluation.get('skipped', ()),
    warnings=[
      text
      for name, text in _WARNINGS.items()
      if name in str(work.config.get('checkpoint', ''))
    ],
  )


def _facts(work: Work) -> dict[str, str]:
  facts = {}
  data = work.measured.get('data')
  if work.photos is not None:
    facts |= _photo_facts(work, work.photos)
  elif isinstance(data, Mapping):
    told = ('name', 'dataset', 'size', 'train', 'test')
    facts['Data'] = ', '.join(
      f'{key} {data[key]}' for key in told if data.get(key)
    )
  towns = sorted(
    {str(t) for r in work.predictions.values() for t in r['towns']}
  )
  if any(towns) and (work.photos is None or len(towns) > 1):
    facts['Tested in'] = ', '.join(towns)
  if work.metrics:
    steps = max(int(record['step']) for record in work.metrics)
    facts['Trained'] = f'{steps} steps'
    if 'metrics.jsonl' in work.written:
      facts['Trained'] += f', until {work.written["metrics.jsonl"]}'
  if 'results.json' in work.written:
    facts['Evaluated'] = work.written['results.json']
  if similarity := work.evaluation.get('similarity'):
    facts['Similarity'] = _SIMILARITIES.get(similarity, similarity)
    if work.evaluation.get('scale') is not None:
      facts['Similarity'] += f'; learned scale {work.evaluation["scale"]:.4g}'
  if work.answers:
    facts['Localized'] = (
      f'{len(work.answers)} image{"s" * (len(work.answers) != 1)},'
      f' {work.written["answers.jsonl"]}'
    )
  return facts


def _photo_facts(work: Work, of: workdir_lib.Photos) -> dict[str, str]:
  """Which photos, described by what, from whom."""
  config = work.config
  model, data = config.get('model', {}), config.get('data', {})
  facts = {'Photos': str(of.folder)}
  asked = sum(drive.endswith('queries') for drive in of.drives)
  answer = len(of.drives) - asked
  facts['Photos'] += (
    f', {asked} ask and {answer} answer'
    if asked
    else f', {answer}, each asks all others'
  )
  encoder = str(of.weights.get('name') or config.get('checkpoint') or '')
  told = [
    of.weights.get('what', ''),
    f'licence of the weights: {of.weights["licence"]}'
    if of.weights.get('licence')
    else '',
  ]
  if encoder:
    facts['Encoder'] = '; '.join([encoder, *filter(None, told)])
  features = _options(model.get('image', {}), ('name', 'checkpoint'))
  if features:
    facts['Features'] = features
  aggregator = model.get('aggregator', {})
  name = str(aggregator.get('name', ''))
  pooling = [
    _POOLINGS.get(name, name),
    _options(aggregator, ('name', 'checkpoint')),
    f'whitened to {model["whitening"]} numbers'
    if model.get('whitening')
    else '',
  ]
  if name:
    facts['Pooling'] = ', '.join(filter(None, pooling))
  if data.get('image_size'):
    height, width = data['image_size']
    facts['Photos seen at'] = f'{height} × {width} pixels, ' + _resized(
      data.get('resize')
    )
    if data.get('query_resize'):
      facts['Photos seen at'] += f'; queries: {_resized(data["query_resize"])}'
  if of.confidence:
    facts['Confidence'] = of.confidence
  return facts


def _options(fields: Mapping[str, Any], but: Sequence[str]) -> str:
  """Fields that are set, for people."""
  return ', '.join(
    _FIELDS.get(key, f'{key} {{}}').format(value)
    for key, value in fields.items()
    if key not in but and value
  )


def _resized(policy: str | None) -> str:
  policy = str(policy or 'stretch')
  return _RESIZED.get(policy, f'resized by {policy}')


def _no_rates(work: Work) -> Markup:
  """Why there is no recall."""
  if 'results.json' not in work.written and not _evaluated(work):
    return Markup()
  if 'results.json' not in work.written:
    return _missing(work, 'results.json', 'evaluate')
  return templates.render('no_rates.html')


def _sections(
  work: Work, detail: _Detail, folders: list[pathlib.Path]
) -> list[_Section]:
  if work.hypotheses:
    content = hypotheses.section(work.hypotheses)
    return [_Section('hypotheses', 'Hypotheses', '', content), _config(work)]
  if work.objects:
    return [
      *_of_objects(work, detail),
      _answers(work, detail, folders, None),
      _config(work),
    ]
  small = thumbnails.Thumbnails([*folders, work.path / 'queries'])
  sections = [
    _recall(work),
    _maps(work),
    _retrievals(work, detail, small),
    _saliency(work, detail),
    _confidence(work),
    _answers(work, detail, folders, small),
    _learning(work),
    _config(work),
  ]
  return [section for section in sections if section is not None]


def _of_objects(work: Work, detail: _Detail) -> list[_Section]:
  content, folder = work.objects, work.path
  return [
    _Section(
      'success',
      'Success',
      '',
      objects.table(work.results, content['radius']),
    ),
    _Section('maps', 'Where it was right', '', objects.maps(content, folder)),
    _Section(
      'queries',
      'Queries',
      '',
      objects.strips(content, folder, detail.examples, detail.width),
    ),
  ]


def _evaluated(work: Work) -> bool:
  """Whether parts that only an evaluation makes are worth naming.

  Who indexed photos and asked with others has what they came for.
  """
  return work.map_side != 'image' or not work.answers or bool(work.predictions)


def _recall(work: Work) -> _Section | None:
  lead, content = '', _missing(work, 'results.json', 'evaluate')
  rows = recall.rows_from_results(work.results)
  if work.map_side == 'image' and rows:
    lead = (
      'Equal similarities count against the model. 95 %: interval of a block'
      ' bootstrap, since neighbours succeed and fail together. The mark on a'
      ' bar is what chance reaches: answers drawn without looking.'
    )
    points = recall.chart_points(work.results, _within(work))
    content = recall.photo_tables(work.results, _within(work))
    beside = [charts.recall_chart(points)] if points['recall'] else []
    unit = 'm' if work.photos is None else work.photos.unit
    if unit in workdir_lib.LENGTHS:
      content += charts.error_charts(work.predictions, unit, beside)
    else:
      content += templates.render('grid.html', charts=beside)
  elif rows:
    lead = (
      f'Percent of answerable queries with a right {_reading(work)} among the'
      ' first N; equal similarities count against the model. Below each rate'
      + ' its 95 % interval (block bootstrap along the drive) and'
      * any(name.endswith('_low') for name in work.results)
      + ' what chance reaches, also the mark on the bar.'
      + ' In the rows of single towns: rate / chance.'
      * any(row.town for row in rows)
    )
    content = recall.tables(work.results, _within(work)) + charts.error_charts(
      work.predictions
    )
  elif 'results.json' in work.written or not _evaluated(work):
    return None  # the head says why
  return _Section('recall', 'Recall', lead, content)


def _reading(work: Work) -> str:
  return 'photo' if work.map_side == 'image' else 'map reading'


def _knows_right(work: Work) -> bool:
  """Whether it is known how near a right answer is."""
  return not math.isnan(work.radius)


def _maps(work: Work) -> _Section | None:
  lead, content = '', _missing(work, 'predictions.npz', 'evaluate')
  if work.predictions and not _knows_right(work):
    content = _missing(work, 'evaluation.json', 'evaluate')
  elif work.predictions:
    of = work.photos
    lengths = of is None or of.unit == 'm'
    content = templates.Markup()
    order = matches.charts_of_order(work.predictions, of, work.radius)
    if lengths:
      content = charts.town_maps(
        work.predictions,
        work.overviews,
        work.radius,
        () if of is None else of.names,
      )
    if not content and not order:
      return None
    lead = (
      'Queries in order, and which photo of the map answered each.'
      ' A cross is wrong; where a band is drawn, right answers lie in it.'
    )
    if content:
      lead = (
        f'From above, north up. Queries whose first answer lies within'
        f' {work.radius:g} m are right; from each a line leads to where the'
        ' model believed it to be.'
      )
    content += order
  elif not _evaluated(work):
    return None
  return _Section('maps', 'Where it was right', lead, content)


def _retrievals(
  work: Work, detail: _Detail, small: thumbnails.Thumbnails
) -> _Section | None:
  content = photos.groups(work, small, detail.examples, detail.width // 2)
  if content:
    lead = photos.lead(work, recall.within_text(_within(work)))
    return _Section('retrievals', 'Queries', lead, content)
  if not work.examples and not _evaluated(work):
    return None
  if work.examples and not _knows_right(work):
    missing = _missing(work, 'evaluation.json', 'evaluate')
    return _Section('retrievals', 'Retrievals', '', missing)
  content = examples.strips(
    work.examples, detail.examples, detail.width, work.radius
  ) or _missing(work, 'examples.npz', 'evaluate')
  lead = (
    'Each query beside the photos that were found for it, failures first: right'
    f' within {work.radius:g} m, wrong, or unknown where a position is not'
    ' known.'
    if work.map_side == 'image'
    else 'Failures first. The LiDAR pictures show a scan as the camera of its'
    ' own vehicle would see it: the retrieved one, which should look like the'
    ' query, and the nearest one in the map.'
  )
  return _Section('retrievals', 'Retrievals', lead, content)


def _saliency(work: Work, detail: _Detail) -> _Section | None:
  if work.map_side == 'image' and 'saliency_image' not in work.examples:
    return None
  lead = (
    'Where the saliency weights of the tokens lie: on the query and on the'
    ' LiDAR returns of the true scan. A weight of 1 is the mean. Things that'
    ' move are no landmarks; a ratio below 1 says that the model looks at'
    ' them less than at the rest.'
  )
  shares = examples.shares(work.results)
  if not shares and work.results:
    shares = templates.render('no_shares.html')
  pictures = examples.overlays(
    work.examples, SALIENCY_EXAMPLES, detail.width, work.radius
  )
  content = shares or _missing(work, 'results.json', 'evaluate')
  content += pictures or _missing(work, 'examples.npz', 'evaluate')
  return _Section('saliency', 'Saliency', lead, content)


def _confidence(work: Work) -> _Section | None:
  content = charts.confidence_charts(work.predictions, work.radius)
  if not content and work.map_side == 'image':
    return None
  told = work.evaluation.get('confidence') or (
    work.photos.confidence if work.photos else ''
  )
  lead = (
    f'The confidence of an answer: {told or "no file says how it is made"}. One'
    ' that holds for these queries follows the dashed diagonal. Queries that'
    ' have a right answer in the map.'
  )
  file = 'predictions.npz with confidences'
  if not _knows_right(work):
    file = 'evaluation.json'
  return _Section(
    'confidence',
    'Confidence',
    lead,
    content or _missing(work, file, 'evaluate'),
  )


def _answers(
  work: Work,
  detail: _Detail,
  folders: list[pathlib.Path],
  small: thumbnails.Thumbnails | None,
) -> _Section:
  lead, content = '', _missing(work, 'answers.jsonl', 'localize')
  if work.answers and small is not None and work.map_side == 'image':
    content = photos.answered(
      work.answers, small, detail.examples, detail.width // 2
    )
    lead = (
      'What localize answered last: each photo beside the photos of the map'
      ' that are the most similar. Nobody says here whether they are right.'
    )
  if work.answers and not (lead and content):
    lead = ''
    content = answers.table(
      work.answers, folders, work.path / 'queries', detail.examples
    )
  return _Section('answers', 'Localization answers', lead, content)


def _learning(work: Work) -> _Section | None:
  if not work.metrics and work.map_side == 'image':
    return None  # published weights, as they are
  lead, content = '', _missing(work, 'metrics.jsonl', 'train')
  if work.metrics:
    lead = (
      'Every logged step of training; the faint line is the value, the strong'
      ' one its running mean.'
    )
    content = charts.learning_curves(work.metrics, work.within)
  return _Section('learning', 'Learning curves', lead, content)


def _config(work: Work) -> _Section:
  content = _missing(work, 'config.json', 'train')
  if work.config:
    content = templates.render(
      'config.html', text=_json(work.config), what='of the run'
    )
  if work.measured != work.config:
    content += templates.render(
      'config.html', text=_json(work.measured), what='of the evaluation'
    )
  return _Section('config', 'Configuration', '', content)


def _json(config: Mapping[str, Any]) -> str:
  return json.dumps(config, indent=2, default=str)
