# SPDX-License-Identifier: Apache-2.0
"""Terrain, water and cameras of the embedded earth, against slow loops."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_earth import camera as camera_lib
from input_pipeline.synthetic_earth import land as land_lib
from input_pipeline.synthetic_earth import noise
from input_pipeline.synthetic_earth import paint
from input_pipeline.synthetic_earth import splits
from input_pipeline.synthetic_earth import water


class NoiseTest(absltest.TestCase):
  def test_octaves_add_detail_and_no_bias(self):
    x, y = np.meshgrid(*[np.linspace(0, 9, 500, dtype=np.float32)] * 2)
    few = np.asarray(noise.fractal(x, y, 5, 2))
    many = np.asarray(noise.fractal(x, y, 5, 7))
    self.assertAlmostEqual(many.mean(), 0, delta=0.08)
    self.assertBetween(many.std(), 0.1, 0.4)
    self.assertGreater(np.corrcoef(few.ravel(), many.ravel())[0, 1], 0.9)
    rough = [np.abs(np.diff(v, axis=1)).mean() for v in (few, many)]
    self.assertGreater(rough[1], 1.5 * rough[0])
    other = np.asarray(noise.fractal(x, y, 6, 7))
    self.assertLess(abs(np.corrcoef(other.ravel(), many.ravel())[0, 1]), 0.2)

  def test_ridges_are_sharp_crests(self):
    x, y = np.meshgrid(*[np.linspace(0, 20, 400, dtype=np.float32)] * 2)
    value = np.asarray(noise.ridged(x, y, 5, 1))
    self.assertBetween(value.min(), 0, 0.01)
    bend = np.abs(np.diff(value, 2, axis=1))
    # A crest bends as much as in a smooth field nothing does.
    self.assertGreater(bend.max(), 10 * np.median(bend))

  def test_the_nearest_point_agrees_with_the_loop(self):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-4, 4, (2, 60)).astype(np.float32)
    found = np.asarray(noise.cells(x, y, np.uint32(3)))
    points = []
    for i in range(-6, 7):
      for j in range(-6, 7):
        bits = patterns.random(
          np.array([i], np.int32), np.array([j], np.int32), np.uint32(3)
        )
        px, py = (
          k + 0.1 + 0.8 * float(patterns.byte(bits, n)[0])
          for n, k in enumerate((i, j))
        )
        points.append((px, py, int(bits[0])))
    for a, b, bits in zip(x, y, found, strict=True):
      near = min(points, key=lambda p: (p[0] - a) ** 2 + (p[1] - b) ** 2)
      self.assertEqual(near[2], int(bits))


class WaterTest(absltest.TestCase):
  def test_all_water_leaves_and_never_climbs(self):
    rng = np.random.default_rng(0)
    height = rng.uniform(-1, 10, (14, 14))
    found = water.drain(height)
    filled = found.filled.ravel()
    out = 0
    for start in range(height.size):
      cell, seen = start, {start}
      while found.into[cell] >= 0:
        below = int(found.into[cell])
        self.assertLessEqual(filled[below], filled[cell])
        step = np.subtract(divmod(below, 14), divmod(cell, 14))
        self.assertLessEqual(np.abs(step).max(), 1)
        self.assertNotIn(below, seen)
        seen.add(below)
        cell = below
      row, column = divmod(cell, 14)
      self.assertTrue(
        height[row, column] < 0 or {row, column} & {0, 13}, (row, column)
      )
      out += found.catchment[cell] if cell == start else 0
    self.assertEqual(out, height.size)
    inside = found.into >= 0
    carried = np.zeros(height.size)
    np.add.at(carried, found.into[inside], found.catchment[inside])
    np.testing.assert_allclose(found.catchment, carried + 1)

  def test_a_bowl_is_filled_up_to_its_lowest_rim(self):
    height = np.full((7, 7), 5.0)
    height[1:-1, 1:-1] = 9
    height[2:-2, 2:-2] = 1
    height[1, 3] = 6
    found = water.drain(height).filled
    np.testing.assert_array_equal(found[2:-2, 2:-2], 6)
    np.testing.assert_array_equal(found[0], 5)

  def test_rivers_are_where_much_water_passes(self):
    # A trough that falls to the east.
    row, column = np.mgrid[:20, :20]
    drainage = water.drain(50 + 5.0 * abs(row - 9) - column)
    rng = np.random.default_rng(0)
    picture = water.draw_rivers(drainage, rng, 80, least=60, growth=2.0)
    self.assertGreater(picture[34:44].mean(), 0.1)
    self.assertEqual(picture[:28].max(), 0)
    self.assertEqual(picture[50:].max(), 0)
    self.assertGreater(picture[:, 60:].sum(), picture[:, 20:40].sum())


class LandTest(absltest.TestCase):
  def test_land_is_what_its_climate_says(self):
    seeds = (3000, 3001)  # a plain at the sea and a desert
    wet, dry = (land_lib.make_land(seed, 160, 500.0) for seed in seeds)
    kinds = [land_lib.climate(seed) for seed in seeds]
    for land, kind in zip((wet, dry), kinds, strict=True):
      for name, layer in land._asdict().items():
        self.assertEqual(np.shape(layer), (160, 160), name)
        self.assertTrue(np.isfinite(np.asarray(layer, float)).all(), name)
      self.assertAlmostEqual((land.height < 0).mean(), kind.sea, delta=0.05)
      self.assertLess(land.field[land.height < -5].mean(), 0.02)
    self.assertGreater(wet.forest.mean(), 5 * dry.forest.mean())
    self.assertGreater(wet.field.mean(), 2 * dry.field.mean())
    self.assertGreater(wet.town.sum(), 0)

  def test_slopes_point_up(self):
    land = land_lib.make_land(3002, 160, 500.0)
    height = np.asarray(land.height, np.float64)
    # Rows run south.
    north = (height[:-2] - height[2:]) / 1000
    east = (height[:, 2:] - height[:, :-2]) / 1000
    np.testing.assert_allclose(land.north[1:-1], north, atol=1e-3)
    np.testing.assert_allclose(land.east[:, 1:-1], east, atol=1e-3)

  def test_slopes_that_face_the_sun_are_bright(self):
    flat = np.zeros((1, 3), np.float32)
    layers = dict.fromkeys(land_lib.Land._fields, flat)
    layers |= dict.fromkeys(('parcel', 'block'), flat.astype(np.uint32))
    land = land_lib.Land(**layers)._replace(
      height=flat + 500, east=np.array([[-0.3, 0.0, 0.3]], np.float32)
    )
    sun = np.array([0.8, 0, 0.6], np.float32)
    look = paint.Look(
      np.uint32(0), 3.0, sun, 9e3, 0.0, 0.0, 1.0, np.ones(3, np.float32), 0, 0
    )
    (falls_east, level, rises_east), = np.asarray(
      paint.paint(land, flat, flat, look)
    ).mean(-1)  # fmt: skip
    self.assertGreater(falls_east, level)
    self.assertLess(rises_east, level)


class CameraTest(parameterized.TestCase):
  @parameterized.parameters((0.0, 0.3, 1.1), (0.5, -2.0, 2.5), (0.3, 3.0, -1.0))
  def test_agrees_with_a_pinhole_by_matrices(self, tilt, azimuth, turn):
    camera = camera_lib.Camera(
      np.array([3000.0, -800.0]), 9000.0, tilt, azimuth, turn
    )
    points = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    found = camera_lib.ground_from_picture(camera, points)

    # A camera that looks straight down with its top to the east, then turned
    # about its axis, tilted ahead and turned to the azimuth.
    def rz(a):
      return np.array(
        [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
      )

    ry = np.array(
      [
        [np.cos(tilt), 0, -np.sin(tilt)],
        [0, 1, 0],
        [np.sin(tilt), 0, np.cos(tilt)],
      ]
    )
    rotation = rz(azimuth) @ ry @ rz(turn)
    focal = 1 / 0.15
    eye = np.array([*camera.center, 0]) - 30_000 * (
      rotation @ np.array([0.0, 0, -1])
    )
    for point, ground in zip(points, found, strict=True):
      # Picture right is south and picture down is west when the top is east.
      ray = rotation @ np.array([-point[1], -point[0], -focal])
      expected = eye - eye[2] / ray[2] * ray
      np.testing.assert_allclose(ground, expected[:2], atol=1e-6)

  def test_straight_down_and_north_up_is_a_square(self):
    camera = camera_lib.Camera(np.zeros(2), 10.0, 0.0, np.pi / 2, 0.0)
    np.testing.assert_allclose(
      camera_lib.footprint(camera),
      [[-5, -5], [5, -5], [5, 5], [-5, 5]],
      atol=1e-9,
    )
    self.assertAlmostEqual(camera.heading, np.pi / 2)

  def test_what_is_far_is_wide(self):
    camera = camera_lib.Camera(np.zeros(2), 10.0, 0.6, np.pi / 2, 0.0)
    left, right, far_right, far_left = camera_lib.footprint(camera)
    self.assertGreater(far_right[0] - far_left[0], 10.5)
    self.assertLess(right[0] - left[0], 9.5)
    self.assertGreater(far_right[1] - right[1], 10 / np.cos(0.6))


class RegionTest(parameterized.TestCase):
  @parameterized.parameters(*splits.SIZES)
  def test_regions_are_disjoint(self, size):
    regions = splits.regions(size)
    self.assertLen({region.seed for region in regions}, len(regions))
    self.assertLen({region.name for region in regions}, len(regions))
    corners = np.array([region.south_west for region in regions])
    for i, corner in enumerate(corners):
      away = np.abs(np.delete(corners, i, 0) - corner).max(1)
      self.assertGreater(away.min(), 5)
    self.assertLess(np.abs(corners[:, 0]).max(), 65)

  def test_degrees_are_metres_on_the_ground(self):
    region = splits.regions('small')[-1]
    corner, middle = region.degrees(
      np.array([[0.0, 0.0], [region.extent / 2] * 2])
    )
    self.assertEqual(tuple(corner), region.south_west)
    north, east = np.radians(middle - corner) * 6_378_137
    self.assertAlmostEqual(north, region.extent / 2, delta=100)
    east *= np.cos(np.radians(middle[0]))
    self.assertAlmostEqual(east, region.extent / 2, delta=100)


if __name__ == '__main__':
  absltest.main()
