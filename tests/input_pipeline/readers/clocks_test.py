# SPDX-License-Identifier: Apache-2.0
"""Tests of clocks: units told by their size, order, doubles, offsets."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from input_pipeline.readers import clocks

_SECONDS = 1.6e9 + 0.1 * np.arange(50)


class SecondsTest(parameterized.TestCase):
  @parameterized.parameters(*clocks.UNITS.values())
  def test_times_since_1970_tell_their_unit(self, factor):
    found = clocks.seconds(_SECONDS * factor, 'times.txt')
    np.testing.assert_allclose(found, _SECONDS, rtol=0, atol=1e-6)

  def test_seconds_since_any_time_stay(self):
    for times in (
      0.1 * np.arange(50),
      np.arange(50.0),  # a frame a second
      2.5 * np.arange(50),
      np.array([7.0]),
      np.array([np.nan, 3.0, np.nan]),
      np.full(3, np.nan),
    ):
      np.testing.assert_array_equal(clocks.seconds(times, 'times.txt'), times)

  @parameterized.parameters(
    (1e3, 'milliseconds, divide by 1000'),
    (1e6, 'microseconds, divide by 1e.06'),
    (1e9, 'nanoseconds, divide by 1e.09'),
  )
  def test_others_are_refused_by_their_rate(self, factor, message):
    for step in (0.1, 0.033):
      with self.assertRaisesRegex(
        ValueError, f'times.txt: .* expected seconds; if they are {message}'
      ):
        clocks.seconds(step * factor * np.arange(50), 'times.txt')

  def test_two_units_in_one_file(self):
    times = np.concatenate([_SECONDS, _SECONDS * 1e9])
    with self.assertRaisesRegex(
      ValueError, 'are nanoseconds and seconds since'
    ):
      clocks.seconds(times, 'times.txt')


class OrderTest(parameterized.TestCase):
  def test_times_in_order_pass(self):
    clocks.check_order(np.array([0, np.nan, 1, 1, 2]), 'times.txt')
    clocks.check_order(np.zeros(0), 'times.txt')

  def test_the_line_is_named(self):
    times = np.array([0, 1, np.nan, 0.5, 2, 1.5])
    message = r'times.txt, line 4: the time 0.500000 .*\(1.000000\), as 2 in'
    with self.assertRaisesRegex(ValueError, message):
      clocks.check_order(times, 'times.txt')
    with self.assertRaisesRegex(ValueError, 'line 9: the time 0.5'):
      clocks.check_order(times, 'times.txt', [1, 2, 3, 9, 10, 11])

  def test_doubled_times_are_counted(self):
    times = np.array([0, np.nan, 0, 1, 2, 2.0] + list(range(3, 30)))
    with self.assertLogs(level='WARNING') as logs:
      again = clocks.doubled(times, 'times.txt', 'interpolated')
    self.assertEqual(np.flatnonzero(again).tolist(), [2, 5])
    self.assertIn('2 times occur twice (first: 0.000000); int', logs.output[0])

  def test_rounded_times_are_refused(self):
    with self.assertRaisesRegex(ValueError, '45 of 50 times occur twice'):
      clocks.doubled(np.floor(0.1 * np.arange(50)), 'times.txt', '')


class SameTest(parameterized.TestCase):
  def test_sensors_of_one_clock(self):
    first = {i: 0.1 * i for i in range(9)}
    clocks.check_same(first, {i: 0.1 * i + 0.05 for i in range(9)}, ('a', 'b'))
    clocks.check_same(first, {100: 1e9}, ('a', 'b'))  # nothing in common
    clocks.check_same({}, {}, ('a', 'b'))

  @parameterized.parameters(
    (7200, r'7200.000 s apart \(2 hours: time zones'),
    (-18, r'-18.000 s apart \(GPS and UTC'),
    (1.6e9 + 0.123, r'1600000000.123 s apart\. Give'),
  )
  def test_sensors_of_two_clocks(self, offset, message):
    first = {i: 0.1 * i for i in range(9)}
    second = {i: 0.1 * i + offset for i in range(9)}
    with self.assertRaisesRegex(ValueError, f'a and b: .*{message}'):
      clocks.check_same(first, second, ('a', 'b'))

  def test_spans(self):
    text = clocks.spans(np.array([1.0, 2]), np.array([3601.0, 3602]))
    self.assertEqual(
      text, '1.000 to 2.000 s and 3601.000 to 3602.000 s (1 hours: time zones?)'
    )


if __name__ == '__main__':
  absltest.main()
