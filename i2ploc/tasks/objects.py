# SPDX-License-Identifier: Apache-2.0
"""Where is a camera among named objects? Answered by boxes and a map of them.

  index     maps/PLACE.json  maps/setup.json
  evaluate  objects.json  queries/

Nothing is trained here; a CLIP is named by the config. A place is mapped from
posed images and what a detector says about them. Boxes of query images lie
beside them, in detections.npz or detections.json, as `evaluate` leaves them.
"""

import functools
import pathlib
import time
from typing import Any

import numpy as np
from PIL import Image

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.evaluation import poses
from i2ploc.evaluation import questions
from i2ploc.geometry import rigid
from i2ploc.localization import objects as objects_lib
from i2ploc.localization import query_files
from i2ploc.objects import association
from i2ploc.objects import files as detection_files
from i2ploc.objects import observer as observer_lib
from i2ploc.objects.map import construction
from i2ploc.objects.map import landmarks
from i2ploc.objects.map import place_map
from i2ploc.objects.map import refit
from i2ploc.objects.map import setup as setup_lib
from i2ploc.tasks import captions
from i2ploc.tasks import task as task_lib
from i2ploc.training import provenance

# Images of a map on which similarities are calibrated.
_NUM_CALIBRATED = 100


def make_task(
  config: Any, data: Any, allow_changes: bool = False
) -> task_lib.Task:
  """The task; nothing is read.

  Args:
    config: with clip, map, search and evaluation.
    data: with `places`, see `sources.rgbd`.
    allow_changes: whether maps may be of a config that differs where it
      matters.
  """
  return task_lib.Task(
    evaluate=functools.partial(_evaluate, config, data, allow_changes),
    index=functools.partial(_index, config, data),
    localizer=functools.partial(_localizer, config, allow_changes),
  )


def build(
  config, place, encoder=None
) -> tuple[landmarks.ObjectMap, association.Calibration]:
  """The map of a place, and what a CLIP's similarities are worth there.

  Raises:
    InputError: no landmark was found.
  """
  objects = _landmarks(config, place)
  if encoder is None:
    return objects, association.UNCALIBRATED
  objects = place_map.describe(objects, encoder.encode_texts, config.prompt)
  observer = observer_lib.Observer(place, encoder, config.leave_out)
  shots = place.mapping
  rows = _evenly(len(shots.names), _NUM_CALIBRATED)
  return objects, place_map.calibrate(
    objects,
    [observer.look(shots, row) for row in rows],
    shots.world_from_camera[rows],
    shots.lens.intrinsics,
    shots.image_size,
    k=config.search.k,
    radius=config.search.radius,
  )


def _landmarks(config, place):
  """The landmarks that boxes determine, or those that the labels have."""
  fields = config.map.to_dict()
  labelled = fields.pop('labelled')
  if labelled and place.landmarks is None:
    raise InputError(
      f'{place.name} has no labelled landmarks: set --config.map.labelled='
      'False.'
    )
  observer = observer_lib.Observer(place, None, config.leave_out)
  shots = place.mapping
  every = [observer.look(shots, row) for row in range(len(shots.names))]
  if labelled:
    return refit.refit(
      place_map.from_labels(place.landmarks()),
      [one.detections for one in every],
      shots.world_from_camera,
      shots.lens.intrinsics,
      shots.image_size,
    )
  objects = place_map.build(
    every,
    shots.world_from_camera,
    shots.lens.intrinsics,
    shots.image_size,
    categories=place.categories,
    settings=construction.DEFAULT._replace(**fields),
  )
  if not objects.num_landmarks:
    num_boxes = sum(len(one.detections.box) for one in every)
    raise InputError(
      f'{place.name}: no landmark in {len(every)} images with {num_boxes}'
      ' boxes; see --config.map for what makes one.'
    )
  return objects


def _evenly(count, most):
  return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _encoder(config):
  if config.clip:
    return captions.load_encoder(config.clip)
  if config.search.method in objects_lib.BY_LANGUAGE:
    raise InputError(
      f'search.method={config.search.method!r} needs a CLIP: name one with'
      ' --config.clip=PATH (a workdir of configs/clip.py, or a published'
      " checkpoint), or set --config.search.method='category'."
    )
  return None


def _index(config, data, workdir) -> str:
  """Maps every place of the data."""
  encoder, places = _encoder(config), data.places(questions.between_drives)
  if not places:
    raise InputError(
      f'{data.name}: no place to map; a town needs a map drive and a later one'
      ' in its direction.'
    )
  calibrations = {}
  for place in places:
    start = time.perf_counter()
    objects, calibrations[place.name] = build(config, place, encoder)
    landmarks.save_map(objects, _file(workdir, place.name))
    print(
      f'{place.name}: {objects.num_landmarks} landmarks from'
      f' {len(place.mapping.names)} images,'
      f' {time.perf_counter() - start:.0f} s',
      flush=True,
    )
  setup_lib.save_setup(
    setup_lib.Setup(
      place.queries.lens,
      place.queries.image_size,
      place.categories,
      calibrations,
      encoder.name if encoder else '',
      config.to_dict(),
    ),
    workdir,
  )
  return f'{len(places)} maps in {workdir}/maps'


def _file(workdir, place) -> pathlib.Path:
  return pathlib.Path(workdir) / 'maps' / f'{place}.json'


def search_options(config: Any) -> dict[str, Any]:
  """What the config's `search` means to `localization.objects.localize`."""
  fields = config.search
  return dict(
    method=fields.method,
    k=fields.k,
    draws=fields.draws or None,
    sampler=fields.sampler,
    prune=fields.prune,
    seed=config.seed,
  )


def _evaluate(config, data, allow_changes, workdir) -> task_lib.Evaluation:
  """Localizes queries of known pose; all of them are in the denominator.

  Numbers by 'test/PLACE/MEASURE' and 'test/all/MEASURE': success rates in
  percent with their intervals, medians of error and time.
  """
  setup, encoder = _maps(config, workdir, allow_changes)
  places, records = data.places(questions.between_drives), {}
  for place in places:
    objects = landmarks.load_map(_file(workdir, place.name))
    observer = observer_lib.Observer(place, encoder, config.leave_out)
    rows = _evenly(len(place.queries.names), config.evaluation.num_queries)
    records[place.name] = [
      _query(config, setup, place, objects, observer, row)
      for row in rows.tolist()
    ]
    print(f'{place.name}: {len(records[place.name])} queries', flush=True)
  results = poses.summary(records)
  _save_queries(config, places, records, workdir)
  content = {
    'radius': config.search.radius,
    'image_size': list(setup.image_size),
    'tracks': {
      place.name: np.round(place.mapping.position[:, :2], 2).tolist()
      for place in places
    },
    'places': records,
  }
  files.save_json(workdir / 'objects.json', content)
  return task_lib.Evaluation(results, poses.table(results))


def _maps(config, workdir, allow_changes):
  """Setup of the maps of a workdir, and the encoder that asks them.

  Raises:
    InputError: maps of another config or another encoder.
  """
  setup, encoder = setup_lib.load_setup(workdir), _encoder(config)
  _check_encoder(setup, encoder)
  if setup.config:
    provenance.check_changes(
      f'{pathlib.Path(workdir) / setup_lib.FILE} is of maps',
      provenance.only(
        provenance.config_changes(setup.config, config.to_dict()), _is_of_map
      ),
      'Use the --config that made them, or build them again with --mode=index',
      allowed=allow_changes,
    )
  return setup, encoder


def _is_of_map(name):
  """Whether a field of a config decides what a map holds, or what asks it."""
  return (
    name.startswith('map.')
    or name in ('leave_out', 'prompt')
    # Who asks may be others than those that were asked first.
    or (provenance.is_of_map(name) and name != 'data.queries')
  )


def _check_encoder(setup, encoder):
  name = encoder.name if encoder else ''
  if name and name != setup.encoder:
    raise InputError(
      f'the maps have descriptors of {setup.encoder or "no CLIP"!r}, the'
      f' queries would have those of {name!r}: run --mode=index again.'
    )


def _query(config, setup, place, objects, observer, row) -> dict[str, Any]:
  """One query and its answer, as plain numbers."""
  shots = place.queries
  sight = observer.look(shots, row)
  some = place_map.near(objects, sight.position, config.search.radius)
  start = time.perf_counter()
  answer = objects_lib.localize(
    sight.detections,
    some,
    shots.lens.intrinsics,
    shots.image_size,
    calibration=setup.calibration[place.name],
    place=place.name,
    **search_options(config),
  )
  seconds = time.perf_counter() - start
  pose = np.linalg.inv(shots.world_from_camera[row])
  true = rigid.Rigid(pose[:3, :3], pose[:3, 3])
  metres, degrees = poses.pose_error(
    objects_lib.camera_from_world(answer), true
  )
  answer = objects_lib.drawn(
    answer, some, sight.detections.box, shots.lens.intrinsics
  )
  shown = ('score', 'rival', 'draws', 'landmarks', 'boxes', 'outlines')
  return {
    'image': shots.names[row],
    'row': row,
    'block': int(shots.blocks[row]),
    'position': sight.position,
    'metres': metres if np.isfinite(metres) else None,
    'degrees': degrees if np.isfinite(metres) else None,
    'milliseconds': 1e3 * seconds,
    'reason': answer.reason,
    'confidence': answer.confidence,
    'found': answer.evidence['position'],
    **{name: answer.evidence[name] for name in shown},
  }


def _badness(record) -> float:
  return np.inf if record['metres'] is None else record['metres']


def _save_queries(config, places, records, workdir):
  """Pictures of some queries, the worst first, and the boxes in them."""
  folder, frames = workdir / 'queries', {}
  count = -(-config.evaluation.num_examples // len(places))
  for place in places:
    observer = observer_lib.Observer(place, None, config.leave_out)
    order = sorted(records[place.name], key=_badness, reverse=True)
    for one in [order[i] for i in _evenly(len(order), count)]:
      one['example'] = True
      frames[one['image']] = observer.boxes(place.queries, one['row'])[0]
      if place.queries.has_image[one['row']]:
        image = place.queries.read(one['row'])
        with files.replacing(folder / one['image']) as draft:
          Image.fromarray(image).save(draft)
  detection_files.save_detections(
    frames,
    folder / query_files.DETECTION_FILES[0],
    places[0].queries.image_size,
  )


def _localizer(config, allow_changes, workdir) -> task_lib.Localizer:
  """Asks every map of the workdir."""
  setup, encoder = _maps(config, workdir, allow_changes)
  stage = objects_lib.make_stage(
    {
      name: landmarks.load_map(_file(workdir, name))
      for name in setup.calibration
    },
    setup.calibration,
    categories=setup.categories,
    leave_out=config.leave_out,
    encode=encoder.encode_boxes if encoder else None,
    **search_options(config),
  )
  camera = query_files.Camera(setup.lens, setup.image_size)
  return task_lib.Localizer((stage,), camera, with_boxes=True)
