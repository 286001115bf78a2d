# SPDX-License-Identifier: Apache-2.0
"""A complete run of a linear two-tower model, also as a process to kill.

python -m tests.training.linear_run WORKDIR NUM_STEPS SECONDS_PER_BATCH
"""

import functools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.training import checkpoint
from i2ploc.training import loop
from i2ploc.training import metric_writer
from i2ploc.training import optimizer as optimizer_lib
from i2ploc.training import state as state_lib
from i2ploc.training import step as step_lib

BATCH, FEATURES, WIDTH = 8, 6, 4


class Batches:
  """Pairs that share a latent vector; the position is a number."""

  def __init__(self, seconds: float = 0.0, nan_at: int = -1):
    self.position = 0
    self._seconds = seconds
    self._nan_at = nan_at

  def __next__(self):
    time.sleep(self._seconds)
    rng = np.random.default_rng(self.position)
    latent = rng.normal(size=(BATCH, FEATURES)).astype(np.float32)
    noise = rng.normal(size=(BATCH, FEATURES)).astype(np.float32)
    if self.position == self._nan_at:
      latent[3] = np.nan
    index = BATCH * self.position + np.arange(BATCH, dtype=np.int32)
    self.position += 1
    return {
      'image': latent,
      'points': latent[:, ::-1] + 0.1 * noise,
      'image_index': index,
    }

  def get_state(self):
    return {'position': self.position}

  def set_state(self, state):
    self.position = state['position']


class Evaluator:
  """Recall on one batch that is never trained on, and its loss."""

  def run(self, variables):
    batch = Batches()
    batch.set_state({'position': 1_000_000})
    params = variables['params']
    embeddings, _ = embed(params, {}, next(batch), None)
    value, metrics = loss(params, embeddings, {})
    yield 'validation/recall', float(metrics['recall'])
    yield 'validation/negative_loss', -float(value)


def init_params(key):
  image, points = jax.random.split(key)
  shape = (FEATURES, WIDTH)
  return {
    'image': {'kernel': 0.5 * jax.random.normal(image, shape)},
    'points': {'kernel': 0.5 * jax.random.normal(points, shape)},
    'log_scale': jnp.zeros(()),
  }


def embed(params, model_state, batch, key):
  """Linear towers; with a key, noise on the images as augmentation."""
  image = batch['image']
  if key is not None:
    image = image + 0.01 * jax.random.normal(key, image.shape)
  embeddings = {
    'image': image @ params['image']['kernel'],
    'points': batch['points'] @ params['points']['kernel'],
  }
  return embeddings, model_state


def embed_without_noise(params, model_state, batch, key):
  del key
  return embed(params, model_state, batch, None)


def loss(params, embeddings, batch):
  del batch
  image, points = (
    x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-6)
    for x in (embeddings['image'], embeddings['points'])
  )
  logits = jnp.exp(params['log_scale']) * 5 * image @ points.T
  target = jnp.arange(len(logits))
  value = -jnp.diag(jax.nn.log_softmax(logits)).mean()
  return value, {'recall': (logits.argmax(1) == target).mean()}


def make_optimizer(num_steps=16):
  return optimizer_lib.make_optimizer(0.03, 2, num_steps, 0.1, 1.0)


def init_state(optimizer):
  params = init_params(jax.random.key(1))
  return state_lib.init_state(params, {}, optimizer.init, jax.random.key(2))


def make_train_step(optimizer):
  """A new step that compiles anew."""
  return step_lib.make_train_step(embed, loss, optimizer, ema_decay=0.9)


@functools.cache
def shared_train_step():
  """The step of `make_optimizer()`, compiled once for all tests."""
  return make_train_step(make_optimizer())


def train(workdir, num_steps, batches=None, train_step=None, **changes):
  """Runs the loop on the linear model; `changes` go to `loop.train`."""
  workdir = pathlib.Path(workdir)
  optimizer = make_optimizer()
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
  writer = metric_writer.MetricWriter(
    workdir, headline=('loss', 'recall'), plain_every=0.0
  )
  arguments = dict(
    num_steps=num_steps,
    evaluators=[Evaluator()],
    eval_every=3,
    best_metric='validation/negative_loss',
    checkpoints=checkpoints,
    save_every=2,
    writer=writer,
    log_every=1,
    id_keys=('image_index',),
  )
  try:
    return loop.train(
      init_state(optimizer),
      batches or Batches(),
      train_step or shared_train_step(),
      **(arguments | changes),
    )
  finally:
    checkpoints.close()
    writer.close()


if __name__ == '__main__':
  train(sys.argv[1], int(sys.argv[2]), Batches(float(sys.argv[3])))
