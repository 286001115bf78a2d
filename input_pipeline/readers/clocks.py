# SPDX-License-Identifier: Apache-2.0
"""Times of readings: in seconds, in order, and of one clock.

Times since 1970 tell their unit by their size: seconds of the years 1979 to
2103, thousands of them, millions, billions. Others do not, and are refused
where no sensor is as slow as they say.
"""

from collections.abc import Mapping
from collections.abc import Sequence

from absl import logging
import numpy as np

from i2ploc.errors import InputError

UNITS = {
  'seconds': 1.0,
  'milliseconds': 1e3,
  'microseconds': 1e6,
  'nanoseconds': 1e9,
}
_SINCE_1970 = 3e8, 4.2e9  # seconds
# Seconds from one time to the next that nobody records with: whole numbers are
# counts of a smaller unit.
_SLOWEST, _SLOWEST_WHOLE = 60.0, 5.0
# Of times that stand twice: more than a few are rounded.
_MOST_DOUBLED = 0.1
# Sensors of one frame are triggered within one turn of a LiDAR, seconds.
_TOGETHER = 1.0


def seconds(times: np.ndarray, source: str) -> np.ndarray:
  """Times in seconds.

  Args:
    times: [N] since 1970 in any of UNITS, or seconds since any time; NaN is
      unknown.
    source: where they are from, for messages.

  Returns:
    [N] float64; what was no seconds is logged.

  Raises:
    InputError: times of several units, or no seconds and no other unit by
      their size.
  """
  times = np.asarray(times, np.float64)
  known = times[np.isfinite(times)]
  if not len(known):
    return times
  low, high = _SINCE_1970
  units = {
    name
    for name, factor in UNITS.items()
    if ((known >= low * factor) & (known <= high * factor)).any()
  }
  if len(units) > 1:
    raise InputError(
      f'{source}: times from {known.min():g} to {known.max():g} are '
      f'{" and ".join(sorted(units))} since 1970; write all in seconds.'
    )
  if not units or units == {'seconds'}:
    _check_rate(known, source)
    return times
  (unit,) = units
  logging.info('%s: times in %s since 1970, read as such.', source, unit)
  return times / UNITS[unit]


def _check_rate(known: np.ndarray, source: str) -> None:
  """Refuses times that are no seconds, as nothing is recorded so slowly."""
  steps = np.diff(known)
  steps = steps[steps > 0]
  step = float(np.median(steps)) if len(steps) else 0.0
  whole = (known == np.round(known)).all()
  if step >= (_SLOWEST_WHOLE if whole else _SLOWEST):
    *_, unit = (u for u in UNITS if u == 'seconds' or step >= UNITS[u] / 1e3)
    raise InputError(
      f'{source}: {step:g} from one time to the next, expected seconds; if '
      f'they are {unit}, divide by {max(UNITS[unit], 1e3):g}.'
    )


def check_order(
  times: np.ndarray, source: str, lines: Sequence[int] = ()
) -> None:
  """Raises InputError for a time before the last one.

  Args:
    times: [N] seconds; NaN is unknown.
    source: where they are from, for the message.
    lines: [N] of the file; () for 1 and on.
  """
  known = np.flatnonzero(np.isfinite(times))
  bad = np.flatnonzero(np.diff(times[known]) < 0)
  if len(bad):
    row, before = known[bad[0] + 1], known[bad[0]]
    line = lines[row] if len(lines) else row + 1
    raise InputError(
      f'{source}, line {line}: the time {times[row]:.6f} comes before that of '
      f'the line above ({times[before]:.6f}), as {len(bad)} in all do. Sort '
      'the lines, or take recordings apart.'
    )


def doubled(times: np.ndarray, source: str, remedy: str) -> np.ndarray:
  """Which times stand there already; they are counted.

  Args:
    times: [N] seconds, in order; NaN is unknown.
    source: where they are from, for messages.
    remedy: what is done about a few, for the log.

  Returns:
    [N] bool.

  Raises:
    InputError: so many that times are rounded.
  """
  again = np.zeros(len(times), bool)
  known = np.flatnonzero(np.isfinite(times))
  again[known[1:]] = np.diff(times[known]) == 0
  if again.sum() > max(1, _MOST_DOUBLED * len(known)):
    raise InputError(
      f'{source}: {again.sum()} of {len(known)} times occur twice (first: '
      f'{times[again][0]:.6f}); write them with more digits.'
    )
  if again.any():
    logging.warning(
      '%s: %d times occur twice (first: %.6f); %s.',
      source, again.sum(), times[again][0], remedy,
    )  # fmt: skip
  return again


def check_same(
  first: Mapping[int, float],
  second: Mapping[int, float],
  names: tuple[str, str],
) -> None:
  """Raises InputError if two sensors of one frame have other clocks.

  Args:
    first: seconds by frame number.
    second: of another sensor.
    names: of both files, for the message.
  """
  both = sorted(first.keys() & second.keys())
  if not both:
    return
  apart = np.median([second[i] - first[i] for i in both])
  if abs(apart) > _TOGETHER:
    raise InputError(
      f'{names[0]} and {names[1]}: the same frames are {apart:.3f} s apart'
      f'{_hint(float(apart))}. Give both the times of one clock.'
    )


def spans(times: np.ndarray, others: np.ndarray) -> str:
  """How times of two files miss each other, for messages.

  Args:
    times: [N] seconds, in order.
    others: [M] seconds, in order.

  Returns:
    Both spans, and what clocks differ by so.
  """
  offset = float(others[0] - times[0])
  return (
    f'{times[0]:.3f} to {times[-1]:.3f} s and {others[0]:.3f} to '
    f'{others[-1]:.3f} s{_hint(offset)}'
  )


def _hint(offset: float) -> str:
  """Why clocks may be so many seconds apart."""
  hours = offset / 3600
  if abs(offset) > 1800 and abs(hours - np.round(hours)) < 2 / 3600:
    return f' ({np.round(hours):g} hours: time zones?)'
  if abs(abs(offset) - 18) < 1:
    return ' (GPS and UTC?)'
  return ''
