# SPDX-License-Identifier: Apache-2.0
"""Generation survives its own death; splits share nothing."""

import functools
import pathlib
import tempfile
import time

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from input_pipeline.synthetic_city import generate
from input_pipeline.synthetic_city import records
from input_pipeline.synthetic_city import splits
from input_pipeline.synthetic_city import town as town_lib

_EVERY = splits.units(splits.specification('tiny'))


def _record(unit, frame):
  rng = np.random.default_rng([unit.drive.town_seed, unit.drive.number, frame])
  return {
    'drive': unit.drive.name.encode(),
    'image': rng.bytes(int(rng.integers(10, 50))),
    'frame': np.int64(frame),
    'world_from_lidar': rng.normal(size=(4, 4)),
  }


def _make_render():
  def render(unit):
    for frame in unit.frames:
      yield _record(unit, frame)

  return render


def _make_dying_render(survives):
  """Renders that many frames in each process and dies in the next."""
  left = [survives]

  def render(unit):
    for frame in unit.frames:
      left[0] -= 1
      if left[0] < 0:
        raise KeyboardInterrupt
      yield _record(unit, frame)

  return render


def _make_noting_render(folder):
  """Leaves a file for every unit that it renders."""
  render = _make_render()

  def note(unit):
    (folder / unit.name).touch(exist_ok=False)
    return render(unit)

  return note


def _make_uneven_render():
  """Fails in one town while another is on its way."""

  def render(unit):
    for frame in unit.frames:
      if unit.drive.split == 'validation':
        time.sleep(0.5)
        raise KeyboardInterrupt
      yield _record(unit, frame)
      time.sleep(0.2)

  return render


def _contents(directory: pathlib.Path):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


class GenerateTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )
    whole = self.directory / 'whole'
    generate.generate(whole, _EVERY, _make_render)
    self.expected = _contents(whole)

  @parameterized.parameters((0, 1), (7, 1), (20, 1), (44, 1), (7, 2))
  def test_a_killed_run_is_finished_by_the_next(self, survives, workers):
    directory, notes = self.directory / 'killed', self.directory / 'notes'
    with self.assertRaises(KeyboardInterrupt):
      dying = functools.partial(_make_dying_render, survives)
      generate.generate(directory, _EVERY, dying, workers)
    done = _contents(directory)
    self.assertLess(len(done), len(self.expected))
    notes.mkdir()
    noting = functools.partial(_make_noting_render, notes)
    generate.generate(directory, _EVERY, noting, workers)
    self.assertDictEqual(_contents(directory), self.expected)
    rendered = {path.name for path in notes.iterdir()}
    self.assertEqual(rendered, {*self.expected} - {*done})

  def test_a_unit_in_flight_when_another_fails_is_not_written_short(self):
    directory = self.directory / 'flight'
    with self.assertRaises(KeyboardInterrupt):
      generate.generate(directory, _EVERY, _make_uneven_render, workers=2)
    for name, content in _contents(directory).items():
      self.assertEqual(content, self.expected[name])
    self.assertLess(len(_contents(directory)), len(self.expected))

  def test_a_half_written_file_is_never_taken_for_a_unit(self):
    directory = self.directory / 'torn'
    directory.mkdir()
    name = next(iter(self.expected))
    torn = self.expected[name][:100]
    (directory / f'.123.tmp.{name}').write_bytes(torn)
    generate.generate(directory, _EVERY, _make_render)
    self.assertDictEqual(_contents(directory), self.expected)

  def test_a_finished_run_renders_nothing(self):
    def make_render():
      self.fail('nothing is missing')

    generate.generate(self.directory / 'whole', _EVERY, make_render)

  def test_records_come_back_as_written(self):
    paths = generate.generate(self.directory / 'whole', _EVERY, _make_render)
    for unit, path in zip(_EVERY, paths, strict=True):
      for frame, found in zip(unit.frames, records.read(path), strict=True):
        expected = _record(unit, frame)
        self.assertCountEqual(found, expected)
        for name, value in expected.items():
          np.testing.assert_array_equal(found[name], value)

  def test_a_damaged_unit_is_named(self):
    path = self.directory / 'whole' / next(iter(self.expected))
    path.write_bytes(path.read_bytes()[:50])
    with self.assertRaisesRegex(ValueError, f'{path.name}.*Delete it'):
      list(records.read(path))


class SpecificationTest(parameterized.TestCase):
  @parameterized.parameters(*splits.SIZES)
  def test_splits_share_no_town(self, size):
    drives = splits.specification(size)
    self.assertLen({drive.name for drive in drives}, len(drives))
    for key in ('town', 'town_seed'):
      found = [
        {getattr(d, key) for d in drives if d.split == split}
        for split in splits.SPLITS
      ]
      self.assertLen(set.union(*found), sum(map(len, found)))
      self.assertTrue(all(found))

  def test_splits_share_no_street(self):
    seeds = {d.split: d.town_seed for d in splits.specification('tiny')}
    ends = [
      {tuple(np.round(xy, 2)) for xy in town_lib.make_town(seed).ground.start}
      for seed in seeds.values()
    ]
    self.assertLen(set.union(*ends), sum(map(len, ends)))

  def test_the_demonstration_has_the_stated_extent(self):
    drives = splits.specification('small')
    count = {}
    for drive in drives:
      key = drive.split, drive.role
      count.setdefault(key, []).append(len(drive.frames))
    self.assertDictEqual(
      count,
      {
        ('train', 'train'): [125] * 64,
        ('validation', 'map'): [400] * 2,
        ('validation', 'cross'): [150] * 2,
        ('test', 'map'): [800] * 3,
        ('test', 'cross'): [240] * 3,
        ('test', 'reverse'): [120] * 3,
      },
    )
    for drive in drives:
      self.assertLen({*drive.frames}, len(drive.frames))
      self.assertSequenceEqual(drive.frames, sorted(drive.frames))

  def test_queries_come_in_runs_inside_the_map(self):
    drives = splits.specification('small')
    for drive in drives:
      if drive.role in ('cross', 'reverse'):
        (mapped,) = (
          d for d in drives if d.town == drive.town and d.role == 'map'
        )
        self.assertLessEqual({*drive.frames}, {*mapped.frames})
        gaps = np.count_nonzero(np.diff(drive.frames) > 1)
        self.assertEqual(gaps, len(drive.frames) // 30 - 1)

  def test_unknown_sizes_list_the_known(self):
    with self.assertRaisesRegex(ValueError, "'smal'.*'small'"):
      splits.specification('smal')


class FingerprintTest(absltest.TestCase):
  def test_differs_by_size_and_is_stable(self):
    found = {generate.fingerprint(size) for size in splits.SIZES}
    self.assertLen(found, len(splits.SIZES))
    self.assertEqual(generate.fingerprint('tiny'), generate.fingerprint('tiny'))

  def test_follows_code_but_not_comments(self):
    code = 'def f():\n  """One."""\n  return 1\n'
    other = 'def f():  # why\n  """Two."""\n\n  return (1)\n'
    self.assertEqual(generate.essence(code), generate.essence(other))
    self.assertNotEqual(
      generate.essence(code), generate.essence(code.replace('1', '2'))
    )

  def test_covers_what_decides_the_data_and_nothing_else(self):
    names = {path.stem for path in generate.sources()}
    self.assertContainsSubset(
      {'generate', 'town', 'sensors', 'labels', 'patterns', 'splits'}, names
    )
    self.assertNoCommonElements({'builder', 'detections', 'overview'}, names)


if __name__ == '__main__':
  absltest.main()
