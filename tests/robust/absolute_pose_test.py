# SPDX-License-Identifier: Apache-2.0
"""Pose from numpy arrays, as users call it."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import panorama
from i2ploc.robust import absolute_pose
from i2ploc.robust import search
from tests.robust import planted
from tests.testing import programs as programs_lib

SIZE = (480, 640)
K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
PINHOLE = lens_lib.Lens('pinhole', K)
SPHERE = lens_lib.Lens(
  'equirectangular', np.float64(panorama.sphere_intrinsics((512, 1024)))
)
FISHEYE = lens_lib.Lens(
  'fisheye',
  np.array([[200.0, 0, 512], [0, 200, 256], [0, 0, 1]]),
  np.array([0.01, 0, 0, 0]),
)
FAR = np.array([5e5, 5.4e6, 100.0])  # such as UTM coordinates


def _scene(lens, num_data=200, outliers=0.5, seed=0, noise=0.5, offset=0.0):
  """Points, pixels, the true motion and which are inliers."""
  rng = np.random.default_rng(seed)
  height, width = SIZE if lens is PINHOLE else (512, 1024)
  pixels = rng.uniform(0, 1, (num_data, 2)) * [width, height]
  rays, _ = lens_lib.rays_from_pixels(lens, pixels)
  rotation = planted.random_rotation(rng)
  center = rng.normal(size=3) + offset
  points = rays * rng.uniform(2, 10, (num_data, 1)) @ rotation + center
  inliers = rng.permutation(num_data) >= round(outliers * num_data)
  pixels += rng.normal(size=pixels.shape) * noise
  wrong = rng.uniform(0, 1, pixels.shape) * [width, height]
  pixels = np.where(inliers[:, None], pixels, wrong)
  return points, pixels, rotation, center, inliers


class AbsolutePoseTest(parameterized.TestCase):
  def _assert_near(self, found, rotation, center, metres, degrees):
    self.assertTrue(found.valid, found.reason)
    turn = found.camera_from_map.rotation @ rotation.T
    angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    self.assertLess(angle, degrees)
    error = np.linalg.norm(found.camera_in_map - center)
    self.assertLess(error, metres)

  @parameterized.parameters((PINHOLE,), (SPHERE,), (FISHEYE,))
  def test_finds_the_pose(self, lens):
    points, pixels, rotation, center, inliers = _scene(lens)
    found = absolute_pose.absolute_pose(points, pixels, lens)
    self._assert_near(found, rotation, center, 0.05, 0.5)
    self.assertGreater((found.inliers == inliers).mean(), 0.97)
    self.assertEqual(found.num_inliers, found.inliers.sum())

  def test_far_from_the_origin(self):
    points, pixels, rotation, center, _ = _scene(PINHOLE, offset=FAR)
    found = absolute_pose.absolute_pose(points, pixels, PINHOLE)
    self._assert_near(found, rotation, center, 0.05, 0.5)

  def test_without_noise_it_is_exact(self):
    """What float32 alone would not be."""
    points, pixels, rotation, center, _ = _scene(PINHOLE, noise=0.0)
    found = absolute_pose.absolute_pose(points, pixels, PINHOLE)
    self._assert_near(found, rotation, center, 1e-8, 2e-6)

  def test_scores_save_draws(self):
    points, pixels, rotation, center, inliers = _scene(PINHOLE, 200, 0.85, 3)
    scores = inliers + np.random.default_rng(0).normal(size=200) * 0.5
    shuffle = np.random.default_rng(1).permutation(200)
    plain = absolute_pose.absolute_pose(points, pixels, PINHOLE)
    led = absolute_pose.absolute_pose(
      points[shuffle], pixels[shuffle], PINHOLE, scores=scores[shuffle]
    )
    self._assert_near(led, rotation, center, 0.1, 1)
    self.assertLess(led.num_draws, plain.num_draws)
    self.assertGreater((led.inliers == inliers[shuffle]).mean(), 0.97)

  def test_covariance_tells_the_error(self):
    """Normalised squared errors average to the degrees of freedom."""
    total = []
    for seed in range(20):
      points, pixels, rotation, center, _ = _scene(PINHOLE, 200, 0.0, seed)
      found = absolute_pose.absolute_pose(points, pixels, PINHOLE, 5.0)
      turn = rotation @ found.camera_from_map.rotation.T
      skew = turn - turn.T
      vector = np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
      shift = -rotation @ center - turn @ found.camera_from_map.translation
      error = np.concatenate([vector / 2, shift])
      total.append(error @ np.linalg.solve(found.covariance, error))
    self.assertBetween(np.mean(total), 4, 9)

  def test_few_points_are_enumerated(self):
    points, pixels, rotation, center, _ = _scene(PINHOLE, 12, 0.25, 1, 0.1)
    found = absolute_pose.absolute_pose(points, pixels, PINHOLE)
    self._assert_near(found, rotation, center, 0.1, 1)
    self.assertGreaterEqual(found.num_draws, 220)

  def test_same_seed_same_answer(self):
    points, pixels, *_ = _scene(PINHOLE, 200, 0.7, 2)
    first, again, other = (
      absolute_pose.absolute_pose(
        points, pixels, PINHOLE, search=search.Search(seed=seed)
      )
      for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.covariance, again.covariance)
    self.assertTrue(other.valid)

  @parameterized.parameters(0, 2, 3)
  def test_too_few(self, num_data):
    points, pixels, *_ = _scene(PINHOLE, 10, 0.0)
    found = absolute_pose.absolute_pose(
      points[:num_data], pixels[:num_data], PINHOLE
    )
    self.assertFalse(found.valid)
    self.assertIn(f'{num_data} data, but more than 3', found.reason)
    self.assertTrue(np.isinf(found.covariance).all())

  def test_points_on_a_line_have_no_pose(self):
    points, pixels, *_ = _scene(PINHOLE, 200)
    points = np.outer(np.linspace(0, 5, 200), [1.0, 2.0, 3.0])
    found = absolute_pose.absolute_pose(points, pixels, PINHOLE)
    self.assertFalse(found.valid)
    self.assertIn('no sample', found.reason)

  def test_inliers_on_a_line_leave_the_pose_open(self):
    """Beside wrong data, from which some sample gives a pose."""
    points, pixels, rotation, center, _ = _scene(PINHOLE, 200, 0.0)
    line = np.outer(np.linspace(-2, 2, 200), [1.0, 0.3, 0.1]) + [0, 0, 6]
    points[:120] = line[:120] @ rotation + center
    pixels[:120] = 500 * line[:120, :2] / line[:120, 2:] + [320, 240]
    points[120:] = points[np.random.default_rng(0).permutation(80) + 120]
    found = absolute_pose.absolute_pose(points, pixels, PINHOLE)
    self.assertFalse(found.valid)
    self.assertRegex(found.reason, 'undetermined')

  def test_an_arc_of_a_circle_below_the_camera_leaves_the_pose_open(self):
    """The dangerous cylinder: to first order a motion hardly shows."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(-0.6, 0.6, 100)
    # The camera is above the circle's rim.
    sine, cosine = np.sin(angle), np.cos(angle)
    circle = np.stack([4 * sine, 0 * angle + 1.5, 4 + 4 * cosine], axis=-1)
    pixels = 500 * circle[:, :2] / circle[:, 2:] + [320, 240]
    noise = 0.5 * rng.normal(size=pixels.shape)
    for spoilt in (pixels, pixels + noise):
      found = absolute_pose.absolute_pose(circle, spoilt, PINHOLE)
      self.assertFalse(found.valid)
      self.assertIn('leave the pose undetermined', found.reason)
    off = circle * rng.uniform(0.7, 1.0, (100, 1))
    found = absolute_pose.absolute_pose(off, pixels, PINHOLE)
    self._assert_near(found, np.eye(3), np.zeros(3), 1e-3, 1e-2)

  def test_copies_of_few_points_are_no_evidence(self):
    for seed in range(5):
      points, pixels, *_ = _scene(PINHOLE, 3, 0.0, seed)
      rng = np.random.default_rng(seed)
      copies = np.repeat(pixels, 10, axis=0)
      for noise in (0.0, 0.3):
        found = absolute_pose.absolute_pose(
          np.repeat(points, 10, axis=0),
          copies + noise * rng.normal(size=copies.shape),
          PINHOLE,
        )
        self.assertFalse(found.valid)
        self.assertGreater(found.num_inliers, 20)
        self.assertIn('3 of 3 distinct data agree', found.reason)
        self.assertEqual(found.confidence, 0.0)

  def test_random_correspondences_are_rejected(self):
    for seed in range(5):
      points, pixels, *_ = _scene(PINHOLE, 100, 1.0, seed)
      found = absolute_pose.absolute_pose(points, pixels, PINHOLE)
      self.assertFalse(found.valid)
      self.assertIsNotNone(found.model)
      self.assertIsNone(found.camera_from_map)

  def test_a_rival_is_told(self):
    """Half of a building looks like the other half, turned around."""
    points, pixels, rotation, center, _ = _scene(PINHOLE, 150, 0.0, noise=0.3)
    turned = (points[90:] - [9, 0, 0]) * [-1, -1, 1]
    found = absolute_pose.absolute_pose(
      np.concatenate([points[:90], turned]), pixels, PINHOLE
    )
    self._assert_near(found, rotation, center, 0.05, 0.5)
    self.assertAlmostEqual(found.rival.num_inliers, 60, delta=6)
    self.assertBetween(found.confidence, 0.5, 0.7)
    place = -found.rival.model.rotation.T @ found.rival.model.translation
    np.testing.assert_allclose(
      place, (center - [9, 0, 0]) * [-1, -1, 1], atol=0.05
    )
    alone = absolute_pose.absolute_pose(points, pixels, PINHOLE)
    self.assertIsNone(alone.rival)
    self.assertGreater(alone.confidence, 0.99)

  def test_pixels_beyond_the_lens_are_outliers(self):
    lens = lens_lib.Lens('opencv', K, np.array([-0.25, 0.0, 0.0, 0.0]))
    points, pixels, rotation, center, inliers = _scene(PINHOLE, 200, 0.2)
    plane = (pixels - K[:2, 2]) / 500
    square = (plane**2).sum(-1, keepdims=True)
    pixels = plane * (1 - 0.25 * square) * 500 + K[:2, 2]
    pixels[np.flatnonzero(~inliers)[:5]] = [5000, 240]
    found = absolute_pose.absolute_pose(points, pixels, lens)
    self._assert_near(found, rotation, center, 0.1, 1)
    self.assertFalse(found.inliers[~inliers][:5].any())

  def test_bad_input(self):
    points, pixels, *_ = _scene(PINHOLE, 20)
    spoiled = points.copy()
    spoiled[7, 1] = np.nan
    for arguments, message in (
      ((points[:, :2], pixels, PINHOLE), r'points must be \[N, 3\]'),
      ((points[:9], pixels, PINHOLE), 'must be as many'),
      ((spoiled, pixels, PINHOLE), 'not finite, first row 7'),
      ((points, pixels, PINHOLE, -1.0), 'threshold must be positive'),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        absolute_pose.absolute_pose(*arguments)
    with self.assertRaisesRegex(ValueError, 'unknown sampler'):
      absolute_pose.absolute_pose(
        points, pixels, PINHOLE, search=search.Search('magic')
      )
    with self.assertRaisesRegex(ValueError, 'beside 20 data'):
      absolute_pose.absolute_pose(points, pixels, PINHOLE, scores=np.ones(3))


class ProgramsTest(absltest.TestCase):
  def test_one_program_serves_any_number_of_data_and_any_sampler(self):
    points, pixels, *_ = _scene(PINHOLE, 200)
    absolute_pose.absolute_pose(points, pixels, PINHOLE)
    programs = programs_lib.of_this_process()
    before = programs.count
    scores = np.arange(200.0)
    for count in (197, 100, 30, 12, 4):
      some = points[:count], pixels[:count]
      absolute_pose.absolute_pose(*some, PINHOLE, 2.0)
      absolute_pose.absolute_pose(*some, PINHOLE, scores=scores[:count])
    self.assertEqual(programs.count, before)

  def test_few_capacities(self):
    sizes = {search.capacity(n) for n in range(1, 250_000, 50)}
    self.assertLessEqual(len(sizes), 4)
    self.assertTrue(all(search.capacity(n) == n for n in sizes))


if __name__ == '__main__':
  absltest.main()
