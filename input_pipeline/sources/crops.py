# SPDX-License-Identifier: Apache-2.0
"""Objects of images with texts that name them, to train and to test on.

A frame comes with the boxes of its objects; they are cut out on the device (see
`i2ploc.geometry.cropping`), so that training can vary them.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import grain
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import resizing
from input_pipeline import pairing
from input_pipeline import readings
from input_pipeline import schema
from input_pipeline.synthetic_city import detections as detections_lib

Tokenize = Callable[[Sequence[str]], np.ndarray]


class Scene(NamedTuple):
  """A frame whose objects ask, and the landmarks that may answer.

  Attributes:
    row: of the frame table.
    image: uint8 [H, W, 3].
    detections: M of what it shows.
    landmarks: L of the town that are near.
    answers: [M] int64, the place of each detection in `landmarks`; -1 for what
      is not among them.
  """

  row: int
  image: np.ndarray
  detections: detections_lib.Detections
  landmarks: detections_lib.Landmarks
  answers: np.ndarray


class Crops:
  """Objects of a labelled dataset.

  Attributes:
    dataset: the readings.
    image_size: (H, W), pixels, of the images.
  """

  def __init__(
    self,
    dataset: schema.Dataset,
    image_size: tuple[int, int],
    *,
    per_image: int,
    min_pixels: int,
    min_side: int,
    min_share: float,
  ):
    """Reads nothing yet.

    Args:
      dataset: whose `read` knows 'labels' and 'objects'.
      image_size: (H, W) to which images are scaled, and boxes with them.
      per_image: K, objects that a training batch takes of an image.
      min_pixels: of an object in the image as read, see `detections.detect`.
      min_side: of a box in the image as read, pixels.
      min_share: of a box's pixels that show the object.

    Raises:
      InputError: `per_image` is not positive, or the dataset has no frames.
    """
    readings.check_not_empty(dataset)
    if per_image < 1:
      raise InputError(f'per_image={per_image}: expected objects per image')
    self.dataset, self.image_size = dataset, tuple(image_size)
    self._per_image, self._min_pixels = per_image, min_pixels
    self._limits: dict[str, Any] = dict(
      min_pixels=min_pixels, min_side=min_side, min_share=min_share
    )
    self._memory = readings.memory(dataset)
    self.landmarks = functools.cache(self._landmarks)

  def frame(self, row: int) -> tuple[np.ndarray, detections_lib.Detections]:
    """The image uint8 [H, W, 3] of a row, and what it shows."""
    limits = tuple(self._limits.values())
    entry = self._memory.get(
      ('objects', self.image_size, limits, int(row)),
      lambda: self._prepare(int(row)),
    )
    columns = {k: v for k, v in entry.items() if k != 'image'}
    return entry['image'], detections_lib.Detections(**columns)

  def _prepare(self, row: int) -> dict[str, np.ndarray]:
    reading = self.dataset.read(row, ('image', 'labels', 'objects'))
    image = np.asarray(reading['image'])
    found = detections_lib.detect(
      reading['image_instance'], reading['objects'], **self._limits
    )
    scale = np.divide(self.image_size, image.shape[:2])[[1, 0, 1, 0]]
    found = found._replace(box=(found.box * scale).astype(np.float32))
    resized = resizing.resize_image(image, self.image_size)
    return {'image': resized} | found._asdict()

  def _landmarks(self, town: str) -> detections_lib.Landmarks:
    """See `detections.landmarks`."""
    return detections_lib.landmarks(
      self.dataset, town, min_pixels=self._min_pixels
    )

  def train_batches(
    self, batch_size: int, seed: int, tokenize: Tokenize, workers: int = 2
  ) -> grain.DatasetIterator:
    """Endless shuffled batches of frames, resumable to the bit.

    An epoch takes each frame once. Of a frame's objects every category is drawn
    as often, so that the few signs count as much as the many trees.

    Args:
      batch_size: B frames.
      seed: of the order and of the objects drawn.
      tokenize: texts to numbers [N, L] int32.
      workers: threads that prepare batches ahead; batches do not depend on it.

    Returns:
      An iterator over batches: image uint8 [B, H, W, 3], box [B, K, 4] float32,
      tokens [B, K, L] int32, mask [B, K] bool (False for what fills up a frame
      of fewer objects), image_index [B]; with `get_state` and `set_state`.

    Raises:
      InputError: the dataset has fewer frames than a batch.
    """
    frames = self.dataset.frames
    rows = np.flatnonzero(frames.has_image)
    if not 1 <= batch_size <= len(rows):
      raise InputError(
        f'batch_size={batch_size}, but {self.dataset.name} has {len(rows)} '
        'images: choose a batch between 1 and that.'
      )

    def entry(index: int, rng: np.random.Generator) -> readings.Entry:
      return self._entry(int(rows[index]), rng, tokenize)

    order = pairing.Order(frames.town[rows], 1, batch_size, seed)
    batches = (
      grain.MapDataset.source(order)
      .seed(seed)
      .random_map(entry)
      .batch(batch_size, drop_remainder=True)
    )
    options = grain.ReadOptions(
      num_threads=workers, prefetch_buffer_size=max(workers, 1) * 2
    )
    return iter(batches.to_iter_dataset(options))

  def _entry(self, row, rng, tokenize):
    """A frame and K of its objects."""
    image, found = self.frame(row)
    count = min(self._per_image, len(found.box))
    size = self.image_size[::-1]
    box = np.tile(np.array([0, 0, *size], np.float32), (self._per_image, 1))
    texts = [''] * self._per_image
    if count:
      _, kind, alike = np.unique(
        found.category, return_inverse=True, return_counts=True
      )
      weight = 1 / alike[kind]
      drawn = rng.choice(
        len(found.box), count, replace=False, p=weight / weight.sum()
      )
      box[:count] = found.box[drawn]
      texts[:count] = found.text[drawn].tolist()
    return {
      'image': image,
      'box': box,
      'tokens': tokenize(texts),
      'mask': np.arange(self._per_image) < count,
      'image_index': np.int32(row),
    }

  def scenes(self, rows: Sequence[int], radius: float) -> Iterator[Scene]:
    """Frames that ask which landmark is which.

    Args:
      rows: of the frame table.
      radius: metres; landmarks this near to the vehicle may answer: what a
        rough idea of the place leaves to choose from.
    """
    frames = self.dataset.frames
    for row in rows:
      image, found = self.frame(int(row))
      town = self.landmarks(str(frames.town[row]))
      step = town.center[:, :2] - frames.position[row, :2]
      near = town.take(np.hypot(*step.T) <= radius)
      place = {number: i for i, number in enumerate(near.instance)}
      # Movables have numbers of their own, which no landmark has.
      answers = [place.get(number, -1) for number in found.instance]
      yield Scene(int(row), image, found, near, np.array(answers, np.int64))
