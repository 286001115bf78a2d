# SPDX-License-Identifier: Apache-2.0
"""A sequence is mapped, asked and shown, as a user does it."""

import contextlib
import io
import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc import verbs
from i2ploc.errors import InputError
from i2ploc.evaluation import questions
from i2ploc.objects import files as detection_files
from i2ploc.objects.map import landmarks
from i2ploc.objects.map import setup
from i2ploc.report import html
from input_pipeline.sources import opening
from tests import configs_test
from tests.objects import planted_objects
from tests.objects import planted_sequence
from tests.tasks import recorder as recorder_lib


def make_config():
  """Of a sequence with detections in a file, and a small map."""
  config = configs_test.load('clip_loc', 'data=tum_rgbd').unlock()
  config.data.detections, config.data.lens = 'detections.npz', 'lens.yaml'
  config.data.categories = ('mug', 'book', 'lamp')
  config.map.update(calibrate=False, rounds=1)
  config.evaluation.update(num_queries=8, num_examples=4)
  return config.lock()


def _run(verb, config, data, *args):
  """A verb, silently; what it printed, by lines."""
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    getattr(verbs, verb)(config, data, *args)
  return printed.getvalue().splitlines()


class ObjectsTaskTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(tempfile.mkdtemp(prefix='objects_'))
    scene = planted_objects.make_scene(num_frames=32, missed=0.1, false=0.05)
    planted_sequence.write(cls.root / 'desk', scene)
    cls.workdir, cls.config = str(cls.root / 'run'), make_config()
    cls.read = set()
    recorder = recorder_lib.Recorder(cls.config, cls.read)
    cls.data = opening.open_source(cls.config, str(cls.root / 'desk'))
    cls.printed = _run('index', recorder, cls.data, cls.workdir)
    cls.printed += _run('evaluate', recorder, cls.data, cls.workdir)

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.root)
    super().tearDownClass()

  def _json(self, name):
    return json.loads((pathlib.Path(self.workdir) / name).read_text())

  def test_every_leaf_of_the_config_is_read(self):
    leaves = set(configs_test.leaves(self.config))
    leaves = {name for name in leaves if not name.startswith('data.')}
    # `prompt` is for texts, which a CLIP would read.
    self.assertEqual(leaves - self.read, {'name', 'prompt'})

  def test_the_map_has_the_objects_by_name(self):
    objects = landmarks.load_map(f'{self.workdir}/maps/desk.json')
    self.assertEqual(objects.num_landmarks, 7)
    self.assertEqual(set(objects.names()), {'mug', 'book', 'lamp'})
    self.assertIn('desk: 7 landmarks from 16 images', self.printed[0])

  def test_queries_are_found(self):
    results = self._json('results.json')
    self.assertEqual(results['test/desk/queries'], 8)
    self.assertGreaterEqual(results['test/desk/success@0.2m'], 75)
    self.assertLess(results['test/desk/median_metres'], 0.05)
    self.assertTrue(any('success within' in line for line in self.printed))

  def test_files_are_answered_with_the_pose_that_was_planted(self):
    queries = sorted(pathlib.Path(self.workdir, 'queries').glob('*.png'))
    self.assertLen(queries, 4)
    pattern = f'{self.workdir}/queries/*.png'
    lines = _run('localize', self.config, None, self.workdir, [pattern], ())
    (place,) = self.data.places(questions.between_drives)
    names = list(place.queries.names)
    near = 0
    for line, path in zip(map(json.loads, lines), queries, strict=True):
      true = place.queries.position[names.index(path.name)]
      (answer,) = line['answers']
      self.assertEqual(answer['place'], 'desk')
      if not answer['reason']:
        center = np.array(answer['world_from_camera'])[:3, 3]
        np.testing.assert_array_equal(center, answer['evidence']['position'])
        self.assertNotEmpty(answer['evidence']['outlines'])
        near += np.linalg.norm(center - true) < 0.2
    self.assertGreaterEqual(near, 2)

  def test_the_report_shows_queries_failures_first(self):
    page = pathlib.Path(html.write_report(self.workdir)).read_text()
    self.assertIn('Where it was right', page)
    self.assertIn('7 landmarks', page)
    self.assertEqual(page.count('<article class="strip">'), 4)
    badges = [part.split('"')[0] for part in page.split('class="badge ')[1:]]
    self.assertEqual(badges, sorted(badges, reverse=True))
    self.assertIn('data:image/jpeg', page)

  def test_a_missing_map_is_named(self):
    with self.assertRaisesRegex(FileNotFoundError, 'run --mode=index'):
      verbs.evaluate(self.config, self.data, str(self.root / 'new'))

  def test_a_damaged_setup_is_named(self):
    folder = self.root / 'damaged' / 'maps'
    folder.mkdir(parents=True)
    text = pathlib.Path(self.workdir, 'maps', 'setup.json').read_text()
    (folder / 'setup.json').write_text(text[:100])
    with self.assertRaisesRegex(
      ValueError, 'setup.json is truncated.*--mode=index'
    ):
      setup.load_setup(str(folder.parent))

  def test_the_lens_of_the_map_is_scaled_to_a_smaller_query(self):
    queries = sorted(pathlib.Path(self.workdir, 'queries').glob('*.png'))
    folder = self.root / 'half'
    folder.mkdir()
    found = detection_files.load_detections(
      queries[0].with_name('detections.npz'), (480, 640)
    ).frames
    half = {k: v._replace(box=v.box / 2) for k, v in found.items()}
    detection_files.save_detections(half, folder / 'detections.npz', (240, 320))
    for path in queries:
      with Image.open(path) as image:
        image.resize((320, 240)).save(folder / path.name)
    lines = []
    for place in (queries[0].parent, folder):
      args = (self.workdir, [f'{place}/*.png'])
      lines.append(_run('localize', self.config, None, *args))
    # The boxes as they were, of the images as they were, say the same.
    shutil.copy(queries[0].with_name('detections.npz'), folder)
    self.assertEqual(_run('localize', self.config, None, *args), lines[1])
    for whole, small in zip(*lines, strict=True):
      whole, small = json.loads(whole), json.loads(small)
      self.assertEqual(small['image_size'], [240, 320])
      (whole,), (small,) = whole['answers'], small['answers']
      self.assertEqual(whole['reason'], small['reason'])
      if not whole['reason']:
        np.testing.assert_allclose(
          whole['world_from_camera'], small['world_from_camera'], atol=0.02
        )

  def test_an_image_of_another_shape_is_refused(self):
    path = self.root / 'wide' / 'a.png'
    path.parent.mkdir()
    Image.new('RGB', (640, 240)).save(path)
    with self.assertRaisesRegex(ValueError, 'not of the shape'):
      verbs.localize(self.config, None, self.workdir, [str(path)])

  @parameterized.parameters('evaluate', 'localize')
  def test_maps_of_another_config_are_refused(self, verb):
    config = make_config()
    config.data.mapping, config.map.min_views = '0::4', 3
    config.search.k = 2  # of who asks, not of the map
    queries = [['a.png']] * (verb == 'localize')
    with self.assertRaises(InputError) as caught:
      getattr(verbs, verb)(config, self.data, self.workdir, *queries)
    self.assertRegex(
      str(caught.exception),
      r"setup.json is of maps of another config: data.mapping: '0::2' before,"
      r" '0::4' now; map.min_views: \d+ before, 3 now\. Use .*"
      r'--mode=index, or allow it with --allow_changes\.',
    )

  def test_a_method_that_needs_a_clip_says_so(self):
    config = make_config().unlock()
    config.search.method = 'hybrid'
    with self.assertRaisesRegex(ValueError, '--config.clip=PATH'):
      verbs.index(config, self.data, str(self.root / 'other'))

  def test_labels_that_are_not_there_are_named(self):
    config = make_config()
    config.map.labelled = True
    with self.assertRaisesRegex(ValueError, 'desk has no labelled landmarks'):
      verbs.index(config, self.data, str(self.root / 'other'))

  @parameterized.parameters('5', '0:x', '0::0', '90::')
  def test_frames_that_are_none_are_named(self, frames):
    config = make_config()
    config.data.queries = frames
    data = opening.open_source(config, str(self.root / 'desk'))
    with self.assertRaisesRegex(ValueError, f"data.queries='{frames}'"):
      data.places(questions.between_drives)

  def test_detections_of_another_sequence_are_named(self):
    config = make_config()
    other = self.root / 'desk' / 'other.json'
    other.write_text('[{"file_name": "x.png", "detections": []}]')
    config.data.detections = 'other.json'
    data = opening.open_source(config, str(self.root / 'desk'))
    with self.assertRaisesRegex(ValueError, 'names 0 of the 32 images'):
      verbs.index(config, data, str(self.root / 'other'))


if __name__ == '__main__':
  absltest.main()
