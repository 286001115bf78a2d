# SPDX-License-Identifier: Apache-2.0
"""The splits of an experiment on drives, or on folders of photos."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
import os
import pathlib
from typing import Any

import grain
import numpy as np
from PIL import Image

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.geometry import resizing
from input_pipeline import batches as batches_lib
from input_pipeline import datasets
from input_pipeline import pairing
from input_pipeline import readings
from input_pipeline import schema
from input_pipeline.plans import domains
from input_pipeline.readers import joined
from input_pipeline.sources import crops as crops_lib
from input_pipeline.sources import places as places_lib
from input_pipeline.sources import planned

NUM_PICTURES = 12
TARGET = 'target'  # town and drive of images to adapt to
# One for all runs: photos that were collected, the fewer among the more.
_TARGET_SEED = 0
OVERVIEW_PIXELS = 900
OVERVIEW_MARGIN = 60.0  # metres around the drives
# From a frame table and which of its frames ask, to who asks whom.
Ask = Callable[
  [schema.FrameTable, np.ndarray | None], Sequence[places_lib.Question]
]


class Split:
  """One split of a dataset: its frames, calibration and batches.

  Attributes:
    dataset: the readings.
    frames: its frame table.
    queries: [F] bool, the frames that ask, see `schema.Dataset`; or None.
    labels: what its labels mean; None without labels.
    truth: which answers are right, see `schema.Dataset`.
    rough: about where those that ask were, see `schema.Dataset`.
    image_size: (H, W), pixels, of every image it delivers.
    sequence: num_frames and frame_stride, see `Source`.
  """

  def __init__(
    self,
    dataset: schema.Dataset,
    *,
    image_size: tuple[int, int],
    num_points: int,
    frustum: float | None,
    resize: str = resizing.STRETCH,
    num_frames: int = 1,
    frame_stride: int = 1,
  ):
    """Wraps `dataset`; see `Source` for the arguments."""
    self.dataset = dataset
    self.frames = dataset.frames
    self.queries = dataset.queries
    self.labels = dataset.labels
    self.truth = dataset.truth
    self.rough = dataset.rough
    self.image_size = image_size
    self._num_points = num_points
    self._frustum = frustum
    self._resize = resize
    self.sequence: dict[str, Any] = dict(
      num_frames=num_frames, frame_stride=frame_stride
    )

  def batches(
    self,
    rows: np.ndarray,
    what: tuple[str, ...],
    batch_size: int,
    all_around: bool = False,
    resize: str = '',
  ) -> Iterator[readings.Batch]:
    """The readings of `rows` in order, see `batches.read_batches`.

    Args:
      rows: [N] rows of the frame table.
      what: of 'image', 'rendering', 'points' and 'labels'.
      batch_size: B.
      all_around: keep the scan behind and beside the camera too, as densely.
      resize: another policy than that of the source, see `resizing`.
    """
    num_points, frustum = self._num_points, self._frustum
    if all_around and frustum:
      num_points = math.ceil(num_points * math.pi / frustum)
      frustum = None
    return batches_lib.read_batches(
      self.dataset,
      rows,
      what=what,
      batch_size=batch_size,
      image_size=self.image_size,
      num_points=num_points,
      frustum=frustum,
      resize=resize or self._resize,
      **self.sequence,
    )

  def rig(self, row: int) -> schema.Rig:
    """The sensors of a row's drive, for images of `image_size`.

    A drive without images has the camera of the first drive with some: that
    with which its scans are compared.

    Raises:
      InputError: there are no images at all.
    """
    found = readings.matching_rig(self.dataset, str(self.frames.drive[row]))
    lens = found.lens
    if lens is not None and found.image_size is not None:
      lens = resizing.resize_lens(
        lens, found.image_size, self.image_size, self._resize
      )
    return found._replace(lens=lens, image_size=self.image_size)


class Source:
  """The splits named in a config, opened (or generated) when asked for.

  Attributes:
    name: of the dataset.
    folder: where it lies.
    image_size: (H, W), pixels, of every image it delivers.
    resize: how images become `image_size`, see `resizing`.
    query_resize: the same of those that ask; '' for `resize`.
    num_frames: T, images of a reading.
  """

  def __init__(
    self,
    *,
    name: str,
    data_dir: str | None,
    train: str,
    validation: str,
    test: str,
    image_size: tuple[int, int],
    num_points: int = 1,
    frustum: float = 0.0,
    resize: str = resizing.STRETCH,
    query_resize: str = '',
    num_frames: int = 1,
    frame_stride: int = 1,
    cross_drive: float = 0.0,
    max_offset: float = 0.0,
    town_run: int = 1,
    training: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    crops: Mapping[str, Any] | None = None,
    detector: Mapping[str, Any] | None = None,
    **options,
  ):
    """Reads nothing yet.

    Args:
      name: of the dataset, see `datasets.load`.
      data_dir: where it lies; None for TFDS_DATA_DIR or ~/.cache/i2ploc/data.
      train: the split to learn from, in the dataset's own terms; '' for none.
      validation: the split that chooses the checkpoint; '' for none.
      test: the split that is reported and mapped.
      image_size: (H, W), pixels.
      num_points: P, points per cloud.
      frustum: radians, see `batches.train_batches`; 0 keeps all around.
      resize: how photos become `image_size`, see `resizing`; training always
        stretches them.
      query_resize: the same of photos that ask; '' for that of the map.
      num_frames: T > 1: a reading of images is a sequence, see
        `batches.read_batches`.
      frame_stride: rows from one of its frames to the next.
      cross_drive: see `batches.train_batches`.
      max_offset: see `batches.train_batches`.
      town_run: see `batches.train_batches`.
      training: options that the training split has otherwise, and perhaps
        another image_size or frame_stride.
      target: images of another domain to adapt to, without positions: split,
        condition (of `schema.Dataset.conditions`; '' for all), count, and
        options that their split has otherwise. They join the training split.
      crops: which objects `crops` takes; None where it is not called.
      detector: how well `places` sees objects; None where it is not called.
      **options: what the dataset's own `load` takes.

    Raises:
      InputError: an unknown resize policy, a target that lacks a field, or
        sequences of one.
    """
    if target:
      _check_target(target, num_frames)
    for policy in filter(None, (resize, query_resize)):
      resizing.num_views(policy)
    self.name = name
    self.image_size = tuple(image_size)
    self.folder = os.path.expanduser(
      data_dir or os.environ.get('TFDS_DATA_DIR', '~/.cache/i2ploc/data')
    )
    self.resize, self.query_resize = resize, query_resize
    self.num_frames, self.frame_stride = num_frames, frame_stride
    self._splits = dict(train=train, validation=validation, test=test)
    self._form: dict[str, Any] = dict(
      image_size=self.image_size,
      num_points=num_points,
      frustum=frustum or None,
    )
    self._sequence: dict[str, Any] = dict(
      num_frames=num_frames, frame_stride=frame_stride
    )
    self._training, self._target = dict(training or {}), target
    self._pairing: dict[str, Any] = dict(
      cross_drive=cross_drive, max_offset=max_offset, town_run=town_run
    )
    self._crops, self._detector = crops, detector
    self._options = options

  def has(self, role: str) -> bool:
    """Whether the config names a split for 'train', 'validation' or 'test'."""
    return bool(self._splits[role])

  @functools.cache  # noqa: B019  a source lives as long as the program
  def split(self, role: str) -> Split:
    """The split of a role; made on first use if it is a generated dataset.

    Raises:
      InputError: the config names no split for this role.
      MissingFileError: the data is not where it should be.
    """
    if not self.has(role):
      raise InputError(
        f'{self.name}: the config names no {role} split; set data.{role}.'
      )
    options, form = dict(self._options), dict(self._form)
    sequence = dict(self._sequence)
    if role == 'train':
      options |= self._training
      form['image_size'] = tuple(options.pop('image_size', self.image_size))
      stride = options.pop('frame_stride', sequence['frame_stride'])
      sequence['frame_stride'] = stride
    dataset = self._load(self._splits[role], options)
    if role == 'train' and self._target:
      dataset = self._with_target(dataset, options, **self._target)
    return Split(dataset, **form, **sequence, resize=self.resize)

  def _load(self, split, options):
    return datasets.load(
      self.name, split=split, data_dir=self.folder, **options
    )

  def _with_target(
    self, dataset, options, *, split, condition, count, **others
  ):
    """The training split, and images of which only the domain is known."""
    found = self._load(split, options | others)
    among = np.ones(len(found.frames.town), bool)
    if condition:
      if found.conditions is None:
        raise InputError(f'{found.name}: nobody knows its conditions.')
      among = found.conditions == condition
      if not among.any():
        raise InputError(
          f'data.target.condition={condition!r}: {found.name} has only '
          f'{np.unique(found.conditions).tolist()}.'
        )
    some = domains.choose_targets(found.frames, among, count, _TARGET_SEED)
    target = joined.unplaced(found, some, TARGET)
    return joined.join(dataset.name, [dataset, target])

  def planned_batches(
    self,
    batch_size: int,
    seed: int,
    describe: Callable[[Any, np.ndarray], np.ndarray],
    sampling: Mapping[str, Any],
  ) -> batches_lib.PlannedBatches:
    """Endless training batches that a planner chooses, see `planned`.

    Args:
      batch_size: B.
      seed: of all rounds.
      describe: `variables, rows -> descriptors`, for planners that mine.
      sampling: `name` of a planner and its fields.

    Raises:
      InputError: see `planned.make_planner`.
    """
    split = self.split('train')
    return batches_lib.PlannedBatches(
      planned.make_planner(
        split.dataset,
        sampling,
        batch_size=batch_size,
        seed=seed,
        target=self._target_rows(),
        **split.sequence,
      ),
      planned.make_entry(split.dataset, split.image_size, **split.sequence),
      describe,
    )

  def class_counts(self, sampling: Mapping[str, Any]) -> np.ndarray:
    """[G], classes of each group of the training split, see `planned`."""
    split = self.split('train')
    table = planned.class_table(
      split.dataset, sampling, target=self._target_rows(), **split.sequence
    )
    return table.num_classes

  def _target_rows(self):
    """[F] bool, which of the training split are the target's; None without."""
    return self.split('train').frames.town == TARGET if self._target else None

  @property
  def num_domains(self) -> int:
    """Conditions of light and weather in the training split.

    Raises:
      InputError: nobody knows them.
    """
    found = planned.domain_numbers(self.split('train').dataset)
    if found is None:
      raise InputError(f'{self.name}: nobody knows its conditions.')
    return int(found.max()) + 1

  def train_batches(self, batch_size: int, seed: int) -> grain.DatasetIterator:
    """Endless shuffled training pairs, see `batches.train_batches`.

    Raises:
      InputError: of sequences, too, which only `planned_batches` gives.
    """
    if self.num_frames > 1:
      raise InputError(
        f'data.num_frames={self.num_frames}: pairs of images and scans are of '
        'one image each.'
      )
    split = self.split('train')
    form: dict[str, Any] = self._form | {'image_size': split.image_size}
    return batches_lib.train_batches(
      split.dataset,
      batch_size=batch_size,
      seed=seed,
      **form,
      **self._pairing,
    )

  @functools.cache  # noqa: B019  a source lives as long as the program
  def crops(self, role: str) -> crops_lib.Crops:
    """The objects in the split of a role, see `crops.Crops`.

    Raises:
      InputError: the dataset lists no objects, or the config names no crops.
    """
    dataset = self.split(role).dataset
    if dataset.labels is None or self._crops is None:
      raise InputError(
        f'{self.name}: crops need a dataset that lists objects '
        '(synthetic_city), and data.crops.'
      )
    return crops_lib.Crops(dataset, self.image_size, **self._crops)

  @functools.cache  # noqa: B019  a source lives as long as the program
  def places(self, ask: Ask) -> list[places_lib.Place]:
    """Towns of the test split with their objects, see `places.town_places`.

    Args:
      ask: the questions of a frame table and of `queries`, see `Split`.

    Raises:
      InputError: the dataset lists no objects, or the config does not say how
        they are seen.
    """
    if self._detector is None:
      raise InputError(
        f'{self.name}: places of objects need data.detector, how well they are '
        'seen.'
      )
    split = self.split('test')
    return places_lib.town_places(
      split.dataset,
      self.crops('test'),
      ask(split.frames, split.queries),
      split.rig,
      **self._detector,
    )

  def save_pictures(
    self, folder: str | os.PathLike, rows: Sequence[int]
  ) -> None:
    """Saves some test images as files, and the towns from above.

    Args:
      folder: gets queries/*.png of the images, and where a town can be drawn,
        overview_<town>.png and overview.json with its center and extent.
      rows: of the test split; `NUM_PICTURES` of them are saved, evenly spaced.
    """
    split, folder = self.split('test'), pathlib.Path(folder)
    some = np.linspace(0, len(rows) - 1, NUM_PICTURES).astype(int)
    for row in np.unique(np.asarray(rows)[some]).tolist():
      image = split.dataset.read(row, ('image',))['image']
      stem = str(split.frames.name[row]).replace('/', '_')
      _save_picture(folder / f'queries/{stem}.png', image)
    if self.name == 'synthetic_city':
      _save_overviews(split.frames, self._options['size'], folder)


def _check_target(target, num_frames):
  """Raises an InputError for a target that cannot be."""
  missing = sorted({'split', 'condition', 'count'} - set(target.keys()))
  if missing:
    raise InputError(f'data.target lacks {missing}.')
  if num_frames > 1:
    raise InputError(
      f'data.target with data.num_frames={num_frames}: its images are no '
      'sequences.'
    )


def _save_picture(path: pathlib.Path, image: np.ndarray) -> None:
  with files.replacing(path) as draft:
    Image.fromarray(image).save(draft)


def _save_overviews(frames, size, folder):
  """The town from above around each town's drives, and where that is."""
  from input_pipeline.synthetic_city import overview
  from input_pipeline.synthetic_city import splits
  from input_pipeline.synthetic_city import town as town_lib

  seeds = {d.town: d.town_seed for d in splits.specification(size)}
  places = {}
  for name in pairing.unique_in_order(frames.town):
    track = frames.position[frames.town == name, :2]
    low, high = track.min(0) - OVERVIEW_MARGIN, track.max(0) + OVERVIEW_MARGIN
    center, extent = (low + high) / 2, float((high - low).max())
    picture = overview.render_overview(
      town_lib.make_town(seeds[name]), center, extent, OVERVIEW_PIXELS
    )
    _save_picture(folder / f'overview_{name}.png', picture)
    places[name] = {'center': center.tolist(), 'extent': extent}
  files.save_json(folder / 'overview.json', places)
