# SPDX-License-Identifier: Apache-2.0
"""Where in a map was this taken? Answered by descriptors of both sides.

A config names the side that asks and the side that is mapped, such as camera
images and LiDAR scans, or photos and photos. Both are sides of its model.

  evaluate  predictions.npz  examples.npz  descriptors/  queries/  overview*
  index     index.npz
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np

from i2ploc import factory
from i2ploc.errors import InputError
from i2ploc.evaluation import descriptor_files
from i2ploc.evaluation import photo_file
from i2ploc.evaluation import pictures
from i2ploc.evaluation import predictions
from i2ploc.evaluation import questions as questions_lib
from i2ploc.evaluation import retrieval
from i2ploc.evaluation import saliency
from i2ploc.evaluation import scores
from i2ploc.evaluation import tables
from i2ploc.localization import query_files
from i2ploc.localization import retrieve
from i2ploc.localization import sequences as sequence_stage
from i2ploc.losses import contrastive
from i2ploc.models import fitting
from i2ploc.models import towers as towers_lib
from i2ploc.models.weights import published
from i2ploc.models.weights import sources
from i2ploc.retrieval import calibration as calibration_lib
from i2ploc.retrieval import index as index_lib
from i2ploc.retrieval import sequences
from i2ploc.tasks import embedding as embedding_lib
from i2ploc.tasks import task as task_lib
from i2ploc.training import checkpoint
from i2ploc.training import provenance as provenance_lib
from i2ploc.training import serialization

AHEAD, BACK = (0.0,), math.pi
ANY_HEADING = '_any_heading'
FILE = 'index.npz'


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
    **config.model.to_dict(), image_size=data.image_size
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

  Or published weights, where the config names some.

  Raises:
    MissingFileError: no checkpoint, or no file of published weights.
    InputError: weights of another model.
  """
  if config.checkpoint:
    variables = published.load_variables(config.checkpoint, towers.model)
    return checkpoint.Restored(variables, 0, None, {}, {}, '')
  shapes = jax.eval_shape(towers.init, jax.random.key(0))
  checkpoints = checkpoint.open_checkpoints(config, workdir)
  try:
    provenance_lib.check_model(checkpoints, config)
    return checkpoints.restore_best(shapes)
  finally:
    checkpoints.close()


def _training(config, data, towers) -> task_lib.Training:
  if fitting.needs_fit(towers.model):
    raise InputError(
      f'{config.name}: a vocabulary or a whitening is fitted to a map, not'
      ' trained: set model.whitening to 0 and choose another aggregator.'
    )

  def init(key):
    variables = towers.init(key)
    if config.train.pretrained:
      variables = published.with_encoders(
        config.train.pretrained, towers.model, dict(variables)
      )
    return variables

  def evaluators():
    roles = ('validation',) if data.has('validation') else ()
    return [_evaluator(config, data, towers, role) for role in roles]

  return task_lib.Training(
    init=init,
    batches=functools.partial(
      data.train_batches, config.train.batch_size, config.seed
    ),
    embed=factory.make_embed(
      towers.model,
      color_jitter=config.train.color_jitter,
      mirror=config.train.mirror,
      yaw=config.train.yaw,
      cutout=config.train.cutout,
    ),
    loss=factory.make_loss(
      **config.loss.to_dict(), sides=(config.query_side, config.map_side)
    ),
    optimizer=factory.make_optimizer(
      config.train.num_steps, **config.optimizer.to_dict()
    ),
    evaluators=evaluators,
    id_keys=tuple(f'{side}_index' for side in towers.sides),
  )


def _embedding(
  config, data, towers, variables, questions, workdir
) -> embedding_lib.Embedding:
  """Descriptors of the test split, by a model fitted to its map."""
  return embedding_lib.Embedding(
    towers,
    variables,
    data.split('test'),
    np.unique(np.concatenate([q.map_rows for q in questions])),
    batch_size=config.evaluation.batch_size,
    folder=workdir,
    origin=_provenance(config, data, towers, variables),
  )


def _evaluate(config, data, towers, workdir) -> task_lib.Evaluation:
  """Measures the best checkpoint on the test split.

  Of photos among photos the map is described anyway, and becomes an index.
  """
  restored = restore(config, towers, workdir)
  split = data.split('test')
  questions = _questions(config, split)
  embedding = _embedding(
    config, data, towers, restored.value, questions, workdir
  )
  evaluator = _evaluator(config, data, towers, 'test', embedding)
  results = dict(evaluator.run(embedding.variables))
  results['step'] = float(restored.step)
  describe = {
    side: functools.partial(towers.out(side), embedding.variables)
    for side in towers.sides
  }
  results |= dict(saliency.saliency_shares(split, questions, describe, 'test'))
  predictions.save_predictions(
    evaluator.predictions, workdir / 'predictions.npz'
  )
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
  found = None
  if towers.sides == (config.map_side,) and len(towers.views) == 1:
    rows, descriptors = evaluator.embedded[config.map_side]
    of_map = np.isin(rows, embedding.map_rows)
    found = _index_of(config, split, descriptors[of_map], towers, embedding)
    index_lib.save_index(found, workdir / FILE)
    print(calibration_lib.from_dict(found.calibration).describe())
  _save_photos(config, data, split, workdir, found)
  embedding.remove()
  return task_lib.Evaluation(
    results, tables.text(results, 'test', config.index.radius)
  )


def _save_photos(config, data, split, workdir, index) -> None:
  """What a page says of photos; nothing of the readings of drives."""
  if np.isfinite(split.frames.timestamp).any():
    return
  radii = tuple(config.evaluation.radii)
  radius = config.index.radius
  calibration = None
  if index is not None and index.calibration:
    calibration = calibration_lib.from_dict(index.calibration)
  photo_file.save_photos(
    workdir,
    split.frames,
    folder=data.folder,
    radius=radius if radius in radii else radii[0],
    weights=sources.describe(config.checkpoint),
    confidence=calibration.describe() if calibration else '',
  )


def _shown(questions) -> np.ndarray:
  """Rows of the queries of the question that means localization."""
  known = {name: i for i, name in enumerate(pictures.PREFERRED)}
  names = [question.name for question in questions]
  name = min(names, key=lambda name: known.get(name, len(known)))
  return np.concatenate([q.query_rows for q in questions if q.name == name])


def _evaluator(config, data, towers, role, embedding=None):
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

  def described(side):
    turned = views if side == config.map_side else None
    if embedding is not None:
      return embedding.described(side, turned)
    around = turned is not None and len(views) > 1
    return towers.embed(side, turned), lambda rows: split.batches(
      rows, (side,), size, around
    )

  sides = dict.fromkeys((config.query_side, config.map_side))
  how = {side: described(side) for side in sides}
  return retrieval.RetrievalEvaluator(
    role,
    embed={side: embed for side, (embed, _) in how.items()},
    batches={side: batches for side, (_, batches) in how.items()},
    asking=_asking(config, data, embedding),
    frames=split.frames,
    questions=questions,
    sequence=_sequence(config),
    any_frame=config.sequence.length > 1,
    views=known,
    confidence=functools.partial(_confidence, config, towers, split, embedding),
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
  if not np.isfinite(frames.timestamp).any():  # in no order: photos of folders
    return questions_lib.within_photos(
      frames,
      split.queries,
      side=config.map_side,
      radii=tuple(fields.radii),
      truth=split.truth,
      ordered=config.sequence.length > 1,
    )
  return questions_lib.between_drives(
    frames,
    split.queries,
    query_side=config.query_side,
    map_side=config.map_side,
    radii=tuple(fields.radii),
    exclude_self=fields.exclude_self,
  )


def _confidence(
  config, towers, split, embedding, variables, embedded
) -> scores.Confidence | None:
  """What tells how sure first answers are; None if nothing does."""
  scale = _scale(config, towers, variables)
  if scale is not None:
    return scores.Temperature(scale, config.index.radius)
  if embedding is None:
    return None
  rows, descriptors = embedded[config.map_side]
  of_map = descriptors[np.isin(rows, embedding.map_rows)]
  index = _index_of(config, split, of_map, towers, embedding)
  found = calibration_lib.from_dict(index.calibration)
  return functools.partial(calibration_lib.first_answers, found)


def _scale(config, towers, variables) -> float | None:
  """The learned inverse temperature of similarities; None if there is none.

  Published encoders of one side were not trained to be compared by a softmax.
  """
  if config.checkpoint and len(towers.sides) == 1:
    return None
  return float(contrastive.clamped_scale(variables['params']['log_scale']))


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
  found = _index_of(config, split, descriptors, towers, embedding)
  index_lib.save_index(found, workdir / FILE)
  _save_photos(config, data, split, workdir, found)
  embedding.remove()
  return f'{found.num_places} places in {workdir / FILE}'


def _provenance(config, data, towers, variables):
  digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
  return {
    'method': config.name,
    'model': serialization.fingerprint(variables['params']),
    'config': digest.hexdigest(),
    'dataset': data.name,
    'software': f'jax {jax.__version__}',
    'similarity': 'cosine' if towers.has_unit_descriptors else 'dot',
  }


def _index_of(config, split, descriptors, towers, embedding) -> index_lib.Index:
  """One row of the index per reading of the map and view [N, V, D]."""
  rows, num_views = embedding.map_rows, len(towers.views)
  frames = split.frames.take(np.repeat(rows, num_views))
  index = index_lib.Index(
    descriptors=descriptors.reshape(len(rows) * num_views, -1),
    keys=np.repeat(np.arange(len(rows)), num_views),
    poses=frames.world_from_body,
    towns=frames.town,
    frames=frames.frame,
    names=frames.name,
    views=np.tile(np.asarray(towers.views), len(rows)),
    provenance=embedding.origin,
    rig=index_lib.Rig(*split.rig(rows[0])),
    learned=embedding.learned,
  )
  if _scale(config, towers, embedding.variables) is not None:
    return index
  calibration = calibration_lib.fit(index, config.index.radius)
  return dataclasses.replace(index, calibration=calibration.to_dict())


def _localizer(config, data, towers, workdir) -> task_lib.Localizer:
  """Retrieval in index.npz."""
  if config.query_side != 'image':
    raise InputError(
      f'{config.name} asks with {config.query_side!r}, and localize reads image'
      ' files.'
    )
  restored = restore(config, towers, workdir)
  index = index_lib.load_index(
    workdir / FILE,
    expected_fingerprint=serialization.fingerprint(restored.value['params']),
  )
  policy = data.query_resize or data.resize
  embed = embedding_lib.each_view(towers.embed(config.query_side), policy)
  variables = embedding_lib.with_learned(restored.value, index.learned)
  embed = functools.partial(embed, variables)
  size = towers.model.towers[config.query_side].view.size
  sequence = sequences.Sequence(**config.sequence)
  calibration = None
  if index.calibration:
    calibration = calibration_lib.from_dict(index.calibration)
  stages = (
    retrieve.make_stage(
      index,
      embed,
      size,
      scale=_scale(config, towers, restored.value),
      radius=config.index.radius,
      k=config.index.num_answers,
      folder=data.folder,
      calibration=calibration,
      resize=policy,
    ),
    sequence_stage.make_stage(
      index,
      lambda query: retrieve.describe(query, embed, size, policy),
      sequence,
      k=config.index.num_answers,
      folder=data.folder,
    ),
  )
  lens, image_size, _ = index.rig
  camera = None
  if lens is not None and image_size is not None:
    camera = query_files.Camera(lens, image_size)
  return task_lib.Localizer(
    stages, camera, num_images=sequence_stage.span(sequence)
  )
