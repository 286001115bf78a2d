# SPDX-License-Identifier: Apache-2.0
"""The verbs of a CLIP on crops and captions: train, evaluate.

  train     checkpoints/  config.json  metrics.jsonl  events/  and evaluate's
  evaluate  results.json

A workdir is all that others need of it, see `load_encoder`.
"""

import functools
import json
import pathlib

import jax
import numpy as np

from i2ploc import factory
from i2ploc import files
from i2ploc import fitting
from i2ploc.errors import MissingFileError
from i2ploc.evaluation import captions
from i2ploc.evaluation import questions
from i2ploc.models import image_text
from i2ploc.models import towers
from i2ploc.models.encoders import vocabulary
from i2ploc.models.weights import clip
from i2ploc.training import checkpoint


def train(config, data, workdir: str) -> None:
  """Trains, chooses the checkpoint on validation, evaluates on test."""
  model, tokenize = _make(config.model.to_dict())
  batches = data.crops('train').train_batches(
    config.train.batch_size, config.seed, tokenize
  )
  variables = _init(model, jax.random.key(config.seed))
  encoder = _encoder(model, variables, tokenize, config.margin, '')
  roles = ('validation',) if data.has('validation') else ()
  fitting.fit(
    config,
    workdir,
    variables=variables,
    batches=batches,
    embed=factory.make_crop_embed(
      model,
      margin=config.margin,
      color_jitter=config.train.color_jitter,
      mirror=config.train.mirror,
      box_jitter=config.train.box_jitter,
    ),
    loss=factory.make_text_loss(**config.loss.to_dict()),
    evaluators=[_evaluator(config, data, encoder, role) for role in roles],
    id_keys=('image_index',),
  )
  if data.has('test'):
    evaluate(config, data, workdir)


def evaluate(config, data, workdir: str) -> dict[str, float]:
  """Measures the best checkpoint on the test split; writes results.json."""
  encoder, restored = _restore(workdir)
  evaluator = _evaluator(config, data, encoder, 'test')
  results = dict(evaluator.run(restored.value))
  results['step'] = float(restored.step)
  files.save_json(pathlib.Path(workdir) / 'results.json', results)
  print(f'weights: {encoder.name}')
  print('\n'.join(captions.table(results, 'test')))
  return results


def load_encoder(
  path: str, dtype: str = 'float32'
) -> image_text.ImageTextEncoder:
  """Any CLIP with its tokenizer.

  Args:
    path: a workdir that was trained here, or a published checkpoint: a folder
      or a name, see `weights.sources`.
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


def _restore(workdir):
  """The encoder of a workdir, and its best checkpoint."""
  file = pathlib.Path(workdir) / 'config.json'
  if not file.exists():
    raise MissingFileError(
      f'{file} does not exist: train into this workdir first'
    )
  fields = json.loads(file.read_text())
  model, tokenize = _make(fields['model'])
  shapes = towers.shapes(model)
  checkpoints = checkpoint.Checkpoints(pathlib.Path(workdir) / 'checkpoints')
  try:
    restored = checkpoints.restore_best(dict(shapes))
  finally:
    checkpoints.close()
  name = f'{workdir}, step {restored.step}, {restored.fingerprint[:12]}'
  encoder = _encoder(model, restored.value, tokenize, fields['margin'], name)
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
