# SPDX-License-Identifier: Apache-2.0
"""Latitude and longitude to metres: the UTM projection of WGS 84.

Krüger's series to the fourth order of the third flattening, exact well below a
millimetre inside a zone and far beyond it, so that places on both sides of a
zone's border can be laid out in one of the two zones. Host code on float64:
eastings and northings have more digits than float32.

Reference:
  Karney, Transverse Mercator with an accuracy of a few nanometers, J. Geodesy
  2011, equations 7 to 11, 14 and 35.
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
  e = 2 * np.sqrt(_N) / (1 + _N)
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
