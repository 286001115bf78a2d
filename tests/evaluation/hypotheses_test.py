# SPDX-License-Identifier: Apache-2.0
"""Rows tell samplers, budgets and data apart."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.evaluation import hypotheses
from i2ploc.robust import consensus
from i2ploc.robust import samplers
from i2ploc.robust import stopping

GRID = hypotheses.Grid(
  problem=('line',),
  num_data=(200,),
  sampler=('uniform', 'prosac'),
  score=('msac',),
  outliers=(0.5, 0.9),
  noise=(1.0, 4.0),
  budget=(20, 512),
)
TRIALS = hypotheses.Trials(threshold=3.0, num_problems=32, seed=0)
SETTINGS = consensus.Settings(batch=64)


class RowsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.rows = list(hypotheses.rows(GRID, TRIALS, SETTINGS))

  def _row(self, **fields):
    (row,) = (r for r in self.rows if fields.items() <= r.items())
    return row

  def test_there_is_a_row_per_cell(self):
    self.assertLen(self.rows, GRID.num_cells)
    self.assertEqual(GRID.num_cells, 16)

  def test_a_budget_limits_the_draws_and_a_larger_one_helps(self):
    hard = dict(sampler='uniform', outliers=0.9, noise=1.0)
    small, large = (self._row(**hard, budget=b) for b in (20, 512))
    self.assertEqual(small['draws'], 20)
    self.assertGreater(large['draws'], 200)
    self.assertGreater(large['success'], small['success'] + 30)
    self.assertGreater(large['success_low'], small['success_high'])

  def test_prosac_is_worth_its_order(self):
    hard = dict(outliers=0.9, noise=1.0)
    uniform = self._row(**hard, sampler='uniform', budget=20)
    prosac = self._row(**hard, sampler='prosac', budget=20)
    self.assertGreater(prosac['success'], uniform['success'] + 20)
    easy = dict(outliers=0.5, noise=1.0, budget=512)
    draws = [self._row(**easy, sampler=s)['draws'] for s in GRID.sampler]
    self.assertLessEqual(draws[1], draws[0])

  def test_noise_makes_errors(self):
    easy = dict(sampler='uniform', outliers=0.5, budget=512)
    low, high = (self._row(**easy, noise=n)['error'] for n in (1.0, 4.0))
    self.assertBetween(low, 2e-4, 5e-3)
    self.assertGreater(high, 2 * low)

  def test_intervals_hold_what_they_are_of(self):
    for row in self.rows:
      self.assertBetween(
        row['success'], row['success_low'], row['success_high']
      )
      if row['error'] is not None:
        self.assertBetween(row['error'], row['error_low'], row['error_high'])
      self.assertGreater(row['hypotheses_per_second'], 0)
      self.assertBetween(row['valid'], row['success'], 100)

  def test_saved_rows_are_not_measured_again(self):
    with mock.patch.object(hypotheses, 'make_solver', side_effect=KeyError):
      again = list(hypotheses.rows(GRID, TRIALS, SETTINGS, self.rows))
      self.assertEqual(again, self.rows)
      with self.assertRaises(KeyError):
        list(hypotheses.rows(GRID, TRIALS, SETTINGS, self.rows[1:]))

  @parameterized.parameters(
    (dict(problem=('circle',)), "unknown problem 'circle'"),
    (dict(sampler=('uniform', 'best')), "unknown sampler 'best'"),
    (dict(score=('ransac',)), "unknown score 'ransac'"),
    (dict(num_data=(1,)), 'num_data=1, but a sample holds 2'),
    (dict(budget=()), 'grid.budget is empty'),
    (dict(budget=(0,)), 'budget=0.*must be positive'),
  )
  def test_a_wrong_grid_is_named_before_anything_runs(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      next(hypotheses.rows(GRID._replace(**fields), TRIALS, SETTINGS))


class LimitedTest(absltest.TestCase):
  def test_samples_beyond_the_limit_are_not_valid(self):
    sampler = hypotheses.Limited(samplers.Uniform(jnp.int32(50)), jnp.int32(70))
    key = jax.random.key(0)
    for start, count in ((0, 64), (64, 6), (128, 0)):
      indices, valid = sampler.draw(key, start, 64, 2)
      self.assertEqual(valid.sum(), count)
      self.assertTrue(np.asarray(valid)[:count].all())
      plain, _ = sampler.sampler.draw(key, start, 64, 2)
      np.testing.assert_array_equal(indices, plain)

  def test_the_sampler_says_when_to_stop(self):
    prosac = samplers.make_prosac(50, 2, 50)
    sampler = hypotheses.Limited(prosac, jnp.int32(70))
    found = jnp.minimum(stopping.prefixes(50), 5)
    asked = found, jnp.int32(30_000), 2, 0.99, 0.01
    self.assertEqual(sampler.needed(*asked), prosac.needed(*asked))
    uniform = samplers.Uniform(jnp.int32(50))
    self.assertLess(sampler.needed(*asked), uniform.needed(*asked))


if __name__ == '__main__':
  absltest.main()
