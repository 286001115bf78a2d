# SPDX-License-Identifier: Apache-2.0
"""What a training step of the demonstration costs, and what compiling it earns.

Times the step on random readings with the compiler's defaults and with the
options of `i2ploc.compilation`, taking turns in one process.

python benchmarks/train_step.py
python benchmarks/train_step.py --config=saliency_i2ploc:lidar=points
"""

import importlib
import json
import pathlib
import statistics
import sys
import time
from unittest import mock

from absl import app
from absl import flags
import jax
import jax.numpy as jnp

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import steps
from i2ploc import compilation
from i2ploc.training import state as state_lib

CONFIG = flags.DEFINE_string(
  'config', 'saliency_i2ploc', 'Module of configs/, and its argument.'
)
ROUNDS = flags.DEFINE_integer('rounds', 7, 'Turns of each.', lower_bound=1)
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')


class Run:
  """A compiled step and the state that it moves."""

  def __init__(self, config, towers, variables, batch):
    variables = jax.tree.map(jnp.copy, dict(variables))
    step, optimizer = steps.make_step(config, towers, num_chunks=1)
    self._state = state_lib.init_state(
      variables.pop('params'), variables, optimizer.init, jax.random.key(1)
    )
    self._step = step.lower(self._state, batch).compile()
    self._batch = batch

  def time(self) -> tuple[float, float]:
    """Wall and CPU seconds of one step."""
    start, used = time.perf_counter(), time.process_time()
    self._state, metrics = self._step(self._state, self._batch)
    jax.block_until_ready((self._state, metrics))
    return time.perf_counter() - start, time.process_time() - used


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  name, _, arg = CONFIG.value.partition(':')
  config = importlib.import_module(f'configs.{name}').get_config(arg)
  towers = steps.make_towers(config)
  variables = dict(towers.init(jax.random.key(0)))
  batch = jax.device_put(steps.make_batch(config, config.train.batch_size))
  runs = {'ours': Run(config, towers, variables, batch)}
  with mock.patch.object(compilation, 'options', dict):
    runs['defaults'] = Run(config, towers, variables, batch)
  seconds = {name: [] for name in runs}
  for _ in range(ROUNDS.value):
    for name, run in runs.items():
      seconds[name].append(run.time())
  numbers = {}
  for name, both in seconds.items():
    wall, used = (statistics.median(x) for x in zip(*both, strict=True))
    numbers |= {f'{name}/wall': wall, f'{name}/cpu': used}
    print(f'{name:9} {wall:6.3f} s a step, {used:6.3f} s of all cores')
  numbers['ratio'] = numbers['ours/wall'] / numbers['defaults/wall']
  print(
    f'ratio     {numbers["ratio"]:6.2f}   '
    f'{config.train.batch_size / numbers["ours/wall"]:.0f} pairs per second'
  )
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
  app.run(main)
