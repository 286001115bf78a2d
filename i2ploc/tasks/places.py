# SPDX-License-Identifier: Apache-2.0
"""Where in a map was this taken? Answered by descriptors of both sides.

A config names the side that asks and the side that is mapped, such as camera
images and LiDAR scans, or photos and photos. Both are sides of its model.

  evaluate  predictions.npz  examples.npz  descriptors/  queries/  overview*
            and of photos what `photos` lists
  index     index.npz
"""

import functools
import math
import pathlib
from typing import Any

import jax
import numpy as np

from i2ploc import factory
from i2ploc.errors import InputError
from i2ploc.evaluation import descriptor_files
from i2ploc.evaluation import duplicates
from i2ploc.evaluation import pictures
from i2ploc.evaluation import predictions
from i2ploc.evaluation import questions as questions_lib
from i2ploc.evaluation import retrieval
from i2ploc.evaluation import saliency
from i2ploc.evaluation import scores
from i2ploc.evaluation import tables
from i2ploc.models import towers as towers_lib
from i2ploc.models.weights import published
from i2ploc.photos import truth as truth_lib
from i2ploc.retrieval import index as index_lib
from i2ploc.retrieval import sequences
from i2ploc.tasks import embedding as embedding_lib
from i2ploc.tasks import photos
from i2ploc.tasks import place_map
from i2ploc.tasks import place_training
from i2ploc.tasks import runs
from i2ploc.tasks import task as task_lib
from i2ploc.training import checkpoint
from i2ploc.training import provenance as provenance_lib

AHEAD, BACK = (0.0,), math.pi
ANY_HEADING = '_any_heading'


def make_task(config: Any, data: Any) -> task_lib.Task:
  """The task; the model is built, and no data is read.

  Args:
    config: with query_side and map_side, of the model's sides.
    data: a `sources.drives.Source`, or anything with its methods.

  Raises:
    InputError: a model, loss or optimizer that cannot be, or a side that the
      model does not have.
  """
  towers = make_towers(config, data)
  bound = (config, data, towers)
  return task_lib.Task(
    training=None if config.checkpoint else _training(*bound),
    evaluate=functools.partial(_evaluate, *bound),
    index=functools.partial(_index, *bound),
    localizer=functools.partial(_localizer, *bound),
  )


def make_towers(config: Any, data: Any) -> towers_lib.CompiledTowers:
  """The towers of a config; no parameter exists yet.

  Raises:
    InputError: a model that cannot be, or a side that it does not have.
  """
  model = factory.make_model(
    **config.model.to_dict(),
    image_size=data.image_size,
    frames=data.num_frames,
  )
  if config.query_side not in model.towers:
    raise InputError(
      f'{config.name}: {config.query_side!r} asks, and the model has'
      f' {list(model.towers)}.'
    )
  return towers_lib.CompiledTowers(
    model, config.map_side, tuple(config.index.views)
  )


def restore(
  config: Any, towers: towers_lib.CompiledTowers, workdir: str | pathlib.Path
) -> checkpoint.Restored:
  """The best checkpoint of a workdir, of a model as the config says.

  Or published weights or those of another run, where the config names some.

  Raises:
    MissingFileError: no checkpoint, or no file of published weights.
    InputError: weights of another model.
  """
  if config.checkpoint:
    load = published.load_variables
    if runs.is_run(config.checkpoint):
      load = runs.load_variables
    variables = load(config.checkpoint, towers.model)
    return checkpoint.Restored(variables, 0, None, {}, {}, '')
  shapes = jax.eval_shape(towers.init, jax.random.key(0))
  checkpoints = checkpoint.open_checkpoints(config, workdir)
  try:
    provenance_lib.check_model(checkpoints, config)
    return checkpoints.restore_best(shapes)
  finally:
    checkpoints.close()


def _training(config, data, towers) -> task_lib.Training:
  """Of pairs of two sensors, or of batches that are planned."""
  make = place_training.pairs
  if 'sampling' in config:
    make = place_training.planned

  def evaluators():
    roles = ('validation',) if data.has('validation') else ()
    return [_evaluator(config, data, towers, role) for role in roles]

  return make(config, data, towers, evaluators)


def _embedding(
  config, data, towers, variables, questions, workdir
) -> embedding_lib.Embedding:
  """Descriptors of the test split, by a model fitted to its map."""
  return embedding_lib.Embedding(
    towers,
    variables,
    data.split('test'),
    np.unique(np.concatenate([q.map_rows for q in questions])),
    seed=config.seed,
    batch_size=config.evaluation.batch_size,
    folder=workdir,
    origin=place_map.provenance(config, data, towers, variables),
  )


def _evaluate(config, data, towers, workdir) -> task_lib.Evaluation:
  """Measures the best checkpoint on the test split.

  Of photos among photos the map is described anyway, and becomes an index.
  """
  restored = restore(config, towers, workdir)
  split = data.split('test')
  if split.truth is not None:
    photos.check(config)
    photos.check_sequences(data, split)
  questions = _questions(config, split)
  embedding = _embedding(
    config, data, towers, restored.value, questions, workdir
  )
  photo_map = None
  if split.truth is not None:
    photo_map = photos.PhotoMap(config, split, embedding)
  evaluator = _evaluator(config, data, towers, 'test', embedding, photo_map)
  results = dict(evaluator.run(embedding.variables))
  results['step'] = float(restored.step)
  describe = {
    side: functools.partial(towers.out(side), embedding.variables)
    for side in towers.sides
  }
  if data.num_frames == 1:
    results |= dict(
      saliency.saliency_shares(split, questions, describe, 'test')
    )
  predictions.save_predictions(
    evaluator.predictions, workdir / 'predictions.npz'
  )
  if photo_map is None:
    descriptor_files.save_descriptors(
      workdir / 'descriptors', split.frames, evaluator.embedded
    )
  if config.query_side == 'image':
    pictures.save_examples(
      split,
      describe,
      evaluator.predictions,
      workdir / 'examples.npz',
      projection=towers.model.towers[config.query_side].view.projection,
      count=config.evaluation.num_examples,
      radius=config.index.radius,
    )
  data.save_pictures(workdir, _shown(questions))
  lines, unit = [], truth_lib.METRES
  if photo_map is not None:
    unit = split.truth.unit
    lines = photo_map.save(evaluator, data.folder, workdir)
    lines += duplicates.text(evaluator.duplicates, split.frames.name)
  embedding.remove()
  table = tables.text(
    results, 'test', config.index.radius, unit, _sequence(config).length
  )
  return task_lib.Evaluation(results, [*table, *lines])


def _shown(questions) -> np.ndarray:
  """Rows of the queries of the question that means localization."""
  known = {name: i for i, name in enumerate(pictures.PREFERRED)}
  names = [question.name for question in questions]
  name = min(names, key=lambda name: known.get(name, len(known)))
  return np.concatenate([q.query_rows for q in questions if q.name == name])


def _evaluator(config, data, towers, role, embedding=None, photo_map=None):
  """Recall with a known heading, and on test with an unknown one too.

  The model changes between the evaluations of a training; without `embedding`
  nothing is kept.

  `sync` and `cross` ask a map that looks ahead, `opposite` one that looks
  back. `..._any_heading` asks a map with all views of the index.
  """
  split, size = data.split(role), config.evaluation.batch_size
  questions, views = _questions(config, split), AHEAD
  if len(towers.views) > 1 and any(q.name == 'opposite' for q in questions):
    views = (
      *AHEAD,
      BACK,
      *(v for v in towers.views if v not in (*AHEAD, BACK)),
    )
    unknown = [q for q in questions if q.name in ('cross', 'opposite')]
    questions += [q._replace(name=q.name + ANY_HEADING) for q in unknown]
  known = {q.name: [0] for q in questions if not q.name.endswith(ANY_HEADING)}
  if BACK in views:
    known['opposite'] = [1]
  if split.truth is not None:  # nobody knows how photos were turned
    views, known = towers.views, {}

  def described(side, turned=None):
    if embedding is not None:
      return embedding.described(side, turned)
    around = turned is not None and len(views) > 1
    return towers.embed(side, turned), lambda rows: split.batches(
      rows, (side,), size, around
    )

  confidence, finder = functools.partial(_temperature, config, towers), None
  if photo_map is not None:
    confidence, folder = photo_map.confidence, pathlib.Path(data.folder)
    names = split.frames.name
    if (folder / names[0]).is_file():  # else the data was generated
      finder = duplicates.Finder(len(names), lambda row: folder / names[row])
  sides = dict.fromkeys((config.query_side, config.map_side))
  how = {
    side: described(side, views if side == config.map_side else None)
    for side in sides
  }
  asking = _asking(config, data, embedding)
  if config.query_side == config.map_side and len(views) > 1 and not asking:
    asking = {config.query_side: described(config.query_side)}
  return retrieval.RetrievalEvaluator(
    role,
    embed={side: embed for side, (embed, _) in how.items()},
    batches={side: batches for side, (_, batches) in how.items()},
    asking=asking,
    frames=split.frames,
    questions=questions,
    sequence=_sequence(config),
    any_frame=config.sequence.length > 1,
    views=known,
    confidence=confidence,
    duplicates=finder,
  )


def _sequence(config) -> sequences.Sequence:
  """What is measured beside single readings: what is asked, or 3 frames."""
  asked = sequences.Sequence(**config.sequence)
  if asked.length > 1:
    return asked
  return sequences.Sequence(stride=config.evaluation.sequence_stride)


def _asking(config, data, embedding):
  """How queries are embedded, where not as the map."""
  policy, side = data.query_resize, config.query_side
  if embedding is None or policy in ('', data.resize):
    return {}
  return {side: embedding.described(side, resize=policy)}


def _questions(config, split) -> list[questions_lib.Question]:
  """Who asks whom in a split, and what counts as right."""
  frames, fields = split.frames, config.evaluation
  if split.truth is not None:
    return questions_lib.within_photos(
      frames,
      split.queries,
      side=config.map_side,
      radii=tuple(fields.radii),
      truth=split.truth,
      ordered=config.sequence.length > 1,
      disc=_disc(config, split),
    )
  return questions_lib.between_drives(
    frames,
    split.queries,
    query_side=config.query_side,
    map_side=config.map_side,
    radii=tuple(fields.radii),
    exclude_self=fields.exclude_self,
  )


def _disc(config, split) -> questions_lib.Disc | None:
  """Where answers may lie, if those that ask know roughly where they are."""
  radius = config.evaluation.disc if 'disc' in config.evaluation else 0.0
  if not radius:
    return None
  if split.rough is None:
    raise InputError(
      f'evaluation.disc={radius}: nobody knows roughly where these photos were'
      ' taken.'
    )
  return questions_lib.Disc(split.rough, radius)


def _temperature(config, towers, variables, embedded):
  """What tells how sure answers are; None of towers that learned nothing."""
  del embedded
  scale = place_map.scale(towers, variables)
  return (
    None if scale is None else scores.Temperature(scale, config.index.radius)
  )


def _index(config, data, towers, workdir) -> str:
  """Embeds the map of the test split; writes index.npz.

  Finished parts survive a kill: the next run embeds only what is missing.
  """
  restored = restore(config, towers, workdir)
  split = data.split('test')
  questions = _questions(config, split)
  embedding = _embedding(
    config, data, towers, restored.value, questions, workdir
  )
  _, batches = embedding.described(config.map_side, towers.views)
  descriptors = np.concatenate(
    [batch['descriptors'] for batch in batches(embedding.map_rows)]
  )
  found = place_map.index_of(config, split, descriptors, embedding)
  path = workdir / place_map.FILE
  index_lib.save_index(found, path)
  if split.truth is not None:
    photos.save_page(config, split, data.folder, workdir, found)
  embedding.remove()
  return f'{found.num_places} places in {path}'


def _localizer(config, data, towers, workdir) -> task_lib.Localizer:
  """Asks index.npz."""
  variables = restore(config, towers, workdir).value
  return place_map.localizer(config, data, towers, variables, workdir)
