# SPDX-License-Identifier: Apache-2.0
"""SIGKILL, or a full disk, at random instants of every verb.

Each verb runs once undisturbed and then, in another workdir, is disturbed at
random instants and started again until it ends; this is repeated until so many
disturbances have met a running process. Whenever it ends all that it left is
compared with the undisturbed run: readings of the data, parameters, metrics,
results, index and answers have to be equal to the bit. Of a full disk a process
either says so in its last line or does not notice. Exits with 1 if anything
differs, a traceback appears or a process hangs.

python benchmarks/interruption.py --json=interruption.json
python benchmarks/interruption.py --verb=train --times=50 --steps=60
python benchmarks/interruption.py --disk --times=20 --steps=60
python benchmarks/interruption.py --config=deep_vg   (batches that are mined)
"""

from collections.abc import Sequence
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import disturbances
from benchmarks import small_runs

VERB = flags.DEFINE_multi_enum(
  'verb', None, list(small_runs.NEEDS), 'What is disturbed; all by default.'
)
DISK = flags.DEFINE_bool('disk', False, 'The disk becomes full, no SIGKILL.')
TIMES = flags.DEFINE_integer('times', 3, 'Disturbances of each verb.')
SEED = flags.DEFINE_integer('seed', 0, 'Seed of their instants.')
STEPS = flags.DEFINE_integer('steps', 400, 'Training steps.')
CONFIG = flags.DEFINE_enum(
  'config', 'saliency_i2ploc', list(small_runs.OVERRIDES), 'What is trained.'
)
DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Where the tiny town lies; else it is made.'
)
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
ROOT = pathlib.Path(__file__).resolve().parents[1]
# Instants are drawn between these shares of the undisturbed time: before, a
# process imports its modules and has nothing to lose.
WINDOW = (0.25, 1.0)
# A process that takes so many times the undisturbed time hangs.
PATIENCE = 10


def command(verb: str, workdir: pathlib.Path, data: pathlib.Path) -> list[str]:
  """As the flags say."""
  return small_runs.command(verb, CONFIG.value, STEPS.value, workdir, data)


def start(line: Sequence[str]) -> subprocess.Popen:
  """A process whose messages are kept."""
  return subprocess.Popen(
    line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )


def run(line: Sequence[str]) -> float:
  """Runs to the end; returns seconds.

  Raises:
    RuntimeError: it fails.
  """
  began = time.time()
  process = start(line)
  _, told = process.communicate()
  if process.returncode:
    raise RuntimeError(f'{" ".join(line)}\n{told}')
  return time.time() - began


def disturb(
  verb: str,
  calm: pathlib.Path,
  before: pathlib.Path,
  data: pathlib.Path,
  seconds: float,
  rng: random.Random,
) -> dict[str, int]:
  """Disturbs a verb until enough disturbances met it.

  Args:
    verb: of small_runs.NEEDS.
    calm: the workdir that the undisturbed verb has left.
    before: the workdir with what the verb needs.
    data: where the town lies.
    seconds: that the verb takes undisturbed.
    rng: of the instants.

  Returns:
    How many there were: disturbances, those that a full disk ended, runs to the
    end, drafts left behind, and faults.
  """
  expected = small_runs.contents(calm)
  size = small_runs.num_bytes(calm) if DISK.value else 0
  count = dict.fromkeys(('met', 'refused', 'ends', 'drafts', 'faults'), 0)
  while count['met'] < TIMES.value:
    with disturbances.small_disk(size) as disk:
      workdir = disk / 'run'
      small_runs.prepare(verb, before, workdir)
      fault = _to_the_end(verb, workdir, data, seconds, rng, count)
      if not fault:
        found = small_runs.contents(workdir)
        others = sorted({name for name, _ in found.items() ^ expected.items()})
        fault = others and f'other than undisturbed: {others}'
      count['ends'] += 1
      count['drafts'] += len(small_runs.drafts(workdir))
      if fault:
        count['faults'] += 1
        print(f'{verb}: {fault}', flush=True)
  return count


def _to_the_end(verb, workdir, data, seconds, rng, count):
  """Starts a verb until it ends; returns what is wrong, if anything is."""
  disk = workdir.parent
  while True:
    process = start(command(verb, workdir, data))
    met = count['met'] < TIMES.value and disturbances.at(
      rng.uniform(*WINDOW) * seconds, process, disk, full=DISK.value
    )
    try:
      told = process.communicate(timeout=PATIENCE * seconds)[1]
    except subprocess.TimeoutExpired:
      process.kill()
      return f'hangs\n{process.communicate()[1]}'
    disturbances.end(disk)
    count['met'] += met
    if process.returncode == 0:
      return None
    if not (met and _is_expected(process.returncode, told)):
      return f'status {process.returncode}\n{told}'
    count['refused'] += DISK.value


def _is_expected(status, told):
  """Whether the end of a process is that of its disturbance."""
  if not DISK.value:
    return status == -disturbances.SIGNAL
  last = told.strip().splitlines()[-1:]
  refused = last and any(words in last[0] for words in disturbances.REFUSALS)
  return status == 1 and refused and 'Traceback' not in told


def _is_needed(verb, verbs):
  """Whether verbs need what this one makes."""
  if verb == 'generate':
    return DATA_DIR.value is None
  return (verb == 'train' and verbs != ['generate']) or (
    verb in ('evaluate', 'index') and 'localize' in verbs
  )


def main(argv: list[str]) -> None:
  """Runs the verbs in turn, each undisturbed and then disturbed."""
  del argv
  rng, numbers = random.Random(SEED.value), {}
  verbs = VERB.value or list(small_runs.NEEDS)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    done = folder / 'done'
    data = pathlib.Path(DATA_DIR.value or folder / 'generate/data').absolute()
    for verb in small_runs.NEEDS:
      if verb not in verbs and not _is_needed(verb, verbs):
        continue
      calm = folder / verb
      small_runs.prepare(verb, done, calm)
      seconds = run(command(verb, calm, data))
      if verb in verbs:
        count = disturb(verb, calm, done, data, seconds, rng)
        numbers |= {f'{verb}/{name}': value for name, value in count.items()}
        print(f'{verb:10} {seconds:.1f} s, {count}', flush=True)
      if verb != 'generate':
        shutil.copytree(calm, done, dirs_exist_ok=True)
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))
  faults = sum(v for name, v in numbers.items() if name.endswith('/faults'))
  print(f'{faults} faults' if faults else 'all equal to the bit')
  sys.exit(1 if faults else 0)


if __name__ == '__main__':
  app.run(main)
