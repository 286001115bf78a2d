# SPDX-License-Identifier: Apache-2.0
"""Imports point downwards, and every module has a name."""

import ast
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What a package or a module of the top level may import from this repository,
# beside itself and `errors`.
_GROUND = ('i2ploc.geometry', 'i2ploc.compilation')
_STORED = (*_GROUND, 'i2ploc.files', 'i2ploc.image_files')
_ANSWERS = (
  *_STORED,
  'i2ploc.robust',
  'i2ploc.models',
  'i2ploc.losses',
  'i2ploc.retrieval',
  'i2ploc.objects',
)
_MEASURES = (*_ANSWERS, 'i2ploc.localization', 'i2ploc.evaluation')
MAY_IMPORT = {
  'i2ploc.errors': (),
  'i2ploc.compilation': (),
  'i2ploc.files': (),
  'i2ploc.image_levels': (),
  'i2ploc.image_files': ('i2ploc.image_levels',),
  'i2ploc.geometry': ('i2ploc.compilation',),
  'i2ploc.lens_files': ('i2ploc.geometry',),
  'i2ploc.photos': ('i2ploc.geometry', 'i2ploc.image_files'),
  'i2ploc.training': ('i2ploc.compilation', 'i2ploc.files'),
  'i2ploc.robust': _GROUND,
  'i2ploc.models': (*_GROUND, 'i2ploc.files'),  # fetched weights
  'i2ploc.losses': _GROUND,
  'i2ploc.retrieval': _STORED,
  'i2ploc.objects': (
    *_STORED,
    'i2ploc.robust',
    'i2ploc.models',
    'i2ploc.retrieval',
  ),
  'i2ploc.localization': (
    *_ANSWERS,
    'i2ploc.image_files',
    'i2ploc.photos',
  ),
  'i2ploc.evaluation': (
    *_STORED,
    'i2ploc.robust',
    'i2ploc.retrieval',
    'i2ploc.localization',
    'i2ploc.photos',
  ),
  'i2ploc.factory': (*_MEASURES, 'i2ploc.training'),
  'i2ploc.learning': (*_MEASURES, 'i2ploc.training', 'i2ploc.factory'),
  'i2ploc.place_recognition': (*_MEASURES, 'i2ploc.photos', 'i2ploc.factory'),
  'i2ploc.tasks': (
    *_MEASURES,
    'i2ploc.training',
    'i2ploc.factory',
    'i2ploc.learning',
    'i2ploc.photos',
  ),
  'i2ploc.verbs': (
    'i2ploc.tasks',
    'i2ploc.files',
    'i2ploc.training',
    'i2ploc.localization',
  ),
  'i2ploc.report': ('i2ploc.files', 'i2ploc.image_files'),
  'input_pipeline': (
    'i2ploc.geometry',
    'i2ploc.files',
    'i2ploc.image_files',
    'i2ploc.lens_files',
    'i2ploc.photos',
  ),
  'configs': ('configs.common', 'configs.images'),
}
# What every package may import.
FOUNDATION = ('i2ploc.errors',)
# The reading order inside a package: a file imports only files before it, and
# a folder counts as one of them.
ORDER = {
  'i2ploc.geometry': (
    'arrays',
    'rigid',
    'camera',
    'fisheye',
    'panorama',
    'distortion',
    'projections',
    'lens',
    'resizing',
    'turning',
    'utm',
    'augmentation',
    'cropping',
    'looking',
    'range_image',
    'point_cloud',
    'hyperbolic',
    'vectors',
    'p2p',
    'p3p',
    'p4pf',
    'alignment',
    'homography',
    'image_augmentation',
    'planar_motion',
    'epipolar',
    'polynomial',
    'gp3p',
    'fundamental',
    'essential',
    'three_points',
    'five_points',
    'ellipsoid',
    'trajectories',
  ),
  'i2ploc.photos': (
    'listing',
    'csv_tables',
    'footprints',
    'georeference',
    'truth',
    'answer_lists',
    'positions',
    'msls',
    'album',
  ),
  'i2ploc.robust': (
    'problem',
    'solutions',
    'stopping',
    'samplers',
    'scoring',
    'refine',
    'consensus',
    'final',
    'evidence',
    'result',
    'search',
    'reference',
    'inputs',
    'two_views',
    'absolute_pose',
    'upright_pose',
    'focal_pose',
    'rig_pose',
    'homography',
    'plane_motion',
    'fundamental',
    'relative_pose',
    'upright_relative_pose',
    'alignment',
    'planes',
    'lines',
  ),
  'i2ploc.models': (
    'encoders',
    'aggregators',
    'vlad',
    'salad',
    'mixing',
    'queries',
    'projection',
    'fusion',
    'whitening',
    'saliency',
    'views',
    'towers',
    'clustering',
    'fitting',
    'image_text',
    'weights',
  ),
  'i2ploc.models.encoders': (
    'normalization',
    'position_embedding',
    'attention',
    'convolution',
    'vit',
    'resnet',
    'vgg',
    'depthwise',
    'efficientnet',
    'point_transformer',
    'text',
    'vocabulary',
  ),
  'i2ploc.models.weights': (
    'names',
    'downloads',
    'sources',
    'onnx_files',
    'tensors',
    'tensor_files',
    'load',
    'vit',
    'saliency_i2ploc',
    'resnet',
    'vgg',
    'efficientnet',
    'lip_loc',
    'clip',
    'released',
    'cosplace',
    'salad',
    'mixvpr',
    'boq',
    'deep_vg',
    'published',
  ),
  'i2ploc.losses': (
    'mining',
    'contrastive',
    'soft_targets',
    'tiles',
    'tiled',
    'sharded',
    'relational',
    'metric',
    'multi_similarity',
    'classes',
    'alignment',
    'adversary',
  ),
  'i2ploc.retrieval': ('relations', 'index', 'sequences', 'calibration'),
  'i2ploc.objects': (
    'association',
    'detections',
    'files',
    'map',
    'pose',
    'observer',
  ),
  'i2ploc.objects.map': (
    'landmarks',
    'ray_clusters',
    'dual_quadric',
    'posed_boxes',
    'ellipsoid_fit',
    'construction',
    'refit',
    'place_map',
    'setup',
  ),
  'i2ploc.objects.pose': (
    'proposals',
    'refinement',
    'scene',
    'verification',
    'search',
  ),
  'i2ploc.learning': ('embeddings', 'objectives'),
  'i2ploc.localization': (
    'answer',
    'query_files',
    'retrieve',
    'sequences',
    'objects',
  ),
  'i2ploc.tasks': (
    'task',
    'embedding',
    'place_map',
    'runs',
    'photos',
    'place_training',
    'places',
    'captions',
    'objects',
    'hypotheses',
  ),
  'i2ploc.training': (
    'state',
    'optimizer',
    'step',
    'serialization',
    'checkpoint',
    'provenance',
    'lock',
    'metric_writer',
    'loop',
  ),
  'i2ploc.evaluation': (
    'metrics',
    'questions',
    'protocols',
    'scores',
    'descriptor_files',
    'predictions',
    'photo_file',
    'duplicates',
    'retrieval',
    'tables',
    'saliency',
    'pictures',
    'captions',
    'pose_statistics',
    'poses',
    'model_errors',
    'planted_problems',
    'hypotheses',
  ),
  'input_pipeline': (
    'schema',
    'extrinsics',
    'pairing',
    'plans',
    'readings',
    'batches',
    'packing',
    'readers',
    'synthetic_city',
    'synthetic_earth',
    'datasets',
    'sources',
  ),
  'input_pipeline.plans': (
    'planner',
    'neighbours',
    'classes',
    'focal',
    'places',
    'mined',
    'clusters',
    'domains',
    'sequences',
  ),
  'input_pipeline.readers': (
    'splits',
    'clocks',
    'sensor_folders',
    'scan_files',
    'kitti_files',
    'calibrated',
    'drive',
    'kitti_raw',
    'kitti_odometry_splits',
    'kitti_odometry',
    'kitti360_splits',
    'kitti360_files',
    'kitti360_sweeps',
    'kitti360_submaps',
    'kitti360',
    'kitti360_inventory',
    'joined',
    'kitti_and_kitti360',
    'tum_files',
    'tum_rgbd',
    'photos',
    'mesh_files',
    'mesh_rays',
    'mesh_renderer',
    'mesh_poses',
    'mesh',
  ),
  'input_pipeline.synthetic_city': (
    'splits',
    'labels',
    'primitives',
    'patterns',
    'terrain',
    'assembly',
    'roads',
    'plants',
    'vehicles',
    'buildings',
    'furniture',
    'town',
    'overview',
    'routes',
    'weather',
    'traffic',
    'drive',
    'objects',
    'rig',
    'raycast',
    'selection',
    'ground',
    'shading',
    'textures',
    'imaging',
    'sensors',
    'records',
    'generate',
    'builder',
    'detections',
  ),
  'input_pipeline.synthetic_earth': (
    'splits',
    'noise',
    'water',
    'land',
    'paint',
    'camera',
    'photograph',
    'builder',
  ),
  'input_pipeline.sources': (
    'crops',
    'places',
    'planned',
    'drives',
    'rgbd',
    'opening',
  ),
  'i2ploc.report': (
    'workdir',
    'templates',
    'figures',
    'thumbnails',
    'recall',
    'charts',
    'matches',
    'photos',
    'examples',
    'boxes',
    'answers',
    'hypotheses',
    'object_map',
    'objects',
    'html',
  ),
}
NEVER_IN_LIBRARY = (
  'absl.flags',
  'configs',
  'grain',
  'input_pipeline',
  'tensorflow',
  'tensorflow_datasets',
  'torch',
)
SOURCES = ('main.py', 'configs', 'i2ploc', 'input_pipeline', 'benchmarks')


def _files(*tops: str) -> list[pathlib.Path]:
  paths = []
  for top in tops:
    path = ROOT / top
    paths += sorted(path.rglob('*.py')) if path.is_dir() else [path]
  return paths


def _module(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imported_modules(source: str) -> set[str]:
  """Every module a file imports, wherever in the file it does so."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        raise ValueError(f'relative import on line {node.lineno}')
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def _inside(module: str, package: str) -> bool:
  return module == package or module.startswith(package + '.')


def _order_violations(module: str, name: str) -> bool:
  """Whether a sibling that comes later is imported, at any depth."""
  for package, order in ORDER.items():
    if not (_inside(module, package) and _inside(name, package)):
      continue
    if package in (module, name):
      continue
    mine, theirs = (
      x.removeprefix(package + '.').split('.')[0] for x in (module, name)
    )
    if mine != theirs and order.index(theirs) > order.index(mine):
      return True
  return False


def violations(module: str, imports: set[str]) -> list[str]:
  """The imports of `module` that the layering forbids."""
  bad = []
  own = next((p for p in MAY_IMPORT if _inside(module, p)), None)
  for name in sorted(imports):
    if _inside(module, 'i2ploc'):
      if any(_inside(name, banned) for banned in NEVER_IN_LIBRARY):
        bad.append(name)
    if own is None or not any(
      _inside(name, top) for top in ('i2ploc', 'input_pipeline', 'configs')
    ):
      continue
    if _inside(name, own):
      if _order_violations(module, name):
        bad.append(name)
    elif not any(
      _inside(name, allowed) for allowed in MAY_IMPORT[own] + FOUNDATION
    ):
      bad.append(name)
  return bad


class LayeringTest(parameterized.TestCase):
  def test_imports_point_downwards(self):
    for path in _files(*SOURCES):
      with self.subTest(str(path.relative_to(ROOT))):
        imports = imported_modules(path.read_text())
        self.assertEmpty(violations(_module(path), imports))

  @parameterized.parameters(
    ('i2ploc.geometry.camera', 'from i2ploc.models.encoders import vit'),
    ('i2ploc.geometry.rigid', 'from i2ploc.geometry import camera'),
    ('i2ploc.training.loop', 'def f():\n  import i2ploc.geometry.rigid'),
    ('i2ploc.models.encoders.vit', 'import torch'),
    ('i2ploc.factory', 'from absl import flags'),
    ('i2ploc.tasks.places', 'from input_pipeline import pipeline'),
    ('input_pipeline.batches', 'from i2ploc.models.encoders import vit'),
    ('configs.saliency_i2ploc', 'from i2ploc import factory'),
    ('i2ploc.report.html', 'from i2ploc.evaluation import metrics'),
  )
  def test_a_forbidden_import_is_found(self, module, source):
    self.assertNotEmpty(violations(module, imported_modules(source)))

  def test_relative_imports_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'relative import'):
      imported_modules('from . import camera')

  def test_every_file_of_an_ordered_package_has_its_place(self):
    for package, order in ORDER.items():
      folder = ROOT / package.replace('.', '/')
      files = {p.stem for p in folder.glob('*.py')} - {'__init__'}
      files |= {p.parent.name for p in folder.glob('*/__init__.py')}
      self.assertEqual(files, set(order), package)

  def test_the_report_never_imports_jax(self):
    for path in _files('i2ploc/report'):
      imports = imported_modules(path.read_text())
      self.assertFalse([n for n in imports if _inside(n, 'jax')], path)


class NamesTest(absltest.TestCase):
  def test_no_module_is_named_after_nothing(self):
    nothing = {'utils', 'util', 'helpers', 'helper', 'misc', 'commons'}
    names = {p.stem for p in _files(*SOURCES)}
    self.assertEmpty(names & nothing)


if __name__ == '__main__':
  absltest.main()
