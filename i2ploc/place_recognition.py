# SPDX-License-Identifier: Apache-2.0
"""Evaluate any image descriptor on folders of photos, in one call.

  result = place_recognition.evaluate(model, 'tokyo/database', 'tokyo/queries')
  print(result.text)
  result.numbers['recall@1_25m'], result.numbers['chance@1_25m']
  result.save('out')     # descriptors (npy, h5), pairs that hloc reads, numbers

The same questions, scores and tables as `main.py --mode=evaluate`: the verbs
are for models of this program, this is for anybody's. A published network is
named, and gives the same numbers as configs/photos.py:

  evaluate('eigenplaces_resnet50_2048', 'tokyo', image_size=(512, 512))
  model = published_model('dinov2_base@10', pooling='vlad')
  evaluate(model, 'tokyo')
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import dataclasses
import importlib.util
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc import factory
from i2ploc import files
from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.evaluation import descriptor_files
from i2ploc.evaluation import duplicates as duplicates_lib
from i2ploc.evaluation import predictions as predictions_lib
from i2ploc.evaluation import questions as questions_lib
from i2ploc.evaluation import retrieval
from i2ploc.evaluation import tables
from i2ploc.geometry import resizing
from i2ploc.models import fitting
from i2ploc.models import towers as towers_lib
from i2ploc.models.weights import published
from i2ploc.photos import album as album_lib

# uint8 [B, H, W, 3] -> [B, D].
Model = Callable[[np.ndarray], Any]
IMAGE_SIZE = 224, 224
POOLINGS = {
  'default': dict(name='default'),
  'cls': dict(name='first'),
  'mean': dict(name='mean', features=0),
  'gem': dict(name='gem', features=0),
  'vlad': dict(name='vlad'),
  'released': dict(name='published'),
}
_SIDE, _SPLIT = 'image', 'test'
_THREADS = 8
# The question that everybody means: photos of a town against their own.
MAIN = f'{_SPLIT}/photos/{questions_lib.direction(_SIDE, _SIDE)}'
NUM_PAIRS = 20


@dataclasses.dataclass
class Frames:
  """What a frame table says of F photos, see `questions.Frames`.

  Attributes:
    town: [F] str.
    drive: [F] str.
    frame: int64 [F].
    timestamp: [F], unknown.
    position: float64 [F, 3].
    heading: float64 [F], radians.
    has_image: bool [F].
  """

  town: np.ndarray
  drive: np.ndarray
  frame: np.ndarray
  timestamp: np.ndarray
  position: np.ndarray
  heading: np.ndarray
  has_image: np.ndarray


class Result(NamedTuple):
  """What an evaluation found.

  Attributes:
    numbers: percent, metres and counts, of every query against the database of
      its town: 'recall@1_25m', 'chance@1_25m', 'queries', ...; see
      `evaluation.scores`.
    all_numbers: the same and those of every town, with their full names.
    text: the table.
    names: paths of the photos, F.
    album: the photos.
    predictions: ranked answers, by the name of a question.
    duplicates: queries that lie in the database, by the name of a question.
    embedded: rows [N] of the photos and their descriptors [N, V, D].
    asked: the same of queries, where they are resized otherwise; or None.
  """

  numbers: dict[str, float]
  all_numbers: dict[str, float]
  text: str
  names: list[str]
  album: album_lib.Album
  predictions: dict[str, predictions_lib.Predictions]
  duplicates: dict[str, duplicates_lib.Duplicates]
  embedded: tuple[np.ndarray, np.ndarray]
  asked: tuple[np.ndarray, np.ndarray] | None

  def save(self, folder: str | os.PathLike) -> list[str]:
    """Writes numbers, ranked answers, descriptors and pairs for other programs.

    Args:
      folder: gets metrics.json, predictions.npz, descriptors.npy with names in
        descriptors.txt, descriptors.h5 (if h5py is installed) and pairs.txt;
        of queries that are resized otherwise queries.npy, .txt and .h5.

    Returns:
      What was left out, as lines.
    """
    folder, left_out = pathlib.Path(folder), []
    files.save_json(folder / 'metrics.json', self.all_numbers)
    predictions_lib.save_predictions(
      self.predictions, folder / 'predictions.npz'
    )
    for stem, found in ('descriptors', self.embedded), ('queries', self.asked):
      if found is None:
        continue
      rows, descriptors = found
      if descriptors.shape[1] > 1:
        left_out.append(f'{stem}: several descriptors of a photo.')
        continue
      names = [self.names[row] for row in rows]
      descriptor_files.save_npy(folder / f'{stem}.npy', names, descriptors)
      if importlib.util.find_spec('h5py') is None:
        left_out.append(f'{stem}.h5: pip install h5py.')
      else:
        descriptor_files.save_hloc(folder / f'{stem}.h5', names, descriptors)
    record = self.predictions[MAIN]
    bad = descriptor_files.save_pairs(
      folder / 'pairs.txt',
      [self.names[row] for row in record.query_rows],
      [
        [self.names[row] for row in rows[:NUM_PAIRS] if row >= 0]
        for rows in record.ranked_rows
      ],
    )
    if bad:
      left_out.append(
        f'pairs.txt: {len(bad)} names with blanks, as {bad[0]!r}.'
      )
    return left_out


def evaluate(
  model: str | Model,
  database: str | os.PathLike,
  queries: str | os.PathLike | None = None,
  *,
  radius: float | Sequence[float] = 25.0,
  positions: str = '',
  image_size: tuple[int, int] | None = None,
  resize: str = resizing.STRETCH,
  query_resize: str = '',
  batch_size: int = 16,
  ordered: bool = False,
  log: Callable[[str], None] | None = None,
) -> Result:
  """Asks a database of photos with queries, and counts what is right.

  Args:
    model: images uint8 [B, H, W, 3] to descriptors [B, D], whose dot products
      are the similarities; B is always `batch_size`, the last batch is filled
      up. If it has a method `fit`, as a `PublishedModel`, it is given the
      photos of the database first. Or a name of published weights, for
      `published_model`.
    database: folder of photos that answer; or a folder with both, or with
      towns, if there are no `queries`: see `photos.album`.
    queries: folder of photos that ask; the same folder as the database for all
      against all.
    radius: within which an answer is right, one or several; metres, or frames
      if the positions are 'order'.
    positions: where photos were taken, see `photos.album`; a file is looked for
      in the folder that holds both.
    image_size: (H, W) that the model gets, pixels; None for its `image_size`,
      or 224 x 224 if it has none.
    resize: policy, see `geometry.resizing`.
    query_resize: policy of queries; '' for the same.
    batch_size: B.
    ordered: photos are in the order of travel.
    log: is told how far it is, in lines; None for silence.

  Raises:
    MissingFileError: a folder, or a file of positions, is missing.
    InputError: no photos, photos that do not decode, bad positions, a policy
      that there is not, or descriptors that are not finite.
  """
  radii = tuple(np.atleast_1d(np.asarray(radius, float)).tolist())
  album = _open(pathlib.Path(database), queries, positions)
  if isinstance(model, str):
    model = published_model(model, image_size=image_size or IMAGE_SIZE)
  size = tuple(image_size or getattr(model, 'image_size', IMAGE_SIZE))
  frames = Frames(
    town=album.town,
    drive=album.drive,
    frame=album.frame,
    timestamp=np.full(len(album.names), np.nan),
    position=album.positions.position,
    heading=album.positions.heading,
    has_image=np.ones(len(album.names), bool),
  )
  questions = questions_lib.within_photos(
    frames, album.queries, radii=radii, truth=album.truth, ordered=ordered
  )
  reader = _Reader(album, size, batch_size, log)
  if hasattr(model, 'fit'):
    _fit(model, reader, questions, resize)

  def described(policy):
    views = resizing.num_views(policy)

    def embed(_, batch):
      return _describe(model, batch[_SIDE], views, policy, batch_size)

    return embed, lambda rows: reader.batches(rows, policy)

  embed, batches = described(resize)
  other = query_resize not in ('', resize)
  evaluator = retrieval.RetrievalEvaluator(
    _SPLIT,
    embed={_SIDE: embed},
    batches={_SIDE: batches},
    asking={_SIDE: described(query_resize)} if other else None,
    frames=frames,
    questions=questions,
    duplicates=duplicates_lib.Finder(
      len(album.names), lambda row: album.root / album.names[row]
    ),
  )
  results = dict(evaluator.run(None))
  lines = [
    line
    for one in questions[0].radii
    for line in tables.text(results, _SPLIT, one, album.truth.unit)
  ]
  lines += duplicates_lib.text(evaluator.duplicates, album.names)
  return Result(
    numbers=_short(results, MAIN),
    all_numbers=results,
    text='\n'.join(lines),
    names=album.names,
    album=album,
    predictions=evaluator.predictions,
    duplicates=evaluator.duplicates,
    embedded=evaluator.embedded[_SIDE],
    asked=evaluator.asked.get(_SIDE),
  )


class PublishedModel:
  """A published network: images uint8 [B, H, W, 3] -> descriptors [B, D].

  Attributes:
    towers: the network.
    image_size: (H, W) that it gets, pixels.
  """

  def __init__(
    self, model: towers_lib.Towers, variables: Mapping[str, Any]
  ) -> None:
    """Wraps a model of photos.

    Args:
      model: with the side 'image'.
      variables: of it.
    """
    self.towers = towers_lib.CompiledTowers(model, _SIDE)
    self.image_size = model.image_view.size
    self._variables = dict(variables)
    self._is_fitted = not fitting.needs_fit(model)

  def fit(self, batches: fitting.Batches, count: int) -> None:
    """Learns from photos of a database what there is to learn, see `fitting`.

    `evaluate` does this. What an earlier fit has learned is forgotten.

    Args:
      batches: called with rows [M] of 0 .. count - 1; yields batches of these
        photos in this order: image uint8 [B, H, W, 3], and mask [B] of those
        that are more than filling.
      count: number of photos.

    Raises:
      InputError: too few photos.
    """
    self._variables = fitting.fit(
      self.towers.model, _SIDE, self._variables, batches, count
    )
    self._is_fitted = True

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Describes.

    Args:
      images: uint8 [B, H, W, 3].

    Returns:
      float32 [B, D], at unit length.

    Raises:
      InputError: something is to be learned from a database, and was not.
    """
    if not self._is_fitted:
      raise InputError(
        'The words of VLAD, or a whitening, belong to a database: call `fit`'
        ' with its photos first, as `evaluate` does.'
      )
    batch: dict[str, Any] = {_SIDE: images, 'mask': np.ones(len(images), bool)}
    return np.asarray(self.towers.embed(_SIDE)(self._variables, batch))


def published_model(
  name: str,
  *,
  pooling: str = 'default',
  words: int = 0,
  whitening: int = 0,
  image_size: tuple[int, int] = IMAGE_SIZE,
) -> PublishedModel:
  """A published network and its pooling: what configs/photos.py describes with.

  Args:
    name: of `models.weights.sources`, a folder or file of weights, or a
      repository of the Hugging Face hub, perhaps with a layer, and several that
      are joined: see `models.weights.names`.
    pooling: of POOLINGS. 'released' is that of a network that was released for
      place recognition, 'vlad' has words of the database, 'cls' is for
      transformers; 'default' is what suits the network, see
      `factory.with_default_pooling`.
    words: of 'vlad' alone; 0 for 32.
    whitening: numbers to which descriptors are whitened, as the database has
      them; fewer than its photos. 0 for none.
    image_size: (H, W) that it is to get, pixels; `published.image_size` tells
      that of a release's authors.

  Raises:
    MissingFileError: no such weights.
    InputError: weights of no encoder, or options that it does not have.
  """
  if pooling not in POOLINGS:
    raise InputError(f'pooling={pooling!r}: expected one of {list(POOLINGS)}.')
  image: dict[str, Any] = dict(name='published', checkpoint=name)
  aggregator: dict[str, Any] = dict(POOLINGS[pooling])
  if words:
    if pooling != 'vlad':
      raise InputError(f"words={words} are of pooling='vlad', not {pooling!r}.")
    aggregator['num_clusters'] = words
  model = factory.make_model(
    image=image,
    aggregator=aggregator,
    aggregate_cls=pooling == 'cls',
    whitening=whitening,
    saliency='none',
    dtype='float32',
    image_size=tuple(image_size),
  )
  return PublishedModel(model, published.load_variables(name, model))


def _open(
  database: pathlib.Path, queries: str | os.PathLike | None, positions: str
) -> album_lib.Album:
  if queries is None:
    return album_lib.open_album(database, positions=positions)
  folders = [pathlib.Path(os.path.abspath(x)) for x in (database, queries)]
  for folder in folders:
    if not folder.is_dir():
      raise MissingFileError(f'{folder}: no such folder of photos.')
  if folders[0] == folders[1]:
    return album_lib.open_album(folders[0], positions=positions)
  root = pathlib.Path(os.path.commonpath(folders))
  if root in folders:
    raise InputError(
      f'{folders[0]} and {folders[1]}: one lies in the other, so the queries'
      ' would be in the database. Move them apart.'
    )
  names = [folder.relative_to(root).as_posix() for folder in folders]
  return album_lib.open_album(
    root, database=names[0], queries=names[1], positions=positions
  )


class _Reader:
  """Batches of photos, decoded by threads while the model works."""

  def __init__(self, album, image_size, batch_size, log):
    self._album, self._size = album, image_size
    self._batch_size, self._log = batch_size, log

  def batches(self, rows: np.ndarray, policy: str) -> Iterator[dict]:
    """Batches with image uint8 [B, H, W, 3], or [B, V, H, W, 3] of V views."""
    resizing.num_views(policy)  # refuse an unknown one before any photo is read
    parts = [
      rows[start : start + self._batch_size]
      for start in range(0, len(rows), self._batch_size)
    ]
    with futures.ThreadPoolExecutor(_THREADS) as pool:

      def start(part):
        return [pool.submit(self._read, row, policy) for row in part.tolist()]

      waiting = start(parts[0])
      for i, part in enumerate(parts):
        images = np.stack([future.result() for future in waiting])
        waiting = start(parts[i + 1]) if i + 1 < len(parts) else []
        empty = self._batch_size - len(part)
        yield {
          _SIDE: np.concatenate([images, np.repeat(images[-1:], empty, 0)]),
          f'{_SIDE}_index': np.concatenate([part, np.repeat(part[-1:], empty)]),
          'mask': np.arange(self._batch_size) < len(part),
        }
        if self._log and (i + 1) % 50 == 0:
          self._log(f'described {(i + 1) * self._batch_size} of {len(rows)}')

  def _read(self, row: int, policy: str) -> np.ndarray:
    image = image_files.read_image(self._album.root / self._album.names[row])
    return resizing.resize_image(image, self._size, policy)


def _fit(model, reader, questions, policy) -> None:
  """Shows a model the photos of the database, as it will describe them."""
  rows = np.unique(np.concatenate([q.map_rows for q in questions]))
  views = resizing.num_views(policy)

  def batches(some):
    for batch in reader.batches(rows[some], policy):
      image = batch[_SIDE] if views == 1 else batch[_SIDE][:, -1]
      yield batch | {_SIDE: image}  # of several views the middle one

  model.fit(batches, len(rows))


def _describe(model, images, views, policy, batch_size) -> np.ndarray:
  """Descriptors [B, V, D] of images, or of their views."""
  if views == 1:
    images = images[:, None]
  found = np.stack(
    [_call(model, images[:, view], batch_size) for view in range(views)], 1
  )
  return resizing.join_views(found, policy)


def _call(model, images, batch_size) -> np.ndarray:
  found = np.asarray(model(np.ascontiguousarray(images)), np.float32)
  if found.ndim != 2 or len(found) != batch_size:
    raise InputError(
      f'The model gives {list(found.shape)} for {batch_size} images; expected'
      f' [{batch_size}, D], a descriptor for each.'
    )
  return found


def _short(results: dict[str, float], main: str) -> dict[str, float]:
  """The numbers of a question without its name."""
  base = main.rpartition('/')[0]
  found = {}
  for prefix in (base, main):
    for name, value in results.items():
      rest = name.removeprefix(f'{prefix}/')
      if rest != name and '/' not in rest:
        found[rest] = value
  return found
