# SPDX-License-Identifier: Apache-2.0
"""Detections of an image sequence, from the files that detectors leave.

  COCO results      [{image_id, category_id, bbox: [x, y, w, h], score}, ...]
  COCO annotations  {images: [{id, file_name, width, height}],
                     annotations: [...], categories: [{id, name}]}
  OA-SLAM           [{file_name, detections: [{category_id, detection_score,
                     bbox: [left, top, right, bottom]}]}, ...]
  npz               images [F] in order, and frame, box, category, score [N];
                     image_size [2], height and width

A detection that cannot be used is left out, named and counted, in the log and
in what is returned; a file that is something else is an error. Boxes of images
of another size are scaled where the file tells that size and a factor explains
it; where it does not, boxes that cannot be of images of the size are an error.
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
from i2ploc.geometry import resizing
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
# Boxes that reach so far beyond the right or lower border, of a side, are of
# larger images, if they are so many and so large a part of all of them: a
# detector ends its boxes at the border, or lets them pass on all sides.
_BEYOND = 0.05
_NUM_BEYOND, _SHARE_BEYOND = 3, 0.05
# That many boxes, all of which end in this part of both sides, are of smaller
# images: of 100 boxes of TUM RGB-D fr2_desk in 10 images one ends beyond 0.6.
_NUM_SMALL, _SMALL_PART = 100, 0.55


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


class Content(NamedTuple):
  """A file as it stands, see `read_content`.

  Attributes:
    path: of the file.
    listed: names of images by id, in order; empty where the file lists none.
    sizes: (height, width) of images by id, pixels, where the file has them.
    names: of categories, where the file has them.
    records: in order.
  """

  path: pathlib.Path
  listed: dict[str, str]
  sizes: dict[str, tuple[int, int]]
  names: dict[int, str]
  records: tuple[Record, ...]

  def images(self) -> list[str]:
    """Names of the images, in order."""
    if self.listed:
      return list(self.listed.values())
    return list(dict.fromkeys(record.image for record in self.records))

  def only(self, image: str) -> 'Content':
    """What there is of the image of a name."""
    ids = {key for key, name in self.listed.items() if name == image}
    ids = ids if self.listed else {image}
    return self._replace(
      listed={key: self.listed[key] for key in self.listed if key in ids},
      sizes={key: self.sizes[key] for key in self.sizes if key in ids},
      records=tuple(one for one in self.records if one.image in ids),
    )


class DetectionFile(NamedTuple):
  """The detections of a file.

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
    image_size: (height, width) of all images, pixels; boxes are scaled to it
      where the file says that its images were larger or smaller.
    images: the file's id of an image, as text, to the name wanted, for all
      images there are. None takes what the file says.

  Raises:
    MissingFileError: no such file.
    InputError: it does not hold detections, or they are of images of another
      size; the message says where.
  """
  content = read_content(path)
  if images is not None:
    content = content._replace(
      listed={str(key): name for key, name in images.items()}
    )
  return collect(content, image_size, closed=images is not None)


def read_content(path: str | os.PathLike) -> Content:
  """Reads a file of any of the formats above, whatever its images are.

  Raises:
    MissingFileError: no such file.
    InputError: it does not hold detections; the message says where.
  """
  path = pathlib.Path(path)
  read = _read_npz if path.suffix == '.npz' else _read_json
  listed, sizes, names, records = read(path)
  return Content(path, listed, sizes, names, tuple(records))


def save_detections(
  frames: Mapping[str, detections_lib.Detections],
  path: str | os.PathLike,
  image_size: tuple[int, int],
) -> None:
  """Writes detections by image as one npz that `load_detections` reads.

  Args:
    frames: by image.
    path: .npz.
    image_size: (height, width) of all images, pixels.
  """
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
      'image_size': np.array(image_size, np.int64),
      'frame': np.repeat(np.arange(len(every)), lengths),
      **columns,
    },
    FORMAT,
  )


def collect(
  content: Content, image_size: tuple[int, int], closed: bool = False
) -> DetectionFile:
  """The detections of a file, in the pixels of images of one size.

  Args:
    content: of the file.
    image_size: (height, width) of all images, pixels; see `load_detections`.
    closed: whether no other images than the listed ones exist.

  Raises:
    InputError: boxes are of images of another size.
  """
  _check_extent(content, image_size)
  factors = {
    image: _factor(
      content.path, content.listed.get(image, image), size, image_size
    )
    for image, size in content.sizes.items()
  }
  records = [
    record._replace(box=_scaled(record.box, factors.get(record.image, (1, 1))))
    for record in content.records
  ]
  return _collect(content._replace(records=tuple(records)), image_size, closed)


def _factor(path, image, size, image_size) -> tuple[float, float]:
  """What makes positions (x, y) of an image those of one of `image_size`."""
  if not resizing.is_resize(size, image_size):
    raise InputError(
      f'{path}: boxes of {image} are of {size[1]}x{size[0]} pixels, but the '
      f'images are {image_size[1]}x{image_size[0]}, and no factor makes one of '
      'the other: the images were cropped or stretched. Detect in these images.'
    )
  return image_size[1] / size[1], image_size[0] / size[0]


def _scaled(box, factor) -> tuple[float, ...]:
  x, y = factor
  left, top, right, bottom = box
  return left * x, top * y, right * x, bottom * y


def _check_extent(content, image_size) -> None:
  """Raises InputError for boxes that are of larger or smaller images."""
  height, width = image_size
  told = content.sizes
  boxes = [one.box for one in content.records if one.image not in told]
  box = np.array(boxes).reshape(-1, 4)
  box = box[detections_lib.box_fault(box) == '']
  box = box / np.array([width, height, width, height])
  if not len(box):
    return
  after = int((box[:, 2:] > 1 + _BEYOND).any(1).sum())
  before = int((box[:, :2] < -_BEYOND).any(1).sum())
  many = after >= max(_NUM_BEYOND, _SHARE_BEYOND * len(box))
  right, bottom = box[:, 2:].max(0)
  few = len(box) >= _NUM_SMALL and max(right, bottom) < _SMALL_PART
  if (many and after > 2 * before) or few:
    raise InputError(
      f'{content.path}: {len(box)} boxes reach to column {right * width:.0f} '
      f'and row {bottom * height:.0f}, {after} of them beyond the images, which'
      f' are {width}x{height}: are they of {"smaller" if few else "larger"}'
      ' ones? '
      "Write these images' size into the file (COCO: width and height of each "
      'image; npz: image_size), or detect in the images that there are.'
    )


def _collect(content, image_size, closed):
  """Sorts records by image; what cannot be used goes to the faults."""
  path, listed, _, names, records = content
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
  """Images in order, their sizes, no names, and the records."""
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
  sizes = {}
  if 'image_size' in arrays:
    size = _size(path, 'image_size', arrays['image_size'].ravel().tolist())
    sizes = dict.fromkeys(images, size)
  return {name: name for name in images}, sizes, {}, _rows(images, arrays)


def _size(path, where, values) -> tuple[int, int]:
  """Counts of pixels, height and width."""
  counts = [_number(path, where, value, float) for value in values]
  if len(counts) != 2 or not all(c >= 1 and c % 1 == 0 for c in counts):
    raise InputError(
      f'{path}: {where}: {values} is no height and width in pixels.'
    )
  return int(counts[0]), int(counts[1])


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
  """Images by id if listed, sizes, names of categories, and the records."""
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
  return {}, {}, {}, _coco_records(path, content)


def _read_coco(path, content):
  images = _by_id(path, content, 'images', 'file_name')
  names = _by_id(path, content, 'categories', 'name')
  records = _coco_records(path, content['annotations'])
  sizes = {
    str(entry['id']): _size(
      path, f'images[{i}]', [entry['height'], entry['width']]
    )
    for i, entry in enumerate(content.get('images', ()))
    if entry.get('height') is not None and entry.get('width') is not None
  }
  names = {int(key): name for key, name in names.items()}
  return images, sizes, names, records


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
  return images, {}, {}, _oa_slam_records(path, content)


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
