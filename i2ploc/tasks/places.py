# SPDX-License-Identifier: Apache-2.0
"""The verbs: train, evaluate, index, localize.

Each joins a config, the data of an experiment and a workdir, and leaves files
that the next verb reads:

  train     checkpoints/  metrics.jsonl  events/  and what evaluate writes
  evaluate  results.json  predictions.npz  examples.npz  descriptors/  queries/
            overview*
  index     index.npz
  localize  answers.jsonl

`config` is a ConfigDict, `data` a `sources.drives.Source` or anything
with its methods. All raise ValueError or FileNotFoundError for bad input.
"""

from collections.abc import Sequence
import functools
import hashlib
import json
import math
import pathlib
import shutil

import jax
import numpy as np

from i2ploc import factory
from i2ploc import files
from i2ploc import fitting
from i2ploc.evaluation import descriptor_files
from i2ploc.evaluation import pictures
from i2ploc.evaluation import predictions
from i2ploc.evaluation import questions as questions_lib
from i2ploc.evaluation import retrieval
from i2ploc.evaluation import saliency
from i2ploc.evaluation import tables
from i2ploc.localization import retrieve
from i2ploc.losses import contrastive
from i2ploc.models import towers as towers_lib
from i2ploc.models.weights import published
from i2ploc.retrieval import index as index_lib
from i2ploc.training import checkpoint
from i2ploc.training import serialization

# Rows of one partial file of an index that is being built.
PART_ROWS = 256
IDS = ('image_index', 'points_index')
AHEAD, BACK = (0.0,), math.pi
ANY_HEADING = '_any_heading'


def make_towers(config, data) -> towers_lib.CompiledTowers:
  """The towers of a config; no parameter exists yet."""
  model = factory.make_model(
    **config.model.to_dict(), image_size=data.image_size
  )
  return towers_lib.CompiledTowers(model, 'points', tuple(config.index.views))


def train(config, data, workdir: str) -> None:
  """Trains, chooses the checkpoint on validation, evaluates on test."""
  batches = data.train_batches(config.train.batch_size, config.seed)
  towers = make_towers(config, data)
  variables = towers.init(jax.random.key(config.seed))
  if config.train.pretrained:
    variables = published.with_encoders(
      config.train.pretrained, towers.model, dict(variables)
    )
  roles = ('validation',) if data.has('validation') else ()
  fitting.fit(
    config,
    workdir,
    variables=variables,
    batches=batches,
    embed=factory.make_embed(
      towers.model,
      color_jitter=config.train.color_jitter,
      mirror=config.train.mirror,
      yaw=config.train.yaw,
      cutout=config.train.cutout,
    ),
    loss=factory.make_loss(**config.loss.to_dict()),
    evaluators=[_evaluator(config, data, towers, role) for role in roles],
    id_keys=IDS,
  )
  if data.has('test'):
    evaluate(config, data, workdir)


def evaluate(config, data, workdir: str) -> dict[str, float]:
  """Measures the best checkpoint on the test split; writes results.json."""
  towers, restored = restore(config, data, workdir)
  evaluator = _evaluator(config, data, towers, 'test')
  results = {k: float(v) for k, v in evaluator.run(restored.value)}
  results['step'] = float(restored.step)
  describe = {
    side: functools.partial(towers.out(side), restored.value)
    for side in towers.sides
  }
  split = data.split('test')
  results |= dict(
    saliency.saliency_shares(split, _questions(split, config), describe, 'test')
  )
  folder = pathlib.Path(workdir)
  predictions.save_predictions(
    evaluator.predictions, folder / 'predictions.npz'
  )
  descriptor_files.save_descriptors(
    folder / 'descriptors', split.frames, evaluator.embedded
  )
  pictures.save_examples(
    split,
    describe,
    evaluator.predictions,
    folder / 'examples.npz',
    projection=towers.model.towers['image'].view.projection,
    count=config.evaluation.num_examples,
    radius=config.index.radius,
  )
  asked = _questions(split, config)
  names = [question.name for question in asked]
  name = next(name for name in pictures.PREFERRED if name in names)
  data.save_pictures(
    folder,
    np.concatenate([q.query_rows for q in asked if q.name == name]),
  )
  files.save_json(folder / 'results.json', results)
  print('\n'.join(tables.text(results, 'test', config.index.radius)))
  return results


def index(config, data, workdir: str) -> None:
  """Embeds the map drives of the test split; writes index.npz.

  Finished parts survive a kill: the next run embeds only what is missing.
  """
  towers, restored = restore(config, data, workdir)
  provenance = _provenance(config, data, towers, restored.value)
  split = data.split('test')
  rows = np.unique(
    np.concatenate([q.map_rows for q in _questions(split, config)])
  )
  # Parts of another model, config or map are never mixed in.
  digest = hashlib.sha256(json.dumps(provenance).encode())
  digest.update(split.frames.world_from_body[rows].tobytes())
  folder = pathlib.Path(workdir) / 'index_parts' / digest.hexdigest()[:16]
  embed = functools.partial(
    towers.embed('points', towers.views), restored.value
  )
  parts, size = [], config.evaluation.batch_size
  for start in range(0, len(rows), PART_ROWS):
    part = rows[start : start + PART_ROWS]
    batches = functools.partial(
      split.batches, part, ('points',), size, len(towers.views) > 1
    )
    path = folder / f'{start:08d}.npz'
    parts.append(_embed_part(embed, batches, path))
    print(f'indexed {start + len(part)} of {len(rows)} scans', flush=True)
  found = _index(split, rows, np.concatenate(parts), towers, provenance)
  index_lib.save_index(found, pathlib.Path(workdir) / 'index.npz')
  shutil.rmtree(folder.parent)
  print(f'{found.num_places} places in {workdir}/index.npz')


def localize(
  config, data, workdir: str, paths: Sequence[str], camera: Sequence[float]
) -> None:
  """Answers image files; prints JSON lines and writes answers.jsonl.

  Args:
    config: of the model that made the index.
    data: prepares the image files; no reading of the dataset is needed.
    workdir: with checkpoints and index.npz.
    paths: image files.
    camera: fx, fy, cx, cy of the image files in pixels, the centre of the
      top-left pixel at (0.5, 0.5); empty for the map's own camera.
  """
  towers, restored = restore(config, data, workdir)
  params = restored.value['params']
  found = index_lib.load_index(
    pathlib.Path(workdir) / 'index.npz',
    expected_fingerprint=serialization.fingerprint(params),
  )
  lines = []
  for path, batch in data.queries(paths, camera, found.rig.intrinsics):
    answers = retrieve.localize(
      np.asarray(towers.embed('image')(restored.value, batch)),
      found,
      scale=float(contrastive.clamped_scale(params['log_scale'])),
      radius=config.index.radius,
      k=config.index.num_answers,
    )
    record = retrieve.record_from_answers(str(path), answers[0])
    lines.append(json.dumps(record))
    print(lines[-1], flush=True)
  files.save_text(
    pathlib.Path(workdir) / 'answers.jsonl', '\n'.join(lines) + '\n'
  )


def _evaluator(config, data, towers, role):
  """Recall with a known heading, and on test with an unknown one too.

  `sync` and `cross` ask a map that looks ahead, `opposite` one that looks
  back. `..._any_heading` asks a map with all views of the index.
  """
  split, size = data.split(role), config.evaluation.batch_size
  questions, views = _questions(split, config), AHEAD
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
  return retrieval.RetrievalEvaluator(
    role,
    embed={
      'image': towers.embed('image'),
      'points': towers.embed('points', views),
    },
    batches={
      'image': lambda rows: split.batches(rows, ('image',), size),
      'points': lambda rows: split.batches(
        rows, ('points',), size, len(views) > 1
      ),
    },
    frames=split.frames,
    questions=questions,
    sequence_stride=config.evaluation.sequence_stride,
    views=known,
  )


def _questions(split, config):
  """Who asks whom in a split, and what counts as right."""
  return questions_lib.between_drives(
    split.frames,
    split.queries,
    radii=tuple(config.evaluation.radii),
    exclude_self=config.evaluation.exclude_self,
  )


def restore(config, data, workdir):
  """The towers of a config and the best checkpoint of a workdir.

  Or the weights of the authors, where the config names a checkpoint of theirs.
  """
  towers = make_towers(config, data)
  if config.checkpoint:
    variables = published.load_variables(config.checkpoint, towers.model)
    return towers, checkpoint.Restored(variables, 0, None, {}, {}, '')
  shapes = jax.eval_shape(towers.init, jax.random.key(0))
  checkpoints = checkpoint.open_checkpoints(config, workdir)
  try:
    return towers, checkpoints.restore_best(shapes)
  finally:
    checkpoints.close()


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


def _embed_part(embed, batches, path):
  """Descriptors [N, V, D] of one part of a map, from disk if finished."""
  if path.exists():
    with np.load(path) as saved:
      return saved['descriptors']
  parts = []
  for batch in batches():
    parts.append(np.asarray(embed(batch), np.float32)[batch['mask']])
  descriptors = np.concatenate(parts)
  path.parent.mkdir(parents=True, exist_ok=True)
  files.save_arrays(path, {'descriptors': descriptors})
  return descriptors


def _index(split, rows, descriptors, towers, provenance):
  """One row of the index per scan and view."""
  num_views = len(towers.views)
  frames = split.frames.take(np.repeat(rows, num_views))
  sensors = split.rig(rows[0])
  return index_lib.Index(
    descriptors=descriptors.reshape(len(rows) * num_views, -1),
    keys=np.repeat(np.arange(len(rows)), num_views),
    poses=frames.world_from_body,
    towns=frames.town,
    frames=frames.frame,
    views=np.tile(np.asarray(towers.views), len(rows)),
    provenance=provenance,
    rig=index_lib.Rig(
      sensors.lens.intrinsics, sensors.image_size, sensors.camera_from_body
    ),
  )
