# SPDX-License-Identifier: Apache-2.0
"""What localize answered, as rows of a table: answers.jsonl of every method."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from i2ploc.report import boxes
from i2ploc.report import figures
from i2ploc.report import templates

_WIDTH = 320  # of a picture, pixels
_OTHERS = 3  # answers that follow the first

Record = Mapping[str, Any]


def table(
  records: Sequence[Record],
  folders: Sequence[pathlib.Path],
  queries: pathlib.Path,
  count: int,
) -> templates.Markup:
  """One row per query: its picture, the first answer, the next ones.

  Args:
    records: the lines of answers.jsonl.
    folders: where the images that they name are looked for, in this order.
    queries: a folder that may hold copies of the query images.
    count: rows at most.
  """
  answers = [one for record in records for one in record['answers']]
  return templates.render(
    'answers.html',
    rows=[_row(record, folders, queries) for record in records[:count]],
    more=len(records) - count,
    # A column without any value is left out.
    positions=any(one['evidence'].get('position') for one in answers),
    headings=any(one['evidence'].get('heading') is not None for one in answers),
    confidences=any(one['confidence'] is not None for one in answers),
    within=', '.join(
      dict.fromkeys(
        str(one['evidence']['confidence_within'])
        for one in answers
        if one['evidence'].get('confidence_within')
      )
    ),
  )


def _row(record: Record, folders, queries) -> dict[str, Any]:
  shown = [_answer(one, folders) for one in record['answers'][: 1 + _OTHERS]]
  evidence = record['answers'][0]['evidence'] if record['answers'] else {}
  upright = record.get('upright', True)
  image = _open(record['query'], folders, upright)
  if image is None:
    image = _open(pathlib.Path(record['query']).name, [queries], upright)
  picture = templates.Markup()
  if evidence.get('boxes') and record.get('image_size'):
    picture = boxes.drawing(
      image,
      evidence['boxes'],
      evidence.get('outlines', []),
      record['image_size'],
      _WIDTH,
    )
  elif image is not None:
    uri = figures.image_uri(image, _WIDTH)
    picture = templates.render('photo.html', uri=uri)
  return {
    'query': record['query'],
    'picture': picture,
    'first': shown[0] if shown else None,
    'others': shown[1:],
  }


def _answer(answer: Record, folders) -> dict[str, Any]:
  evidence = answer['evidence']
  photo = _open(evidence.get('name') or '', folders)
  heading = evidence.get('heading')
  covariance = answer['covariance']
  return {
    'place': _place(answer),
    'photo': None if photo is None else figures.image_uri(photo, _WIDTH // 2),
    'position': evidence.get('position'),
    # Of the camera's centre, in all directions together.
    'deviation': None
    if covariance is None
    else float(np.sqrt(np.trace(np.array(covariance, float)[3:, 3:]))),
    'degrees': None if heading is None else float(np.degrees(heading)),
    'similarity': answer['similarity'],
    'confidence': answer['confidence'],
    'reason': answer['reason'],
  }


def _place(answer: Record) -> str:
  """The place and, of a reading, its file or frame."""
  evidence = answer['evidence']
  if evidence.get('name'):
    return str(evidence['name'])
  if 'frame' in evidence:
    return f'{answer["place"]}, frame {evidence["frame"]}'
  return str(answer['place'])


def _open(
  name: str, folders: Sequence[pathlib.Path], upright: bool = True
) -> np.ndarray | None:
  """An image named in an answer, or None if its file is gone or broken."""
  if not name:
    return None
  for path in (folder / name for folder in folders):
    if not path.is_file():
      continue
    if (image := boxes.open_image(path, upright)) is not None:
      return image
  return None
