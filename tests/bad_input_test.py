# SPDX-License-Identifier: Apache-2.0
"""Bad input gets one clear error that names the thing; jax is never blamed.

One line per kind of bad input: what it is, and what the message has to say.
"""

import contextlib
import io
import pathlib
import shutil
import tempfile
import traceback

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import steps
from configs import common
from configs import saliency_i2ploc
from i2ploc import factory
from i2ploc import verbs
from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from i2ploc.localization import query_files
from i2ploc.localization import retrieve
from i2ploc.report import html
from i2ploc.retrieval import index as index_lib
from i2ploc.training import checkpoint
from i2ploc.training import state as state_lib
from i2ploc.training import step as step_lib
from input_pipeline import batches as batches_lib
from input_pipeline import datasets
from input_pipeline.readers import kitti_odometry
from input_pipeline.readers import kitti_raw
from input_pipeline.sources import drives
from input_pipeline.sources import opening
from tests.tasks import photo_runs

NAME = '2011_09_26_drive_0001_sync'


def make_drive(root: pathlib.Path) -> pathlib.Path:
  """A KITTI raw drive of two frames in the layout of the download."""
  date = root / '2011_09_26'
  folder = date / NAME
  for name in ('image_02', 'velodyne_points'):
    (folder / name / 'data').mkdir(parents=True)
  (date / 'calib_cam_to_cam.txt').write_text(
    'R_rect_00: 1 0 0 0 1 0 0 0 1\nP_rect_02: 20 0 11.5 0 0 20 7.5 0 0 0 1 0\n'
  )
  (date / 'calib_velo_to_cam.txt').write_text(
    'R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 0\n'
  )
  rows = '1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 1 0 1 0 0 0 0 1 0\n'
  (folder / 'poses_velo_icp.txt').write_text(rows)
  for frame in range(2):
    image = Image.fromarray(np.full((16, 24, 3), 90, np.uint8))
    image.save(folder / f'image_02/data/{frame:010d}.png')
    scan = np.array([[9, 0, 0, 0.5], [9, 1, 1, 0.5]], '<f4')
    scan.tofile(folder / f'velodyne_points/data/{frame:010d}.bin')
  return folder


class _Workplace(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(tempfile.mkdtemp())
    self.addCleanup(shutil.rmtree, self.root)

  def refuse(self, message, function, *args, error=ValueError, **kwargs):
    """The call fails with one message that says this, and not inside jax."""
    try:
      function(*args, **kwargs)
    except error as caught:
      self.assertRegex(str(caught), message)
      last = traceback.extract_tb(caught.__traceback__)[-1]
      self.assertNotRegex(last.filename, r'site-packages[/\\](jax|flax)')
    else:
      self.fail(f'{function} accepted it')


class DriveTest(_Workplace):
  def setUp(self):
    super().setUp()
    self.folder = make_drive(self.root)
    self.scan = self.folder / 'velodyne_points/data/0000000001.bin'
    self.image = self.folder / 'image_02/data/0000000001.png'
    self.camera = self.root / '2011_09_26/calib_cam_to_cam.txt'
    self.mount = self.root / '2011_09_26/calib_velo_to_cam.txt'
    self.poses = self.folder / 'poses_velo_icp.txt'

  def refuse_load(self, message, error=ValueError):
    self.refuse(message, kitti_raw.load, self.root, error=error)

  def test_the_healthy_drive_is_read(self):
    kitti_raw.load(self.root).read(1)

  def test_01_missing_root(self):
    self.refuse(
      'nowhere', kitti_raw.load, self.root / 'nowhere', error=FileNotFoundError
    )

  def test_02_unknown_drive(self):
    self.refuse(
      'no drive .*0099',
      kitti_raw.load,
      self.root,
      '2011_09_26_drive_0099_sync',
      error=FileNotFoundError,
    )

  def test_03_truncated_scan(self):
    self.scan.write_bytes(self.scan.read_bytes()[:-3])
    self.refuse_load('0000000001.bin')

  def test_04_empty_scan(self):
    self.scan.write_bytes(b'')
    self.refuse_load('0000000001.bin')

  def test_05_scan_without_a_finite_point(self):
    dataset = kitti_raw.load(self.root)
    np.full((4, 4), np.nan, '<f4').tofile(self.scan)
    self.refuse('0000000001.bin: no finite point', dataset.read, 1)
    # Some scans are read to check the calibration.
    self.refuse_load('0000000001.bin: no finite point')

  def test_06_missing_calibration_file(self):
    self.camera.unlink()
    self.refuse_load('calib_cam_to_cam.txt', FileNotFoundError)

  def test_07_missing_calibration_entry(self):
    self.camera.write_text('R_rect_00: 1 0 0 0 1 0 0 0 1\n')
    self.refuse_load("no entry 'P_rect_02'")

  def test_08_calibration_with_too_few_numbers(self):
    self.mount.write_text('R: 0 -1 0 0 0 -1 1 0\nT: 0 0 0\n')
    self.refuse_load('R has 8 values, expected 9')

  def test_09_calibration_that_is_no_rotation(self):
    self.mount.write_text('R: 0 -1 0 0 0 -2 1 0 0\nT: 0 0 0\n')
    self.refuse_load('calib_velo_to_cam.txt.*not a rotation')

  def test_10_malformed_pose(self):
    self.poses.write_text('1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0\n')
    self.refuse_load('poses_velo_icp.txt, line 2: 3 numbers')

  def test_11_no_poses(self):
    self.poses.unlink()
    self.refuse_load('no poses', FileNotFoundError)

  def test_12_image_that_does_not_decode(self):
    self.image.write_bytes(b'not a picture')
    self.refuse(
      '0000000001.png: the image does not', kitti_raw.load(self.root).read, 1
    )

  def test_13_sensor_that_is_absent(self):
    self.scan.unlink()
    self.refuse('has no scan', kitti_raw.load(self.root).read, 1)

  def test_14_unknown_sequence(self):
    (self.root / 'sequences').mkdir()
    self.refuse(
      'no sequence',
      kitti_odometry.load,
      self.root,
      '77',
      error=FileNotFoundError,
    )


class PipelineTest(_Workplace):
  def dataset(self):
    make_drive(self.root)
    return kitti_raw.load(self.root)

  def train_batches(self, dataset, **changes):
    options = dict(
      batch_size=1, image_size=(16, 24), num_points=4, cross_drive=0.5,
      max_offset=5.0, seed=0,
    )  # fmt: skip
    return batches_lib.train_batches(dataset, **(options | changes))

  def test_15_unknown_dataset(self):
    self.refuse(
      "Unknown dataset 'kitty'",
      datasets.load,
      'kitty',
      split='',
      data_dir='',
    )

  def test_16_unknown_split(self):
    self.refuse(
      "Unknown split 'trian'", datasets.load, 'synthetic_city',
      split='trian', data_dir=str(self.root), size='tiny',
    )  # fmt: skip

  def test_17_batch_larger_than_the_data(self):
    self.refuse(
      'batch_size=9, but kitti_raw/all has 2',
      self.train_batches, self.dataset(), batch_size=9,
    )  # fmt: skip

  def test_18_no_points(self):
    self.refuse(
      'num_points must be', self.train_batches, self.dataset(), num_points=0
    )

  def test_19_empty_table(self):
    empty = self.dataset()
    empty = empty._replace(frames=empty.frames.take(np.arange(0)))
    self.refuse('has no frames', self.train_batches, empty)

  def test_20_points_that_are_not_finite(self):
    healthy = self.dataset()

    def read(row, what):
      reading = healthy.read(row, what)
      if 'points' in reading:
        reading['points'] = np.full((3, 4), np.nan, np.float32)
      return reading

    broken = healthy._replace(name='broken', read=read)
    batches = batches_lib.read_batches(
      broken, np.arange(2), batch_size=1, image_size=(16, 24), num_points=4
    )
    self.refuse('3 of 3 points', next, batches)


class QueryTest(_Workplace):
  def ask(self, message, *paths, intrinsics=(), error=ValueError):
    lens = lens_lib.Lens('pinhole', np.diag([120.0, 120.0, 1.0]))
    queries = query_files.read_queries(
      [str(path) for path in paths],
      intrinsics=intrinsics,
      camera=query_files.Camera(lens, (64, 208)),
    )
    self.refuse(message, list, queries, error=error)

  def save(self, height, width):
    path = self.root / f'{width}x{height}.png'
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    return path

  def test_21_no_query(self):
    self.ask('No query')

  def test_22_missing_query(self):
    self.ask('gone.png', self.root / 'gone.png', error=FileNotFoundError)

  def test_23_query_that_is_no_image(self):
    path = self.root / 'text.png'
    path.write_text('hello')
    self.ask('text.png is not a readable image', path)

  def test_24_one_pixel(self):
    self.ask('1x1.png is not .* 1 x 1 pixels', self.save(1, 1))

  def test_25_image_of_another_camera(self):
    self.ask('400 x 300 pixels, not of the shape', self.save(300, 400))

  def test_26_half_a_camera(self):
    self.ask('fx,fy,cx,cy', self.save(64, 208), intrinsics=('100', '100'))

  def test_27_descriptor_that_is_not_a_number(self):
    index = index_lib.Index(
      descriptors=np.eye(2, dtype=np.float32),
      keys=np.arange(2),
      poses=np.stack([np.eye(4)] * 2),
      towns=np.array(['a', 'a']),
      frames=np.arange(2),
      names=np.array(['', '']),
      views=np.zeros(2),
      provenance=dict(model='m', config='c', dataset='d', software='s'),
      rig=index_lib.Rig(None, None, np.eye(4)),
    )
    query = np.full((1, 2), np.nan, np.float32)
    self.refuse('finite', retrieve.localize, query, index, scale=10.0)


class WorkdirTest(_Workplace):
  def setUp(self):
    super().setUp()
    self.config = common.smoke(saliency_i2ploc.get_config())
    self.data = drives.Source(data_dir=str(self.root), **self.config.data)

  def test_28_workdir_without_a_checkpoint(self):
    self.refuse(
      'checkpoint', verbs.evaluate, self.config, self.data, self.root,
      error=FileNotFoundError,
    )  # fmt: skip

  def test_29_checkpoint_of_another_model(self):
    checkpoints = checkpoint.Checkpoints(self.root)
    self.addCleanup(checkpoints.close)
    optimizer = factory.make_optimizer(
      10, learning_rate=1e-3, warmup_steps=0, weight_decay=0.0, clip_norm=1.0
    )
    state = state_lib.init_state(
      {'w': jnp.ones(3)}, {}, optimizer.init, jax.random.key(0)
    )
    checkpoints.save(state, {}, {})
    checkpoints.wait()
    other = {'params': {'w': jnp.ones(4), 'v': jnp.ones(2)}}
    self.refuse('v', checkpoints.restore_best, other)

  def test_30_missing_index(self):
    self.refuse(
      'index.npz', index_lib.load_index, self.root / 'index.npz',
      error=FileNotFoundError,
    )  # fmt: skip

  def test_31_truncated_index(self):
    path = self.root / 'index.npz'
    path.write_bytes(b'PK\x03\x04 cut')
    self.refuse('index.npz', index_lib.load_index, path)

  def test_32_report_of_nothing(self):
    self.refuse(
      str(self.root), html.write_report, self.root, error=FileNotFoundError
    )


class ConfigTest(_Workplace):
  def test_33_unknown_config_argument(self):
    self.refuse("'color'", saliency_i2ploc.get_config, 'color=red')

  def test_34_unknown_encoder(self):
    model = saliency_i2ploc.get_config().model.to_dict()
    model['image']['name'] = 'vitt'
    self.refuse(
      "Unknown image encoder 'vitt'",
      factory.make_model, **model, image_size=(64, 208),
    )  # fmt: skip

  def test_35_unknown_field_of_an_encoder(self):
    model = saliency_i2ploc.get_config().model.to_dict()
    model['image']['widht'] = 3
    self.refuse("'widht'", factory.make_model, **model, image_size=(64, 208))

  def test_36_warm_up_longer_than_the_run(self):
    self.refuse(
      'warmup_steps is 50', factory.make_optimizer, 40,
      **saliency_i2ploc.get_config().optimizer.to_dict(),
    )  # fmt: skip

  def test_37_image_that_does_not_tile(self):
    config = saliency_i2ploc.get_config()
    config.data.image_size = (50, 200)
    towers = steps.make_towers(config)
    self.refuse('50 x 200', jax.eval_shape, towers.init, jax.random.key(0))

  def test_38_chunks_that_do_not_divide_the_batch(self):
    optimizer = factory.make_optimizer(
      100, **saliency_i2ploc.get_config().optimizer.to_dict()
    )
    self.refuse(
      'num_chunks=0', step_lib.make_train_step, None, None, optimizer,
      ema_decay=0.9, num_chunks=0,
    )  # fmt: skip


class PhotosTest(_Workplace):
  """Folders of photos, through the verbs."""

  def setUp(self):
    super().setUp()
    self.config = photo_runs.config_of()

  def save(self, *numbers, folder='.'):
    return [photo_runs.save_scene(self.root / folder, i) for i in numbers]

  def refuse_photos(self, message, config=None):
    """Both verbs say this, in one line."""
    config = config or self.config

    def run(verb):
      data = opening.open_source(config, str(self.root))
      getattr(verbs, verb)(config, data, self.root / 'run')

    for verb in ('evaluate', 'index'):
      with contextlib.redirect_stdout(io.StringIO()):
        self.refuse(rf'\A{message}.*\Z', run, verb, error=InputError)
    self.assertFalse((self.root / 'run/index.npz').exists())

  def test_39_no_folder_of_photos(self):
    config = self.config
    config.data.database = 'ref'
    self.refuse_photos('.*: no folder ref and queries', config)

  def test_40_folder_without_photos(self):
    (self.root / 'notes.txt').write_text('none')
    self.refuse_photos('.*: no photos; expected files that end in')

  def test_41_one_photo(self):
    self.save(1)
    self.refuse_photos('.*has one photo, and no other to find')

  def test_42_no_queries(self):
    self.save(1, 2, folder='database')
    (self.root / 'queries').mkdir()
    self.refuse_photos('.*queries: no photos')

  def test_43_photo_that_is_cut_off_in_its_pixels(self):
    *_, path = self.save(1, 2, 3)
    path.write_bytes(path.read_bytes()[:-300])
    self.refuse_photos(f'.*{path.name} is not a readable image')

  def test_44_unknown_way_to_resize(self):
    self.save(1, 2)
    for name in ('resize', 'query_resize'):
      config = photo_runs.config_of()
      config.data[name] = 'squash'
      self.refuse_photos("Unknown resize policy 'squash'", config=config)

  def test_45_positions_in_some_names(self):
    first, _ = self.save(1, 2)
    first.rename(first.with_name('here.png'))
    self.refuse_photos('1 of 2 names have no position, but others do: here')

  def test_46_words_of_too_small_a_map(self):
    self.save(1, 2, folder='database')
    self.save(3, folder='queries')
    config = photo_runs.config_of('pooling=vlad,words=25')
    self.refuse_photos('.*25.*24', config=config)
    config = photo_runs.config_of('pooling=gem,whitening=6')
    self.refuse_photos('.*6.*2', config=config)

  def test_47_missing_list_of_positions(self):
    self.save(1, 2)
    self.config.data.positions = 'gone.csv'
    self.refuse_photos('.*gone.csv')

  def test_48_map_that_was_never_made(self):
    (path,) = self.save(1)
    data = opening.open_source(self.config, str(self.root))
    self.refuse(
      'index.npz.*--mode=index',
      verbs.localize, self.config, data, self.root, [str(path)],
      error=InputError,
    )  # fmt: skip


if __name__ == '__main__':
  absltest.main()
