# SPDX-License-Identifier: Apache-2.0
"""Tests of trajectories: one drive in every wrong unit, and what must pass."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import trajectories
from i2ploc.geometry import utm
from tests import shared

TIMES = 0.1 * np.arange(400)


def drive(rng=None):
  """Positions [400, 3] and headings of a car: 10 m/s, round two corners."""
  heading = 1.5 * np.tanh(TIMES - 15) + 1.2 * np.tanh(TIMES - 30)
  step = np.stack([np.cos(heading), np.sin(heading), 0 * heading], 1)
  position = np.cumsum(step, axis=0)
  position[:, 2] = 0.02 * position[:, 0]
  if rng is not None:
    position += rng.normal(scale=0.02, size=position.shape)
  return position, heading


def turned(axis, angle):
  """Rotations [N] about a coordinate axis."""
  return transform.Rotation.from_rotvec(
    np.outer(angle, np.eye(3)['xyz'.index(axis)])
  )


def degrees(position):
  """Longitude and latitude about Karlsruhe."""
  east, north = utm.utm_from_degrees(np.array([49.0]), np.array([8.4]), 32)
  x, y = east[0] + position[:, 0], north[0] + position[:, 1]
  latitude, longitude = utm.degrees_from_utm(x, y, 32)
  return np.stack([longitude, latitude, 110 + position[:, 2]], 1)


def ecef(position):
  """Metres from the middle of the Earth, about Karlsruhe."""
  turn = transform.Rotation.from_euler('zy', [8.4, 41.0], degrees=True)
  return turn.apply(position + [0, 0, 6.366e6])


class Case(parameterized.TestCase):
  def refuse(self, message, check, *args):
    with self.assertRaisesRegex(ValueError, f'^poses.txt: .*{message}') as got:
      check(*args[:-1], 'poses.txt', *args[-1])
    self.assertNotIn('\n', str(got.exception))


class PlacesTest(Case):
  def test_metres_pass(self):
    position, _ = drive()
    for offset in ([0, 0, 0], [455000, 5427000, 110], [0.4e6, 6.35e6, 30]):
      trajectories.check_places(position + offset, 'poses.txt')
      trajectories.check_speed(position + offset, TIMES, 'poses.txt')
    trajectories.check_places(np.full((3, 3), np.nan), 'poses.txt')
    trajectories.check_places(np.zeros((0, 3)), 'poses.txt')
    # A hand-held camera in the corner of a room, and one that stands.
    small = [8, 3, 1] + 0.03 * np.sin(np.outer(TIMES, [1, 2, 3]))
    trajectories.check_places(small, 'poses.txt')
    trajectories.check_speed(small, TIMES, 'poses.txt')
    trajectories.check_speed(small[:1].repeat(400, 0), TIMES, 'poses.txt')
    trajectories.check_speed(small, None, 'poses.txt')

  def test_degrees(self):
    position = degrees(drive()[0])
    message = 'x from 8.39.* and y from 48.9.* look like degrees'
    self.refuse(message, trajectories.check_places, position, ())
    flat = position * [1, 1, 0]
    trajectories.check_places(flat, 'poses.txt')  # nothing that tells
    for times in (TIMES, None):
      with self.assertRaisesRegex(ValueError, message):
        trajectories.check_speed(flat, times, 'poses.txt')

  def test_the_middle_of_the_earth(self):
    position = ecef(drive()[0])
    self.refuse('636[0-9] km .*ECEF', trajectories.check_places, position, ())

  def test_32_bits(self):
    position = drive()[0] + [455000.1, 5427000.2, 110]
    rounded = position.astype(np.float32).astype(np.float64)
    self.refuse('rounded to 0.5 m', trajectories.check_places, rounded, ())
    trajectories.check_places(np.round(position), 'poses.txt')
    trajectories.check_places(drive()[0].astype(np.float32), 'poses.txt')


class SpeedTest(Case):
  def test_millimetres(self):
    position = 1000 * drive()[0]
    for times, message in (
      (TIMES, 'move by 100[0-9][0-9] a second, .* 100 at most. Divide milli'),
      (None, 'move by 100[0-9] a frame, .* 200 at most. Divide milli'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        trajectories.check_speed(position, times, 'poses.txt')
    slow = 0.03 * position  # a walk, as people hold cameras
    with self.assertRaisesRegex(ValueError, 'Divide millimetres'):
      trajectories.check_speed(slow, TIMES, 'poses.txt')

  def test_jumps_of_a_few_and_standing_pass(self):
    position, _ = drive()
    position[200:] += 300  # GPS
    position[300:] = position[300]
    trajectories.check_speed(position, TIMES, 'poses.txt')
    trajectories.check_speed(position[:1], TIMES[:1], 'poses.txt')


class HeadingTest(Case):
  def setUp(self):
    super().setUp()
    self.position, self.heading = drive(np.random.default_rng(0))

  def check(self, heading):
    trajectories.check_heading(self.position, heading, 'poses.txt')

  def test_a_car_looks_where_it_drives(self):
    self.check(self.heading)
    self.check(self.heading + 2)  # a sensor that is mounted so
    trajectories.check_heading(np.zeros((50, 3)), np.arange(50), 'poses.txt')

  def test_degrees_and_mirrored_headings(self):
    for heading in (np.degrees(self.heading), -self.heading):
      with self.assertRaisesRegex(ValueError, 'headings do not follow'):
        self.check(heading)

  def test_inverse_poses(self):
    poses = np.tile(np.eye(4), (400, 1, 1))
    turn = turned('z', self.heading)
    poses[:, :3, :3], poses[:, :3, 3] = turn.as_matrix(), self.position
    other = np.linalg.inv(poses)
    with self.assertRaisesRegex(ValueError, 'body_from_world'):
      trajectories.check_heading(
        other[:, :3, 3],
        np.arctan2(other[:, 1, 0], other[:, 0, 0]),
        'poses.txt',
      )

  def test_real_drives_are_steady(self):
    folder = shared.require('data/kitti_odometry/poses')
    axes = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0.0]])
    for path in sorted(folder.glob('*.txt')):
      rows = np.loadtxt(path).reshape(-1, 3, 4)
      position = rows[:, :, 3] @ axes
      turn = axes.T @ rows[:, :, :3] @ axes
      heading = np.arctan2(turn[:, 1, 0], turn[:, 0, 0])
      trajectories.check_heading(position, heading, str(path))

  def test_compasses_in_radians(self):
    compass = np.pi / 2 - self.heading
    for angle, clockwise in ((compass, True), (self.heading, False)):
      angle = np.angle(np.exp(1j * angle))
      check = trajectories.check_degrees
      check(self.position, np.degrees(angle), 'p.csv', clockwise)
      check(self.position, np.full(400, np.nan), 'p.csv', clockwise)
      with self.assertRaisesRegex(ValueError, 'p.csv: .*as radians'):
        check(self.position, angle, 'p.csv', clockwise)
      with self.assertRaisesRegex(ValueError, 'p.csv: .*as radians'):
        check(self.position, angle + 1, 'p.csv', clockwise)  # to the side


class QuaternionsTest(Case):
  def check(self, position, quaternion):
    trajectories.check_quaternions(position, quaternion, 'poses.txt', 'Do.')

  def test_a_car(self):
    position, heading = drive()
    turn = turned('z', heading + 0.3).as_quat()
    self.check(position, turn)
    with self.assertRaisesRegex(ValueError, r'it stays \(1.00, .*\). Do.$'):
      self.check(position, turn[:, [3, 0, 1, 2]])

  @parameterized.parameters('y', 'z')
  def test_a_world_with_another_axis_up_is_left_as_it_is(self, axis):
    position, heading = drive()
    if axis == 'y':
      position = position[:, [1, 2, 0]]
    self.check(position, turned(axis, heading).as_quat())

  def test_recordings_by_hand(self):
    told = []
    for path in sorted(
      shared.require('data/tum_rgbd').glob('*/groundtruth.txt')
    ):
      rows = np.loadtxt(path)
      position, turn = rows[:, 1:4], rows[:, 4:]
      self.check(position, turn)
      try:
        self.check(position, turn[:, [3, 0, 1, 2]])
      except ValueError:
        told.append(path.parent.name.split('_')[2])
    # The camera of the other one is hardly turned, which tells nothing.
    self.assertEqual(told, ['freiburg2', 'freiburg3'])


if __name__ == '__main__':
  absltest.main()
