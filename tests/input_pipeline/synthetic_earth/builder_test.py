# SPDX-License-Identifier: Apache-2.0
"""The embedded earth reads back as what is on the ground."""

import pickle
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.evaluation import questions
from input_pipeline import datasets
from input_pipeline.synthetic_earth import builder
from input_pipeline.synthetic_earth import photograph
from input_pipeline.synthetic_earth import splits

_PIXELS = 32  # of a tile of the size tiny


def _image(dataset, row):
  return dataset.read(int(row), ('image',))['image']


def _mosaic(dataset, rows):
  """The map's tiles as one grey picture; NaN where there is none."""
  side = int(dataset.frames.position[rows, :2].max() / splits.STRIDE)
  size = (side + 1) * _PIXELS // 2
  mosaic = np.full((size, size), np.nan)
  for row in rows:
    x, y = dataset.frames.position[row, :2] - splits.TILE / 2
    left, below = (round(v / splits.TILE * _PIXELS) for v in (x, y))
    top = size - below - _PIXELS
    grey = _image(dataset, row).mean(-1)
    mosaic[top : top + _PIXELS, left : left + _PIXELS] = grey
  return mosaic


def _homography(source, target):
  """[3, 3] from four points to four points."""
  rows = []
  for (x, y), (u, v) in zip(source, target, strict=True):
    rows += [
      [x, y, 1, 0, 0, 0, -u * x, -u * y, u],
      [0, 0, 0, x, y, 1, -v * x, -v * y, v],
    ]
  rows = np.array(rows, float)
  return np.append(np.linalg.solve(rows[:, :8], rows[:, 8]), 1).reshape(3, 3)


def _likeness(mosaic, image, corners):
  """Correlation of a photo with the map below its corners [4, 2], metres.

  Corners are those of the picture: lower left, lower right, upper right, upper
  left.
  """
  along = (2 * np.arange(_PIXELS) + 1) / _PIXELS - 1
  points = np.stack([*np.meshgrid(along, along), np.ones((_PIXELS,) * 2)], -1)
  picture = [(-1, 1), (1, 1), (1, -1), (-1, -1)]
  ground = points @ _homography(picture, corners).T
  ground = ground[..., :2] / ground[..., 2:]
  columns = (ground[..., 0] / splits.TILE * _PIXELS).astype(int)
  rows = len(mosaic) - 1 - (ground[..., 1] / splits.TILE * _PIXELS).astype(int)
  inside = (np.minimum(rows, columns) >= 0) & (
    np.maximum(rows, columns) < len(mosaic)
  )
  seen = mosaic[rows.clip(0, len(mosaic) - 1), columns.clip(0, len(mosaic) - 1)]
  inside &= np.isfinite(seen)
  return np.corrcoef(seen[inside], image.mean(-1)[inside])[0, 1]


class DatasetTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data_dir = cls.enterClassContext(tempfile.TemporaryDirectory())
    # The first run dies while it writes the second region.
    real, calls = photograph.photograph, []

    def dies(region):
      calls.append(region.name)
      if len(calls) == 2:
        raise KeyboardInterrupt
      return real(region)

    with mock.patch.object(photograph, 'photograph', dies):
      try:
        builder.load(cls.data_dir, size='tiny', split='train')
      except KeyboardInterrupt:
        pass
      cls.train = builder.load(cls.data_dir, size='tiny', split='train')
    cls.calls = calls
    cls.test = builder.load(cls.data_dir, size='tiny', split='test')

  def test_a_run_that_died_goes_on_with_the_next_region(self):
    self.assertEqual(self.calls, ['train00', 'train01', 'train01'])
    root = builder.directory(self.data_dir, 'tiny')
    self.assertEmpty(list(root.glob('.*')))
    with mock.patch.object(
      photograph, 'photograph', side_effect=AssertionError
    ):
      builder.load(self.data_dir, size='tiny', split='test')

  def test_the_same_seed_gives_the_same_pictures(self):
    region = splits.regions('tiny')[0]
    again = photograph.photograph(region)
    rows = np.flatnonzero(self.train.frames.town == region.name)
    np.testing.assert_array_equal(
      again.images, [_image(self.train, row) for row in rows]
    )

  def test_a_tile_has_its_number_and_place_in_all_years(self):
    frames = self.train.frames
    self.assertEqual(set(self.train.conditions), set(map(str, splits.YEARS)))
    self.assertIsNone(self.train.queries)
    for town in ('train00', 'train01'):
      tables = [
        frames.take(np.flatnonzero(frames.drive == f'{town}_{year}'))
        for year in splits.YEARS
      ]
      for other in tables[1:]:
        np.testing.assert_array_equal(other.frame, tables[0].frame)
        np.testing.assert_array_equal(other.position, tables[0].position)
    self.assertLen(set(frames.name), len(frames.name))

  def test_years_are_alike_and_not_equal(self):
    rows = np.flatnonzero(self.train.frames.town == 'train01')
    images = np.stack([_image(self.train, row) for row in rows]).astype(float)
    images = images.reshape(len(splits.YEARS), -1, _PIXELS * _PIXELS * 3)
    images -= images.mean(-1, keepdims=True)
    images /= np.linalg.norm(images, axis=-1, keepdims=True)
    likeness = np.einsum('ynp,zmp->yznm', images, images)
    same = likeness[0, 1].diagonal()
    self.assertLess(same.max(), 0.999)
    self.assertGreater(np.median(same), 0.6)
    others = likeness[0, 1][~np.eye(len(same), dtype=bool)]
    self.assertGreater(np.median(same), np.median(others) + 0.3)

  def test_neighbours_show_the_same_ground(self):
    frames = self.train.frames
    rows = np.flatnonzero(frames.drive == 'train01_2018')
    at = {tuple(frames.position[row, :2]): row for row in rows}
    found = []
    for (x, y), row in at.items():
      east = at.get((x + splits.STRIDE, y))
      north = at.get((x, y + splits.STRIDE))
      half, here = _PIXELS // 2, _image(self.train, row).mean(-1)
      if east is not None:
        there = _image(self.train, east).mean(-1)
        pair = here[:, half:], there[:, :half]
        found.append(np.corrcoef(*map(np.ravel, pair))[0, 1])
      if north is not None:
        there = _image(self.train, north).mean(-1)
        pair = here[:half], there[half:]
        found.append(np.corrcoef(*map(np.ravel, pair))[0, 1])
    self.assertGreater(np.median(found), 0.7)

  def test_photos_show_what_lies_below_their_footprints(self):
    found, wrong = [], []
    for region in splits.regions('tiny'):
      if region.split != 'test':
        continue
      here = self.test.frames.town == region.name
      mosaic = _mosaic(self.test, np.flatnonzero(here & ~self.test.queries))
      made = photograph.photograph(region)
      asks = made.condition == photograph.ASTRONAUT
      for row, image, corners in zip(
        np.flatnonzero(here & self.test.queries),
        made.images[asks],
        made.footprint[asks],
        strict=True,
      ):
        np.testing.assert_array_equal(image, _image(self.test, row))
        found.append(_likeness(mosaic, image, corners))
        turned = [np.roll(corners, n, 0) for n in (1, 2, 3)]
        mirrored = corners[[1, 0, 3, 2]]
        wrong.append([_likeness(mosaic, image, x) for x in (*turned, mirrored)])
    # Clouds, snow and the season hide the ground in some of them.
    self.assertGreater(np.median(found), 0.35)
    ahead = np.array(found)[:, None] > np.array(wrong)
    self.assertGreater(ahead.mean(), 0.8)
    self.assertTrue((ahead.mean(0) > 0.6).all())

  def test_the_test_asks_for_footprints_with_rough_positions(self):
    data, frames = self.test, self.test.frames
    asked = questions.within_photos(
      frames,
      data.queries,
      truth=data.truth,
      disc=questions.Disc(data.rough, 2 * splits.ROUGH),
    )
    self.assertEqual([q.town for q in asked], ['test00', 'test01', 'all'])
    track = questions.track_from_frames(frames)
    for question in asked:
      counts = questions.count_positives(
        question,
        track.take(question.query_rows),
        track.take(question.map_rows),
      )
      self.assertGreater(counts.positives.min(), 0)
      self.assertLess(
        (counts.positives[:, 0] / len(question.map_rows)).mean(), 0.9
      )
    away = frames.position[data.queries, :2] - data.rough[data.queries]
    away = np.hypot(*away.T)
    self.assertBetween(away.max(), 0.2 * splits.ROUGH, splits.ROUGH)
    self.assertTrue(np.isnan(data.rough[~data.queries]).all())
    self.assertEqual(set(data.conditions[data.queries]), {'astronaut'})
    self.assertEqual(set(data.conditions[~data.queries]), {'2021'})
    self.assertGreater(np.ptp(frames.heading[data.queries]), 2.0)
    np.testing.assert_allclose(frames.heading[~data.queries], np.pi / 2)

  def test_it_is_a_dataset_by_name_that_workers_may_read(self):
    data = datasets.load(
      'synthetic_earth', split='test', data_dir=self.data_dir, size='tiny'
    )
    read = pickle.loads(pickle.dumps(data.read))
    for row in (0, 17, len(data.frames.town) - 1):
      image = read(row, ('image',))['image']
      self.assertEqual(image.shape, (_PIXELS, _PIXELS, 3))
      np.testing.assert_array_equal(image, _image(self.test, row))
    self.assertEqual(read(0, ()), {})
    with self.assertRaisesRegex(ValueError, "'points'"):
      read(0, ('points',))

  def test_what_is_unknown_is_refused(self):
    with self.assertRaisesRegex(ValueError, "'huge'; known: .*'small'"):
      builder.load(self.data_dir, size='huge', split='test')
    with self.assertRaisesRegex(ValueError, "'all'; known: .*'train'"):
      builder.load(self.data_dir, size='tiny', split='all')

  def test_another_size_has_another_folder(self):
    self.assertLen({builder.fingerprint(size) for size in splits.SIZES}, 3)


class DamageTest(absltest.TestCase):
  def test_damaged_files_are_named(self):
    region = splits.regions('tiny')[0]
    made = photograph.Photographs(
      np.zeros((2, 32, 32, 3), np.uint8),
      np.array(['2018'] * 2),
      np.arange(2),
      np.zeros((2, 2)),
      np.zeros(2),
      np.zeros((2, 4, 2)),
      np.zeros((2, 2)),
    )
    with (
      tempfile.TemporaryDirectory() as data_dir,
      mock.patch.object(photograph, 'photograph', return_value=made),
    ):
      builder.load(data_dir, size='tiny', split='train')
      root = builder.directory(data_dir, 'tiny')
      images = root / f'{region.name}.npy'
      images.write_bytes(images.read_bytes()[:200])
      data = builder.load(data_dir, size='tiny', split='train')
      with self.assertRaisesRegex(ValueError, f'{region.name}.npy is damaged'):
        data.read(0, ('image',))
      np.save(images, np.zeros((1, 32, 32, 3), np.uint8))
      with self.assertRaisesRegex(ValueError, 'has 1 images, its table 2'):
        data.read(0, ('image',))
      table = root / f'{region.name}.npz'
      table.write_bytes(table.read_bytes()[:100])
      with self.assertRaisesRegex(ValueError, 'to make it anew'):
        builder.load(data_dir, size='tiny', split='train')


if __name__ == '__main__':
  absltest.main()
