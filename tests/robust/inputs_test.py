# SPDX-License-Identifier: Apache-2.0
"""What users give: right, left out and counted, or one error that names it.

Every function of a problem is given the same kinds of input.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from i2ploc.robust import absolute_pose
from i2ploc.robust import alignment
from i2ploc.robust import fundamental
from i2ploc.robust import homography
from i2ploc.robust import inputs
from i2ploc.robust import lines
from i2ploc.robust import planes
from i2ploc.robust import relative_pose

_MATRIX = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
_LENS = lens_lib.Lens('pinhole', _MATRIX)
_NUM_DATA = 80
# Rows that are wrong.
_WRONG = np.arange(16)
# More of them, far away.
_FAR = np.arange(6)


class Case(NamedTuple):
  """A function with data that it solves.

  Attributes:
    solve: `*data, **options -> result`.
    names: of its arrays.
    data: arrays [N, D] with noise; the first rows are wrong.
    near: `result -> whether it is right`.
  """

  solve: Callable
  names: tuple[str, ...]
  data: tuple[np.ndarray, ...]
  near: Callable[[Any], bool]


def _rotation(angle):
  cos, sin = np.cos(angle), np.sin(angle)
  return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _cases():
  """The problems by name."""
  rng = np.random.default_rng(0)
  points = rng.uniform([-2, -1, 4], [2, 1, 8], (_NUM_DATA, 3))
  turn, shift = _rotation(0.1), np.array([0.5, 0.1, 0.2])

  def seen(motion, offset):
    there = points @ motion.T + offset
    pixels = 500 * there[:, :2] / there[:, 2:] + [320, 240]
    return pixels + 0.3 * rng.normal(size=pixels.shape)

  def wrong(values):
    values = values.copy()
    low, high = values.min(0), values.max(0)
    values[_WRONG] = rng.uniform(low, high, (len(_WRONG), values.shape[1]))
    return values

  pixels0, pixels1 = seen(np.eye(3), np.zeros(3)), wrong(seen(turn, shift))
  flat = pixels0 * [1.1, 0.9] + [30, -20]
  flat = wrong(flat + 0.3 * rng.normal(size=flat.shape))
  moved = points @ turn.T + shift
  moved = wrong(moved + 0.003 * rng.normal(size=moved.shape))
  floor = points * [1, 1, 0] + [0, 0, 2]
  floor = wrong(floor + 0.003 * rng.normal(size=floor.shape))
  floor[_WRONG, 2] = rng.uniform(-2, 2, len(_WRONG))

  def pose(found):
    return np.allclose(found.camera_from_map.translation, shift, atol=0.05)

  def image(found):
    return np.allclose(found.image1_from_image0[:2, 2], [30, -20], atol=4)

  def direction(found):
    expected = shift / np.linalg.norm(shift)
    way = found.camera1_from_camera0.translation
    return np.allclose(way, expected, atol=0.1)

  def epipolar(found):
    one, two = (np.insert(p[20:], 2, 1, axis=1) for p in (pixels0, pixels1))
    lines_ = one @ found.matrix.T
    away = (lines_ * two).sum(1) / np.linalg.norm(lines_[:, :2], axis=1)
    return np.median(np.abs(away)) < 1

  def motion(found):
    return np.allclose(found.a_from_b.translation, shift, atol=0.02)

  def surface(found):
    return abs(found.model.offset - 2) < 0.02

  def camera(points, pixels, **options):
    return absolute_pose.absolute_pose(points, pixels, _LENS, 3.0, **options)

  def cameras(pixels0, pixels1, **options):
    return relative_pose.relative_pose(
      pixels0, pixels1, _LENS, _LENS, 2.0, **options
    )

  def aligned(points_a, points_b, **options):
    return alignment.alignment(points_a, points_b, 0.02, **options)

  def plane(points, **options):
    return planes.plane(points, 0.02, **options)

  def line(points, **options):
    return lines.line(points, 0.02, **options)

  pairs = ('points0', 'points1')
  return {
    'absolute_pose': Case(
      camera, ('points', 'pixels'), (points, pixels1), pose
    ),
    'homography': Case(homography.homography, pairs, (pixels0, flat), image),
    'relative_pose': Case(
      cameras, ('pixels0', 'pixels1'), (pixels0, pixels1), direction
    ),
    'fundamental': Case(
      fundamental.fundamental, pairs, (pixels0, pixels1), epipolar
    ),
    'alignment': Case(
      aligned, ('points_a', 'points_b'), (moved, points), motion
    ),
    'plane': Case(plane, ('points',), (floor,), surface),
    'line': Case(line, ('points',), (floor[:, [0, 2]],), surface),
  }


CASES = _cases()
_SIDES = [
  (name, side) for name, case in CASES.items() for side in range(len(case.data))
]


class SoundTest(parameterized.TestCase):
  """What must be right."""

  def _assert_right(self, case, found, rows=_NUM_DATA):
    self.assertTrue(found.valid, found.reason)
    self.assertTrue(case.near(found), found.model)
    self.assertEqual(found.inliers.shape, (rows,))
    self.assertGreater(found.confidence, 0.9)

  def _spoilt(self, case, side, rows, value):
    data = list(case.data)
    data[side] = data[side].copy()
    data[side][rows] = value
    return data

  @parameterized.parameters(*CASES)
  def test_as_it_is(self, name):
    case = CASES[name]
    found = case.solve(*case.data)
    self._assert_right(case, found)
    self.assertGreater(found.inliers[len(_WRONG) :].mean(), 0.9)

  @parameterized.parameters(
    *[(*side, far) for side in _SIDES for far in (1e4, 1e8, 1e10, -1e30)]
  )
  def test_some_far_away_change_nothing(self, name, side, far):
    case = CASES[name]
    for rows in (_FAR[:1], _FAR):
      found = case.solve(*self._spoilt(case, side, rows, far))
      self._assert_right(case, found)
      self.assertFalse(found.inliers[rows].any())

  @parameterized.parameters(*_SIDES)
  def test_masked_rows_are_left_out(self, name, side):
    case = CASES[name]
    masked = self._spoilt(case, side, _WRONG, np.nan)
    masked[side] = np.ma.masked_invalid(masked[side])
    found = case.solve(*masked)
    self._assert_right(case, found)
    self.assertFalse(found.inliers[_WRONG].any())
    none = np.ma.array(case.data[side], mask=False)
    masked[side] = none
    self._assert_right(case, case.solve(*masked))

  @parameterized.parameters(*CASES)
  def test_masked_scores_are_left_out(self, name):
    case = CASES[name]
    scores = np.ma.array(np.ones(_NUM_DATA), mask=np.arange(_NUM_DATA) < 16)
    found = case.solve(*case.data, scores=scores)
    self._assert_right(case, found)
    self.assertFalse(found.inliers[_WRONG].any())

  @parameterized.parameters(*CASES)
  def test_lists_and_float32_do(self, name):
    case = CASES[name]
    plain = case.solve(*case.data)
    listed = case.solve(*(values.tolist() for values in case.data))
    np.testing.assert_array_equal(plain.inliers, listed.inliers)
    single = case.solve(*map(np.float32, case.data))
    self.assertGreater((single.inliers == plain.inliers).mean(), 0.95)

  @parameterized.parameters('absolute_pose', 'homography', 'relative_pose')
  def test_integers_do(self, name):
    case = CASES[name]
    data = list(case.data)
    data[-1] = np.round(data[-1]).astype(np.uint16)
    self._assert_right(case, case.solve(*data))

  @parameterized.parameters(1e-4, 1.0, 1e6)
  def test_the_unit_of_the_map_is_anything(self, unit):
    points, pixels = CASES['absolute_pose'].data
    found = absolute_pose.absolute_pose(unit * points, pixels, _LENS, 3.0)
    self.assertTrue(found.valid, found.reason)
    shift = found.camera_from_map.translation / unit
    np.testing.assert_allclose(shift, [0.5, 0.1, 0.2], atol=0.05)
    plain = CASES['absolute_pose'].solve(points, pixels)
    scale = np.repeat([1, unit], 3)
    np.testing.assert_allclose(
      found.covariance / scale / scale[:, None], plain.covariance, rtol=1e-2
    )

  @parameterized.parameters(1e-4, 30.0, 1e5)
  def test_a_plane_in_metres_and_one_in_pixels(self, unit):
    pixels0, pixels1 = CASES['homography'].data
    found = homography.homography(unit * pixels0, pixels1, 3.0)
    self.assertTrue(found.valid, found.reason)
    matrix = found.image1_from_image0 @ np.diag([unit, unit, 1])
    np.testing.assert_allclose(matrix[:2, :2], np.diag([1.1, 0.9]), atol=0.05)
    np.testing.assert_allclose(matrix[:2, 2], [30, -20], atol=4)

  def test_a_lens_may_have_its_distortion_in_any_form(self):
    points, pixels = CASES['absolute_pose'].data
    for distortion in (None, np.zeros((4, 1)), [0, 0, 0, 0, 0]):
      lens = lens_lib.Lens('opencv', _MATRIX, distortion)
      found = absolute_pose.absolute_pose(points, pixels, lens, 3.0)
      self.assertTrue(CASES['absolute_pose'].near(found))


class TooFewTest(parameterized.TestCase):
  """What is sound but leaves nothing to solve."""

  @parameterized.parameters(*CASES)
  def test_no_data(self, name):
    case = CASES[name]
    for empty in (
      [values[:0] for values in case.data],
      [[] for _ in case.data],
      [np.zeros(0) for _ in case.data],
    ):
      found = case.solve(*empty)
      self.assertFalse(found.valid)
      self.assertEqual(found.inliers.shape, (0,))
      self.assertIsNone(found.model)
      self.assertIn('0 data, but more than', found.reason)

  @parameterized.parameters(*CASES)
  def test_all_masked(self, name):
    case = CASES[name]
    masked = [np.ma.masked_all(values.shape) for values in case.data]
    found = case.solve(*masked)
    self.assertFalse(found.valid)
    self.assertRegex(
      found.reason, r'^0 data, but more .* of 80 data 80 are masked$'
    )

  @parameterized.parameters('absolute_pose', 'relative_pose')
  def test_what_ruled_the_others_out_is_told(self, name):
    case = CASES[name]
    data = list(case.data)
    data[-1] = data[-1] + [50_000, 0]
    found = case.solve(*data)
    self.assertRegex(found.reason, '^0 data.* of 80 data 80 have pixels beyond')
    hidden = np.zeros(data[0].shape, bool)
    hidden[:5, 0] = True
    data[0] = np.ma.array(data[0], mask=hidden)
    data[-1] = case.data[-1].copy()
    data[-1][5:, 0] = 1e10
    found = case.solve(*data)
    self.assertRegex(
      found.reason, '5 are masked and 75 have pixels beyond the lens'
    )


class ErrorTest(parameterized.TestCase):
  """What cannot be, and how it is called."""

  def _assert_error(self, message, name, side, values):
    case = CASES[name]
    data = list(case.data)
    data[side] = values
    with self.assertRaisesRegex(InputError, message):
      case.solve(*data)

  @parameterized.parameters(*_SIDES)
  def test_arrays_that_are_not_points_are_named(self, name, side):
    called, values = CASES[name].names[side], CASES[name].data[side]
    size = values.shape[1]
    for message, bad in (
      (
        rf'{called} must be \[N, {size}\], not \[{size}, 80\]; transp',
        values.T,
      ),
      (rf'{called} must be .* reshape it to \(-1, {size}\)', values[:, None]),
      (rf'{called} must be \[N, {size}\], not \[80, 1\]', values[:, :1]),
      (rf'{called} must be \[N, {size}\], not \[{size}\]', values[0]),
      (rf'{called} must be \[N, {size}\], not \[\]', None),
      (f'{called} must be an array of real numbers', values.astype(complex)),
      (f'{called} must be an array of real numbers', [['a'] * size] * 80),
      (f'{called} must be an array of real numbers', [[0] * size, [0]]),
    ):
      with self.subTest(message):
        self._assert_error(message, name, side, bad)

  @parameterized.parameters(*_SIDES)
  def test_values_that_are_not_finite_are_named(self, name, side):
    for bad in (np.nan, np.inf):
      values = CASES[name].data[side].copy()
      values[[7, 9], 1] = bad
      called = CASES[name].names[side]
      self._assert_error(
        f'{called}: 2 of 80 are not finite, first row 7', name, side, values
      )

  @parameterized.parameters(*[s for s in _SIDES if len(CASES[s[0]].data) > 1])
  def test_another_number_of_partners_is_named(self, name, side):
    first, second = CASES[name].names
    values = CASES[name].data[side][:-1]
    message = f'{first} and {second} must be as many'
    self._assert_error(message, name, side, values)

  @parameterized.parameters(*CASES)
  def test_scores_are_checked(self, name):
    case = CASES[name]
    for message, scores in (
      (r'scores must be \[N\]: \[3\] beside 80', np.ones(3)),
      ('scores: 80 of 80 are not finite', np.full(80, np.nan)),
      ('scores must be an array of real', ['a'] * 80),
    ):
      with self.assertRaisesRegex(InputError, message):
        case.solve(*case.data, scores=scores)

  @parameterized.parameters(0.0, -1.0, np.nan, np.inf, None, 'a')
  def test_thresholds_are_checked(self, threshold):
    points = CASES['homography'].data
    with self.assertRaisesRegex(InputError, 'threshold must be positive'):
      homography.homography(*points, threshold)
    with self.assertRaisesRegex(InputError, 'threshold must be positive'):
      absolute_pose.absolute_pose(
        *CASES['absolute_pose'].data, _LENS, threshold
      )

  def test_lists_of_another_length_are_named(self):
    points, pixels = CASES['absolute_pose'].data
    with self.assertRaisesRegex(InputError, '2 points, 1 pixels'):
      absolute_pose.absolute_poses([points] * 2, [pixels], _LENS)
    with self.assertRaisesRegex(InputError, '1 points0, 1 points1, 2 scores'):
      homography.homographies([pixels], [pixels], scores=[None, None])
    self.assertEqual(homography.homographies([], []), [])
    self.assertEqual(absolute_pose.absolute_poses([], [], _LENS), [])

  @parameterized.named_parameters(
    ('transposed', _MATRIX.T, 'transposed'),
    ('no_focal_length', np.diag([0.0, 500, 1]), 'must be positive'),
    ('negative', _MATRIX * [[-1], [1], [1]], 'must be positive'),
    ('nan', _MATRIX * np.nan, r'finite \[3, 3\]'),
    ('two_rows', _MATRIX[:2], r'finite \[3, 3\]'),
    ('last_row', _MATRIX + np.diag([0, 0, 1]), 'last row of 0, 0, 1'),
  )
  def test_matrices_that_are_of_no_camera_are_named(self, matrix, message):
    lens = lens_lib.Lens('pinhole', matrix)
    with self.assertRaisesRegex(InputError, message):
      absolute_pose.absolute_pose(*CASES['absolute_pose'].data, lens)
    pairs = CASES['relative_pose'].data
    for lenses in ((lens, _LENS), (_LENS, lens)):
      with self.assertRaisesRegex(InputError, message):
        relative_pose.relative_pose(*pairs, *lenses)

  def test_a_matrix_is_no_lens(self):
    with self.assertRaisesRegex(InputError, 'must be a Lens'):
      absolute_pose.absolute_pose(*CASES['absolute_pose'].data, _MATRIX)


class FrameTest(absltest.TestCase):
  def test_it_is_about_the_middle_with_the_spread_as_unit(self):
    points = np.random.default_rng(0).uniform(-1, 1, (1000, 2)) * 50 + [7, 9]
    usable = inputs.Usable(np.ones(1000, bool))
    frame = inputs.frame(points, usable)
    np.testing.assert_allclose(frame.center, [7, 9], atol=5)
    self.assertBetween(frame.unit / points.std(), 0.8, 1.2)
    inside = frame.inside(points)
    mapped = np.insert(points, 2, 1.0, axis=1) @ frame.matrix().T
    np.testing.assert_allclose(mapped[:, :2], inside, atol=1e-12)

  def test_it_is_sound_where_points_coincide(self):
    usable = inputs.Usable(np.ones(10, bool))
    same = np.ones((10, 2))
    self.assertEqual(inputs.frame(same, usable).unit, 1.2)
    same[0] = 3.0
    self.assertAlmostEqual(inputs.frame(same, usable).unit, 2.4)
    self.assertEqual(
      inputs.frame(same[:0], inputs.Usable(np.ones(0, bool))).unit, 1.0
    )


if __name__ == '__main__':
  absltest.main()
