# SPDX-License-Identifier: Apache-2.0
"""The verbs of a camera among named objects: index, evaluate, localize.

  index     maps/PLACE.json  maps/setup.json
  evaluate  results.json  objects.json  queries/
  localize  answers.jsonl

Nothing is trained here; a CLIP is named by the config. A place is mapped from
posed images and what a detector says about them. Boxes of query images lie
beside them, in detections.npz or detections.json, as `evaluate` leaves them.
"""

from collections.abc import Sequence
import functools
import glob
import json
import pathlib
import time
from typing import Any

import numpy as np
from PIL import Image

from i2ploc import files as files_lib
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.evaluation import poses
from i2ploc.evaluation import questions
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import rigid
from i2ploc.localization import answer as answer_lib
from i2ploc.localization import objects as objects_lib
from i2ploc.objects import association
from i2ploc.objects import detections as detections_lib
from i2ploc.objects import files as objects_files
from i2ploc.objects import observer as observer_lib
from i2ploc.objects.map import construction
from i2ploc.objects.map import landmarks
from i2ploc.objects.map import place_map
from i2ploc.objects.map import refit
from i2ploc.objects.map import setup as setup_lib
from i2ploc.tasks import captions

DETECTION_FILES = ('detections.npz', 'detections.json')
# Images of a map on which similarities are calibrated.
_NUM_CALIBRATED = 100


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
      place_map.from_labels(place.landmarks(), place.categories),
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


def index(config, data, workdir: str) -> None:
  """Maps every place of the data."""
  encoder, folder = _encoder(config), pathlib.Path(workdir) / 'maps'
  calibrations = {}
  if not data.places(questions.between_drives):
    raise InputError(
      f'{data.name}: no place to map; a town needs a map drive and a later one'
      ' in its direction.'
    )
  for place in data.places(questions.between_drives):
    start = time.perf_counter()
    objects, calibrations[place.name] = build(config, place, encoder)
    landmarks.save_map(objects, folder / f'{place.name}.json')
    print(
      f'{place.name}: {objects.num_landmarks} landmarks from'
      f' {len(place.mapping.names)} images,'
      f' {time.perf_counter() - start:.0f} s',
      flush=True,
    )
  files_lib.save_json(pathlib.Path(workdir) / 'config.json', config.to_dict())
  setup_lib.save_setup(
    setup_lib.Setup(
      place.queries.lens,
      place.queries.image_size,
      place.categories,
      calibrations,
      encoder.name if encoder else '',
    ),
    workdir,
  )


def ask(
  config,
  objects: landmarks.ObjectMap,
  seen: detections_lib.Detections,
  camera: np.ndarray,
  image_size: tuple[int, int],
  calibration: association.Calibration,
) -> objects_lib.Answer:
  """`object_pose.localize` as the config's `search` says."""
  fields = config.search
  return objects_lib.localize(
    seen,
    objects,
    camera,
    image_size,
    method=fields.method,
    k=fields.k,
    calibration=calibration,
    draws=fields.draws or None,
    sampler=fields.sampler,
    prune=fields.prune,
    seed=config.seed,
  )


def evaluate(config, data, workdir: str) -> dict[str, float]:
  """Localizes queries of known pose; all of them are in the denominator.

  Args:
    config: with `search` and `evaluation`.
    data: with `places`.
    workdir: with maps.

  Returns:
    By 'test/PLACE/MEASURE' and 'test/all/MEASURE': success rates in percent
    with their intervals, medians of error and time; results.json too.
  """
  setup, encoder = setup_lib.load_setup(workdir), _encoder(config)
  _check_encoder(setup, encoder)
  records = {}
  for place in data.places(questions.between_drives):
    path = pathlib.Path(workdir) / 'maps' / f'{place.name}.json'
    objects = landmarks.load_map(path)
    observer = observer_lib.Observer(place, encoder, config.leave_out)
    rows = _evenly(len(place.queries.names), config.evaluation.num_queries)
    records[place.name] = [
      _query(config, setup, place, objects, observer, row)
      for row in rows.tolist()
    ]
    print(f'{place.name}: {len(records[place.name])} queries', flush=True)
  results = poses.summary(records)
  _save_queries(config, data.places(questions.between_drives), records, workdir)
  files_lib.save_json(pathlib.Path(workdir) / 'results.json', results)
  content = {
    'radius': config.search.radius,
    'image_size': list(setup.image_size),
    'tracks': {
      place.name: np.round(place.mapping.position[:, :2], 2).tolist()
      for place in data.places(questions.between_drives)
    },
    'places': records,
  }
  files_lib.save_json(pathlib.Path(workdir) / 'objects.json', content)
  print('\n'.join(poses.table(results)))
  return results


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
  answer = ask(
    config,
    some,
    sight.detections,
    shots.lens.intrinsics,
    shots.image_size,
    setup.calibration[place.name],
  )
  seconds = time.perf_counter() - start
  pose = np.linalg.inv(shots.world_from_camera[row])
  true = rigid.Rigid(pose[:3, :3], pose[:3, 3])
  metres, degrees = poses.pose_error(answer.camera_from_map, true)
  return {
    'image': shots.names[row],
    'row': row,
    'block': int(shots.blocks[row]),
    'landmarks': some.num_landmarks,
    'position': sight.position.tolist(),
    'metres': metres if answer.localizable else None,
    'degrees': degrees if answer.localizable else None,
    'milliseconds': 1e3 * seconds,
    **answer_lib.picture(
      answer, some, sight.detections.box, shots.lens.intrinsics
    ),
  }


def _badness(record) -> float:
  return np.inf if record['metres'] is None else record['metres']


def _save_queries(config, places, records, workdir):
  """Pictures of some queries, the worst first, and the boxes in them."""
  folder, frames = pathlib.Path(workdir) / 'queries', {}
  folder.mkdir(parents=True, exist_ok=True)
  count = -(-config.evaluation.num_examples // len(places))
  for place in places:
    observer = observer_lib.Observer(place, None, config.leave_out)
    order = sorted(records[place.name], key=_badness, reverse=True)
    for one in [order[i] for i in _evenly(len(order), count)]:
      one['example'] = True
      frames[one['image']] = observer.boxes(place.queries, one['row'])[0]
      if place.queries.has_image[one['row']]:
        image = place.queries.read(one['row'])
        Image.fromarray(image).save(folder / one['image'])
  objects_files.save_detections(frames, folder / DETECTION_FILES[0])


def localize(
  config, data, workdir: str, paths: Sequence[str], camera: Sequence[float]
) -> None:
  """Answers image files; prints JSON lines and writes answers.jsonl.

  Every map of the workdir is asked; the most confident answer comes first.

  Args:
    config: with `clip` and `search`.
    data: not read.
    workdir: with maps.
    paths: image files, or patterns of them; boxes lie beside them.
    camera: fx, fy, cx, cy of the image files in pixels; empty for the map's.

  Raises:
    MissingFileError: no such image, no boxes beside it, or no maps.
    InputError: no query, or boxes that do not name the image.
  """
  del data
  setup, encoder = setup_lib.load_setup(workdir), _encoder(config)
  _check_encoder(setup, encoder)
  maps = {
    name: landmarks.load_map(pathlib.Path(workdir) / 'maps' / f'{name}.json')
    for name in setup.calibration
  }
  if not paths:
    raise InputError('No query: give image files with --query=PATH.')
  lens = setup.lens
  if camera:
    if len(camera) != 4:
      raise InputError(f'intrinsics={camera}: expected fx,fy,cx,cy.')
    fx, fy, cx, cy = camera
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    lens = lens_lib.Lens('pinhole', matrix)
  numbers = {name: i for i, name in enumerate(setup.categories)}
  # Images of a folder share a file of boxes.
  read = functools.cache(objects_files.load_detections)
  lines = []
  for path in [p for q in paths for p in sorted(glob.glob(q)) or [q]]:
    seen, image = _beside(pathlib.Path(path), read)
    seen = observer_lib.without(seen, config.leave_out, numbers)
    if encoder is not None:
      descriptors = encoder.encode_boxes(image, seen.box)
      seen = seen._replace(embedding=descriptors)
    if np.size(lens.distortion):
      seen = detections_lib.undistort(seen, lens)
    answers = [
      (
        name,
        ask(
          config,
          objects,
          seen,
          lens.intrinsics,
          image.shape[:2],
          setup.calibration[name],
        ),
      )
      for name, objects in maps.items()
    ]
    answers.sort(key=lambda pair: -pair[1].confidence)
    lines.append(json.dumps(answer_lib.line(path, answers)))
    print(lines[-1], flush=True)
  files_lib.save_text(
    pathlib.Path(workdir) / 'answers.jsonl', '\n'.join(lines) + '\n'
  )


def _beside(path, read):
  """Detections in an image file, by a reader of their file, and the image."""
  if not path.is_file():
    raise MissingFileError(f'{path}: no such image file.')
  try:
    with Image.open(path) as picture:
      image = np.asarray(picture.convert('RGB'))
  except (OSError, SyntaxError) as error:
    raise InputError(f'{path} is not a readable image: {error}') from error
  files = [path.with_name(name) for name in DETECTION_FILES]
  file = next((file for file in files if file.is_file()), None)
  if file is None:
    raise MissingFileError(
      f'{path}: no boxes; put {" or ".join(DETECTION_FILES)} beside it (COCO,'
      ' OA-SLAM or npz, see i2ploc.objects.files).'
    )
  frames = read(file, image.shape[:2]).frames
  if path.name not in frames:
    raise InputError(
      f'{file} does not name {path.name}; it has {sorted(frames)[:3]}.'
    )
  return frames[path.name], image
