# SPDX-License-Identifier: Apache-2.0
"""Which text describes this crop? A CLIP on objects and their captions.

A workdir is all that others need of it, see `load_encoder`.
"""

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from i2ploc import factory
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.evaluation import captions
from i2ploc.evaluation import questions
from i2ploc.learning import embeddings
from i2ploc.learning import objectives
from i2ploc.models import image_text
from i2ploc.models import towers
from i2ploc.models.encoders import vocabulary
from i2ploc.models.weights import clip
from i2ploc.tasks import task as task_lib
from i2ploc.training import checkpoint
from i2ploc.training import provenance


def make_task(
  config: Any, data: Any, allow_changes: bool = False
) -> task_lib.Task:
  """The task; the model is built, and no data is read.

  Args:
    config: with model, loss, optimizer and train.
    data: with crops, see `sources.drives`.
    allow_changes: see `training.provenance`.

  Raises:
    InputError: a model, loss or optimizer that cannot be.
  """
  return task_lib.Task(
    training=_training(config, data),
    evaluate=functools.partial(_evaluate, config, data, allow_changes),
  )


def load_encoder(
  path: str, dtype: str = 'float32'
) -> image_text.ImageTextEncoder:
  """Any CLIP with its tokenizer.

  Args:
    path: a workdir that was trained here, or a published checkpoint: a folder
      or a name, see `models.weights.sources`.
    dtype: of a published checkpoint's computation.

  Raises:
    MissingFileError: neither.
    InputError: damaged.
  """
  if (pathlib.Path(path) / 'checkpoints').is_dir():
    return _restore(path)[0]
  return clip.load_encoder(path, dtype)


def _make(fields):
  """Model and tokenizer of a config's model."""
  model = factory.make_model(**fields)
  length = model.towers['text'].encoder.max_length
  return model, vocabulary.make_tokenize(fields['words'], length)


def _init(model, key):
  """Fresh variables."""
  init = functools.partial(model.init, method='every_side')
  return jax.jit(init)(key, model.example())


def _encoder(model, variables, tokenize, margin, name):
  return image_text.ImageTextEncoder(
    model, variables, tokenize, name=name, margin=margin
  )


def _training(config, data) -> task_lib.Training:
  model, tokenize = _make(config.model.to_dict())

  def evaluators():
    # It embeds with the variables that it is given, not with its own.
    encoder = _encoder(model, {}, tokenize, config.margin, '')
    roles = ('validation',) if data.has('validation') else ()
    return [_evaluator(config, data, encoder, role) for role in roles]

  return task_lib.Training(
    init=functools.partial(_init, model),
    batches=lambda: data.crops('train').train_batches(
      config.train.batch_size, config.seed, tokenize
    ),
    embed=embeddings.make_crop_embed(
      model,
      margin=config.margin,
      color_jitter=config.train.color_jitter,
      mirror=config.train.mirror,
      box_jitter=config.train.box_jitter,
    ),
    loss=objectives.make_text_loss(**config.loss.to_dict()),
    optimizer=factory.make_optimizer(
      config.train.num_steps, **config.optimizer.to_dict()
    ),
    evaluators=evaluators,
    id_keys=('image_index',),
  )


def _evaluate(config, data, allow_changes, workdir) -> task_lib.Evaluation:
  """Measures the best checkpoint on the test split."""
  encoder, restored = _restore(workdir, config, allow_changes)
  evaluator = _evaluator(config, data, encoder, 'test')
  results = dict(evaluator.run(restored.value))
  results['step'] = float(restored.step)
  lines = [f'weights: {encoder.name}', *captions.table(results, 'test')]
  return task_lib.Evaluation(results, lines)


def _restore(workdir, config=None, allow_changes=False):
  """The encoder of a workdir, and its best checkpoint.

  The checkpoint says what model it belongs to; a config that says otherwise is
  refused.
  """
  folder = pathlib.Path(workdir) / 'checkpoints'
  checkpoints = checkpoint.Checkpoints(folder)
  try:
    made_by = (checkpoints.provenance() or {}).get('config')
    if made_by is None:
      raise MissingFileError(
        f'No checkpoint in {folder}: train into this workdir first, or name the'
        ' workdir of a finished run.'
      )
    if made_by.get('task') != 'captions':
      raise InputError(
        f'{folder} holds a run of the task {made_by.get("task")!r}, not of a'
        ' CLIP: name a workdir of configs/clip.py.'
      )
    if config is not None:
      provenance.check_model(checkpoints, config, allow_changes=allow_changes)
    asked = made_by if config is None else config.to_dict()
    model, tokenize = _make(asked['model'])
    restored = checkpoints.restore_best(dict(towers.shapes(model)))
  finally:
    checkpoints.close()
  name = f'{workdir}, step {restored.step}, {restored.fingerprint[:12]}'
  encoder = _encoder(model, restored.value, tokenize, asked['margin'], name)
  return encoder, restored


def _evaluator(config, data, encoder, role):
  crops = data.crops(role)
  fields = config.evaluation

  @functools.cache
  def scenes():
    """Evenly spaced frames of every question."""
    split, found = data.split(role), {}
    for question in questions.between_drives(split.frames, split.queries):
      rows = found.setdefault(question.name, [])
      rows.extend(question.query_rows.tolist())
    chosen = {}
    for name, rows in found.items():
      count = min(fields.num_frames, len(rows))
      rows = np.asarray(rows)[np.linspace(0, len(rows) - 1, count).astype(int)]
      chosen[name] = list(crops.scenes(rows, fields.radius))
    return chosen

  return captions.CaptionEvaluator(role, encoder=encoder, scenes=scenes)
