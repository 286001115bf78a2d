# SPDX-License-Identifier: Apache-2.0
"""Reads what the other verbs left in a workdir, as plain Python and numpy.

Every file may be missing; then its field is empty. A file that is there but
cannot be read is an error that names it.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import pathlib
import re
import time
from typing import Any
from typing import NamedTuple
import zipfile

import numpy as np
from PIL import Image

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError

Arrays = Mapping[str, np.ndarray]

# Protocols of the project, the one that means localization first.
PROTOCOLS = ('cross', 'opposite', 'sync')
# Between places of different towns, and more than any distance on earth.
ELSEWHERE = 1e7
LENGTHS = ('m', 'frames')  # units in which answers are so far away
DIRECTION = re.compile(r'[a-z]+_to_[a-z]+')
FILES = (
  'config.json',
  'metrics.jsonl',
  'results.json',
  'evaluation.json',
  'predictions.npz',
  'examples.npz',
  'answers.jsonl',
  'photos.json',
  'hypotheses.json',
  'objects.json',
)


class Overview(NamedTuple):
  """A picture of a town from above, north up.

  Attributes:
    image: uint8 [H, W, 3].
    center: metres east and north of the town's origin.
    extent: metres, side of the square.
  """

  image: np.ndarray
  center: tuple[float, float]
  extent: float


class Photos(NamedTuple):
  """What the photos of a frame table are; rows are those of predictions.

  Attributes:
    folder: of the files.
    radius: the largest distance of a right answer, in `unit`.
    unit: 'm', 'frames', 'overlap' or 'listed'; the last two know no length,
      and their distances are 0 or 1.
    ordered: a photo follows the one before it.
    names: of the file of each row, from the folder.
    drives: of each row: who asks and who answers.
    numbers: of each row, its place in order of name.
    duplicates: rows of the map that are the same photo, by row of a query.
    weights: `name`, `what` and `licence`, where they are known.
    confidence: where confidences come from, or why there are none.
  """

  folder: pathlib.Path
  radius: float
  unit: str
  ordered: bool
  names: Sequence[str]
  drives: Sequence[str]
  numbers: Sequence[int]
  duplicates: Mapping[int, frozenset[int]]
  weights: Mapping[str, str]
  confidence: str = ''

  @property
  def has_length(self) -> bool:
    """Whether answers are so far away, and not just right or wrong."""
    return self.unit in LENGTHS


class Workdir(NamedTuple):
  """The readable content of a workdir.

  Attributes:
    path: the folder.
    config: the resolved config.
    metrics: one record per line, each with a 'step'.
    results: numbers by name, finite ones only.
    evaluation: how they were measured: `config`, and radius, unit, similarity,
      scale, confidence and skipped, see `tasks.task.Evaluation`.
    predictions: arrays by field, by '<split>/<protocol>/<direction>'.
    examples: arrays by field, the same number of rows each.
    overviews: by town.
    answers: one record per query.
    photos: None where there is no photos.json.
    hypotheses: setup, problems and rows of an experiment on planted problems.
    objects: queries of object-based localization, by place.
    written: local time of the last change, by file name.
  """

  path: pathlib.Path
  config: Mapping[str, Any]
  metrics: list[Mapping[str, float]]
  results: Mapping[str, float]
  evaluation: Mapping[str, Any]
  predictions: Mapping[str, Arrays]
  examples: Arrays
  overviews: Mapping[str, Overview]
  answers: list[Mapping[str, Any]]
  photos: Photos | None
  hypotheses: Mapping[str, Any]
  objects: Mapping[str, Any]
  written: Mapping[str, str]

  @property
  def measured(self) -> Mapping[str, Any]:
    """The config of the evaluation, which may not be that of the training."""
    return self.evaluation.get('config') or self.config

  @property
  def radius(self) -> float:
    """Within which an answer is right, in metres unless photos differ.

    NaN where no file says: nobody knows then which answers are right.
    """
    if self.photos is not None:
      return self.photos.radius
    told = self.measured.get('index') or {}
    return float(self.evaluation.get('radius', told.get('radius', math.nan)))

  @property
  def within(self) -> str:
    """The same, as the names of numbers end: '25m', '7frames', 'listed'."""
    unit = 'm' if self.photos is None else self.photos.unit
    return f'{self.radius:g}{unit}' if unit in LENGTHS else unit

  @property
  def map_side(self) -> str:
    """What the map is made of: 'points' or 'image'."""
    if 'map_side' in self.config:
      return str(self.config['map_side'])
    directions = [name.split('/')[-1] for name in self.predictions]
    return directions[0].split('_')[-1] if directions else 'points'


def load_workdir(path: str | pathlib.Path) -> Workdir:
  """Reads all there is.

  Raises:
    MissingFileError: no such folder, or nothing in it that a report shows.
    InputError: a file that is there cannot be read.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    raise MissingFileError(
      f'The workdir {path} does not exist; --mode=train creates it.'
    )
  found = [name for name in FILES if (path / name).is_file()]
  if not found:
    raise MissingFileError(
      f'{path} holds none of {", ".join(FILES)}: there is nothing to report.'
      ' Run --mode=train or --mode=evaluate with this workdir first.'
    )
  return Workdir(
    path=path,
    config=_mapping(path / 'config.json'),
    metrics=[
      _numbers(record)
      for record in _lines(path / 'metrics.jsonl')
      if 'step' in record
    ],
    results=_numbers(_mapping(path / 'results.json')),
    evaluation=_mapping(path / 'evaluation.json'),
    predictions=_predictions(path / 'predictions.npz'),
    examples=_examples(path / 'examples.npz'),
    overviews=_overviews(path),
    answers=_answers(path / 'answers.jsonl'),
    photos=_photos(path / 'photos.json'),
    hypotheses=_mapping(path / 'hypotheses.json'),
    objects=_mapping(path / 'objects.json'),
    written={
      name: time.strftime(
        '%Y-%m-%d %H:%M', time.localtime((path / name).stat().st_mtime)
      )
      for name in found
    },
  )


def town_file(town: str) -> str:
  """The name that a town has in a file name and in a metric's name."""
  return str(town).replace('/', '_')


def _read(path: pathlib.Path, parse: Callable[[pathlib.Path], Any]) -> Any:
  try:
    return parse(path)
  except (
    ValueError,
    OSError,
    KeyError,
    TypeError,
    EOFError,
    zipfile.BadZipFile,
  ) as error:
    raise InputError(
      f'{path} cannot be read ({error}). Delete it and run the command again'
      ' that wrote it.'
    ) from error


def _mapping(path: pathlib.Path) -> Mapping[str, Any]:
  if not path.is_file():
    return {}
  content = _read(path, lambda p: json.loads(p.read_text('utf-8')))
  if not isinstance(content, dict):
    raise InputError(
      f'{path} holds a {type(content).__name__}; expected one JSON object.'
    )
  return content


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
  """The finite numbers of a record."""
  return {
    str(key): value
    for key, value in record.items()
    if isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  }


def _lines(path: pathlib.Path) -> list[Mapping[str, Any]]:
  """JSON lines; the last may be cut off by a process that was killed."""
  if not path.is_file():
    return []
  records = []
  lines = _read(path, lambda p: p.read_text('utf-8')).splitlines()
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError as error:
      if number == len(lines):
        break
      raise InputError(f'{path}, line {number}: not JSON ({error}).') from error
    if not isinstance(record, dict):
      raise InputError(f'{path}, line {number}: expected a JSON object.')
    records.append(record)
  return records


def _answers(path: pathlib.Path) -> list[Mapping[str, Any]]:
  records = _lines(path)
  for number, record in enumerate(records, 1):
    answers = record.get('answers')
    if not isinstance(answers, list) or not all(
      isinstance(one, dict) and 'evidence' in one for one in answers
    ):
      raise InputError(
        f'{path}, line {number}: expected answers that have "evidence" each;'
        ' an older version wrote this file. Run --mode=localize again.'
      )
  return records


def _photos(path: pathlib.Path) -> Photos | None:
  content = _mapping(path)
  if not content:
    return None
  columns = [content.get(name) for name in ('names', 'drives', 'numbers')]
  lists = [column for column in columns if isinstance(column, list)]
  if len(lists) < 3 or len({len(column) for column in lists}) > 1:
    raise InputError(
      f'{path}: expected names, drives and numbers of every photo. Run'
      ' --mode=evaluate again.'
    )
  names, drives, numbers = lists
  duplicates: dict[int, set[int]] = {}
  for query, row in content.get('duplicates', ()):
    duplicates.setdefault(query, set()).add(row)
  return Photos(
    pathlib.Path(content.get('folder', '')),
    float(content['radius']),
    str(content['unit']),
    bool(content.get('ordered')),
    names,
    drives,
    numbers,
    {query: frozenset(rows) for query, rows in duplicates.items()},
    content.get('weights', {}),
    str(content.get('confidence', '')),
  )


def _arrays(path: pathlib.Path) -> Arrays:
  def load(path):
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}

  return _read(path, load) if path.is_file() else {}


def _predictions(path: pathlib.Path) -> Mapping[str, Arrays]:
  records: dict[str, dict[str, np.ndarray]] = {}
  for name, value in _arrays(path).items():
    record, _, field = name.rpartition('/')
    records.setdefault(record, {})[field] = value
  needed = {
    'towns',
    'query_positions',
    'distances',
    'ranked_rows',
    'nearest',
    'similarities',
    'map_towns',
    'map_rows',
    'map_positions',
  }
  for name, record in records.items():
    if missing := sorted(needed - set(record)):
      raise InputError(
        f'{path}: {name!r} lacks {missing}; run --mode=evaluate again.'
      )
  return dict(sorted(records.items(), key=lambda item: _order(item[0])))


def _order(name: str) -> tuple:
  parts = name.split('/')
  protocols = [PROTOCOLS.index(p) for p in parts if p in PROTOCOLS]
  # Queries of the camera first.
  return protocols or [len(PROTOCOLS)], parts[-1], name


def _examples(path: pathlib.Path) -> Arrays:
  examples = _arrays(path)
  lengths = {name: len(value) for name, value in examples.items() if value.ndim}
  if len(set(lengths.values())) > 1:
    raise InputError(
      f'{path}: arrays of different lengths {lengths}; expected one row per'
      ' example. Run --mode=evaluate again.'
    )
  return examples


def _overviews(path: pathlib.Path) -> dict[str, Overview]:
  overviews = {}
  for town, place in _mapping(path / 'overview.json').items():
    picture = path / f'overview_{town_file(town)}.png'
    if not picture.is_file():
      continue
    overviews[town] = _read(
      picture,
      lambda p, place=place: Overview(
        np.asarray(Image.open(p).convert('RGB')),
        (float(place['center'][0]), float(place['center'][1])),
        float(place['extent']),
      ),
    )
  return overviews
