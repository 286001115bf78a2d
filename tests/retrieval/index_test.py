# SPDX-License-Identifier: Apache-2.0
"""A map answers exactly, survives the disk, and refuses what is not its own."""

import dataclasses
import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc import files
from i2ploc.geometry import lens as lens_lib
from i2ploc.retrieval import index as index_lib

COLUMNS = ('descriptors', 'keys', 'poses', 'towns', 'frames', 'names', 'views')
LENS = lens_lib.Lens('pinhole', np.diag([100.0, 110.0, 1.0]))


def unit(rng, *shape):
  x = rng.normal(size=shape).astype(np.float32)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_index(descriptors, keys=None, views=None):
  size = len(descriptors)
  poses = np.tile(np.eye(4), (size, 1, 1))
  poses[:, 0, 3] = 2.5 * np.arange(size)
  return index_lib.Index(
    descriptors=descriptors,
    keys=np.arange(size) if keys is None else np.asarray(keys),
    poses=poses,
    towns=np.full(size, 'town_007'),
    frames=np.arange(100, 100 + size),
    names=np.full(size, ''),
    views=np.zeros(size) if views is None else np.asarray(views),
    provenance={
      'model': 'abc',
      'config': 'def',
      'dataset': 'synthetic_city',
      'software': 'jax 0',
    },
    rig=index_lib.Rig(LENS, (64, 208), np.eye(4)),
  )


def search_by_loop(index, queries, k):
  """Every view of every place, one by one; ties to the first key, first row."""
  similarities, rows = [], []
  for query in queries:
    best = {}
    for row, key in enumerate(index.keys):
      value = np.dot(query, index.descriptors[row])
      if key not in best or value > best[key][0]:
        best[key] = (value, row)
    ranked = sorted(best.values(), key=lambda pair: -pair[0])[:k]
    similarities.append([value for value, _ in ranked])
    rows.append([row for _, row in ranked])
  return np.array(similarities), np.array(rows)


class SearchTest(parameterized.TestCase):
  @parameterized.parameters(
    (list(range(60)), 1),
    (list(range(60)), 60),
    ([i // 2 for i in range(60)], 7),
    ([7, 3, 3, 9, 7, 7, 7, 1, 1, 3], 4),
    ([5] * 10, 1),
  )
  def test_agrees_with_the_loop_over_views_and_places(self, keys, k):
    rng = np.random.default_rng(k)
    index = make_index(unit(rng, len(keys), 12), keys)
    queries = unit(rng, 21, 12)
    similarities, rows, _ = index.search(queries, k)
    expected_similarities, expected_rows = search_by_loop(index, queries, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(similarities, expected_similarities, atol=1e-6)

  def test_of_several_views_of_a_query_the_most_similar_counts(self):
    rng = np.random.default_rng(0)
    index = make_index(unit(rng, 30, 12), [i // 2 for i in range(30)])
    queries = unit(rng, 7, 5, 12)
    found = index.search(queries, 15)
    every = index.descriptors @ np.moveaxis(queries, 1, 2)  # [7, 30, 5]
    expected = every.max(-1).reshape(7, 15, 2).max(-1)
    np.testing.assert_allclose(
      found.similarities, -np.sort(-expected, 1), atol=1e-6
    )
    places = np.arange(15)
    for query, row in zip(queries, expected, strict=True):
      np.testing.assert_allclose(
        index.similarities_to(query, places), row, atol=1e-6
      )
      np.testing.assert_allclose(
        index.similarities_to_all(query), row, atol=1e-6
      )

  def test_dot_products_are_searched_where_the_map_says_so(self):
    rng = np.random.default_rng(3)
    descriptors = 16 * rng.normal(size=(40, 12)).astype(np.float32)
    queries = 16 * rng.normal(size=(9, 12)).astype(np.float32)
    cosine = make_index(descriptors)
    with self.assertRaisesRegex(ValueError, 'do not have unit norm'):
      index_lib.check_index(cosine)
    origin = dict(cosine.provenance, similarity='dot')
    index = dataclasses.replace(cosine, provenance=origin)
    index_lib.check_index(index)
    similarities, rows, _ = index.search(queries, 3)
    expected_similarities, expected_rows = search_by_loop(index, queries, 3)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(similarities, expected_similarities, rtol=1e-5)
    unknown = dict(origin, similarity='euclidean')
    with self.assertRaisesRegex(ValueError, "'euclidean'; known: "):
      index_lib.check_index(dataclasses.replace(index, provenance=unknown))

  def test_repeated_keys_are_answered_once_unlike_plain_top_k(self):
    rng = np.random.default_rng(0)
    place = unit(rng, 1, 8)
    near = place + 0.01 * unit(rng, 4, 8)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    index = make_index(
      np.concatenate([near, unit(rng, 3, 8)]), [4] * 4 + [1, 2, 3]
    )
    rows = index.search(place, 3).rows
    self.assertLen(set(index.keys[rows[0]]), 3)
    plain = np.argsort(-(index.descriptors @ place[0]))[:3]
    self.assertLen(set(index.keys[plain]), 1)

  def test_ties_go_to_the_first_key_of_the_map_and_its_first_row(self):
    index = make_index(np.tile([[1.0, 0.0]], (5, 1)), [9, 2, 9, 2, 4])
    similarities, rows, _ = index.search(np.array([[1.0, 0.0]]), 3)
    np.testing.assert_array_equal(rows, [[0, 1, 4]])
    np.testing.assert_array_equal(similarities, [[1, 1, 1]])

  def test_a_small_map_gives_all_its_places(self):
    index = make_index(unit(np.random.default_rng(0), 4, 8), [0, 0, 1, 1])
    similarities, rows, _ = index.search(index.descriptors[:1], 20)
    self.assertEqual(rows.shape, (1, 2))
    self.assertEqual(index.num_places, 2)
    self.assertEqual(rows[0, 0], 0)
    self.assertTrue(np.isfinite(similarities).all())

  def test_blocks_do_not_change_the_answer(self):
    rng = np.random.default_rng(3)
    index = make_index(unit(rng, 300, 16))
    queries = unit(rng, 150, 16)
    whole = index.search(queries, 5)
    with mock.patch.object(index_lib, 'BLOCK_ENTRIES', 32 * 300):
      blocked = index.search(queries, 5)
    np.testing.assert_array_equal(whole[1], blocked[1])
    np.testing.assert_allclose(whole[0], blocked[0], atol=1e-6)

  @parameterized.parameters(0.5, 20.0, 100.0)
  def test_the_sum_over_all_places_agrees_with_the_loop(self, scale):
    rng = np.random.default_rng(5)
    index = make_index(unit(rng, 60, 12), [i // 3 for i in range(60)])
    queries = unit(rng, 5, 12)
    few = index.search(queries, 4, scale)
    every, _ = search_by_loop(index, queries, 20)
    expected = np.log(np.exp(scale * (every - every[:, :1])).sum(1))
    rounding = 1e-6 * scale  # of two ways to multiply float32
    np.testing.assert_allclose(few.log_sum, expected, atol=rounding)
    # The places that were not asked for count, and by their best view only.
    first = np.log(np.exp(scale * (every - every[:, :1]))[:, :4].sum(1))
    self.assertTrue((few.log_sum >= first - rounding).all())
    if scale < 1:
      self.assertTrue((few.log_sum > first + 1.0).all())

  @parameterized.parameters((None, 5), ([0, 1, 0, 2, 2, 1], 2))
  def test_only_places_that_may_answer_do(self, keys, k):
    rng = np.random.default_rng(8)
    size = 40 if keys is None else len(keys)
    index = make_index(unit(rng, size, 12), keys)
    queries = unit(rng, 19, 12)
    within = rng.random((19, index.num_places)) < 0.5
    within[3], within[4] = False, np.arange(index.num_places) == 1
    found = index.search(queries, k, 7.0, within)
    names = np.array([*dict.fromkeys(index.keys.tolist())])
    for i, query in enumerate(queries):
      rows = np.flatnonzero(np.isin(index.keys, names[within[i]]))
      if not len(rows):
        self.assertEqual(found.rows[i].tolist(), [-1] * k)
        self.assertEqual(found.log_sum[i], -np.inf)
        continue
      some = make_index(index.descriptors[rows], index.keys[rows])
      alone = some.search(query[None], k, 7.0)
      count = alone.rows.shape[1]
      np.testing.assert_array_equal(found.rows[i, :count], rows[alone.rows[0]])
      np.testing.assert_array_equal(found.rows[i, count:], -1)
      np.testing.assert_array_equal(found.similarities[i, count:], -np.inf)
      np.testing.assert_allclose(
        found.similarities[i, :count], alone.similarities[0], atol=1e-6
      )
      np.testing.assert_allclose(found.log_sum[i], alone.log_sum[0], atol=1e-5)

  def test_blocks_carry_their_part_of_who_may_answer(self):
    rng = np.random.default_rng(9)
    index, queries = make_index(unit(rng, 30, 8)), unit(rng, 50, 8)
    within = rng.random((50, 30)) < 0.3
    expected = index.search(queries, 4, within=within)
    with mock.patch.object(index_lib, 'BLOCK_ENTRIES', 16 * 30):
      found = index.search(queries, 4, within=within)
    for a, b in zip(expected, found, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-6)

  def test_who_may_answer_is_said_of_every_place(self):
    index = make_index(unit(np.random.default_rng(0), 4, 8))
    with self.assertRaisesRegex(ValueError, r'\(2, 3\); expected \(2, 4\)'):
      index.search(index.descriptors[:2], 1, within=np.ones((2, 3), bool))

  def test_places_around_rough_positions(self):
    # UTM: float32 would not tell half metres apart.
    index = make_index(unit(np.random.default_rng(0), 6, 8), [0, 0, 1, 2, 3, 4])
    index.poses[:, :2, 3] += [500_000.0, 5_000_000.25]
    index.poses[5, 0, 3] = np.nan
    positions = np.array([[500_000.0, 5_000_000.0], [np.nan, 0]])
    at_most = np.hypot(7.5, 0.25)
    np.testing.assert_array_equal(
      index.around(positions, at_most),
      [[True, True, True, False, False], [True] * 5],
    )
    np.testing.assert_array_equal(
      index.around(positions[0], at_most - 1e-6),
      [[True, True, False, False, False]],
    )
    towns = np.array(['a'] * 5 + ['b'])
    with self.assertRaisesRegex(ValueError, '2 towns'):
      dataclasses.replace(index, towns=towns).around(positions, 5.0)
    origin = {**index.provenance, 'unit': 'frames'}
    with self.assertRaisesRegex(ValueError, "'frames'"):
      dataclasses.replace(index, provenance=origin).around(positions, 5.0)

  def test_places_around_a_row_and_their_similarities(self):
    rng = np.random.default_rng(6)
    index = make_index(unit(rng, 12, 8), [i // 2 for i in range(12)])
    towns = index.towns.copy()
    towns[:2] = 'another'
    # Rows are 2.5 m apart, places 5 m; place 0 is in another town.
    index = dataclasses.replace(index, towns=towns)
    np.testing.assert_array_equal(index.near(4, 6.0), [1, 2, 3])
    np.testing.assert_array_equal(index.near(0, 60.0), [0])
    query = unit(rng, 8)
    found = index.similarities_to(query, np.array([1, 3]))
    views = (index.descriptors @ query).reshape(6, 2).max(1)
    np.testing.assert_allclose(found, views[[1, 3]], atol=1e-6)
    np.testing.assert_allclose(
      index.distances(4, np.array([0, 4, 7])), [np.inf, 0, 7.5]
    )

  def test_a_place_without_a_pose_is_near_itself_only(self):
    index = make_index(np.eye(4))
    index.poses[2] = np.nan
    np.testing.assert_array_equal(index.near(2, 1e6), [2])
    np.testing.assert_array_equal(index.near(0, 1e6), [0, 1, 3])

  def test_the_map_is_prepared_once(self):
    rng = np.random.default_rng(7)
    index = make_index(unit(rng, 30, 8))
    made = mock.Mock(side_effect=index_lib._rows_of_places)
    with mock.patch.object(index_lib, '_rows_of_places', made):
      for _ in range(3):
        index.search(index.descriptors[:2], 3)
    self.assertEqual(made.call_count, 1)
    self.assertIs(index._on_device, index._on_device)

  def test_compiles_once_for_query_counts_of_one_bucket(self):
    rng = np.random.default_rng(4)
    index = make_index(unit(rng, 37, 10))
    index.search(unit(rng, 33, 10), 3)
    before = index_lib._search._cache_size()
    for count in (34, 50, 64):
      index.search(unit(rng, count, 10), 3)
    self.assertEqual(index_lib._search._cache_size(), before)
    index.search(unit(rng, 65, 10), 3)
    self.assertEqual(index_lib._search._cache_size(), before + 1)

  @parameterized.parameters(
    (np.zeros((0, 8)), 'at least one query'),
    (np.ones(8), 'at least one query'),
    (np.full((2, 7), 7**-0.5), '7 numbers, the map has 8'),
    (np.array([[1.0] + [0] * 7, [np.nan] * 8]), r'not finite.*\[1\]'),
    (np.zeros((1, 8)), 'unit norm'),
  )
  def test_a_query_that_means_nothing_is_an_error(self, queries, message):
    index = make_index(unit(np.random.default_rng(0), 4, 8))
    with self.assertRaisesRegex(ValueError, message):
      index.search(queries, 2)

  def test_asking_for_no_place_is_an_error(self):
    index = make_index(unit(np.random.default_rng(0), 4, 8))
    with self.assertRaisesRegex(ValueError, 'k=0'):
      index.search(index.descriptors, 0)


class ViewTest(absltest.TestCase):
  def test_a_view_turns_the_vehicle_to_the_left_in_place(self):
    index = make_index(np.eye(2), views=[0, np.pi / 2])
    index.poses[1, :3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    poses = index.world_from_view(np.array([0, 1]))
    np.testing.assert_allclose(poses[0], index.poses[0])
    np.testing.assert_allclose(poses[1, :3, 3], index.poses[1, :3, 3])
    # The reading looks north, turned to the left it looks west.
    np.testing.assert_allclose(poses[1, :3, 0], [-1, 0, 0], atol=1e-12)


class FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / 'map.npz'
    self.index = make_index(
      unit(np.random.default_rng(0), 6, 8), [0, 0, 1, 1, 2, 2], [0, np.pi] * 3
    )

  def test_round_trip_keeps_every_field(self):
    index_lib.save_index(self.index, self.path)
    loaded = index_lib.load_index(self.path, 'abc')
    for name in COLUMNS:
      found, saved = getattr(loaded, name), getattr(self.index, name)
      np.testing.assert_array_equal(found, saved, err_msg=name)
    self.assertEqual(loaded.descriptors.dtype, np.float32)
    self.assertEqual(loaded.poses.dtype, np.float64)
    self.assertEqual(loaded.provenance, self.index.provenance)
    self.assertEqual(loaded.rig.image_size, (64, 208))
    queries = self.index.descriptors[::2]
    for a, b in zip(
      loaded.search(queries, 2), self.index.search(queries, 2), strict=True
    ):
      np.testing.assert_array_equal(a, b)

  def test_photos_need_no_lens_and_no_pose(self):
    poses = self.index.poses.copy()
    poses[0] = np.nan
    photos = dataclasses.replace(
      self.index,
      poses=poses,
      names=np.array([f'database/{i}.jpg' for i in range(6)]),
      rig=index_lib.Rig(None, (224, 224), np.eye(4)),
    )
    index_lib.save_index(photos, self.path)
    loaded = index_lib.load_index(self.path, 'abc')
    np.testing.assert_array_equal(loaded.poses, poses)
    self.assertEqual(loaded.names[5], 'database/5.jpg')
    self.assertIsNone(loaded.rig.lens)
    self.assertEqual(loaded.rig.image_size, (224, 224))

  def test_what_the_model_learned_from_the_map_goes_along(self):
    learned = {'map/image_aggregator/centers': np.eye(3, dtype=np.float32)}
    calibration = {'slope': 2.5, 'reason': ''}
    index_lib.save_index(
      dataclasses.replace(self.index, learned=learned, calibration=calibration),
      self.path,
    )
    loaded = index_lib.load_index(self.path, 'abc')
    self.assertEqual(loaded.calibration, calibration)
    self.assertEqual(list(loaded.learned), list(learned))
    for name, value in learned.items():
      np.testing.assert_array_equal(loaded.learned[name], value)

  def test_a_lens_keeps_its_model_and_distortion(self):
    lens = lens_lib.Lens('opencv', LENS.intrinsics, np.array([0.1, 0, 0, 0.2]))
    rig = index_lib.Rig(lens, (64, 208), np.eye(4))
    index_lib.save_index(dataclasses.replace(self.index, rig=rig), self.path)
    loaded = index_lib.load_index(self.path).rig.lens
    self.assertEqual(loaded.model, 'opencv')
    np.testing.assert_array_equal(loaded.intrinsics, lens.intrinsics)
    np.testing.assert_array_equal(loaded.distortion, lens.distortion)

  def test_a_file_of_the_first_format_still_answers(self):
    columns = {
      name: getattr(self.index, name) for name in COLUMNS if name != 'names'
    }
    old = columns | {
      'provenance': np.array(json.dumps(self.index.provenance)),
      'intrinsics': LENS.intrinsics,
      'image_size': np.array([64, 208]),
      'camera_from_lidar': np.diag([1.0, -1, -1, 1]),
    }
    files.save_arrays(self.path, old, 'i2ploc.index.1')
    loaded = index_lib.load_index(self.path, 'abc')
    np.testing.assert_array_equal(loaded.names, [''] * 6)
    self.assertEqual(loaded.rig.lens.model, 'pinhole')
    np.testing.assert_array_equal(loaded.rig.lens.intrinsics, LENS.intrinsics)
    np.testing.assert_array_equal(
      loaded.rig.camera_from_body, old['camera_from_lidar']
    )
    np.testing.assert_array_equal(
      loaded.search(self.index.descriptors[:1], 2).rows,
      self.index.search(self.index.descriptors[:1], 2).rows,
    )
    index_lib.save_index(loaded, self.path)
    index_lib.load_index(self.path)
    del old['camera_from_lidar']
    files.save_arrays(self.path, old, 'i2ploc.index.1')
    with self.assertRaisesRegex(ValueError, 'lacks.*camera_from_body'):
      index_lib.load_index(self.path)

  def test_another_model_is_refused_and_both_are_named(self):
    index_lib.save_index(self.index, self.path)
    with self.assertRaisesRegex(ValueError, 'model abc.*model xyz'):
      index_lib.load_index(self.path, 'xyz')
    index_lib.load_index(self.path)

  def test_a_missing_file_says_how_to_build_one(self):
    with self.assertRaisesRegex(FileNotFoundError, 'mode=index'):
      index_lib.load_index(self.path)

  @parameterized.parameters(0, 1, 100, 0.5, 0.99)
  def test_a_truncated_file_is_refused_by_name(self, keep):
    index_lib.save_index(self.index, self.path)
    whole = self.path.read_bytes()
    size = keep if isinstance(keep, int) else int(keep * len(whole))
    self.path.write_bytes(whole[:size])
    with self.assertRaisesRegex(ValueError, 'map.npz is truncated'):
      index_lib.load_index(self.path)

  def test_a_flipped_bit_in_the_descriptors_is_refused(self):
    index_lib.save_index(self.index, self.path)
    whole = bytearray(self.path.read_bytes())
    place = whole.find(self.index.descriptors.tobytes())
    self.assertGreater(place, 0)
    whole[place + 5] ^= 1
    self.path.write_bytes(whole)
    with self.assertRaisesRegex(ValueError, 'map.npz is truncated'):
      index_lib.load_index(self.path)

  def test_foreign_files_are_refused_by_name(self):
    self.path.write_text('not an index\n')
    with self.assertRaisesRegex(ValueError, 'map.npz'):
      index_lib.load_index(self.path)
    with open(self.path, 'wb') as file:
      np.savez(file, descriptors=np.eye(3))
    with self.assertRaisesRegex(ValueError, "map.npz has format 'none'"):
      index_lib.load_index(self.path)
    with open(self.path, 'wb') as file:
      np.save(file, np.eye(3))
    with self.assertRaisesRegex(ValueError, 'map.npz'):
      index_lib.load_index(self.path)
    files.save_arrays(self.path, {'keys': np.arange(3)}, index_lib.FORMAT)
    with self.assertRaisesRegex(ValueError, 'map.npz lacks.*descriptors'):
      index_lib.load_index(self.path)

  @parameterized.parameters(
    ({'descriptors': np.zeros((0, 8))}, 'empty map'),
    ({'descriptors': np.full((6, 8), np.nan)}, 'not finite'),
    ({'descriptors': np.zeros((6, 8))}, 'unit norm'),
    ({'descriptors': np.eye(8)[:5]}, 'keys has shape'),
    ({'poses': np.full((6, 4, 4), np.inf)}, 'poses holds'),
    ({'poses': np.zeros((6, 3, 4))}, 'poses has shape'),
    ({'views': np.full(6, np.nan)}, 'views holds'),
    ({'provenance': {'model': 'abc'}}, 'provenance lacks.*config'),
    (
      {'rig': index_lib.Rig(LENS._replace(model='fish'), (1, 1), np.eye(4))},
      "rig: unknown camera model 'fish'",
    ),
    ({'rig': index_lib.Rig(LENS, (0, 9), np.eye(4))}, 'rig has images'),
    (
      {'rig': index_lib.Rig(None, None, np.eye(3))},
      'rig has no lens, .*mounting',
    ),
    ({'names': np.full(5, '')}, 'names has shape'),
    ({'learned': {'map/mean': np.full(2, np.nan)}}, 'learned from the map'),
    (
      {'rig': index_lib.Rig(LENS, (1, 1), np.eye(4) * np.nan)},
      'rig holds',
    ),
  )
  def test_a_broken_index_is_neither_saved_nor_loaded(self, change, message):
    broken = dataclasses.replace(self.index, **change)
    with self.assertRaisesRegex(ValueError, message):
      index_lib.save_index(broken, self.path)
    self.assertFalse(self.path.exists())
    with mock.patch.object(index_lib, 'check_index'):
      index_lib.save_index(broken, self.path)
    with self.assertRaisesRegex(ValueError, f'map.npz: .*{message}'):
      index_lib.load_index(self.path)

  def test_a_lens_goes_with_a_size(self):
    rig = index_lib.Rig(LENS, None, np.eye(4))
    with self.assertRaisesRegex(
      ValueError, 'rig has a lens.*images of some size'
    ):
      index_lib.check_index(dataclasses.replace(self.index, rig=rig))

  def test_dying_while_writing_leaves_the_old_index(self):
    index_lib.save_index(self.index, self.path)
    other = dataclasses.replace(self.index, frames=self.index.frames + 1)
    with mock.patch.object(os, 'fsync', side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        index_lib.save_index(other, self.path)
    np.testing.assert_array_equal(
      index_lib.load_index(self.path).frames, self.index.frames
    )
    index_lib.save_index(other, self.path)
    np.testing.assert_array_equal(
      index_lib.load_index(self.path).frames, other.frames
    )
    self.assertLen(os.listdir(self.path.parent), 1)


if __name__ == '__main__':
  absltest.main()
