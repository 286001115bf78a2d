# SPDX-License-Identifier: Apache-2.0
"""Small runs on the tiny town: how each verb is called and what it leaves."""

from collections.abc import Mapping
import hashlib
import json
import pathlib
import shutil
import sys
from typing import Any

import numpy as np

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
# Each verb, and what it needs in a workdir.
_TRAINED = ('checkpoints', 'config.json')
NEEDS = {
  'generate': (),
  'train': (),
  'evaluate': _TRAINED,
  'index': _TRAINED,
  'localize': (*_TRAINED, 'index.npz', 'queries'),
}
# Events hold the time of day; orbax names its files by chance, and what they
# hold is told by the digests beside them.
_BY_CHANCE = ('events', 'checkpoints')
# What may be deleted at any time: parts of work that was interrupted.
_DRAFT = '.tmp.'

# Opens the tiny town, making it if needed, and prints a digest of every
# reading of every split.
_GENERATE = """
import hashlib, sys
from i2ploc import files
from i2ploc.errors import InputError
from input_pipeline.synthetic_city import builder, splits

def run(data, path):
  digest = hashlib.sha256()
  for split in splits.SPLITS:
    dataset = builder.load(data, size='tiny', split=split)
    for row in range(len(dataset.frames.frame)):
      reading = dataset.read(row, ('image', 'points', 'labels'))
      for name in sorted(reading):
        digest.update(name.encode() + reading[name].tobytes())
  files.save_text(path, digest.hexdigest())

try:
  run(*sys.argv[1:])
except InputError as error:
  sys.exit(f'generate: {error}')
"""


def command(
  verb: str, config: str, steps: int, workdir: pathlib.Path, data: pathlib.Path
) -> list[str]:
  """The command line of a verb; `generate` makes the town.

  Args:
    verb: of NEEDS.
    config: of OVERRIDES.
    steps: of training.
    workdir: of the run.
    data: where the town lies.
  """
  if verb == 'generate':
    town, digest = str(workdir / 'data'), str(workdir / 'digest.txt')
    return [sys.executable, '-c', _GENERATE, town, digest]
  every = max(steps // 12, 1)
  overrides = {
    'data.image_size': '(48, 160)',
    'train.num_steps': steps,
    'train.eval_every': every * 3,
    'train.save_every': every,
    'optimizer.warmup_steps': 2,
    'evaluation.batch_size': 8,
  } | OVERRIDES[config]
  return [
    sys.executable,
    'main.py',
    f'--mode={verb}',
    f'--config=configs/{config}.py:size=tiny',
    f'--workdir={workdir}',
    f'--data_dir={data}',
    *(f'--config.{k}={v}' for k, v in overrides.items()),
    *([f'--query={workdir}/queries/*.png'] if verb == 'localize' else ()),
  ]


def prepare(verb: str, done: pathlib.Path, workdir: pathlib.Path) -> None:
  """Makes a workdir of what a verb needs of a run that is done."""
  workdir.mkdir(parents=True)
  for name in NEEDS[verb]:
    if (done / name).is_dir():
      shutil.copytree(done / name, workdir / name)
    elif (done / name).exists():
      shutil.copy2(done / name, workdir / name)


def contents(workdir: pathlib.Path) -> dict[str, str]:
  """Digests of all that a workdir holds, but for what chance decides.

  Of checkpoints those of their arrays, the position in the data and the
  metrics; of metrics.jsonl all but the speed; of npz files the arrays.
  """
  found = {}
  for path in sorted(workdir.rglob('*')):
    name = path.relative_to(workdir)
    info = name.parts[0] == 'checkpoints' and name.parts[3:] == (
      *('info', 'metadata'),
    )
    if path.is_dir() or _DRAFT in name.name or name.parts[0] == 'data':
      continue
    if name.parts[0] not in _BY_CHANCE or info:
      found[str(name)] = _digest(path, workdir)
  return found


def num_bytes(workdir: pathlib.Path) -> int:
  """What a workdir takes of a disk."""
  return sum(p.stat().st_size for p in workdir.rglob('*') if p.is_file())


def drafts(workdir: pathlib.Path) -> list[str]:
  """Files that somebody began to write and did not live to rename."""
  return [
    str(path.relative_to(workdir))
    for path in workdir.rglob('*')
    if _DRAFT in path.name or 'orbax-checkpoint-tmp' in path.name
  ]


def _digest(path: pathlib.Path, workdir: pathlib.Path) -> str:
  digest = hashlib.sha256()
  if path.suffix == '.npz':
    with np.load(path) as saved:
      for name in sorted(saved):
        digest.update(name.encode() + np.asarray(saved[name]).tobytes())
  elif path.name == 'metrics.jsonl':
    for line in path.read_text().splitlines():
      digest.update(_without(json.loads(line), 'steps_per_second').encode())
  else:
    # Queries are named by their path.
    digest.update(path.read_bytes().replace(str(workdir).encode(), b''))
  return digest.hexdigest()


def _without(entry: Mapping[str, Any], name: str) -> str:
  return json.dumps({k: v for k, v in entry.items() if k != name})
