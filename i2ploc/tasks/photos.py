# SPDX-License-Identifier: Apache-2.0
"""What an evaluation of photos among photos leaves beside its numbers.

index.npz      the map of the database, which is described anyway
photos.json    what a page says of the photos
pairs.txt      each query and what was found, as hloc's matchers read them
descriptors/   of database and queries as .npy or .h5, if the config asks
"""

from collections.abc import Sequence
import functools
import importlib.util
import pathlib
from typing import Any

import numpy as np

from i2ploc.errors import InputError
from i2ploc.evaluation import descriptor_files
from i2ploc.evaluation import photo_file
from i2ploc.evaluation import retrieval
from i2ploc.evaluation import scores
from i2ploc.geometry import resizing
from i2ploc.models.weights import names
from i2ploc.models.weights import sources
from i2ploc.photos import truth as truth_lib
from i2ploc.retrieval import calibration as calibration_lib
from i2ploc.retrieval import index as index_lib
from i2ploc.tasks import embedding as embedding_lib
from i2ploc.tasks import place_map
from i2ploc.tasks import runs

WRITERS = {
  'npy': descriptor_files.save_npy,
  'h5': descriptor_files.save_hloc,
}


def check(config: Any) -> None:
  """Refuses descriptors that could not be written in the end.

  Args:
    config: of the task.

  Raises:
    InputError: an unknown kind of file, one whose package is missing, or
      photos with several descriptors.
  """
  kind, policy = config.evaluation.descriptors, config.data.query_resize
  if kind not in ('', *WRITERS):
    raise InputError(
      f'evaluation.descriptors={kind!r}: expected one of {list(WRITERS)}, or'
      ' nothing for none.'
    )
  one = np.zeros((resizing.num_views(policy or config.data.resize), 1))
  if kind and len(resizing.join_views(one, policy or config.data.resize)) > 1:
    raise InputError(
      f'evaluation.descriptors={kind!r}: {policy or config.data.resize} gives a'
      ' photo several descriptors, which are of no use to others; choose'
      ' five_crops, stretch or crop.'
    )
  if kind == 'h5' and importlib.util.find_spec('h5py') is None:
    raise InputError(
      "evaluation.descriptors='h5' needs h5py: pip install h5py, or choose npy."
    )


def check_sequences(data: Any, split: Any) -> None:
  """Refuses photos of one folder that would find their own images.

  Args:
    data: source of the photos.
    split: of it.

  Raises:
    InputError: sequences ask the folder that they are of.
  """
  if data.num_frames > 1 and split.queries is None:
    raise InputError(
      f'{data.folder}: all photos ask each other, and sequences of'
      f' {data.num_frames} share photos with their neighbours. Give database/'
      ' and queries/, or --config.data.query_every=2.'
    )


def _weights(config: Any) -> dict[str, str]:
  """What a page says of the networks."""
  checkpoint = config.checkpoint
  if runs.is_run(checkpoint):
    return {'name': checkpoint, 'what': config.name}
  parts = {
    one: sources.describe(one)
    for one in dict.fromkeys(
      names.parse(name).checkpoint for name in names.split(checkpoint)
    )
  }
  joined = {
    key: '; '.join(part[key] for part in parts.values() if key in part)
    for key in ('what', 'licence')
  }
  known = {key: text for key, text in joined.items() if text}
  return {'name': checkpoint, **known}


def save_page(
  config: Any,
  split: Any,
  folder: str,
  workdir: pathlib.Path,
  index: index_lib.Index,
  duplicates: Sequence[tuple[int, int]] = (),
) -> None:
  """Writes photos.json.

  Args:
    config: of the task.
    split: of the data.
    folder: of the photos.
    workdir: gets the file.
    index: of the database.
    duplicates: rows of a query and of the same photo in the database.
  """
  unit = split.truth.unit
  photo_file.save_photos(
    workdir,
    split.frames,
    folder=folder,
    radius=config.index.radius,
    unit=unit,
    # Lists of right answers are of walks that were taken twice.
    ordered=config.sequence.length > 1
    or unit in (truth_lib.FRAMES, truth_lib.LISTED),
    duplicates=dict.fromkeys(duplicates),
    weights=_weights(config),
    confidence=calibration_lib.from_dict(index.calibration).describe(),
  )


class PhotoMap:
  """The index of the database, made of what an evaluation embeds.

  Attributes:
    index: after an evaluation.
  """

  def __init__(
    self, config: Any, split: Any, embedding: embedding_lib.Embedding
  ):
    """Knows no descriptor yet."""
    self._config, self._split, self._embedding = config, split, embedding
    self.index: index_lib.Index | None = None

  def confidence(
    self, variables: Any, embedded: retrieval.Embedded
  ) -> scores.Confidence:
    """Makes the index; see `retrieval.RetrievalEvaluator`."""
    del variables
    rows, descriptors = embedded[self._config.map_side]
    of_map = retrieval.take(
      descriptors, np.flatnonzero(np.isin(rows, self._embedding.map_rows))
    )
    self.index = place_map.index_of(
      self._config, self._split, of_map, self._embedding
    )
    return functools.partial(calibration_lib.first_answers, self._calibration)

  @property
  def _calibration(self) -> calibration_lib.Calibration:
    assert self.index is not None  # an evaluation has made it
    return calibration_lib.from_dict(self.index.calibration)

  def save(
    self,
    evaluator: retrieval.RetrievalEvaluator,
    folder: str,
    workdir: pathlib.Path,
  ) -> list[str]:
    """Writes the files of this module.

    Args:
      evaluator: that has run.
      folder: of the photos.
      workdir: gets the files.

    Returns:
      Lines for people: where confidences come from, duplicates.
    """
    config, frames = self._config, self._split.frames
    assert self.index is not None
    index_lib.save_index(self.index, workdir / place_map.FILE)
    paths = frames.name
    found = next(iter(evaluator.predictions.values()))
    left_out = descriptor_files.save_pairs(
      workdir / 'pairs.txt',
      paths[found.query_rows],
      [paths[rows[rows >= 0]] for rows in found.ranked_rows],
    )
    lines = [self._calibration.describe()]
    if left_out:
      lines.append(
        f'{len(left_out)} names hold blanks, such as {left_out[0]!r}: their'
        ' pairs are not in pairs.txt'
      )
    doubles = [
      pair
      for one in evaluator.duplicates.values()
      for pair in zip(one.query_rows, one.map_rows, strict=True)
    ]
    save_page(config, self._split, folder, workdir, self.index, doubles)
    self._save_descriptors(evaluator, workdir / 'descriptors')
    return lines

  def _save_descriptors(self, evaluator, folder):
    kind, side = self._config.evaluation.descriptors, self._config.map_side
    if not kind:
      return
    rows, descriptors = evaluator.embedded[side]
    parts = {'database': (rows, descriptors)}
    asking = self._split.queries
    if asking is not None:
      parts = {
        name: (rows[mask], descriptors[mask])
        for name, mask in (
          ('database', ~asking[rows]),
          ('queries', asking[rows]),
        )
      }
    if side in evaluator.asked:
      parts['queries'] = evaluator.asked[side]
    for name, (some, values) in parts.items():
      if len(some):
        paths = self._split.frames.name[some].tolist()
        WRITERS[kind](folder / f'{name}.{kind}', paths, values)
