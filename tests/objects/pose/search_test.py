# SPDX-License-Identifier: Apache-2.0
"""Tests of the search of poses: every triple has its say."""

from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import object_worlds
from i2ploc.geometry import rigid
from i2ploc.objects import association
from i2ploc.objects.pose import proposals
from i2ploc.objects.pose import scene as scene_lib
from i2ploc.objects.pose import search
from i2ploc.robust import absolute_pose

# As many finalists as there are poses: none is lost on the way.
SETTINGS = search.Settings(block=32, finalists=512, refined=0)
ANYWHERE = search.Prior(
  jnp.asarray([0.0, 0.0, 1.0]),
  jnp.asarray(-2.0),
  jnp.asarray([-jnp.inf, jnp.inf]),
  jnp.zeros(2),
  jnp.asarray(jnp.inf),
)
NUM_TRIPLES = 100


def _scene():
  """What a camera sees, and padded triples of candidates."""
  rng = np.random.default_rng(1)
  object_map = object_worlds.random_map(40, rng)
  rows = []
  while len(rows) < 6:
    pose = object_worlds.random_pose(np.sqrt(160.0), rng)
    found, rows = object_worlds.detect(object_map, pose, rng, 0.02)
  pairs = association.same_category(found.category, object_map.category)
  placed = scene_lib.make_scene(
    scene_lib.plane_boxes(found.box, object_worlds.INTRINSICS),
    found.score,
    np.zeros((len(rows), 4), bool),
    object_map.ellipsoid,
    pairs,
    np.unique(pairs.landmark),
    object_worlds.INTRINSICS,
    object_worlds.IMAGE_SIZE,
  )
  seen = proposals.sightings(
    scene_lib.plane_boxes(found.box, object_worlds.INTRINSICS),
    np.zeros(len(rows), bool),
  )
  triples = proposals.propose(
    seen, object_map.ellipsoid, pairs, num_draws=NUM_TRIPLES
  )
  sides = (
    pairs.observation[triples],
    placed.scene_rows(pairs.landmark[triples]),
  )
  return (
    placed.scene,
    tuple(
      jnp.asarray(scene_lib.pad(side.astype(np.int32), 128)) for side in sides
    ),
    len(triples),
  )


def _proposed(scene, sides, count):
  """Upper bounds of all poses, best first, and the triples that they are of."""
  # A function of its own is traced anew: what is patched has its effect.
  propose = jax.jit(lambda *args: search._propose(*args, SETTINGS))
  best = propose(scene, sides, jnp.int32(count), ANYWHERE)
  kept = np.asarray(best.bounds) >= 0
  return np.asarray(best.bounds)[kept], np.asarray(best.triples)[kept]


class ProposeTest(absltest.TestCase):
  def test_no_pose_is_lost_where_a_block_has_little_room(self):
    scene, sides, count = _scene()
    self.assertGreater(count, 2 * SETTINGS.block)
    problem = absolute_pose.PLANE
    with mock.patch.object(
      absolute_pose, 'PLANE', problem._replace(models_per_sample=4)
    ):
      bounds, triples = _proposed(scene, sides, count)
    # More poses than a block with room for one per triple can hold.
    self.assertGreater(len(bounds), 1.2 * count)
    with mock.patch.object(
      absolute_pose, 'PLANE', problem._replace(models_per_sample=1)
    ):
      few, some = _proposed(scene, sides, count)
    np.testing.assert_allclose(few, bounds, atol=1e-4)
    np.testing.assert_array_equal(np.sort(some), np.sort(triples))
    self.assertLess(max(some), count)


class PriorTest(absltest.TestCase):
  def test_an_upright_camera_within_its_heights_is_allowed(self):
    level = jnp.asarray([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    poses = rigid.Rigid(
      jnp.stack([level, level, jnp.eye(3)]),
      jnp.stack([-level @ jnp.asarray([0.0, 0.0, z]) for z in (1.5, 9.0, 1.5)]),
    )
    prior = ANYWHERE._replace(
      down=jnp.asarray([0.0, 1.0, 0.0]),
      cosine=jnp.asarray(0.99),
      height=jnp.asarray([1.0, 2.0]),
    )
    np.testing.assert_array_equal(prior.allows(poses), [True, False, False])
    self.assertTrue(ANYWHERE.allows(poses).all())

  def test_a_camera_near_its_rough_position_is_allowed(self):
    turned = jnp.asarray([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    centres = [[3.0, 7.0, 9.0], [7.0, 3.0, 9.0], [3.0, 8.5, -9.0]]
    poses = rigid.Rigid(
      jnp.stack([turned] * 3),
      jnp.stack([-turned @ jnp.asarray(centre) for centre in centres]),
    )
    prior = ANYWHERE._replace(
      position=jnp.asarray([3.0, 7.5]), radius=jnp.asarray(1.2)
    )
    np.testing.assert_array_equal(prior.allows(poses), [True, False, True])


if __name__ == '__main__':
  absltest.main()
