# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses at scale: exact, in little memory, and in no more time.

Four claims about `losses.tiled` and `losses.sharded`, each in a process of its
own; exits with 1 if one does not hold.

exact    value and all gradients (scale and bias included) are within 1e-5 of
         the definition in float64: uneven tiles, several positives, ignored
         pairs, duplicated rows, scale 100. As in parity.py a difference is
         absolute, or relative to the largest value of what exceeds 1.
devices  the same on 8 simulated devices, against one.
memory   value and gradient of 32,768 pairs of width 256, their relations
         computed from poses, add less than 400 MiB to the process, inputs
         included; beside it what the dense loss would take as the compiler
         counts it (not run).
time     value and gradient of 4,096 pairs take at most 1.3 times the time of
         the dense loss, both in turns.

python benchmarks/contrastive.py --json=contrastive.json
"""

import functools
import itertools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.parity_rows import comparison
from i2ploc import compilation
from i2ploc.losses import contrastive
from i2ploc.losses import sharded
from i2ploc.losses import tiled
from i2ploc.losses import tiles
from i2ploc.retrieval import relations as relations_lib

NAMES = ('exact', 'devices', 'memory', 'time')
PARTS = flags.DEFINE_multi_enum('part', NAMES, NAMES, 'Which claims.')
PAIRS = flags.DEFINE_integer('pairs', 32_768, 'Pairs of the memory claim.')
TILE = flags.DEFINE_integer('tile', 128, 'Rows of a tile: memory and time.')
ROUNDS = flags.DEFINE_integer('rounds', 9, 'Turns of the time claim.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
HERE = flags.DEFINE_bool('here', False, 'In this process: one part alone.')

TOLERANCE = 1e-5
MEMORY_BAR = 400.0  # MiB
TIME_BAR = 1.3
NUM_DEVICES = 8
WIDTH = 256
SCALE = 1 / 0.07
MIB = 2**20
Numbers = dict[str, float]
# Of the sigmoid loss: no descriptors look alike, few pairs are positive.
BIAS = -10.0


def make_descriptors(size: int, width: int, duplicates: int = 0):
  """Pairs that agree in part, some of them twice; float32 [size, width]."""
  rng = np.random.default_rng(size)
  noise = rng.standard_normal((2, size, width), np.float32)
  noise[1] += 0.5 * noise[0]
  noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
  noise[:, :duplicates] = noise[:, duplicates : 2 * duplicates]
  return noise[0], noise[1]


def make_places(size: int, kind: str) -> tiles.Places | None:
  """Who is near whom.

  Args:
    size: readings.
    kind: 'pairs', only pairs are positive; 'street', a reading every metre,
      positive within 3 m and ignored within 10 m; 'ragged', random, not
      symmetric, with rows that lack positives, negatives, or both.
  """
  if kind == 'pairs':
    return None
  if kind == 'ragged':
    rng = np.random.default_rng(0)
    relations = rng.integers(-1, 2, (size, size), np.int8)
    relations[0], relations[1], relations[2] = -1, 1, 0
    relations[:, 3], relations[:, 4] = -1, 0
    rows = jnp.asarray(relations)
    return tiles.Places(lambda a, b: a[:, b], rows, jnp.arange(size))
  position = np.zeros((size, 3), np.float32)
  position[:, 0] = np.random.default_rng(1).permutation(size)
  own = {'position': jnp.asarray(position), 'row': jnp.arange(size)}
  return tiles.Places(_near, own, own)


def _near(a, b):
  town = (
    jnp.zeros(len(a['row']), jnp.int32),
    jnp.zeros(len(b['row']), jnp.int32),
  )
  relations = relations_lib.from_positions(
    a['position'],
    town[0],
    b['position'],
    town[1],
    positive_radius=3.0,
    ignore_radius=10.0,
  )
  return jnp.where(a['row'][:, None] == b['row'], 1, relations)


def all_relations(size: int, kind: str) -> jax.Array:
  """[size, size] of `make_places`."""
  places = make_places(size, kind)
  if places is None:
    return 2 * jnp.eye(size, dtype=jnp.int8) - 1
  return places.relate(places.a, places.b)


def _by_definition(logits, relations):
  """InfoNCE of the rows, term by term: see `contrastive`."""
  positive = relations > 0
  negatives = jnp.where(relations < 0, logits, -jnp.inf)
  others = jax.nn.logsumexp(negatives, axis=1, keepdims=True)
  # -log(e^s / (e^s + sum of negatives)), of every pair.
  terms = jnp.logaddexp(logits, others) - logits
  count = positive.sum(1)
  rows = jnp.where(positive, terms, 0.0).sum(1) / jnp.maximum(count, 1)
  return rows.sum() / jnp.maximum((count > 0).sum(), 1)


def oracle(relations, image, points, scale, bias=None):
  """The loss [] of float64 inputs as it is defined, sigmoid with a bias."""
  logits = scale * image @ points.T
  if bias is None:
    ahead = _by_definition(logits, relations)
    return (ahead + _by_definition(logits.T, relations.T)) / 2
  relations = relations.astype(logits.dtype)
  terms = jnp.logaddexp(0.0, -relations * (logits + bias))
  return (terms * (relations != 0)).sum() / len(image)


def _loss(library, name, places=None, **fields):
  """A library's loss of `image, points, scale` and, if it has one, bias."""

  def loss(image, points, *factors):
    function = getattr(library, name)
    return function(image, points, *factors, places, **fields)[0]

  return loss


def _factors(name, scale):
  return {'info_nce': (scale,), 'sigmoid': (scale, BIAS)}[name]


def _value_and_gradients(loss, name):
  """Jitted `*args -> {quantity: value}`."""
  arguments = tuple(range(2 + len(_factors(name, SCALE))))
  run = jax.jit(jax.value_and_grad(loss, argnums=arguments))

  def compute(*args):
    value, (image, points, *factors) = run(*args)
    names = ('by_scale', 'by_bias')[: len(factors)]
    found = {'value': value, 'by_descriptors': (image, points)}
    found |= zip(names, factors, strict=True)
    return jax.tree.map(np.asarray, found)

  return compute


def _differences(case, found, expected):
  return {
    f'{case}/{quantity}': comparison.difference(value, expected[quantity])
    for quantity, value in found.items()
  }


def show_exact() -> tuple[Numbers, bool]:
  """Largest differences from the oracle, by loss, kind and quantity."""
  worst = {}
  cases = itertools.product(
    ('info_nce', 'sigmoid'),
    ('pairs', 'street', 'ragged'),
    ((7, 3), (300, 64), (257, 256)),
  )
  for name, kind, (size, tile) in cases:
    loss = _loss(tiled, name, make_places(size, kind), tile=tile)
    ours = _value_and_gradients(loss, name)
    slow = functools.partial(oracle, all_relations(size, kind))
    slow = _value_and_gradients(slow, name)
    for duplicates, scale in itertools.product((0, size // 3), (1.0, 100.0)):
      args = *make_descriptors(size, 32, duplicates), *_factors(name, scale)
      found = ours(*map(jnp.float32, args))
      with jax.enable_x64(True):
        expected = slow(*map(jnp.float64, args))
      for key, value in _differences(f'{name}/{kind}', found, expected).items():
        worst[key] = max(worst.get(key, 0.0), value)
  return worst, _holds('exact', worst, TOLERANCE)


def show_devices() -> tuple[Numbers, bool]:
  """Largest differences between eight devices and one."""
  mesh = jax.make_mesh(
    (NUM_DEVICES,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  size, tile, apart = 65 * NUM_DEVICES, 32, {}
  for name, kind in itertools.product(
    ('info_nce', 'sigmoid'), ('pairs', 'street', 'ragged')
  ):
    args = *make_descriptors(size, 32, size // 3), *_factors(name, 30.0)
    places = make_places(size, kind)
    spread = dict(tile=tile, mesh=mesh, axis_name='data')
    many, one = (
      _value_and_gradients(loss, name)(*map(jnp.float32, args))
      for loss in (
        _loss(sharded, name, places, **spread),
        _loss(tiled, name, places, tile=size),
      )
    )
    apart |= _differences(f'{name}/{kind}', many, one)
  return apart, _holds('devices', apart, TOLERANCE)


def _peak():
  # Kilobytes on Linux.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _compiled(loss, args, *relations):
  """Value and all gradients by `args`, for these shapes."""
  run = jax.value_and_grad(loss, argnums=tuple(range(len(args))))
  return compilation.jit(run).lower(*args, *relations).compile()


def _dense(name):
  """The dense loss; given relations are an argument, not a constant."""
  return lambda *args: getattr(contrastive, name)(*args)[0]


def _temporary(compiled):
  return compiled.memory_analysis().temp_size_in_bytes / MIB


def _make_arguments(size, name):
  args = *make_descriptors(size, WIDTH), *_factors(name, SCALE)
  return jax.device_put(tuple(map(jnp.float32, args)))


def show_memory() -> tuple[Numbers, bool]:
  """MiB that the tiled loss takes, and that the dense one would."""
  size = PAIRS.value
  jax.block_until_ready(jnp.zeros(8) + 1)
  before = _peak()
  places = make_places(size, 'street')
  args = _make_arguments(size, 'info_nce')
  run = _compiled(_loss(tiled, 'info_nce', places, tile=TILE.value), args)
  start = time.perf_counter()
  jax.block_until_ready(run(*args))
  seconds = time.perf_counter() - start
  numbers = {'tiled/resident': _peak() - before}
  holds = _holds('memory', numbers, MEMORY_BAR)
  numbers['tiled/temporary'] = _temporary(run)
  numbers['dense/temporary'] = _temporary(_compiled(_dense('info_nce'), args))
  for name, value in numbers.items():
    print(f'memory   {size} x {WIDTH}  {name:16} {value:8.0f} MiB')
  print(f'memory   tiled value and gradients in {seconds:.0f} s')
  return numbers | {'tiled/seconds': seconds}, holds


def show_time() -> tuple[Numbers, bool]:
  """Seconds of tiled and dense losses, and their ratios."""
  size = 4096
  numbers, ratios = {}, {}
  for name, kind in (
    ('info_nce', 'pairs'),
    ('info_nce', 'street'),
    ('sigmoid', 'street'),
  ):
    places, relations = make_places(size, kind), all_relations(size, kind)
    args = _make_arguments(size, name)
    ours = _compiled(_loss(tiled, name, places, tile=TILE.value), args)
    dense = _compiled(_dense(name), args, relations)
    runs = {
      'dense': functools.partial(dense, *args, relations),
      'tiled': functools.partial(ours, *args),
    }
    seconds = {which: [] for which in runs}
    for _ in range(ROUNDS.value):
      for which, run in runs.items():
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds[which].append(time.perf_counter() - start)
    medians = {k: statistics.median(seconds[k]) for k in runs}
    case = f'{name}/{kind}'
    ratios[case] = medians['tiled'] / medians['dense']
    numbers |= {f'{case}/{which}': x for which, x in medians.items()}
    print(
      f'time     {case:16} dense {medians["dense"]:.3f} s, tiled '
      f'{medians["tiled"]:.3f} s, ratio {ratios[case]:.2f}'
    )
  numbers |= {f'{case}/ratio': ratio for case, ratio in ratios.items()}
  return numbers, _holds('time', ratios, TIME_BAR)


def _holds(part, values, bar):
  """Prints the largest value, and whether it is within the bar."""
  name = max(values, key=values.get)
  holds = values[name] <= bar
  print(
    f'{part:8} worst: {name} {values[name]:.3g} (at most {bar:g})  '
    f'{"ok" if holds else "FAIL"}',
    flush=True,
  )
  return holds


SHOW = {
  'exact': show_exact,
  'devices': show_devices,
  'memory': show_memory,
  'time': show_time,
}


def _measure(part: str, path: pathlib.Path) -> bool:
  """Runs a part in a process of its own, which writes to `path`."""
  settings = {'JAX_PLATFORMS': 'cpu'} if part in ('devices', 'memory') else {}
  if part == 'devices':
    given = os.environ.get('XLA_FLAGS', '')
    count = f'--xla_force_host_platform_device_count={NUM_DEVICES}'
    settings['XLA_FLAGS'] = f'{given} {count}'
  flags_given = [f'--{f.name}={f.value}' for f in (PAIRS, TILE, ROUNDS)]
  command = [sys.executable, __file__, '--here', f'--part={part}', *flags_given]
  command.append(f'--json={path}')
  return not subprocess.run(command, env=os.environ | settings).returncode


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  numbers, holds = {}, True
  if HERE.value:
    (part,) = PARTS.value
    numbers, holds = SHOW[part]()
  else:
    with tempfile.TemporaryDirectory() as folder:
      for part in PARTS.value:
        path = pathlib.Path(folder) / f'{part}.json'
        holds &= _measure(part, path)
        if path.exists():
          numbers[part] = json.loads(path.read_text())
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))
  sys.exit(0 if holds else 1)


if __name__ == '__main__':
  app.run(main)
