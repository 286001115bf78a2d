# SPDX-License-Identifier: Apache-2.0
"""Light and air of a drive, drawn from its named condition.

A condition without odds comes about only where somebody asks for it.
"""

import numpy as np

from i2ploc.errors import InputError
from input_pipeline.synthetic_city import primitives

# Per condition: probability; sun elevation (degrees, range); sun, sky and
# horizon radiance; fog density (1/m, range); camera gain.
_CONDITIONS = {
  'clear_morning': (0.14, (12, 28), (1.25, 0.98, 0.70), (0.34, 0.44, 0.62),
                    (0.80, 0.75, 0.66), (2e-4, 1.5e-3), 1.1),
  'clear_noon': (0.18, (42, 62), (1.50, 1.42, 1.28), (0.25, 0.42, 0.75),
                 (0.55, 0.66, 0.80), (1e-4, 4e-4), 1.05),
  'evening': (0.12, (5, 14), (1.15, 0.70, 0.38), (0.26, 0.30, 0.46),
              (0.88, 0.60, 0.42), (2e-4, 1e-3), 1.2),
  'overcast': (0.18, (25, 50), (0.0, 0.0, 0.0), (0.62, 0.66, 0.70),
               (0.72, 0.74, 0.76), (4e-4, 2e-3), 1.1),
  'fog': (0.08, (20, 45), (0.0, 0.0, 0.0), (0.64, 0.66, 0.68),
          (0.70, 0.72, 0.73), (0.010, 0.022), 1.05),
  'dusk': (0.10, (2, 5), (0.0, 0.0, 0.0), (0.07, 0.09, 0.16),
           (0.21, 0.16, 0.18), (3e-4, 1.5e-3), 2.1),
  'snow': (0.10, (12, 25), (0.35, 0.34, 0.32), (0.58, 0.63, 0.70),
           (0.74, 0.76, 0.80), (1e-3, 5e-3), 0.85),
  'autumn': (0.10, (15, 35), (1.20, 1.02, 0.78), (0.34, 0.43, 0.60),
             (0.74, 0.75, 0.74), (3e-4, 2e-3), 1.05),
  'night': (0.0, (2, 5), (0.0, 0.0, 0.0), (0.018, 0.021, 0.032),
            (0.070, 0.054, 0.045), (3e-4, 1.5e-3), 2.5),
}  # fmt: skip
CONDITIONS = tuple(_CONDITIONS)
_LIKELY = tuple(name for name, row in _CONDITIONS.items() if row[0] > 0)
NEUTRAL = 'neutral'  # what a frame in the light of `neutral` names as its own
_GRAIN, _NIGHT_GRAIN = 1.3, 4.5


def draw(
  rng: np.random.Generator, condition: str | None = None
) -> tuple[str, primitives.Weather]:
  """Draws a condition, unless given, and the weather of it.

  Args:
    rng: source of randomness.
    condition: one of CONDITIONS, or None for a likely one.

  Returns:
    The condition and its weather.

  Raises:
    InputError: the condition is unknown.
  """
  if condition is None:
    odds = np.array([_CONDITIONS[name][0] for name in _LIKELY])
    condition = _LIKELY[rng.choice(len(odds), p=odds / odds.sum())]
  if condition not in _CONDITIONS:
    raise InputError(
      f'found weather condition {condition!r}, expected one of '
      f'{", ".join(CONDITIONS)}'
    )
  _, elevations, sun, sky, horizon, fogs, gain = _CONDITIONS[condition]
  elevation = np.deg2rad(rng.uniform(*elevations))
  azimuth = rng.uniform(0, 2 * np.pi)
  season = rng.random()
  snow, autumn, dusk = 0.0, 0.0, 0.0
  if condition == 'snow':
    snow = rng.uniform(0.5, 1.0)
  elif condition == 'autumn' or season < 0.12:
    autumn = rng.uniform(0.5, 1.0)
  if condition == 'dusk':
    dusk = rng.uniform(0.5, 1.0)
  elif condition == 'night':
    dusk = rng.uniform(0.6, 0.9)  # some sleep
  wet = condition in ('overcast', 'fog', 'dusk', 'autumn')
  wetness = rng.uniform(0.2, 0.9) if wet and rng.random() < 0.5 else 0.0
  tint = rng.uniform(0.93, 1.07, 3)
  direction = (
    np.cos(elevation) * np.cos(azimuth),
    np.cos(elevation) * np.sin(azimuth),
    np.sin(elevation),
  )
  return condition, primitives.Weather(
    sun_direction=np.array(direction, np.float32),
    sun_color=(sun * tint).astype(np.float32),
    sky_color=(sky * tint).astype(np.float32),
    horizon_color=(horizon * tint).astype(np.float32),
    fog_density=np.float32(np.exp(rng.uniform(*np.log(fogs)))),
    snow=np.float32(snow),
    autumn=np.float32(autumn),
    dusk=np.float32(dusk),
    wetness=np.float32(wetness),
    exposure=np.float32(gain * rng.uniform(0.9, 1.12)),
    grain=np.float32(_NIGHT_GRAIN if condition == 'night' else _GRAIN),
  )


def neutral() -> primitives.Weather:
  """White daylight in clear air without a season, the same every time."""
  zero = np.float32(0)
  return primitives.Weather(
    sun_direction=np.array((0.48, 0.36, 0.8), np.float32),
    sun_color=np.full(3, 0.75, np.float32),
    sky_color=np.array((0.55, 0.57, 0.6), np.float32),
    horizon_color=np.array((0.75, 0.76, 0.78), np.float32),
    fog_density=zero,
    snow=zero,
    autumn=zero,
    dusk=zero,
    wetness=zero,
    exposure=np.float32(1.25),
    grain=zero,
  )
