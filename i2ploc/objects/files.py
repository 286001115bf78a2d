# SPDX-License-Identifier: Apache-2.0
"""Detections of an image sequence, from the files that detectors leave.

  COCO results      [{image_id, category_id, bbox: [x, y, w, h], score}, ...]
  COCO annotations  {images: [{id, file_name}], annotations: [...],
                     categories: [{id, name}]}
  OA-SLAM           [{file_name, detections: [{category_id, detection_score,
                     bbox: [left, top, right, bottom]}]}, ...]
  npz               images [F] in order, and frame, box, category, score [N]

A detection that cannot be used is left out, named and counted, in the log and
in what is returned; a file that is something else is an error.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.objects import detections as detections_lib

FORMAT = 'i2ploc.detections.1'
_REMEDY = 'give detections as .json (COCO or OA-SLAM) or .npz'
FAULTS = (
  'not finite',
  'inverted',
  'outside the image',
  'unknown image',
  'duplicate',
)


class Record(NamedTuple):
  """One detection as it stands in a file.

  Attributes:
    where: in the file, for messages.
    image: id or name.
    box: left, top, right, bottom, pixels.
    category: number.
    score: in [0, 1].
  """

  where: str
  image: str
  box: tuple[float, ...]
  category: int
  score: float


class DetectionFile(NamedTuple):
  """What a file holds.

  Attributes:
    frames: by image, in the order of the file; images without any are there.
    names: of categories, where the file has them.
    faults: by each of FAULTS that occurred, what was left out.
  """

  frames: dict[str, detections_lib.Detections]
  names: dict[int, str]
  faults: dict[str, tuple[str, ...]]


def load_detections(
  path: str | os.PathLike,
  image_size: tuple[int, int],
  images: Mapping[str, str] | None = None,
) -> DetectionFile:
  """Reads a file of any of the formats above.

  Args:
    path: .json or .npz.
    image_size: (height, width) of all images, pixels.
    images: the file's id of an image, as text, to the name wanted, for all
      images there are. None takes what the file says.

  Raises:
    MissingFileError: no such file.
    InputError: it does not hold detections; the message says where.
  """
  path = pathlib.Path(path)
  read = _read_npz if path.suffix == '.npz' else _read_json
  listed, names, records = read(path)
  if images is not None:
    listed = {str(key): name for key, name in images.items()}
  return _collect(path, image_size, listed, names, records, images is not None)


def save_detections(
  frames: Mapping[str, detections_lib.Detections], path: str | os.PathLike
) -> None:
  """Writes detections by image as one npz that `load_detections` reads."""
  every = list(frames.values())
  columns = {
    name: np.concatenate([np.asarray(getattr(one, name)) for one in every])
    if every
    else np.zeros((0, 4) if name == 'box' else 0)
    for name in ('box', 'category', 'score')
  }
  lengths = [len(one.box) for one in every]
  files.save_arrays(
    path,
    {
      'images': np.array(list(frames), np.str_),
      'frame': np.repeat(np.arange(len(every)), lengths),
      **columns,
    },
    FORMAT,
  )


def _collect(path, image_size, listed, names, records, closed):
  """Sorts records by image; what cannot be used goes to the faults."""
  kept = {image: [] for image in listed}
  faults, seen = {}, set()
  for record in records:
    fault = _fault(record, image_size)
    if record.image not in kept:
      if closed or listed:
        fault = 'unknown image'
      else:
        kept[record.image] = []
    known = (record.image, record.category, record.box)
    if not fault and known in seen:
      fault = 'duplicate'
    seen.add(known)
    if fault:
      faults.setdefault(fault, []).append(f'{record.image}, {record.where}')
    else:
      kept[record.image].append(record)
  for fault, items in faults.items():
    logging.warning(
      '%s: left out %d detections (%s), first: %s.',
      path,
      len(items),
      fault,
      '; '.join(items[:3]),
    )
  frames = {}
  for image, found in kept.items():
    frames[listed.get(image, image)] = detections_lib.make_detections(
      np.array([one.box for one in found]).reshape(-1, 4),
      np.array([one.category for one in found]),
      np.array([one.score for one in found]),
      image_size,
    )
  return DetectionFile(
    frames, names, {fault: tuple(items) for fault, items in faults.items()}
  )


def _fault(record, image_size):
  if not all(map(math.isfinite, (*record.box, record.score))):
    return 'not finite'
  left, top, right, bottom = record.box
  if left >= right or top >= bottom:
    return 'inverted'
  height, width = image_size
  if right <= 0 or bottom <= 0 or left >= width or top >= height:
    return 'outside the image'
  return ''


def _read_npz(path):
  """Images in order, no names, and the records."""
  arrays = files.load_arrays(path, _REMEDY)
  wanted = ('images', 'frame', 'box', 'category', 'score')
  if missing := [name for name in wanted if name not in arrays]:
    raise InputError(
      f'{path} lacks {missing}; it holds {sorted(arrays)}, expected {wanted}.'
    )
  images = [str(name) for name in arrays['images']]
  if len(set(images)) < len(images):
    raise InputError(f'{path}: an image is listed twice in `images`.')
  count = len(arrays['frame'])
  if arrays['box'].shape != (count, 4):
    raise InputError(
      f'{path}: box is {list(arrays["box"].shape)}, expected [{count}, 4].'
    )
  for name in ('category', 'score'):
    if arrays[name].shape != (count,):
      raise InputError(
        f'{path}: {name} is {list(arrays[name].shape)}, expected [{count}].'
      )
  return {name: name for name in images}, {}, _rows(images, arrays)


def _rows(images, arrays) -> Iterator[Record]:
  for i, frame in enumerate(arrays['frame'].tolist()):
    inside = 0 <= frame < len(images)
    yield Record(
      f'row {i}',
      images[frame] if inside else f'frame {frame}',
      tuple(arrays['box'][i].tolist()),
      int(arrays['category'][i]),
      float(arrays['score'][i]),
    )


def _read_json(path):
  """Images by id if listed, names of categories, and the records."""
  content = files.load_json(path, _REMEDY)
  if isinstance(content, dict) and 'annotations' in content:
    return _read_coco(path, content)
  if not isinstance(content, list):
    raise InputError(
      f'{path}: expected a list, or an object with images and annotations; '
      f'found {type(content).__name__}.'
    )
  if content and isinstance(content[0], dict) and 'detections' in content[0]:
    return _read_oa_slam(path, content)
  return {}, {}, _coco_records(path, content)


def _read_coco(path, content):
  images = _by_id(path, content, 'images', 'file_name')
  names = _by_id(path, content, 'categories', 'name')
  records = _coco_records(path, content['annotations'])
  return images, {int(key): name for key, name in names.items()}, records


def _by_id(path, content, field, name):
  found = {}
  for i, entry in enumerate(content.get(field, ())):
    key = str(_entry(path, f'{field}[{i}]', entry, 'id'))
    if key in found:
      raise InputError(f'{path}: {field}[{i}] repeats the id {key}.')
    found[key] = str(_entry(path, f'{field}[{i}]', entry, name))
  return found


def _coco_records(path, entries) -> Iterator[Record]:
  for i, entry in enumerate(entries):
    where = f'detection {i}'
    left, top, width, height = _box(path, where, entry)
    yield Record(
      where,
      str(_entry(path, where, entry, 'image_id')),
      (left, top, left + width, top + height),
      _number(path, where, _entry(path, where, entry, 'category_id'), int),
      _number(path, where, entry.get('score', 1.0), float),
    )


def _read_oa_slam(path, content):
  images = {}
  for i, entry in enumerate(content):
    name = str(_entry(path, f'entry {i}', entry, 'file_name'))
    if name in images:
      raise InputError(f'{path}: entry {i} repeats the image {name}.')
    images[name] = name
  return images, {}, _oa_slam_records(path, content)


def _oa_slam_records(path, content) -> Iterator[Record]:
  for frame in content:
    name = str(frame['file_name'])
    found = _entry(path, name, frame, 'detections')
    for i, entry in enumerate(found):
      where = f'detection {i}'
      place = f'{name}, {where}'
      yield Record(
        where,
        name,
        _box(path, place, entry),
        _number(path, place, _entry(path, place, entry, 'category_id'), int),
        _number(path, place, entry.get('detection_score', 1.0), float),
      )


def _entry(path, where, entry: Any, key: str):
  if not isinstance(entry, dict) or key not in entry:
    raise InputError(
      f'{path}: {where} has no {key!r}: {json.dumps(entry)[:120]}.'
    )
  return entry[key]


def _box(path, where, entry) -> tuple[float, ...]:
  box = _entry(path, where, entry, 'bbox')
  if not isinstance(box, list) or len(box) != 4:
    raise InputError(f'{path}: {where}: bbox {box} is not 4 numbers.')
  return tuple(_number(path, where, value, float) for value in box)


def _number(path, where, value, kind):
  # null is how JSON without NaN writes one.
  value = math.nan if value is None and kind is float else value
  try:
    return kind(value)
  except (TypeError, ValueError):
    raise InputError(f'{path}: {where}: {value!r} is not a number.') from None
