# SPDX-License-Identifier: Apache-2.0
"""Losses and hyperbolic geometry against their released forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.parity_rows import comparison
from i2ploc.geometry import hyperbolic as hyperbolic_lib
from i2ploc.losses import contrastive
from i2ploc.losses import relational

Comparison = comparison.Comparison
SIDES = ('img', 'pts')


def info_nce(path):
  """Both forms, for batches of 1 to 64."""
  golden = np.load(path)
  for form, stem in (('concatenated', ''), ('clip', 'clip_form_')):

    def loss(image, points, form=form):
      return contrastive.info_nce(image, points, 1 / 0.07, form=form)[0]

    loss = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for size in (1, 2, 4, 17, 64):
      prefix = f'infonce/B{size}/'
      found = loss(*(golden[prefix + side] for side in SIDES))
      prefix += stem
      yield Comparison(
        f'{form}, value', found[0], golden[f'{prefix}loss_float64'], 2e-7
      )
      expected = tuple(golden[f'{prefix}grad_{s}_float64'] for s in SIDES)
      yield Comparison(f'{form}, gradients', found[1], expected, 2e-7)


def relation_consistency(path):
  """The terms of `relational`; the hyperbolic one in the clean form.

  The released one divides by a mean that rounding noise enters.
  """
  golden = np.load(path)

  def euclidean(image, points, _):
    return relational.euclidean_consistency(image, points)

  def angle(image, points, _):
    return relational.angle_consistency(image, points)

  def hyperbolic(image, points, curvature):
    return relational.hyperbolic_consistency(
      image,
      points,
      curvature=curvature,
      max_norm=float('inf'),  # the release does not clip
    )

  terms = {
    'Euclidean': (euclidean, {'euclid': 0.0}),
    'angle': (angle, {'angle': 0.0}),
    'hyperbolic, clean': (
      hyperbolic,
      {'hyperclean_c0.1': 0.1, 'hyperclean_c1.0': 1.0},
    ),
  }
  for name, (term, stems) in terms.items():
    cases = ['B4_unit', 'B4_small', 'B4_raw', 'B16_unit']
    if term is hyperbolic:
      # Features of norm 5 land where the 1e-5 in the release's denominators
      # outweighs what is compared.
      cases.remove('B4_raw')
    run = jax.jit(jax.value_and_grad(term, (0, 1)))
    for case, stem in itertools.product(cases, stems):
      prefix = f'relation/{case}/'
      rows = (golden[prefix + side] for side in SIDES)
      value, gradients = run(*rows, stems[stem])
      stem = prefix + stem
      expected = golden[f'{stem}_loss_float64']
      yield Comparison(f'{name}, value', value, expected, 1e-7)
      expected = tuple(golden[f'{stem}_grad_{s}_float64'] for s in SIDES)
      yield Comparison(f'{name}, gradients', gradients, expected, 5e-7)


def released_hyperbolic(path):
  """The released hyperbolic term, from our distances and its noise.

  Its diagonal is rounding noise that counts wherever it is positive: taken from
  the stored matrices, nothing else is.
  """
  golden = np.load(path)
  distance = jax.jit(hyperbolic_lib.distance)
  for case in ('B2_unit', 'B4_unit', 'B8_unit', 'B16_unit'):
    for curvature in (0.1, 1.0):
      stem = f'relation/{case}/hyper_c{curvature}_'
      normalized = []
      for side in SIDES:
        place = jnp.asarray(golden[f'{stem}z_{side}'])
        released = golden[f'{stem}G_{side}']
        diagonal = np.eye(len(released), dtype=bool)
        clean = distance(place[:, None], place, curvature)
        ours = np.where(diagonal, released, clean)
        yield Comparison('distances', ours, released, 1e-4)
        normalized.append(ours / ours[ours > 0].mean())
      loss = optax.huber_loss(*normalized).mean()
      yield Comparison(
        'value, diagonal as stored', loss, golden[f'{stem}loss'], 2e-7
      )


def poincare_ball(path):
  """Maps and distances of `geometry.hyperbolic`."""
  golden = np.load(path)
  for c in (0.05, 0.1, 1.0):
    read = {
      name: golden[f'c{c}/{name}'].astype(np.float32)
      for name in ('x', 'x_proj', 'y_proj', 'u')
    }
    x, y, u = (jnp.asarray(read[n]) for n in ('x_proj', 'y_proj', 'u'))
    distance = hyperbolic_lib.distance(x, y, c)
    # The last rows lie within 1e-3 of the border, where float32 inputs alone
    # move a distance by percents.
    yield Comparison(
      'distance, textbook',
      distance[:8],
      golden[f'c{c}/dist_textbook'][:8],
      1e-5,
    )
    # The released one has 1e-5 in a denominator.
    yield Comparison(
      'distance, released', distance[:6], golden[f'c{c}/dist'][:6], 1e-4
    )
    clipped = hyperbolic_lib.clip_norm(u, 2.0)
    maps = {
      'expmap0_proj': hyperbolic_lib.exp_map_zero(u, c),
      'to_poincare_clip2': hyperbolic_lib.exp_map_zero(clipped, c),
      'x_proj': hyperbolic_lib.project(jnp.asarray(read['x']), c),
      'mobius_add': hyperbolic_lib.mobius_add(x, y, c)[:9],
      'logmap0': hyperbolic_lib.log_map_zero(x, c)[:9],
    }
    for name, found in maps.items():
      expected = golden[f'c{c}/{name}'][: len(found)]
      yield Comparison('maps', found, expected, 1e-5)


LOSSES = 'saliency_losses.npz'
MODULES = (
  comparison.Module('InfoNCE', LOSSES, info_nce),
  comparison.Module('relation consistency', LOSSES, relation_consistency),
  comparison.Module('released hyperbolic', LOSSES, released_hyperbolic),
  comparison.Module('Poincare ball', 'poincare.npz', poincare_ball),
)
