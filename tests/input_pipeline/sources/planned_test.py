# SPDX-License-Identifier: Apache-2.0
"""A config's `sampling` becomes the planner that it names, or is refused."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from i2ploc.photos import footprints as footprints_lib
from i2ploc.photos import truth as truth_lib
from i2ploc.retrieval import relations
from input_pipeline import schema
from input_pipeline.plans import classes
from input_pipeline.plans import clusters
from input_pipeline.plans import focal
from input_pipeline.plans import mined
from input_pipeline.plans import places
from input_pipeline.sources import planned
from tests.input_pipeline.plans import tables

FRAMES = tables.scattered(0, 900, 60.0)
DESCRIPTORS = tables.unit_rows(1, 900)
COMMON = dict(batch_size=12, steps=3, seed=5)
SAMPLINGS = {
  'classes': dict(cell=20.0, turn=90.0, spacing=1, turn_spacing=1,
                  min_images=3, num_groups=2),
  'focal': dict(cell=20.0, spacing=1, distance=8.0, min_images=4),
  'places': dict(num_views=3, max_offset=5.0, cross_drive=0.9, town_run=2,
                 by_frame=False, even_conditions=False),
  'clusters': dict(num_views=2, max_offset=5.0, num_clusters=7),
  'mined': dict(mining='full', num_negatives=4, positive_radius=6.0,
                negative_radius=12.0),
}  # fmt: skip


def _dataset(frames=FRAMES, **changes):
  """Images and renderings tell their row."""

  def read(row, what):
    return {
      name: np.full((4, 6, 3), (row + 100 * (name == 'rendering')) % 256, 'u1')
      for name in what
    }

  rigs = dict.fromkeys(frames.drive.tolist(), schema.Rig(None, None))
  return schema.Dataset('scattered', frames, rigs, read)._replace(**changes)


def _sampling(name, **changes):
  return {'name': name, 'steps': 3} | SAMPLINGS[name] | changes


def _planner(name, dataset=None, target=None, sequence=None, **changes):
  return planned.make_planner(
    dataset or _dataset(),
    _sampling(name, **changes),
    batch_size=12,
    seed=5,
    target=target,
    **sequence or {},
  )


def _describe(rows):
  return DESCRIPTORS[rows]


def _expected(name):
  """The same planner, made by hand."""
  if name == 'classes':
    table = classes.cell_classes(FRAMES, **SAMPLINGS[name])
    return classes.make_classes(table, **COMMON)
  if name == 'focal':
    table = focal.focal_classes(FRAMES, **SAMPLINGS[name])
    return classes.make_classes(table, **COMMON)
  table = places.near_places(FRAMES, max_offset=5.0)
  if name == 'places':
    return places.make_places(
      table, num_views=3, cross_drive=0.9, town_run=2, **COMMON
    )
  if name == 'clusters':
    return clusters.make_clusters(table, num_views=2, num_clusters=7, **COMMON)
  return mined.make_mined(FRAMES, **SAMPLINGS[name], **COMMON)


class PlannerTest(parameterized.TestCase):
  @parameterized.parameters(*planned.NAMES)
  def test_a_name_and_its_fields_make_the_planner(self, name):
    found, expected = (
      _planner(name)(2, _describe),
      _expected(name)(2, _describe),
    )
    self.assertEqual(list(found), list(expected))
    for key, values in expected.items():
      np.testing.assert_array_equal(found[key], values, key)
    self.assertEqual(found['row'].shape, (3, 12))

  def test_places_by_number_and_evenly_over_conditions(self):
    frames = tables.join(
      *(tables.street('a', f'a{i}', 20, y=1e4 * i) for i in range(3))
    )
    conditions = np.where(frames.drive == 'a2', 'night', 'day')
    dataset = _dataset(frames, conditions=conditions)
    for name in ('places', 'clusters'):
      plan = _planner(
        name, dataset, by_frame=True, even_conditions=True, num_views=2
      )(0, _describe)
      number = frames.frame[plan['row']].reshape(3, 6, 2)
      np.testing.assert_array_equal(number[..., 0], number[..., 1])
      np.testing.assert_array_equal(
        plan['variant'], [[int(d[1]) for d in row] for row in
                          frames.drive[plan['row']]]
      )  # fmt: skip
      night = (conditions[plan['row']] == 'night').sum(axis=1)
      # A third of the frames and half of the batch, but for one.
      np.testing.assert_allclose(night, 6, atol=1)

  @parameterized.parameters('places', 'mined')
  def test_unknown_headings_are_not_asked_for_unless_some_are_known(self, name):
    pose = FRAMES.world_from_body.copy()
    pose[:, :3, :3] = np.nan
    blind = _dataset(FRAMES._replace(world_from_body=pose))
    plan = _planner(name, blind)(0, _describe)
    self.assertTrue((plan['row'] >= 0).all())
    some = pose.copy()
    some[:1] = np.eye(4)
    some = _dataset(FRAMES._replace(world_from_body=some))
    with self.assertRaises(InputError):
      _planner(name, some)
    with self.assertRaises(InputError):
      _planner(name, blind, max_heading=0.5)

  def test_frames_that_the_dataset_says_ask(self):
    queries = np.arange(len(FRAMES.town)) % 2 == 1
    plan = _planner('mined', _dataset(queries=queries))(0, _describe)
    rows = plan['row'].reshape(3, 2, 6)
    self.assertTrue(queries[rows[..., 0]].all())
    self.assertFalse(queries[rows[..., 1:]].any())

  @parameterized.parameters(*planned.NAMES)
  def test_only_frames_that_can_be_read_are_drawn(self, name):
    half = np.arange(len(FRAMES.town)) % 4 > 0
    frames = FRAMES._replace(has_rendering=half)
    plan = _planner(name, _dataset(frames))(0, _describe)
    self.assertTrue(half[plan['row']].all())
    sequence = dict(num_frames=3, frame_stride=2)
    plan = _planner(name, sequence=sequence)(0, _describe)
    first = np.zeros(len(FRAMES.town), bool)
    for drive in np.unique(FRAMES.drive):
      first[np.flatnonzero(FRAMES.drive == drive)[:4]] = True
    self.assertFalse(first[plan['row']].any())

  @parameterized.parameters(*planned.NAMES)
  def test_the_target_has_its_part_of_a_step_and_no_other(self, name):
    target = np.arange(len(FRAMES.town)) % 50 == 0
    per_step = {'focal': 2, 'mined': 6}.get(name, 6)
    plan = _planner(name, target=target, per_step=per_step)(0, _describe)
    np.testing.assert_array_equal(target[plan['row']], ~plan['labelled'])
    np.testing.assert_array_equal((~plan['labelled']).sum(1), per_step)
    self.assertEqual(plan['row'].shape, (3, 12))

  @parameterized.parameters('classes', 'focal')
  def test_classes_are_those_of_the_plan(self, name):
    dataset = _dataset()
    options = dict(
      num_frames=6, target=np.arange(len(FRAMES.town)) % 3 == 0
    )  # without most frames, classes are fewer
    sampling = _sampling(name, num_groups=1, steps=200, per_step=4)
    table = planned.class_table(dataset, sampling, **options)
    plan = planned.make_planner(
      dataset, sampling, batch_size=12, seed=0, **options
    )(0, _describe)
    learned = plan['labelled']
    for i, count in enumerate(table.num_classes):
      found = np.unique(plan['class'][learned & (plan['group'] == i)])
      np.testing.assert_array_equal(found, np.arange(count))
    whole = planned.class_table(dataset, sampling)
    self.assertLess(len(table.row), len(whole.row))


class BadSamplingTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(name='cosplace'), "Unknown sampling 'cosplace'; known.*'places'"),
    (dict(), 'Unknown sampling None'),
    (dict(name='places'), "'places' lacks 'steps'"),
    (_sampling('classes', pool=3), "'classes' has no field 'pool'; known.*cel"),
    (_sampling('focal', turn=30.0), "'focal' has no field 'turn'"),
    (_sampling('places', cell=1.0, pool=3), "no field 'cell', 'pool'; known"),
    (_sampling('clusters', town_run=2), "'clusters' has no field 'town_run'"),
    (_sampling('mined', num_views=2), "'mined' has no field 'num_views'"),
    (_sampling('mined', by_frame=True), "'mined' has no field 'by_frame'"),
    (_sampling('mined', queries=None), "'mined' has no field 'queries'"),
    (_sampling('places', seed=1), "'places' has no field 'seed'"),
    (_sampling('classes', cell='10'), "sampling.cell='10': expected float"),
    (_sampling('places', num_views=2.0), 'num_views=2.0: expected int'),
    (_sampling('places', steps=True), 'steps=True: expected int'),
    (_sampling('places', by_frame=1), 'by_frame=1: expected bool'),
    (_sampling('places', max_offset=None), 'max_offset=None: expected float'),
    (
      _sampling('mined', max_heading='no'),
      r"max_heading='no': exp.*float \| N",
    ),
    (_sampling('places', per_step=4), 'per_step=4.*set data.target'),
    (_sampling('places', steps=0), 'steps=0'),
    (_sampling('places', num_views=5), 'batch_size=12.*multiple of 5'),
    (_sampling('places', even_conditions=True), 'scattered: nobody knows its'),
  )
  def test_one_line_names_the_field(self, sampling, message):
    with self.assertRaisesRegex(InputError, message) as caught:
      planned.make_planner(_dataset(), sampling, batch_size=12, seed=0)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    (12, 'per_step=12.*of 12'), (-1, 'per_step=-1'), (0, '0 in a step')
  )
  def test_a_target_needs_room_and_leaves_some(self, per_step, message):
    target = np.arange(len(FRAMES.town)) < 5
    with self.assertRaisesRegex(InputError, message):
      _planner('places', target=target, per_step=per_step)

  def test_whole_numbers_may_stand_for_others(self):
    a = _planner('places', max_offset=5)(0, _describe)
    b = _planner('places', max_offset=5.0)(0, _describe)
    np.testing.assert_array_equal(a['row'], b['row'])

  def test_classes_are_of_planners_that_have_some(self):
    with self.assertRaisesRegex(InputError, "'mined' has no classes.*'focal'"):
      planned.class_table(_dataset(), _sampling('mined'))
    with self.assertRaisesRegex(InputError, "no field 'pool'"):
      planned.class_table(_dataset(), _sampling('classes', pool=1))


def _square(latitude, longitude, side=0.1):
  corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) * side
  return corners + [latitude, longitude]


class EntryTest(absltest.TestCase):
  def footprints(self, towns, degrees):
    frames = tables.table(
      np.array(towns), 'a', np.arange(len(towns)), 0.0, 0.0, 0.0
    )
    truth = truth_lib.Truth(truth_lib.OVERLAP, np.asarray(degrees))
    entry = planned.make_entry(_dataset(frames, truth=truth), (4, 6))
    return np.stack([entry(i)['footprint'] for i in range(len(towns))])

  def test_conditions_are_numbered_as_they_sort(self):
    frames = FRAMES.take(np.arange(4))
    conditions = np.array(['night', 'day', 'rain', 'day'])
    dataset = _dataset(frames, conditions=conditions)
    entry = planned.make_entry(dataset, (4, 6))
    found = [entry(row)['domain'] for row in range(4)]
    self.assertEqual([int(i) for i in found], [1, 0, 2, 0])
    self.assertEqual(found[0].dtype, np.int32)
    plain = planned.make_entry(_dataset(frames), (4, 6))(0)
    self.assertContainsSubset(['image', 'image_index'], plain)
    self.assertNoCommonElements(['domain', 'footprint', 'rendering'], plain)

  def test_renderings_come_beside_images(self):
    frames = FRAMES.take(np.arange(4))
    frames = frames._replace(has_rendering=np.ones(4, bool))
    found = planned.make_entry(_dataset(frames), (4, 6))(3)
    self.assertEqual(found['image'][0, 0, 0], 3)
    self.assertEqual(found['rendering'][0, 0, 0], 103)
    self.assertEqual(found['rendering_index'], 3)

  def test_footprints_are_metres_east_and_north_in_each_town(self):
    degrees = [_square(0, 0), _square(60, 100), _square(60, 100.2)]
    found = self.footprints(['equator', 'north', 'north'], degrees)
    self.assertEqual(found.dtype, np.float32)
    side = 0.1 * np.pi / 180 * 6_371_000
    for i, scale in enumerate((1.0, 0.5, 0.5)):
      width, height = np.ptp(found[i], axis=0)
      self.assertAlmostEqual(width / (side * scale), 1, delta=2e-3)
      self.assertAlmostEqual(height / side, 1, places=4)
      x, y = (found[i] - found[i].mean(0)).T
      self.assertGreater((x * np.roll(y, -1) - np.roll(x, -1) * y).sum(), 0)
    np.testing.assert_allclose(found[0].mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(found[1:].mean((0, 1)), 0, atol=1e-2)
    east, north = found[2].mean(0) - found[1].mean(0)
    self.assertAlmostEqual(east / side, 1, delta=2e-3)
    self.assertAlmostEqual(north, 0, delta=0.1)

  def test_footprints_overlap_in_metres_as_in_degrees(self):
    rng = np.random.default_rng(0)
    corner = rng.uniform([20, 179.5], [21, 180.5], (40, 2))
    degrees = np.stack([_square(*c, rng.uniform(0.02, 0.3)) for c in corner])
    # Written as files write them: across the border of longitudes.
    written = degrees.copy()
    written[..., 1] = (written[..., 1] + 180) % 360 - 180
    degrees = footprints_lib.in_turn(written)
    found = self.footprints(['t'] * 40, degrees)
    expected = footprints_lib.overlap(degrees, degrees)
    self.assertBetween(expected.mean(), 0.1, 0.9)
    np.testing.assert_array_equal(relations.overlapping(found, found), expected)

  def test_an_unknown_footprint_leaves_the_others_of_its_town(self):
    degrees = np.stack([_square(10, 10), _square(10, 10.1), _square(0, 0)])
    whole = self.footprints(['t', 't', 'u'], degrees)
    degrees = np.insert(degrees, [0, 3], np.nan, axis=0)
    found = self.footprints(['t', 't', 't', 'u', 'v'], degrees)
    self.assertTrue(np.isnan(found[[0, 4]]).all())
    np.testing.assert_array_equal(found[1:4], whole)


if __name__ == '__main__':
  absltest.main()
