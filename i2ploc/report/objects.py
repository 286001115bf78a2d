# SPDX-License-Identifier: Apache-2.0
"""Object-based localization: success, where queries were, what they saw.

Reads the content of objects.json, results.json and the maps beside them.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from i2ploc.report import boxes
from i2ploc.report import figures
from i2ploc.report import object_map
from i2ploc.report import templates

# Metres within which a query counts as found, for badges and maps.
RADIUS = 1.0
_LIMITS = ('0.1m', '0.2m', '0.5m', '1m', '2m')
_TILES = ('0.5m', '1m', '2m')

Record = Mapping[str, Any]


def headline(results: Mapping[str, float]) -> templates.Markup:
  """Tiles of success within some distances, of all places together."""
  names = {
    limit: f'test/{place}/success@{limit}'
    for place in _places(results)[:1]
    for limit in _TILES
  }
  return templates.render(
    'objects_headline.html',
    results=results,
    names={limit: name for limit, name in names.items() if name in results},
  )


def _places(results) -> list[str]:
  return list(
    dict.fromkeys(name.split('/')[1] for name in results if '/success@' in name)
  )


def table(results: Mapping[str, float], radius: float) -> templates.Markup:
  """Success, errors and time by place.

  Args:
    results: of results.json.
    radius: metres around a rough idea of the place within which landmarks were
      asked; 0 for all of them.
  """
  return templates.render(
    'objects_table.html',
    results=results,
    places=_places(results),
    limits=_LIMITS,
    radius=radius,
  )


def maps(content: Record, folder: pathlib.Path) -> templates.Markup:
  """Where queries were right and wrong, and the landmarks of every place."""
  return templates.render(
    'objects_maps.html',
    radius=f'{RADIUS:g}',
    places=[
      _place(name, records, content['tracks'][name], folder)
      for name, records in content['places'].items()
    ],
  )


def _place(name, records, track, folder) -> dict[str, Any]:
  found = [one['found'] for one in records]
  right = np.array([_is_right(one) for one in records])
  trip = figures.Trip(
    track=np.array(track),
    queries=np.array([one['position'] for one in records])[:, :2],
    believed=np.array([one or [np.nan] * 3 for one in found])[:, :2],
    verdicts=np.where(
      [one is None for one in found], 'none', np.where(right, 'hit', 'miss')
    ),
  )
  path = folder / 'maps' / f'{name}.json'
  landmarks = object_map.load_landmarks(path) if path.is_file() else []
  return {
    'name': name,
    'drawing': figures.trajectory_map(trip, label=f'Queries in {name}'),
    'right': int(right.sum()),
    'queries': len(records),
    'unanswered': sum(one is None for one in found),
    'num_landmarks': len(landmarks),
    'landmarks': object_map.section(landmarks) if landmarks else '',
  }


def _is_right(record: Record) -> bool:
  return record['metres'] is not None and record['metres'] < RADIUS


def strips(
  content: Record, folder: pathlib.Path, count: int, width: int
) -> templates.Markup:
  """Queries with their boxes and the projected ellipsoids, failures first.

  Args:
    content: of objects.json.
    folder: the workdir, whose queries/ holds the images.
    count: queries at most.
    width: pixels of a picture at most.
  """
  examples = [
    one | {'place': place, 'right': _is_right(one)}
    for place, records in content['places'].items()
    for one in records
    if one.get('example')
  ]
  examples = sorted(examples, key=lambda one: one['right'])[:count]
  for one in examples:
    one['drawing'] = boxes.drawing(
      boxes.open_image(folder / 'queries' / one['image']),
      one['boxes'],
      one['outlines'],
      content['image_size'],
      width,
    )
  return templates.render('objects_strips.html', examples=examples)
