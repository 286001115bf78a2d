# SPDX-License-Identifier: Apache-2.0
"""Classes of pixels and points; a label is the place of its name."""

CLASSES = (
  'void',
  'road',
  'pavement',
  'ground',
  'building',
  'fence',
  'pole',
  'sign',
  'vegetation',
  'sky',
  'car_parked',
  'car_moving',
  'van',
  'bus',
  'pedestrian',
)
MOVING = tuple(
  CLASSES.index(name) for name in ('car_moving', 'van', 'bus', 'pedestrian')
)
MOVABLE = (CLASSES.index('car_parked'), *MOVING)
