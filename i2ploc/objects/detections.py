# SPDX-License-Identifier: Apache-2.0
"""What an object detector says about one image.

Boxes are (left, top, right, bottom) in pixels, the centre of the top-left pixel
at (0.5, 0.5): the image itself is the box (0, 0, width, height). Sizes of
images are (height, width).
"""

from collections.abc import Callable
import importlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib

# Boxes that end within so many pixels of the border may go on beyond it.
BORDER = 2.0
# Of a shorter side, pixels; less is a blur once it is enlarged to a crop.
SMALL = 20.0
# How far undistortion moves the edges of an image inwards, of its longer side.
_MOVED_BORDER = 0.025


class Detections(NamedTuple):
  """M detections in one image.

  Attributes:
    box: [M, 4] float64, pixels.
    category: [M] int64, in the detector's own numbers.
    score: [M] float64 in [0, 1].
    cut: [M] bool, the box touches the border: the object may be larger.
    small: [M] bool, too few pixels to tell what it shows.
    embedding: [M, D] float32 of the crops, or None.
  """

  box: np.ndarray
  category: np.ndarray
  score: np.ndarray
  cut: np.ndarray
  small: np.ndarray
  embedding: np.ndarray | None = None

  def take(self, rows: np.ndarray) -> 'Detections':
    """The detections of these rows."""
    embedding = None if self.embedding is None else self.embedding[rows]
    return Detections(
      self.box[rows],
      self.category[rows],
      self.score[rows],
      self.cut[rows],
      self.small[rows],
      embedding,
    )


Detector = Callable[[np.ndarray], Detections]


def box_fault(box: np.ndarray) -> np.ndarray:
  """Why boxes [..., 4] cannot be: '', 'not finite' or 'inverted'; [...] str."""
  box = np.asarray(box, np.float64)
  finite = np.isfinite(box).all(-1)
  upright = (box[..., 2:] > box[..., :2]).all(-1)
  return np.where(finite, np.where(upright, '', 'inverted'), 'not finite')


def make_detections(
  box: npt.ArrayLike,
  category: npt.ArrayLike,
  score: npt.ArrayLike,
  image_size: tuple[int, int],
  *,
  embedding: npt.ArrayLike | None = None,
) -> Detections:
  """Detections with their flags.

  Args:
    box: [M, 4] pixels.
    category: [M].
    score: [M].
    image_size: (height, width).
    embedding: [M, D] or None.

  Raises:
    InputError: columns of different lengths, or rows that are NaN or inverted.
  """
  box = np.asarray(box, np.float64).reshape(-1, 4)
  category = np.asarray(category, np.int64).reshape(-1)
  score = np.asarray(score, np.float64).reshape(-1)
  lengths = {'box': len(box), 'category': len(category), 'score': len(score)}
  if embedding is not None:
    embedding = np.asarray(embedding, np.float32)
    lengths['embedding'] = len(embedding)
  if len(set(lengths.values())) > 1:
    raise InputError(f'columns of different lengths: {lengths}')
  faults = box_fault(box)
  faults = np.where((faults == '') & ~np.isfinite(score), 'not finite', faults)
  if bad := np.flatnonzero(faults != '').tolist():
    first = bad[0]
    raise InputError(
      f'{len(bad)} of {len(box)} detections cannot be used, rows {bad[:5]}; '
      f'row {first} is {faults[first]}: {box[first].tolist()}, score '
      f'{score[first]:g}. Expected finite left < right, top < bottom.'
    )
  bounds = _bounds(image_size)
  low, high = box[:, :2] < BORDER, box[:, 2:] > bounds[2:] - BORDER
  cut = np.asarray(np.any(low | high, axis=-1))
  small = (box[:, 2:] - box[:, :2]).min(-1, initial=np.inf) < SMALL
  return Detections(box, category, score, cut, small, embedding)


def _bounds(image_size):
  height, width = image_size
  return np.array([0.0, 0.0, width, height])


def cut_edges(
  detections: Detections, image_size: tuple[int, int]
) -> np.ndarray:
  """Which edges [M, 4] bool of boxes end at the border, not with the object.

  Undistorted boxes do not end exactly there; of a cut box every edge close to
  the border counts.
  """
  gap = np.abs(detections.box - _bounds(image_size))
  outside = (detections.box - _bounds(image_size)) * [1, 1, -1, -1] < 0
  near = gap < _MOVED_BORDER * max(image_size)
  return detections.cut[:, None] & (near | outside)


def undistort(detections: Detections, lens: lens_lib.Lens) -> Detections:
  """The boxes that a pinhole with the lens's own intrinsics would see.

  An edge moves as its midpoint does, next to which a convex object touches it.
  Flags stay: what the real image cut remains cut.

  Raises:
    InputError: a lens that is not a pinhole with distortion, or an edge where
      the lens has no image.
  """
  if lens.is_wide:
    raise InputError(
      f"boxes of a camera '{lens.model}' have no pinhole image: undistort the"
      ' images before their detection'
    )
  box = detections.box
  middle = (box[:, :2] + box[:, 2:]) / 2
  pixels = np.stack(
    [
      np.stack([box[:, 0], middle[:, 1]], -1),
      np.stack([middle[:, 0], box[:, 1]], -1),
      np.stack([box[:, 2], middle[:, 1]], -1),
      np.stack([middle[:, 0], box[:, 3]], -1),
    ],
    axis=1,
  )
  plane, valid = lens_lib.plane_from_pixels(lens, pixels.reshape(-1, 2))
  if not valid.all():
    rows = np.flatnonzero(~valid.reshape(-1, 4).all(-1)).tolist()
    raise InputError(
      f'boxes {rows[:5]} reach where the lens has no image: '
      f'{box[rows[0]].tolist()}; are they of another image size?'
    )
  matrix = np.asarray(lens.intrinsics, np.float64)
  seen = plane @ matrix[:2, :2].T + matrix[:2, 2]
  seen = seen.reshape(-1, 4, 2)
  edges = [seen[:, i, i % 2] for i in range(4)]
  return detections._replace(box=np.stack(edges, axis=-1))


def detect(detector: Detector, image: np.ndarray) -> Detections:
  """Runs any detector on an image and believes nothing it says.

  Args:
    detector: image uint8 [H, W, 3] to `Detections`.
    image: uint8 [H, W, 3].

  Raises:
    InputError: the detector gives something else, or boxes that cannot be.
  """
  found = detector(image)
  if not isinstance(found, Detections):
    raise InputError(
      f'the detector gave {type(found).__name__}, expected Detections; see '
      'make_detections'
    )
  return make_detections(
    found.box,
    found.category,
    found.score,
    image.shape[:2],
    embedding=found.embedding,
  )


def ultralytics_detector(weights: str, min_score: float = 0.25) -> Detector:
  """A detector by the package ultralytics, which this program does not need.

  Args:
    weights: a file or name that `ultralytics.YOLO` knows.
    min_score: less certain boxes are left out.

  Raises:
    ImportError: the package is not installed.
  """
  try:
    ultralytics = importlib.import_module('ultralytics')
  except ImportError as error:
    raise ImportError(
      'ultralytics is not installed. `pip install ultralytics` brings it (mind '
      'its licence, AGPL-3.0); or give boxes from a file, or any function that '
      'takes an image and returns Detections.'
    ) from error
  model = ultralytics.YOLO(weights)

  def detector(image):
    # It takes arrays for images in OpenCV's order of colours.
    blue_first = np.ascontiguousarray(image[..., ::-1])
    (result,) = model.predict(blue_first, conf=min_score, verbose=False)
    boxes = result.boxes.cpu().numpy()
    return make_detections(boxes.xyxy, boxes.cls, boxes.conf, image.shape[:2])

  return detector
