# SPDX-License-Identifier: Apache-2.0
"""What a sample costs at full size, beside PyTorch, and a batch of 64 pairs.

One sample: the released configuration (image 512 x 1024, 20,480 points in 3,072
groups of 32), batch 1, float32, BatchNorm by its running statistics, the same
weights and inputs in both. Farthest points are given, since in PyTorch they are
a CUDA operator; what they cost here is a row of its own. Every measurement has
its own process, whose peak resident memory is reported; processes take turns,
and medians are compared. PyTorch is left out where it is not installed
(requirements-peers.txt).

One batch: a training step of our own configuration over 64 pairs, encoded
through the gradient cache; minutes per pair, hence only with --part=batch.

python benchmarks/full_size.py --json=full_size.json
python benchmarks/full_size.py --part=batch
python benchmarks/full_size.py --quick --part=sample --part=batch
"""

import contextlib
import functools
import importlib.util
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from unittest import mock

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from configs import common
from configs import saliency_i2ploc_kitti360
from i2ploc import commands
from i2ploc import factory
from i2ploc.geometry import panorama
from i2ploc.geometry import point_cloud
from i2ploc.models import pretrained_saliency
from i2ploc.training import state as state_lib
from i2ploc.training import step as step_lib

PARTS = flags.DEFINE_multi_enum(
  'part', ['sample'], ['sample', 'batch'], 'What to measure.'
)
ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns that each process takes.')
PAIRS = flags.DEFINE_integer('pairs', 64, 'Pairs of the batch.')
CHUNK = flags.DEFINE_integer('chunk', 1, 'Pairs that are encoded at once.')
REMAT = flags.DEFINE_bool('remat', False, 'Recompute blocks, for memory.')
QUICK = flags.DEFINE_bool('quick', False, 'Everything small, for a test.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')

# Camera x right, y down, z forward; LiDAR x forward, y left, z up.
CAMERA_FROM_LIDAR = np.asarray(
  [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32
)
RUNS = {
  'forward': ('image', 'points'),
  'backward': ('frozen', 'everything'),
}
TITLES = {
  'image': 'forward, image branch',
  'points': 'forward, point branch',
  'frozen': 'forward + backward, ViT blocks 0-7 frozen',
  'everything': 'forward + backward, everything trained',
}
NUM_FROZEN = 8
GIB = 2**30


def make_config(released: bool, remat: bool, quick: bool):
  """The full-size config of KITTI-360 panoramas."""
  config = saliency_i2ploc_kitti360.get_config(f'released={released}')
  for tower in (config.model.image, config.model.points):
    tower.remat = remat
  return common.smoke(config) if quick else config


def make_batch(config: ml_collections.ConfigDict, size: int) -> dict:
  """Random readings: noise, and points on ground and walls around."""
  rng = np.random.default_rng(0)
  num_points, image_size = config.model.num_points, config.data.image_size
  points = rng.uniform(-20.0, 20.0, (size, num_points, 4))
  points[..., 2] = -1.7
  half = num_points // 2
  points[:, :half, 1] = np.sign(points[:, :half, 1]) * 12.0
  points[:, :half, 2] = rng.uniform(-1.7, 8.0, (size, half))
  points += rng.normal(0.0, 0.05, points.shape)
  place = 50.0 * np.arange(size)[:, None] * [1.0, 0.0, 0.0]
  row = np.arange(size, dtype=np.int32)
  rig = panorama.sphere_intrinsics(image_size), CAMERA_FROM_LIDAR
  intrinsics, motion = (np.tile(x, (size, 1, 1)) for x in rig)
  return {
    'image': rng.integers(0, 256, (size, *image_size, 3), np.uint8),
    'intrinsics': intrinsics.astype(np.float32),
    'points': points.astype(np.float32),
    'points_mask': np.ones((size, num_points), bool),
    'camera_from_lidar': motion,
    'image_position': place.astype(np.float32),
    'points_position': place.astype(np.float32),
    'image_town': np.zeros(size, np.int32),
    'points_town': np.zeros(size, np.int32),
    'image_index': row,
    'points_index': row,
  }


def _sample(config, batch, samples):
  """How ours embeds one sample: `name, variables -> descriptor`."""
  towers = commands.Towers(config, tuple(config.data.image_size))

  def embed(side, variables):
    given = mock.patch.object(
      point_cloud, 'farthest_point_sampling', lambda *_: samples
    )
    with given:
      return towers.model.apply(variables, batch, method=f'embed_{side}')[0]

  return towers, embed


def serve_ours(kind, config, batch, samples, weights):
  """Compiled runs of ours, what they need in memory, and descriptors."""
  towers, embed = _sample(config, jax.device_put(batch), jnp.asarray(samples))
  if weights:
    variables = pretrained_saliency.load_two_tower_variables(
      weights, towers.model, batch, from_size=towers.model.image_size, prefix=''
    )
  else:
    variables = towers.init(jax.random.key(0))
  variables = jax.device_put(variables)

  def total(params, frozen):
    both = {**params, 'image': {**params['image'], **frozen}}
    both = {**variables, 'params': both}
    return embed('image', both).sum() + embed('points', both).sum()

  names = {f'blocks_{i}' for i in range(NUM_FROZEN)}
  image = variables['params']['image']
  frozen = {k: v for k, v in image.items() if k in names}
  rest = {k: v for k, v in image.items() if k not in names}
  trained = {**variables['params'], 'image': rest}
  functions = {
    'image': (functools.partial(embed, 'image'), variables),
    'points': (functools.partial(embed, 'points'), variables),
    'frozen': (jax.grad(total), trained, frozen),
    'everything': (jax.grad(total, argnums=(0, 1)), trained, frozen),
  }
  runs, memory = {}, {}
  for name in RUNS[kind]:
    function, *args = functions[name]
    compiled = jax.jit(function).lower(*args).compile()
    memory[name] = compiled.memory_analysis().temp_size_in_bytes / GIB
    runs[name] = lambda run=compiled, args=args: jax.block_until_ready(
      run(*args)
    )
  return runs, memory


def serve_torch(kind, config, batch, samples, weights):
  """The same runs of PyTorch."""
  import torch

  from benchmarks import torch_saliency

  torch.set_num_threads(os.cpu_count())
  model = torch_saliency.from_config(config, weights)
  images = torch.as_tensor(batch['image']).permute(0, 3, 1, 2)
  points = torch.as_tensor(batch['points'][..., :3])
  centers = torch.as_tensor(samples)[None].long()

  def image():
    return model.embed_image(torch_saliency.standardized(images))

  def backward(num_frozen):
    model.zero_grad(set_to_none=True)
    for i, block in enumerate(model.image_encoder.blocks):
      block.requires_grad_(i >= num_frozen)
    (image().sum() + model.embed_points(points, centers).sum()).backward()

  runs = {
    'image': torch.no_grad()(lambda: image().numpy()),
    'points': torch.no_grad()(
      lambda: model.embed_points(points, centers).numpy()
    ),
    'frozen': lambda: backward(NUM_FROZEN),
    'everything': lambda: backward(0),
  }
  return {name: runs[name] for name in RUNS[kind]}, {}


def _serve(connection, make, *args):
  """Child: builds, and then runs what it is told to."""
  runs, memory = make(*args)
  first = {name: run() for name, run in runs.items()}
  forward = {k: np.asarray(v) for k, v in first.items() if k in RUNS['forward']}
  connection.send((memory, forward))
  while name := connection.recv():
    start, used = time.perf_counter(), time.process_time()
    runs[name]()
    connection.send((time.perf_counter() - start, time.process_time() - used))
  # Kilobytes on Linux.
  connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


class Process:
  """A process that measures; `start` is a function that `_serve` calls."""

  def __init__(self, *start):
    context = multiprocessing.get_context('spawn')
    self._connection, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, *start))
    self._process.start()
    theirs.close()
    self.memory, self.first = self._connection.recv()

  def time(self, name: str) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    self._connection.send(name)
    return self._connection.recv()

  def finish(self) -> float:
    """Ends the process; its peak resident memory, GiB."""
    self._connection.send(None)
    peak = self._connection.recv()
    self._process.join()
    return peak


def measure_kind(kind: str, serves: dict, rounds: int, *args) -> dict:
  """Seconds and memory of the runs of a kind, libraries taking turns."""
  processes = {name: Process(make, kind, *args) for name, make in serves.items()}
  found = {}
  for name, run in ((n, r) for r in RUNS[kind] for n in processes):
    found[f'{run}/{name}'] = []
  for _ in range(rounds):
    for run in RUNS[kind]:
      for name, process in processes.items():
        found[f'{run}/{name}'].append(process.time(run))
  first = {name: process.first for name, process in processes.items()}
  peak = {name: process.finish() for name, process in processes.items()}
  return dict(seconds=found, peak=peak, first=first)
