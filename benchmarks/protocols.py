# SPDX-License-Identifier: Apache-2.0
"""Scores the descriptors of any method on the published protocols.

  python benchmarks/protocols.py --descriptors=DIR --json=scores.json

DIR holds one SEQUENCE.npz per drive with descriptors of both sensors and their
poses; `i2ploc/evaluation/descriptor_files.py` has the keys. Without poses in
them, --poses names a folder of KITTI pose files (00.txt, ...; frame = row):

  python benchmarks/protocols.py --descriptors=DIR --poses=KITTI/poses \\
    --similarity=dot --rate=10 --protocol=lip_loc --protocol=rangebev

What guessing reaches, from the poses alone, and how many frames are revisits:

  python benchmarks/protocols.py --chance --poses=KITTI/poses

The same through the evaluator, with random descriptors written to DIR:

  python benchmarks/protocols.py --demo --descriptors=DIR --poses=KITTI/poses
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import json
import pathlib
import sys
from typing import NamedTuple

from absl import app
from absl import flags
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from i2ploc import files
from i2ploc.evaluation import descriptor_files
from i2ploc.evaluation import pose_statistics
from i2ploc.evaluation import protocols
from i2ploc.evaluation import questions
from i2ploc.evaluation import retrieval
from i2ploc.evaluation import tables
from input_pipeline.readers import kitti_files

# KITTI scans at 10 Hz; the pose files hold no times.
KITTI_RATE = 10.0
RELEASED_AXES = protocols.PROTOCOLS['lip_loc_released_axes'].components
MODALINK_AXES = protocols.PROTOCOLS['modalink_axes'].components
REVISIT_RADII = (3.0, 10.0, 20.0)
CHANCE_COLUMNS = (
  'seq',
  'frames',
  'path m',
  '<20 m in (y, z)',
  '<20 m',
  'passes if wrong',
  'frames within 20 m',
  '<10 m in (x, y)',
  '<10 m',
  *(f'revisits {r:g} m' for r in REVISIT_RADII),
  'only opposite, 10 m',
)


def load_poses(folder: str) -> dict[str, np.ndarray]:
  """Poses [F, 4, 4] of camera 0 by sequence, from every NN.txt of a folder."""
  paths = sorted(pathlib.Path(folder).glob('*.txt'))
  if not paths:
    raise FileNotFoundError(f'{folder}: no KITTI pose files (00.txt, ...).')
  return {path.stem: kitti_files.read_poses(path) for path in paths}


def chance_from_poses(poses: np.ndarray) -> dict[str, float]:
  """One row of the chance table; shares are percent."""
  frames = np.arange(len(poses))
  track = questions.Track(
    frames,
    poses[:, :3, 3],
    'kitti',
    frames / KITTI_RATE,
    questions.headings_from_poses(poses, 'kitti'),
  )
  lip_loc = pose_statistics.random_pairs(track, 20.0, RELEASED_AXES)
  modalink = pose_statistics.random_pairs(track, 10.0, MODALINK_AXES)
  revisits = pose_statistics.revisits(track, REVISIT_RADII)
  row = {
    'frames': lip_loc.frames,
    'path': lip_loc.path,
    'released_axes_20m': 100 * lip_loc.rate_on_axes,
    'ground_20m': 100 * lip_loc.rate,
    'released_axes_20m_if_wrong': 100 * lip_loc.rate_when_wrong,
    'neighbors_20m': lip_loc.neighbors,
    'modalink_axes_10m': 100 * modalink.rate_on_axes,
    'ground_10m': 100 * modalink.rate,
  }
  for revisit in revisits:
    row[f'revisits_{revisit.radius:g}m'] = 100 * revisit.share
    if not np.isnan(revisit.opposite):
      row[f'opposite_{revisit.radius:g}m'] = 100 * revisit.opposite
  return row


def chance_cells(row: dict[str, float]) -> list[str]:
  """A row of `chance_from_poses` in the digits that are printed."""
  opposite = row.get('opposite_10m')
  return [
    f'{row["frames"]:.0f}',
    f'{row["path"]:.0f}',
    f'{row["released_axes_20m"]:.1f}',
    f'{row["ground_20m"]:.2f}',
    f'{row["released_axes_20m_if_wrong"]:.1f}',
    f'{row["neighbors_20m"]:.0f}',
    f'{row["modalink_axes_10m"]:.1f}',
    f'{row["ground_10m"]:.1f}',
    *(f'{row[f"revisits_{r:g}m"]:.1f}' for r in REVISIT_RADII),
    '-' if opposite is None else f'{opposite:.0f}',
  ]


def write_random(
  folder: pathlib.Path, poses: dict[str, np.ndarray], width: int = 64
) -> None:
  """Random unit descriptors for every frame: a method that knows nothing.

  Raises:
    ValueError: the folder holds descriptors already.
  """
  if any(folder.glob('*.npz')):
    raise ValueError(f'{folder} holds descriptors; --demo needs an empty one.')
  rng = np.random.default_rng(0)
  for name, table in poses.items():
    arrays = {'similarity': np.array('dot')}
    for sensor in descriptor_files.SENSORS:
      random = rng.normal(size=(len(table), width)).astype(np.float32)
      arrays[sensor] = random / np.linalg.norm(random, axis=1, keepdims=True)
    files.save_arrays(folder / f'{name}.npz', arrays)


def _announce(
  recordings: Iterable[descriptor_files.Recording],
) -> Iterator[descriptor_files.Recording]:
  """Passes recordings on and says which one is at work."""
  for recording in recordings:
    sides = (recording.image, recording.points)
    sizes = [len(side.descriptors) for side in sides]
    text = f'{recording.name}: {sizes[0]} images, {sizes[1]} scans'
    print(text, file=sys.stderr, flush=True)
    yield recording


class Options(NamedTuple):
  """The command line.

  Attributes:
    descriptors: folder of SEQUENCE.npz files.
    poses: folder of KITTI pose files NN.txt.
    protocol: names of the protocols to score.
    axes: of files that do not say theirs.
    similarity: of files that do not name theirs.
    rate: frames per second of files without times; 0: unknown.
    chance: print what the poses say, and no scores.
    demo: write random descriptors first.
  """

  descriptors: str | None = None
  poses: str | None = None
  protocol: Sequence[str] = tuple(protocols.PROTOCOLS)
  axes: str = ''
  similarity: str = ''
  rate: float = 0.0
  chance: bool = False
  demo: bool = False


def run(options: Options) -> dict:
  """Prints Markdown; returns the numbers.

  Raises:
    ValueError: bad input, or options that do not go together.
    FileNotFoundError: an empty folder.
  """
  poses = load_poses(options.poses) if options.poses else None
  if (options.chance or options.demo) and poses is None:
    raise ValueError('--chance and --demo need --poses=DIR.')
  if options.chance:
    results = {name: chance_from_poses(poses[name]) for name in poses}
    rows = ([name, *chance_cells(row)] for name, row in results.items())
    print('\n'.join(tables.markdown_table(CHANCE_COLUMNS, rows)))
    return results
  if not options.descriptors:
    raise ValueError('Give --descriptors=DIR, or --chance.')
  if options.demo:
    write_random(pathlib.Path(options.descriptors), poses)
  recordings = descriptor_files.load_descriptors(
    options.descriptors,
    poses,
    axes=options.axes,
    similarity=options.similarity,
    rate=KITTI_RATE if options.demo else options.rate,
  )
  chosen = [protocols.PROTOCOLS[name] for name in options.protocol]
  results = retrieval.score_drives(_announce(recordings), chosen)
  print('\n'.join(tables.markdown(results, chosen)))
  return results


def define_flags() -> None:
  """One flag per option, and --json."""
  names = list(protocols.PROTOCOLS)
  flags.DEFINE_string('descriptors', None, 'Of SEQUENCE.npz files.')
  flags.DEFINE_string('poses', None, 'Of KITTI pose files NN.txt.')
  flags.DEFINE_multi_enum(
    'protocol', names, names, 'Which to score; again for more. Default: all.'
  )
  flags.DEFINE_string('axes', '', 'Of files that do not say theirs.')
  flags.DEFINE_string('similarity', '', 'Of files that name none.')
  flags.DEFINE_float('rate', 0.0, 'Frames per second of files without times.')
  flags.DEFINE_bool('chance', False, 'Print what poses say, and no scores.')
  flags.DEFINE_bool('demo', False, 'Write random descriptors first.')
  flags.DEFINE_string('json', None, 'Where to write the numbers.')


def main(argv: list[str]) -> None:
  """Runs the command line; bad input ends in one line."""
  del argv
  given = flags.FLAGS
  options = Options(*(getattr(given, name) for name in Options._fields))
  try:
    results = run(options)
  except (ValueError, FileNotFoundError) as error:
    sys.exit(f'protocols: {error}')
  if given.json:
    pathlib.Path(given.json).write_text(json.dumps(results, indent=1))


if __name__ == '__main__':
  define_flags()
  app.run(main)
