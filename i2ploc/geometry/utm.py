# SPDX-License-Identifier: Apache-2.0
"""Latitude and longitude to metres and back: the UTM projection of WGS 84.

Krüger's series to the fourth order of the third flattening, exact well below a
millimetre inside a zone and far beyond it, so that places on both sides of a
zone's border can be laid out in one of the two zones. Host code on float64:
eastings and northings have more digits than float32.

Reference:
  Karney, Transverse Mercator with an accuracy of a few nanometers, J. Geodesy
  2011, equations 7 to 12, 14, 15, 35 and 36.
"""

import numpy as np

_RADIUS = 6378137.0  # of the equator, metres
_FLATTENING = 1 / 298.257223563
_SCALE = 0.9996  # on the central meridian
_FALSE_EASTING = 500_000.0
FALSE_NORTHING = 10_000_000.0  # metres, of the southern hemisphere

_N = _FLATTENING / (2 - _FLATTENING)
_RECTIFYING = _RADIUS / (1 + _N) * (1 + _N**2 / 4 + _N**4 / 64)
_ALPHA = (
  _N / 2 - 2 * _N**2 / 3 + 5 * _N**3 / 16 + 41 * _N**4 / 180,
  13 * _N**2 / 48 - 3 * _N**3 / 5 + 557 * _N**4 / 1440,
  61 * _N**3 / 240 - 103 * _N**4 / 140,
  49561 * _N**4 / 161280,
)
_BETA = (
  _N / 2 - 2 * _N**2 / 3 + 37 * _N**3 / 96 - _N**4 / 360,
  _N**2 / 48 + _N**3 / 15 - 437 * _N**4 / 1440,
  17 * _N**3 / 480 - 37 * _N**4 / 840,
  4397 * _N**4 / 161280,
)
_ECCENTRICITY = 2 * np.sqrt(_N) / (1 + _N)
# Each step makes a latitude 150 times as exact.
_STEPS = 8


def zone_from_longitude(longitude: float) -> int:
  """The zone, 1 to 60; the exceptions around Norway are not made.

  >>> zone_from_longitude(13.195)
  33
  """
  return int((longitude + 180) // 6) % 60 + 1


def utm_from_degrees(
  latitude: np.ndarray, longitude: np.ndarray, zone: int
) -> tuple[np.ndarray, np.ndarray]:
  """Positions on the map of a zone.

  Args:
    latitude: [...] degrees, south is negative.
    longitude: [...] degrees, west is negative.
    zone: 1 to 60, whose central meridian is 6 zone - 183 degrees.

  Returns:
    east: [...] float64, metres; 500,000 on the central meridian.
    north: [...] float64, metres from the equator, negative in the south: UTM
      adds `FALSE_NORTHING` there.

  >>> east, north = utm_from_degrees(51.2, 7.5, zone=32)
  >>> print(f'{east:.3f} {north:.3f}')
  395201.310 5673135.241
  """
  phi = np.radians(np.asarray(latitude, np.float64))
  turn = np.asarray(longitude, np.float64) - (6 * zone - 183)
  lam = np.radians((turn + 180) % 360 - 180)
  # The conformal latitude's tangent.
  e = _ECCENTRICITY
  sine = np.sin(phi)
  tangent = np.sinh(np.arctanh(sine) - e * np.arctanh(e * sine))
  xi = np.arctan2(tangent, np.cos(lam))
  eta = np.arcsinh(np.sin(lam) / np.hypot(tangent, np.cos(lam)))
  east, north = eta, xi
  for j, alpha in enumerate(_ALPHA, 1):
    east = east + alpha * np.cos(2 * j * xi) * np.sinh(2 * j * eta)
    north = north + alpha * np.sin(2 * j * xi) * np.cosh(2 * j * eta)
  scale = _SCALE * _RECTIFYING
  return _FALSE_EASTING + scale * east, scale * north


def degrees_from_utm(
  east: np.ndarray, north: np.ndarray, zone: int
) -> tuple[np.ndarray, np.ndarray]:
  """The places of positions on the map of a zone.

  Args:
    east: [...] metres; 500,000 on the central meridian.
    north: [...] metres from the equator, negative in the south.
    zone: 1 to 60.

  Returns:
    latitude: [...] float64 degrees.
    longitude: [...] float64 degrees, from -180 to 180.

  >>> latitude, longitude = degrees_from_utm(395201.310, 5673135.241, zone=32)
  >>> print(f'{latitude:.6f} {longitude:.6f}')
  51.200000 7.500000
  """
  scale = _SCALE * _RECTIFYING
  x = np.asarray(north, np.float64) / scale
  y = (np.asarray(east, np.float64) - _FALSE_EASTING) / scale
  xi, eta = x, y
  for j, beta in enumerate(_BETA, 1):
    xi = xi - beta * np.sin(2 * j * x) * np.cosh(2 * j * y)
    eta = eta - beta * np.cos(2 * j * x) * np.sinh(2 * j * y)
  lam = np.arctan2(np.sinh(eta), np.cos(xi))
  # From the conformal latitude to the geographic one.
  isometric = np.arcsinh(np.sin(xi) / np.hypot(np.sinh(eta), np.cos(xi)))
  e = _ECCENTRICITY
  sine = np.tanh(isometric)
  for _ in range(_STEPS):
    sine = np.tanh(isometric + e * np.arctanh(e * sine))
  longitude = (np.degrees(lam) + 6 * zone - 183 + 180) % 360 - 180
  return np.degrees(np.arcsin(sine)), longitude
