# SPDX-License-Identifier: Apache-2.0
"""Thousands of photos in one command: seconds, memory, SIGKILL.

Makes N small JPEGs (half of them a database, half queries; every second query
shows a place of the database again) and runs the program on them as a user
does, calmly and killed at random moments. Numbers and index have to be equal to
the bit. Exits with 1 if they are not, or if a bar is missed.

python -m benchmarks.photo_scale --photos=10000 --json=photo_scale.json

Numbers by name:
  <stage>/seconds           between the lines that the program prints
  images_per_second         while describing
  peak_memory/gigabytes     resident, of the process
  kills, equal_to_the_bit   of the second run
"""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from absl import app
from absl import flags
import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
PHOTOS = flags.DEFINE_integer('photos', 10_000, 'N, how many photos.')
KILLS = flags.DEFINE_integer('kills', 3, 'Kills; 0 for no second run.')
SEED = flags.DEFINE_integer('seed', 0, 'Of photos and moments of kills.')
METHOD = flags.DEFINE_string('method', '', 'Arguments of configs/photos.py.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
FOLDER = flags.DEFINE_string('folder', None, 'Keeps everything; else deleted.')

SIZE = (240, 320)
CELLS = (6, 8)  # colours of a photo
SPACING = 100.0  # metres between places
RADIUS = 25.0
MAX_GIGABYTES = 4.0


class Run(NamedTuple):
  """How a command went.

  Attributes:
    seconds: from the start to the end.
    peak: bytes, resident.
    lines: what it printed, and after how many seconds.
  """

  seconds: float
  peak: int
  lines: list[tuple[float, str]]


def make_photos(folder: pathlib.Path, count: int, seed: int) -> None:
  """Writes `count` JPEGs into database/ and queries/.

  Places lie on a grid. Query i shows place i again for even i, from 10 m away,
  cut, brighter and with noise, and a place of its own for odd ones. A tenth of
  the database shows a place again as well, so that there is something to learn
  confidences from.

  Args:
    folder: gets both folders.
    count: of both together.
    seed: of the pictures.
  """
  size = count - count // 2
  num_places = size - size // 10
  across = int(np.ceil(np.sqrt(count)))
  for name in ('database/later', 'queries'):
    (folder / name).mkdir(parents=True, exist_ok=True)

  def name(place, shift=0.0):
    east = 500_000 + SPACING * (place % across) + shift
    north = 6_000_000 + SPACING * (place // across)
    return f'@{east}@{north}@.jpg'

  for i in range(num_places):
    scene(seed, i).save(folder / 'database' / name(i))
  for i in range(size // 10):
    picture = scene(seed, i, again=True)
    picture.save(folder / 'database/later' / name(i, -10.0))
  for i in range(count // 2):
    place = num_places + i if i % 2 else i % num_places
    picture = scene(seed, place, again=True)
    picture.save(folder / 'queries' / name(place, 10.0))


def scene(seed: int, place: int, again: bool = False) -> Image.Image:
  """The picture of a place: colours; at another moment if `again`."""
  rng = np.random.default_rng([seed, place])
  patches = Image.fromarray(rng.integers(0, 256, (*CELLS, 3), np.uint8))
  smooth, size = Image.Resampling.BICUBIC, SIZE[::-1]
  if not again:
    return patches.resize(size, smooth)
  box = (0.1, 0.1, CELLS[1] - 0.1, CELLS[0] - 0.1)
  picture = np.asarray(patches.resize(size, smooth, box), np.int16)
  noise = np.random.default_rng([seed, place, 1]).integers(-3, 6, SIZE)
  changed = np.clip(picture + noise[..., None], 0, 255)
  return Image.fromarray(changed.astype(np.uint8))


def command(photos: pathlib.Path, workdir: pathlib.Path) -> list[str]:
  """The program as a user runs it."""
  config = f'configs/photos.py{":" * bool(METHOD.value)}{METHOD.value}'
  return [
    *(sys.executable, 'main.py', f'--config={config}', '--mode=evaluate'),
    *(f'--data_dir={photos}', f'--workdir={workdir}'),
  ]


def run(photos: pathlib.Path, workdir: pathlib.Path) -> Run:
  """Runs to the end.

  Raises:
    RuntimeError: it did not get there; with what it printed last.
  """
  begin, lines = time.monotonic(), []
  process = subprocess.Popen(
    command(photos, workdir),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  assert process.stdout is not None
  for line in process.stdout:
    lines.append((time.monotonic() - begin, line.rstrip()))
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise RuntimeError('\n'.join(line for _, line in lines[-20:]))
  return Run(time.monotonic() - begin, 1024 * usage.ru_maxrss, lines)


def stages(done: Run) -> dict[str, float]:
  """Seconds of each stage, by the lines that the program printed.

  Raises:
    RuntimeError: too few photos for a line about how far it is.
  """
  counted = [
    (at, int(found[1]))
    for at, line in done.lines
    if (found := re.match(r'described (\d+) of', line))
  ]
  if len(counted) < 2:
    raise RuntimeError('too few photos to tell stages apart; give more')
  (first, some), (last, every) = counted[0], counted[-1]
  describe = (last - first) * every / (every - some)
  fits = [at for at, line in done.lines if line.startswith('fitting')]
  before = last - describe
  start = fits[0] if fits else before
  return {
    'start': start,
    'fit': before - start,
    'describe': describe,
    'evaluate': done.seconds - last,
  }


def run_killed(
  photos: pathlib.Path, workdir: pathlib.Path, seconds: float
) -> int:
  """Kills at random moments, continuing each time, then finishes.

  Args:
    photos: the folder.
    workdir: of all the runs.
    seconds: how long it takes undisturbed.

  Returns:
    How many of the kills met a running process.
  """
  rng, met = random.Random(SEED.value), 0
  for _ in range(KILLS.value):
    process = subprocess.Popen(
      command(photos, workdir),
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    try:
      process.wait(rng.uniform(0.05, 0.5) * seconds)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      met += 1
    process.wait()
  run(photos, workdir)
  return met


def measure(root: pathlib.Path) -> dict[str, float]:
  """Makes photos and runs the program on them, calmly and killed."""
  photos, calm, rough = (root / x for x in ('photos', 'calm', 'rough'))
  make_photos(photos, PHOTOS.value, SEED.value)
  done = run(photos, calm)
  seconds = stages(done)
  results = json.loads((calm / 'results.json').read_text())
  numbers = {
    'photos': float(PHOTOS.value),
    **{f'{name}/seconds': value for name, value in seconds.items()},
    'all/seconds': done.seconds,
    'images_per_second': PHOTOS.value / seconds['describe'],
    'peak_memory/gigabytes': done.peak / 1e9,
    'recall@1': results[f'test/photos/image_to_image/recall@1_{RADIUS:g}m'],
    'chance@1': results[f'test/photos/chance@1_{RADIUS:g}m'],
  }
  for name, value in numbers.items():
    print(f'{name:24}{value:12.2f}', flush=True)
  if KILLS.value:
    met = run_killed(photos, rough, done.seconds)
    same = all(
      (calm / name).read_bytes() == (rough / name).read_bytes()
      for name in ('results.json', 'index.npz')
    )
    numbers |= {'kills': float(met), 'equal_to_the_bit': float(same)}
    outcome = 'equal to the bit' if same else 'DIFFERENT'
    print(f'killed {met} times: {outcome}', flush=True)
  return numbers


def main(argv: list[str]) -> None:
  """Measures, and compares with the bars."""
  del argv
  with contextlib.ExitStack() as stack:
    folder = FOLDER.value or stack.enter_context(tempfile.TemporaryDirectory())
    numbers = measure(pathlib.Path(folder))
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))
  good = (
    numbers['peak_memory/gigabytes'] < MAX_GIGABYTES
    and numbers['evaluate/seconds'] <= numbers['describe/seconds']
    and numbers.get('equal_to_the_bit', 1.0) == 1.0
  )
  sys.exit(0 if good else 1)


if __name__ == '__main__':
  app.run(main)
