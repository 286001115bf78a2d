# SPDX-License-Identifier: Apache-2.0
"""How well crops of objects and texts find each other, as named numbers.

A detection is an object in an image, cut out along its box; a text describes
an object. Names are flat, rates in percent:

  test/cross/detections                    scored
  test/cross/caption@1                     own text the most similar of all
  test/cross/caption@5                     among the five most similar
  test/cross/category@1                    most similar text of its category
  test/cross/category@1_chance             a random text of its category
  test/cross/landmarks                     mean number near the vehicle
  test/cross/association@1                 own landmark, of those near
  test/cross/association@1_low             95 % block bootstrap; and _high
  test/cross/association@3
  test/cross/association_in_category@1     among those of its category
  test/cross/association@1_chance          landmarks drawn among those near
  test/cross/association@1_by_category     ... of its category
  test/cross/association@1_by_text         ... of its text: the ceiling

Detections count in an association if their landmark is near: `answerable`, a
share of those that stand still. Landmarks with the same text are equally
similar; what counts is the expectation of a random choice among them.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.evaluation import metrics

TOP = (1, 3)
CAPTION_TOP = (1, 5)
BLOCK_ROWS = 20  # frames that show much of the same


class _Columns(NamedTuple):
  """Detections and their scores; hits are expectations in 0..1."""

  row: np.ndarray  # [M]
  movable: np.ndarray  # [M] bool
  answerable: np.ndarray  # [M] bool
  hits: dict[str, np.ndarray]  # [M] by name


def hit_chances(
  similarities: np.ndarray, answers: np.ndarray, k: int
) -> np.ndarray:
  """Probability that the answer is among the first k, ties in random order.

  >>> hit_chances(np.array([[0.9, 0.9, 0.1]]), np.array([0]), 1)
  array([0.5])

  Args:
    similarities: [M, L].
    answers: [M] column of the right answer.
    k: how many count.

  Returns:
    [M] in 0..1.
  """
  own = similarities[np.arange(len(answers)), answers][:, None]
  better = (similarities > own).sum(1)
  alike = (similarities == own).sum(1)
  return np.clip((k - better) / np.maximum(alike, 1), 0.0, 1.0)


class CaptionEvaluator:
  """Associates the detections of a split with texts and with landmarks."""

  def __init__(
    self,
    role: str,
    *,
    encoder: Any,
    scenes: Callable[[], Mapping[str, Sequence[Any]]],
  ):
    """Reads nothing yet.

    Args:
      role: first part of the names.
      encoder: an `image_text.ImageTextEncoder`; it is given the variables.
      scenes: frames by question: image, detections (box, category, text,
        movable), landmarks (category, text) and answers of each, see
        `input_pipeline.sources.crops`. Asked every time.
    """
    self.role = role
    self._encoder, self._scenes = encoder, scenes

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields numbers by name, see the module; rates over nothing are left out.

    Args:
      variables: of the encoder's model.
    """
    self._encoder.variables = variables
    scenes = self._scenes()
    known = {}
    for scene in (scene for part in scenes.values() for scene in part):
      for things in (scene.detections, scene.landmarks):
        known |= dict(zip(things.text, things.category, strict=True))
    if not known:
      return
    texts = np.array(sorted(known))
    categories = np.array([known[text] for text in texts])
    descriptors = self._encoder.encode_texts(texts.tolist())
    for protocol, part in scenes.items():
      found = [
        self._score(scene, texts, categories, descriptors) for scene in part
      ]
      for name, value in _summary(found, part):
        yield f'{self.role}/{protocol}/{name}', value

  def _score(self, scene, texts, categories, descriptors) -> _Columns:
    """The detections of a scene; all texts of the split are known."""
    seen, near, answers = scene.detections, scene.landmarks, scene.answers
    images = self._encoder.encode_boxes(scene.image, seen.box)
    similarities = images @ descriptors.T
    own = np.searchsorted(texts, seen.text)
    best = categories[similarities.argmax(1)]
    hits = {
      f'caption@{k}': hit_chances(similarities, own, k) for k in CAPTION_TOP
    }
    hits['category@1'] = (best == seen.category).astype(float)
    alike = (categories == seen.category[:, None]).mean(1)
    hits['category@1_chance'] = alike
    answerable = answers >= 0
    near_texts = np.searchsorted(texts, near.text)
    to_near = similarities[:, near_texts]
    # Hits of detections without an answer do not count: any column will do.
    hits |= _associations(to_near, seen, near, np.where(answerable, answers, 0))
    row = np.full(len(answers), scene.row)
    return _Columns(row, np.asarray(seen.movable), answerable, hits)


def _associations(similarities, seen, near, answers) -> dict[str, np.ndarray]:
  """Chances [M] of finding the landmark by several ways of looking."""
  if not similarities.shape[1]:
    similarities = np.zeros((len(answers), 1))
    same_category = same_text = np.zeros_like(similarities, bool)
  else:
    same_category = near.category == seen.category[:, None]
    same_text = near.text == seen.text[:, None]
  ways = {
    'association@{}': similarities,
    'association_in_category@{}': np.where(same_category, similarities, -2.0),
    'association@{}_chance': np.zeros_like(similarities),
    'association@{}_by_category': same_category.astype(float),
    'association@{}_by_text': same_text.astype(float),
  }
  return {
    name.format(k): hit_chances(values, answers, k)
    for name, values in ways.items()
    for k in TOP
  }


def _summary(
  found: Sequence[_Columns], scenes: Sequence[Any]
) -> Iterator[tuple[str, float]]:
  """Rates of all detections together, percent."""
  if not found:
    return
  row, movable, answerable = (
    np.concatenate([getattr(part, name) for part in found])
    for name in ('row', 'movable', 'answerable')
  )
  yield 'frames', float(len(scenes))
  yield 'detections', float(len(row))
  near = [len(scene.landmarks.text) for scene in scenes]
  yield 'landmarks', float(np.mean(near))
  if (~movable).any():
    yield 'answerable', 100.0 * float(answerable[~movable].mean())
  for name in found[0].hits:
    hits = np.concatenate([part.hits[name] for part in found])
    counted = answerable if 'association' in name else np.ones(len(row), bool)
    if counted.any():
      yield name, 100.0 * float(hits[counted].mean())
      if name == 'association@1':
        columns = hits[:, None], counted[:, None], row // BLOCK_ROWS
        low, high = metrics.bootstrap_interval(*columns)
        yield f'{name}_low', 100.0 * float(low[0])
        yield f'{name}_high', 100.0 * float(high[0])


def table(results: Mapping[str, float], role: str) -> Iterator[str]:
  """The numbers as lines of text, beside what chance would give.

  Args:
    results: of `CaptionEvaluator.run`.
    role: first part of the names.
  """
  names = [k.split('/') for k in results if k.startswith(f'{role}/')]
  for protocol in dict.fromkeys(part[1] for part in names):
    base = f'{role}/{protocol}'

    def rate(name, base=base):
      return f'{results.get(f"{base}/{name}", float("nan")):5.1f}'

    yield (
      f'{base}: {results[f"{base}/detections"]:.0f} detections in '
      f'{results[f"{base}/frames"]:.0f} frames, %'
    )
    yield (
      f'  category {rate("category@1")} (chance {rate("category@1_chance")})  '
      f'caption {rate("caption@1")}, of five {rate("caption@5")}'
    )
    for k in TOP:
      name = f'association@{k}'
      yield (
        f'  landmark among the first {k} {rate(name)}  '
        f'chance {rate(f"{name}_chance")}  '
        f'by category {rate(f"{name}_by_category")}  '
        f'both {rate(f"association_in_category@{k}")}  '
        f'ceiling {rate(f"{name}_by_text")}'
      )
