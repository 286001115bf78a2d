# SPDX-License-Identifier: Apache-2.0
"""Renders the drives of a dataset into a cache of units, resumably.

A unit is some frames of one drive and one file. It depends on nothing but its
own description, and it is written under another name, synced and renamed:
whenever the process dies, the units that exist are whole, and the next run
makes the missing ones, byte for byte what they would have been.
The cache's directory carries the fingerprint of the code that filled it.
"""

import ast
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import process
import functools
import hashlib
import itertools
import multiprocessing
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple

from absl import logging
import jax
import numpy as np
import tqdm

from i2ploc.errors import InputError
from input_pipeline.synthetic_city import drive as drive_lib
from input_pipeline.synthetic_city import objects as objects_lib
from input_pipeline.synthetic_city import records
from input_pipeline.synthetic_city import sensors
from input_pipeline.synthetic_city import splits
from input_pipeline.synthetic_city import town as town_lib

LOOKS = ('photo', 'mesh', 'night')
MakeRender = Callable[[], Callable[[splits.Unit], Iterator[records.Record]]]
# A worker is started for so many frames, and compiles its own renderer.
_WORTH_A_WORKER, _MOST_WORKERS = 500, 8
_TICK = 0.5  # seconds between looks at the progress


def fingerprint(size: str) -> str:
  """Names the code and the specification that the data follows from.

  Comments, docstrings and layout of the source do not count.
  """
  text = repr((size, splits.specification(size), _code()))
  return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _code() -> str:
  """Digest of the generator's sources, the same as long as the process runs."""
  digest = hashlib.sha256()
  for path in sources():
    digest.update(essence(path.read_text()).encode())
  return digest.hexdigest()


def sources() -> list[pathlib.Path]:
  """This file and those of the package that it imports, directly or not."""
  here = pathlib.Path(__file__)
  found, left = set(), {here.stem}
  while left:
    found |= left
    text = '\n'.join(here.with_stem(name).read_text() for name in left)
    imported = re.findall(
      rf'^from {re.escape(str(__package__))} import (\w+)', text, re.MULTILINE
    )
    left = {*imported} - found
  return [here.with_stem(name) for name in sorted(found)]


def essence(source: str) -> str:
  """What of Python source decides its result: no comments, no docstrings."""
  tree = ast.parse(source)
  for node in ast.walk(tree):
    body = getattr(node, 'body', None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
      if isinstance(body[0].value, ast.Constant):
        body[0].value.value = None
  return ast.dump(tree)


@functools.lru_cache(maxsize=4)
def _town(seed: int) -> town_lib.Town:
  return town_lib.make_town(seed)


@functools.lru_cache(maxsize=8)
def _first_drive(seed: int, num_frames: int, spacing: float) -> drive_lib.Drive:
  """Drive 0 of a town: the later ones follow it."""
  return drive_lib.make_drive(_town(seed), 0, num_frames, spacing)


@functools.lru_cache(maxsize=4)
def _trajectory(drive: splits.Drive, look: str) -> drive_lib.Drive:
  """The drive's world as it looks: the poses are the same in all looks."""
  made = _photographed(drive)
  if look == 'mesh':
    return drive_lib.alone(made)
  if look == 'night' and drive.number > 0:
    return drive_lib.at_night(made)
  return made


def _photographed(drive: splits.Drive) -> drive_lib.Drive:
  """The drive's world, in another condition than the drive it follows."""
  num_frames = drive.route_frames
  first = _first_drive(drive.town_seed, num_frames, drive.spacing)
  if drive.number == 0:
    return first
  condition, seed = first.condition, drive.number
  while condition == first.condition:
    made = drive_lib.make_drive(
      _town(drive.town_seed),
      seed,
      num_frames,
      drive.spacing,
      follow=first,
      reverse=drive.role == 'reverse',
    )
    condition, seed = made.condition, seed + 100
  return made


def make_render(
  size: str,
  camera: str = 'pinhole',
  setup: str = 'kitti',
  look: str = 'photo',
) -> Callable[[splits.Unit], Iterator[records.Record]]:
  """The function that renders the records of a unit.

  Args:
    size: of splits.SIZES.
    camera: of rig.CAMERAS.
    setup: of rig.SETUPS.
    look: of LOOKS. 'mesh': the town as a viewer of meshes shows it, without
      textures, weather, traffic and parked cars. 'night': every drive but a
      town's first happens at night.
  """
  render = sensors.make_renderer(
    size, camera=camera, setup=setup, plain=look == 'mesh'
  )

  def render_unit(unit: splits.Unit) -> Iterator[records.Record]:
    drive = unit.drive
    town, made = _town(drive.town_seed), _trajectory(drive, look)
    for frame in unit.frames:
      scene = drive_lib.scene_at(town, made, frame)
      pose = drive_lib.world_from_lidar(made, frame)
      key = np.random.default_rng([drive.town_seed, drive.number, frame])
      reading = render(scene, pose, int(key.integers(2**31)))
      objects = objects_lib.objects_at(town, made, frame)
      yield {
        **records.encode(reading, objects),
        'town': drive.town.encode(),
        'drive': drive.name.encode(),
        'role': drive.role.encode(),
        'weather': made.condition.encode(),
        'frame': np.int64(frame),
        'timestamp': np.float64(made.time[frame]),
        'world_from_lidar': pose,
      }

  return render_unit


def generate(
  directory: pathlib.Path,
  wanted: Sequence[splits.Unit],
  make_render: MakeRender,
  workers: int | None = None,
) -> list[pathlib.Path]:
  """Renders what the directory lacks; returns the paths of the units.

  Args:
    directory: of one variant and fingerprint alone; made if missing.
    wanted: the units, those of a town one after another.
    make_render: gives the function that renders a unit's records; called only
      when something is missing, in every worker.
    workers: processes, on CPU whatever the device is: laying towns out is
      Python's work, of which threads do no more than one. 1 renders here; None
      for as many as there are cores and something to do for.
  """
  directory.mkdir(parents=True, exist_ok=True)
  for leftover in directory.glob('.*.tmp.*'):
    leftover.unlink()
  missing = [unit for unit in wanted if not (directory / unit.name).exists()]
  total, left = (
    sum(len(unit.frames) for unit in units) for units in (wanted, missing)
  )
  if missing:
    logging.info('%d of %d frames to render', left, total)
    # One worker per town: several would each lay it out for themselves. Long
    # ones first, so that all workers end together.
    groups = itertools.groupby(missing, key=lambda unit: unit.drive.town)
    towns = sorted((list(units) for _, units in groups), key=_num_frames)[::-1]
    if workers is None:
      most = min(os.cpu_count() or 1, _MOST_WORKERS, len(towns))
      workers = max(1, min(most, left // _WORTH_A_WORKER))
    bar = tqdm.tqdm(
      total=total, initial=total - left, unit='frame', desc='synthetic_city'
    )
    with bar:
      if workers == 1:
        _render_here(directory, towns, make_render(), bar)
      else:
        _render_elsewhere(directory, towns, make_render, workers, bar)
  return [directory / unit.name for unit in wanted]


def _num_frames(units: list[splits.Unit]) -> int:
  return sum(len(unit.frames) for unit in units)


def _render_here(directory, towns, render, bar) -> None:
  for unit in itertools.chain.from_iterable(towns):
    made = []
    for record in render(unit):
      made.append(record)
      bar.update()
    records.write(directory / unit.name, made)


class _Worker(NamedTuple):
  """What a process of the pool works with."""

  render: Callable[[splits.Unit], Iterator[records.Record]]
  progress: Any  # shared number of frames that all have rendered
  stop: Any  # shared event


_worker: _Worker | None = None


def _start(make_render, cache, progress, stop) -> None:
  """Makes a new process a worker, with one thread of its own."""
  global _worker
  os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_multi_thread_eigen=false'
    ' intra_op_parallelism_threads=1'
  )
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_compilation_cache_dir', cache)
  _worker = _Worker(make_render(), progress, stop)


def _render_town(directory, units) -> None:
  """The job of a worker; it ends with the process that asked for it."""
  worker, parent = _worker, multiprocessing.parent_process()
  if worker is None or parent is None:
    raise RuntimeError('a town is rendered in a process that `_start` prepared')
  for unit in units:
    made = []
    for record in worker.render(unit):
      if worker.stop.is_set() or not parent.is_alive():
        return
      made.append(record)
      with worker.progress.get_lock():
        worker.progress.value += 1
    records.write(directory / unit.name, made)


def _render_elsewhere(directory, towns, make_render, workers, bar) -> None:
  context = multiprocessing.get_context('spawn')
  progress, stop = context.Value('q', 0), context.Event()
  cache = getattr(jax.config, 'jax_compilation_cache_dir', None)
  pool = futures.ProcessPoolExecutor(
    workers, context, _start, (make_render, cache, progress, stop)
  )
  with pool:
    left = {pool.submit(_render_town, directory, units) for units in towns}
    try:
      while left:
        done, left = futures.wait(left, timeout=_TICK)
        bar.update(bar.initial + progress.value - bar.n)
        for job in done:
          job.result()
    except process.BrokenProcessPool as error:
      raise InputError(
        'A process that renders died: memory ran out, or a script that is not'
        " guarded by if __name__ == '__main__' was started again by it. Units"
        ' that are finished are kept.'
      ) from error
    except BaseException:
      # Ctrl-C and errors: give up the units in flight and those that wait.
      stop.set()
      pool.shutdown(wait=False, cancel_futures=True)
      raise
