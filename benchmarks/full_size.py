# SPDX-License-Identifier: Apache-2.0
"""What a sample costs at full size, beside PyTorch, and a batch of 64 pairs.

One sample: the released configuration (image 512 x 1024, 20,480 points in 3,072
groups of 32), batch 1, float32, BatchNorm by its running statistics, the same
weights and inputs in both. Farthest points are given, since in PyTorch they are
a CUDA operator; what they cost here is a row of its own. Every measurement has
its own process, whose peak resident memory is reported; processes take turns,
and medians are compared. PyTorch is left out where it is not installed
(pip install '.[peers]').

One batch: a training step of our own configuration over 64 pairs, encoded
through the gradient cache; minutes per pair, hence only with --part=batch.

python benchmarks/full_size.py --json=full_size.json
python benchmarks/full_size.py --part=batch
python benchmarks/full_size.py --quick --part=sample --part=batch
"""

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
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import steps
from configs import common
from configs import saliency_i2ploc_kitti360
from i2ploc import compilation
from i2ploc.geometry import point_cloud
from i2ploc.models.weights import saliency_i2ploc
from i2ploc.training import state as state_lib

PARTS = flags.DEFINE_multi_enum(
  'part', ['sample'], ['sample', 'batch'], 'What to measure.'
)
ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns that each process takes.')
PAIRS = flags.DEFINE_integer('pairs', 64, 'Pairs of the batch.')
CHUNK = flags.DEFINE_integer('chunk', 1, 'Pairs that are encoded at once.')
REMAT = flags.DEFINE_bool('remat', False, 'Recompute blocks, for memory.')
QUICK = flags.DEFINE_bool('quick', False, 'Everything small, for a test.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')

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


def serve_ours(kind, config, batch, samples, weights):
  """Compiled runs of ours, and the memory of their temporaries."""
  towers = steps.make_towers(config)
  if weights:
    size = towers.model.towers['image'].view.size
    variables = saliency_i2ploc.load_variables(
      weights, towers.model, from_size=size
    )
  else:
    variables = towers.init(jax.random.key(0))
  image = dict(variables['params']['image'])
  frozen = {f'blocks_{i}' for i in range(NUM_FROZEN)} & set(image)
  frozen = {name: image.pop(name) for name in frozen}
  trained = {**variables['params'], 'image': image}

  def embed(side, params, frozen, batch, samples):
    params = {**params, 'image': {**params['image'], **frozen}}
    given = mock.patch.object(
      point_cloud, 'farthest_point_sampling', lambda *_: samples
    )
    with given:
      both = {**variables, 'params': params}
      return towers.model.apply(both, batch, side=side)[0]

  def total(*args):
    return embed('image', *args).sum() + embed('points', *args).sum()

  functions = {
    'image': functools.partial(embed, 'image'),
    'points': functools.partial(embed, 'points'),
    'frozen': jax.grad(total),
    'everything': jax.grad(total, argnums=(0, 1)),
  }
  args = jax.device_put((trained, frozen, batch, samples))
  runs, temporary = {}, {}
  for name in RUNS[kind]:
    run = compilation.jit(functions[name]).lower(*args).compile()
    temporary[name] = run.memory_analysis().temp_size_in_bytes / GIB
    runs[name] = functools.partial(_run, run, args)
  return runs, temporary


def _run(compiled, args):
  return jax.block_until_ready(compiled(*args))


def serve_torch(kind, config, batch, samples, weights):
  """The same runs of PyTorch."""
  import safetensors.torch
  import torch

  from benchmarks import torch_saliency

  torch.set_num_threads(os.cpu_count())
  model = torch_saliency.from_config(config)
  model.load_state_dict(safetensors.torch.load_file(weights))
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
  """Child process: builds a model, then runs what its parent asks for."""
  runs, temporary = make(*args)
  first = {name: run() for name, run in runs.items()}
  forward = {k: np.asarray(v) for k, v in first.items() if k in RUNS['forward']}
  connection.send((temporary, forward))
  while name := connection.recv():
    start, used = time.perf_counter(), time.process_time()
    runs[name]()
    connection.send((time.perf_counter() - start, time.process_time() - used))
  # Kilobytes on Linux.
  connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


class Process:
  """A child process that measures; `_serve` calls `start` in it."""

  def __init__(self, *start):
    context = multiprocessing.get_context('spawn')
    self._connection, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, *start))
    self._process.start()
    theirs.close()
    self.temporary, self.first = self._connection.recv()

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
  processes = {
    name: Process(serve, kind, *args) for name, serve in serves.items()
  }
  seconds = {(run, name): [] for run in RUNS[kind] for name in processes}
  for _ in range(rounds):
    for run, name in seconds:
      seconds[run, name].append(processes[name].time(run))
  numbers = {}
  for (run, name), both in seconds.items():
    wall, used = (statistics.median(x) for x in zip(*both, strict=True))
    numbers |= {f'{run}/{name}/wall': wall, f'{run}/{name}/cpu': used}
  for name, process in processes.items():
    numbers[f'{kind}/{name}/peak'] = process.finish()
    for run, size in process.temporary.items():
      numbers[f'{run}/{name}/temporary'] = size
  first = [process.first for process in processes.values()]
  for run in first[0] if len(first) == 2 else ():
    difference = np.abs(first[0][run] - first[1][run]).max()
    numbers[f'{run}/difference'] = float(difference)
  return numbers


def time_grouping(config, points: np.ndarray) -> tuple[np.ndarray, float]:
  """Farthest points [G] of a cloud [P, 3], and the seconds they take."""
  fields = config.model.points
  sample = jax.jit(
    lambda p: point_cloud.farthest_point_sampling(
      p, jnp.ones(len(p), bool), fields.num_groups, fields.skip_squared_norm
    )
  )
  samples = np.asarray(sample(points))
  start = time.perf_counter()
  jax.block_until_ready(sample(points))
  return samples, time.perf_counter() - start


def measure_sample() -> dict[str, float]:
  """Part one; prints its table."""
  config = make_config(True, REMAT.value, QUICK.value)
  batch = steps.make_batch(config, 1)
  samples, seconds = time_grouping(config, batch['points'][0, :, :3])
  numbers = {'farthest_points/ours/wall': seconds}
  serves = {'ours': serve_ours}
  with tempfile.TemporaryDirectory() as folder:
    weights = ''
    if importlib.util.find_spec('torch'):
      from benchmarks import torch_saliency

      weights = f'{folder}/weights.safetensors'
      torch_saliency.save_random_weights(config, weights)
      serves['torch'] = serve_torch
    args = ROUNDS.value, config, batch, samples, weights
    for kind in RUNS:
      numbers |= measure_kind(kind, serves, *args)
  show_sample(numbers)
  return numbers


def show_sample(numbers: dict[str, float]) -> None:
  """Prints ours beside PyTorch, and the ratio of the two."""
  print(f'{"one sample, median":44}{"ours":>9}{"PyTorch":>9}{"ratio":>7}')

  def row(title, key, unit):
    ours = numbers[key.format('ours')]
    line = f'{title + ", " + unit:44}{ours:9.2f}'
    if key.format('torch') in numbers:
      theirs = numbers[key.format('torch')]
      line += f'{theirs:9.2f}{ours / theirs:7.2f}'
    print(line)

  for kind, runs in RUNS.items():
    for run in runs:
      row(TITLES[run], f'{run}/{{}}/wall', 's')
      row('  of all cores together', f'{run}/{{}}/cpu', 's')
    row(f'peak memory, {kind}', f'{kind}/{{}}/peak', 'GiB')
  row('farthest points', 'farthest_points/{}/wall', 's')
  for name, value in numbers.items():
    if name.endswith(('temporary', 'difference')):
      print(f'{name:44}{value:9.2g}')


def measure_batch() -> dict[str, float]:
  """Part two, in this process; prints its row."""
  config, size = make_config(False, REMAT.value, QUICK.value), PAIRS.value
  towers = steps.make_towers(config)
  variables = dict(towers.init(jax.random.key(0)))
  step, optimizer = steps.make_step(config, towers, size // CHUNK.value)
  state = state_lib.init_state(
    variables.pop('params'), variables, optimizer.init, jax.random.key(1)
  )
  batch = steps.make_batch(config, size)
  compiled = step.lower(state, batch).compile()
  start = time.perf_counter()
  metrics = jax.block_until_ready(compiled(state, batch)[1])
  seconds = time.perf_counter() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(
    f'a step over {size} pairs, {CHUNK.value} at once: {seconds:.1f} s, '
    f'{seconds / size:.2f} s per pair, peak memory {peak:.1f} GiB, '
    f'loss {metrics["loss"]:.4f}'
  )
  temporary = compiled.memory_analysis().temp_size_in_bytes / GIB
  return {
    'batch/wall': seconds,
    'batch/peak': peak,
    'batch/temporary': temporary,
    'batch/loss': float(metrics['loss']),
  }


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  numbers = {}
  if 'sample' in PARTS.value:
    numbers |= measure_sample()
  if 'batch' in PARTS.value:
    numbers |= measure_batch()
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
  app.run(main)
