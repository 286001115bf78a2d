# SPDX-License-Identifier: Apache-2.0
"""Un-curling: a simulated sweep of a moving LiDAR comes back straight."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import scipy.linalg

from input_pipeline.readers import kitti360_sweeps

_PERIOD = 0.1  # seconds


def _generator(turn, shift):
  matrix = np.zeros((4, 4))
  x, y, z = turn
  matrix[:3, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
  matrix[:3, 3] = shift
  return matrix


_START = scipy.linalg.expm(_generator((0.02, -0.03, 0.7), (3600, 1700, 115)))


def _pose_at(time, speed, braking, turn_rate):
  """world_from_lidar of a car that brakes in a bend, on a hill."""
  forward = speed * time - braking * time**2 / 2
  step = _generator(
    (0.02 * turn_rate * time, 0, turn_rate * time), (forward, 0, 0.05 * forward)
  )
  return _START @ scipy.linalg.expm(step)


def _simulate(pose_at, clockwise=True, seed=0):
  """World points, and a sweep of them by a LiDAR that moves while it turns.

  The sweep is behind the car half a period before and after time 0, when it
  looks ahead. The time at which a point is hit depends on its azimuth from
  where the LiDAR is then: solved by iteration.
  """
  rng = np.random.default_rng(seed)
  local = np.column_stack(
    [rng.uniform(-40, 40, (150, 2)), rng.uniform(-2, 8, 150), np.ones(150)]
  )
  local = local[np.hypot(local[:, 0], local[:, 1]) > 4]
  world = local @ pose_at(0.0).T
  times = np.zeros(len(world))
  for _ in range(6):
    measured = np.stack(
      [
        np.linalg.solve(pose_at(t), p)
        for t, p in zip(times, world, strict=True)
      ]
    )
    azimuth = np.arctan2(measured[:, 1], measured[:, 0])
    wanted = azimuth * (-1 if clockwise else 1) / (2 * np.pi) * _PERIOD
    times = wanted
  # Straight behind a point is hit in both halves or in neither.
  clear = np.abs(np.abs(azimuth) - np.pi) > 0.05
  points = np.column_stack([measured[:, :3], rng.uniform(0, 1, len(world))])
  return local[clear, :3], points[clear].astype(np.float32)


def _motion(pose_at, frames=(-1, 0, 1)):
  poses = {10 + i: pose_at(i * _PERIOD) for i in frames}
  return kitti360_sweeps.motion_at(poses, 10)


class UncurlTest(parameterized.TestCase):
  @parameterized.parameters(
    (10.0, 0.0, 0.0),  # 36 km/h straight ahead
    (8.0, 0.0, 0.5),  # a bend
    (14.0, 5.0, -0.4),  # braking hard in a bend
    (30.0, 0.0, 0.05),  # highway
    (0.0, 0.0, 0.0),
  )
  def test_a_sweep_of_a_moving_lidar_is_restored(
    self, speed, braking, turn_rate
  ):
    def pose_at(time):
      return _pose_at(time, speed, braking, turn_rate)

    expected, measured = _simulate(pose_at)
    restored = kitti360_sweeps.uncurl(measured, _motion(pose_at))
    error = np.linalg.norm(restored[:, :3] - expected, axis=1)
    self.assertLess(error.max(), 0.01)
    np.testing.assert_array_equal(restored[:, 3], measured[:, 3])
    if speed:
      raw = np.linalg.norm(measured[:, :3] - expected, axis=1)
      self.assertGreater(raw.max(), 0.2)
      # The sweep run the other way is what a wrong sign would assume.
      _, other = _simulate(pose_at, clockwise=False)
      wrong = kitti360_sweeps.uncurl(other, _motion(pose_at))
      self.assertGreater(np.abs(wrong[:, :3] - expected).max(), 0.2)

  def test_the_left_is_moved_back_and_the_right_forward(self):
    # 1 m per period: at a quarter turn the car is a quarter of a metre away.
    def pose_at(time):
      return _pose_at(time, 10.0, 0.0, 0.0)

    points = np.array(
      [[9.0, 0, 0, 0], [0, 9, 0, 0], [0, -9, 0, 0], [-9, 1e-6, 0, 0]], 'f4'
    )
    moved = kitti360_sweeps.uncurl(points, _motion(pose_at))
    np.testing.assert_allclose(moved[:, 0], [9, -0.25, 0.25, -9.5], atol=1e-4)

  def test_only_one_neighbour_means_a_uniform_motion(self):
    def pose_at(time):
      return _pose_at(time, 10.0, 0.0, 0.3)

    expected, measured = _simulate(pose_at)
    # A frame left out: two periods in one step.
    for frames in ((-1, 0), (0, 1), (-2, 0), (-3, 0, 1)):
      restored = kitti360_sweeps.uncurl(measured, _motion(pose_at, frames))
      error = np.linalg.norm(restored[:, :3] - expected, axis=1)
      self.assertLess(error.max(), 0.01, frames)

  def test_without_a_neighbour_near_the_car_stands(self):
    _, measured = _simulate(lambda time: _pose_at(time, 10.0, 0.0, 0.3))
    for frames in ((0,), (-6, 0, 6)):
      motion = _motion(lambda time: _pose_at(time, 10.0, 0.0, 0.3), frames)
      np.testing.assert_array_equal(
        kitti360_sweeps.uncurl(measured, motion), measured
      )


class ScrewTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 1e-12, 1e-7, 1e-3, 0.4, 3.0)
  def test_the_logarithm_inverts_the_exponential(self, angle):
    rng = np.random.default_rng(1)
    axis = rng.normal(size=3)
    turn = angle * axis / np.linalg.norm(axis)
    shift = rng.normal(size=3)
    found = kitti360_sweeps.screw_from_matrix(
      scipy.linalg.expm(_generator(turn, shift))
    )
    np.testing.assert_allclose(found.turn, turn, atol=1e-8)
    np.testing.assert_allclose(found.shift, shift, atol=1e-7)

  @parameterized.parameters(0.0, 1e-7, 0.05, 1.5)
  def test_a_share_of_a_screw_is_the_matrix_exponential(self, angle):
    rng = np.random.default_rng(2)
    turn, shift = angle * np.array([0.6, 0, 0.8]), np.array([1.0, -2.0, 0.5])
    share = rng.uniform(-0.5, 0.5, 20).astype(np.float32)
    points = rng.uniform(-80, 80, (20, 3)).astype(np.float32)
    found = kitti360_sweeps.move(
      kitti360_sweeps.Screw(turn, shift), share, points
    )
    for s, point, moved in zip(share, points, found, strict=True):
      exact = scipy.linalg.expm(s * _generator(turn, shift))
      expected = exact @ np.append(point, 1)
      np.testing.assert_allclose(moved, expected[:3], atol=1e-4)


if __name__ == '__main__':
  absltest.main()
