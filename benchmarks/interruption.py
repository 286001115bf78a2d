# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments of generating, training and indexing.

Runs the three once undisturbed and once killed at random moments, then
compares: every reading of the data, the parameters, the metrics and the index
have to be equal to the bit. Exits with 1 if anything differs.

python benchmarks/interruption.py --json=interruption.json
python benchmarks/interruption.py --config=deep_vg   (batches that are mined)
"""

import hashlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
import numpy as np

KILLS = flags.DEFINE_integer('kills', 3, 'Kills of each verb.')
SEED = flags.DEFINE_integer('seed', 0, 'Seed of the moments of the kills.')
STEPS = flags.DEFINE_integer('steps', 400, 'Training steps.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
ROOT = pathlib.Path(__file__).resolve().parents[1]
# What makes a config small; a round of planned batches ends between two saves.
OVERRIDES = {
  'saliency_i2ploc': {'train.batch_size': 4, 'data.num_points': 512},
  'deep_vg': {
    'train.batch_size': 8,
    'sampling.num_negatives': 2,
    'sampling.steps': 7,
  },
  'cos_place': {'train.batch_size': 4, 'sampling.steps': 7},
}
CONFIG = flags.DEFINE_enum(
  'config', 'saliency_i2ploc', list(OVERRIDES), 'What is trained.'
)

# Opens the tiny town, making it if needed, and prints a digest of every
# reading of every split.
GENERATE = """
import hashlib, sys
from input_pipeline.synthetic_city import builder, splits
digest = hashlib.sha256()
for split in splits.SPLITS:
  dataset = builder.load(sys.argv[1], size='tiny', split=split)
  for row in range(len(dataset.frames.frame)):
    reading = dataset.read(row, ('image', 'points', 'labels'))
    for name in sorted(reading):
      digest.update(name.encode() + reading[name].tobytes())
print(digest.hexdigest())
"""


def generate_command(root: pathlib.Path) -> list[str]:
  """Makes the tiny town."""
  return [sys.executable, '-c', GENERATE, str(root / 'data')]


def verb_command(root: pathlib.Path, mode: str) -> list[str]:
  """One verb of main.py on the tiny town."""
  every = max(STEPS.value // 12, 1)
  overrides = {
    'data.image_size': '(48, 160)',
    'train.num_steps': STEPS.value,
    'train.eval_every': every * 3,
    'train.save_every': every,
    'optimizer.warmup_steps': 2,
    'evaluation.batch_size': 8,
  } | OVERRIDES[CONFIG.value]
  return [
    sys.executable,
    'main.py',
    f'--mode={mode}',
    f'--config=configs/{CONFIG.value}.py:size=tiny',
    f'--workdir={root / "run"}',
    f'--data_dir={root / "data"}',
    *(f'--config.{k}={v}' for k, v in overrides.items()),
  ]


def run(command: list[str]) -> float:
  """Runs to the end; returns seconds."""
  start = time.time()
  subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
  return time.time() - start


def run_killed(
  command: list[str],
  seconds: float,
  kills: int,
  window: tuple[float, float],
  rng: random.Random,
) -> int:
  """Kills at random moments, continuing each time, then finishes.

  Args:
    command: what to run.
    seconds: how long it takes undisturbed.
    kills: how many.
    window: between which fractions of `seconds` each kill comes.
    rng: of the moments.

  Returns:
    How many of the kills met a running process.
  """
  met = 0
  for _ in range(kills):
    process = subprocess.Popen(
      command,
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      process.wait(rng.uniform(*window) * seconds)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      met += 1
    process.wait()
  run(command)
  return met


def digest_data(root: pathlib.Path) -> str:
  """The digest of every reading of every split."""
  command = generate_command(root)
  done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
  return done.stdout.decode().split()[-1]


def digest_training(root: pathlib.Path) -> str:
  """The digest of the metrics (but for the speed) and of the results.

  The results are a function of the best parameters; the index adds their
  fingerprint.
  """
  digest = hashlib.sha256((root / 'run/results.json').read_bytes())
  for line in (root / 'run/metrics.jsonl').read_text().splitlines():
    entry = json.loads(line)
    entry.pop('steps_per_second', None)
    digest.update(json.dumps(entry, sort_keys=True).encode())
  return digest.hexdigest()


def digest_index(root: pathlib.Path) -> str:
  """The digest of the arrays of the index and its provenance."""
  digest = hashlib.sha256()
  with np.load(root / 'run/index.npz') as saved:
    for name in sorted(saved):
      digest.update(name.encode() + np.asarray(saved[name]).tobytes())
  return digest.hexdigest()


def main(argv: list[str]) -> None:
  """Runs both and compares."""
  del argv
  rng = random.Random(SEED.value)
  stages = {
    # Each run continues the last: three kills have to fit into its length.
    'generate': (generate_command, digest_data, (0.2, 0.5)),
    'train': (
      lambda root: verb_command(root, 'train'),
      digest_training,
      (0.15, 0.45),
    ),
    'index': (
      lambda root: verb_command(root, 'index'),
      digest_index,
      (0.4, 0.7),
    ),
  }
  numbers, equal = {}, True
  with tempfile.TemporaryDirectory() as folder:
    calm, rough = (pathlib.Path(folder) / name for name in ('calm', 'rough'))
    for name, (command, digest, window) in stages.items():
      seconds = run(command(calm))
      met = run_killed(command(rough), seconds, KILLS.value, window, rng)
      same = digest(calm) == digest(rough)
      equal &= same
      numbers |= {f'{name}/kills': met, f'{name}/equal': float(same)}
      outcome = 'equal to the bit' if same else 'DIFFERENT'
      print(f'{name:10} killed {met} times: {outcome}', flush=True)
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))
  sys.exit(0 if equal else 1)


if __name__ == '__main__':
  app.run(main)
