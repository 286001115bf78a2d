# SPDX-License-Identifier: Apache-2.0
"""Queries as photos beside the photos that answered them, failures first."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.report import charts
from i2ploc.report import templates
from i2ploc.report import thumbnails as thumbnails_lib
from i2ploc.report import workdir as workdir_lib

NUM_ANSWERS = 5
# Colour says nothing alone.
MARKS = {
  'hit': '✓ right',
  'miss': '✗ wrong',
  'unknown': '? unknown',
  'none': '– no right answer in the map',
}
_TITLES = {
  'miss': 'Wrong at first',
  'hit': 'Right at first',
  'none': 'Without a right answer in the map',
  'unknown': 'Nobody knows whether right',
}


class Picture(NamedTuple):
  """One photo.

  Attributes:
    uri: None if its file is gone.
    name: of the file.
    told: what it is, above the name.
    facts: of it.
    verdict: of `MARKS`, or ''.
  """

  uri: str | None
  name: str
  told: str
  facts: Sequence[str] = ()
  verdict: str = ''

  @property
  def mark(self) -> str:
    """The verdict, sign and word."""
    return MARKS.get(self.verdict, '')


class Row(NamedTuple):
  """A query and its answers; facts are of the first answer."""

  query: Picture
  answers: Sequence[Picture]
  facts: Sequence[str]
  verdict: str

  @property
  def mark(self) -> str:
    """The verdict, sign and word."""
    return MARKS.get(self.verdict, '')


class Group(NamedTuple):
  """Queries of one verdict, of which some are shown."""

  title: str
  count: int
  rows: Sequence[Row]


def lead(work: workdir_lib.Workdir, within: str) -> str:
  """What `groups` shows; `within` says what is right."""
  text = f'Each query beside its first {NUM_ANSWERS} answers'
  record = _record(work)
  if np.isfinite(record['nearest']).any():
    text += (
      f', failures first. Right: {within}. Where none of these is right, the'
      ' last is the one that would have been: at its rank, or the nearest'
      ' photo, which was not found.'
    )
  else:
    text += '. Nobody knows where they were taken, so judge for yourself.'
  copies = work.photos.duplicates if work.photos else {}
  copied = sum(int(row) in copies for row in record['query_rows'])
  if copied:
    text += (
      f' {copied} of {len(record["query_rows"])} queries are also in the map,'
      ' as the same photo: their answers say little about places.'
    )
  return text


def _record(work: workdir_lib.Workdir) -> workdir_lib.Arrays:
  """The answers of photos; nothing without any."""
  names = [n for n in work.predictions if n.endswith('image_to_image')]
  return work.predictions[names[0]] if names else {}


def groups(
  work: workdir_lib.Workdir,
  thumbnails: thumbnails_lib.Thumbnails,
  count: int,
  width: int,
) -> templates.Markup:
  """Every kind of query: wrong, right, without an answer, unknown.

  Args:
    work: with predictions and photos.
    thumbnails: of the photos.
    count: queries at most.
    width: pixels of a thumbnail.

  Returns:
    Nothing where it is not known which photo a row is, or none can be read.
  """
  record, photos = _record(work), work.photos
  if not record or photos is None:
    return templates.Markup()
  rows = np.concatenate([record['query_rows'], record['map_rows']])
  if rows.size and rows.max() >= len(photos.names):
    return templates.Markup()  # of another evaluation
  found = charts.verdicts(record, photos.radius, photos.has_length)
  shown = []
  for verdict, chosen in _chosen(found, count).items():
    total = int((found == verdict).sum())
    shown.append(
      Group(
        _TITLES[verdict],
        total,
        [_row(record, i, verdict, photos, thumbnails, width) for i in chosen],
      )
    )
  if not any(row.query.uri for group in shown for row in group.rows):
    return templates.Markup()
  return templates.render('photos.html', groups=shown)


def _chosen(verdicts: np.ndarray, count: int) -> dict[str, np.ndarray]:
  """Queries of each verdict, evenly spaced; half of them wrong, if so many."""
  kinds = {
    verdict: np.flatnonzero(verdicts == verdict)
    for verdict in _TITLES
    if (verdicts == verdict).any()
  }
  # A kind takes half of what is left, or more if the others need less.
  chosen, left = {}, count
  for i, (verdict, rows) in enumerate(kinds.items()):
    others = sum(len(r) for r in list(kinds.values())[i + 1 :])
    taken = min(len(rows), max(-(-left // 2), left - others))
    at = np.linspace(0, len(rows) - 1, taken).round().astype(int)
    chosen[verdict] = rows[at]
    left -= taken
  return {verdict: rows for verdict, rows in chosen.items() if len(rows)}


def _row(record, i, verdict, photos, thumbnails, width) -> Row:
  row = int(record['query_rows'][i])
  ranked = record['ranked_rows'][i]
  distances = record['distances'][i]
  shown = [k for k in range(min(NUM_ANSWERS, len(ranked))) if ranked[k] >= 0]
  copies = photos.duplicates.get(row, frozenset())

  def picture(k: int, told: str) -> Picture:
    facts = [f'similarity {record["similarities"][i, k]:.3f}']
    if length := _length(distances[k], photos):
      facts.insert(0, length)
    if int(ranked[k]) in copies:
      facts.append('duplicate of the query')
    return _picture(
      photos,
      thumbnails,
      int(ranked[k]),
      width,
      told,
      facts,
      '' if verdict == 'unknown' else _verdict(distances[k], photos.radius),
    )

  answers = [picture(k, f'{k + 1}') for k in shown]
  right = np.flatnonzero((ranked >= 0) & (distances <= photos.radius))
  facts = []
  if verdict == 'miss':
    first = int(right[0]) + 1 if len(right) else 0
    facts.append(
      f'first right answer at rank {first}'
      if first
      else f'no right answer among the first {(ranked >= 0).sum()}'
    )
    # What would have been right takes the last place.
    if first > len(shown):
      answers[-1:] = [picture(first - 1, f'{first}')]
    elif not first:
      better = _nearest(record, i, photos, thumbnails, width)
      answers[len(answers) - len(better) :] = better
  sure = record.get('confidence')
  if sure is not None and np.isfinite(sure[i]):
    facts.append(f'confidence {100 * float(sure[i]):.0f} %')
  if copies:
    facts.append(f'{len(copies)} cop{"ies" if len(copies) > 1 else "y"} of it')
  query = _picture(photos, thumbnails, row, width, 'query')
  return Row(query, answers, facts, verdict)


def _picture(photos, thumbnails, row, width, told, facts=(), verdict=''):
  name = photos.names[row]
  return Picture(thumbnails.uri(name, width), name, told, facts, verdict)


def _nearest(record, i, photos, thumbnails, width) -> list[Picture]:
  """The photo that would have been right, where positions tell."""
  same = record['map_towns'] == record['towns'][i]
  same &= record['map_rows'] != record['query_rows'][i]
  offsets = record['map_positions'][same] - record['query_positions'][i]
  distances = np.hypot(offsets[:, 0], offsets[:, 1])
  if not photos.has_length or not np.isfinite(distances).any():
    return []
  best = int(np.nanargmin(distances))
  row = int(record['map_rows'][same][best])
  facts = [_length(distances[best], photos)]
  told = 'nearest, not found'
  return [_picture(photos, thumbnails, row, width, told, facts, 'hit')]


def _verdict(distance: float, radius: float) -> str:
  if np.isnan(distance):
    return 'unknown'
  return 'hit' if distance <= radius else 'miss'


def _length(distance: float, photos: workdir_lib.Photos) -> str:
  if not photos.has_length or not np.isfinite(distance):
    return ''
  if distance >= workdir_lib.ELSEWHERE:
    return 'another town'
  if photos.unit == 'frames':
    return f'{distance:.0f} frames off'
  return f'{distance:.1f} m off'


def answered(
  records: Sequence[Mapping[str, Any]],
  thumbnails: thumbnails_lib.Thumbnails,
  count: int,
  width: int,
) -> templates.Markup:
  """What localize answered, photo beside photos.

  Args:
    records: the lines of answers.jsonl.
    thumbnails: of the photos.
    count: queries at most.
    width: pixels of a thumbnail.

  Returns:
    Nothing if no photo that answers can be read.
  """
  rows = [_answered(record, thumbnails, width) for record in records[:count]]
  if not any(answer.uri for row in rows for answer in row.answers):
    return templates.Markup()
  return templates.render('photos.html', groups=[Group('', len(records), rows)])


def _answered(record, thumbnails, width) -> Row:
  name = str(record['query'])
  short = pathlib.PurePath(name).name
  uri = thumbnails.uri(name, width) or thumbnails.uri(short, width)
  query = Picture(uri, short, 'query')
  answers = []
  for one in record['answers'][:NUM_ANSWERS]:
    evidence = one['evidence']
    file = str(evidence.get('name') or one['place'])
    path = str(evidence.get('image') or '')
    uri = thumbnails.uri(path, width) or thumbnails.uri(file, width)
    facts = [f'similarity {one["similarity"]:.3f}']
    if path and os.path.realpath(path) == os.path.realpath(name):
      facts.append('the query itself')
    if one['confidence'] is not None:
      near = evidence.get('confidence_within')
      sure = f'confidence {100 * one["confidence"]:.0f} %'
      facts.insert(0, f'{sure} within {near}' if near else sure)
    away = evidence.get('distance_from_best')
    if one['rank'] > 1 and away is not None and evidence.get('position'):
      facts.append(f'{away:.0f} m from answer 1')
    if evidence.get('rank_alone'):
      facts.append(f'by the last photo alone at rank {evidence["rank_alone"]}')
    answers.append(Picture(uri, file, f'{one["rank"]}', facts))
  facts = _place(record['answers'][0]) if record['answers'] else ['no answer']
  return Row(query, answers, facts, '')


def _place(answer) -> list[str]:
  """Where the first answer is, and why that is not all."""
  evidence = answer['evidence']
  position, heading = evidence.get('position'), evidence.get('heading')
  facts = []
  if position:
    facts.append(f'east {position[0]:.1f}, north {position[1]:.1f} m')
  if heading is not None:
    facts.append(f'heading {(90 - np.degrees(heading)) % 360:.0f}° from north')
  if answer['reason']:
    facts.append(answer['reason'])
  return facts
