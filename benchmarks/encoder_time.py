# SPDX-License-Identifier: Apache-2.0
"""How long published encoders take for an image, beside torch.

The same weights and the same image, one thread each, by turns in one process:
what another process takes of the machine hits both. The ratio is the median of
the turns' ratios. Both results are compared first.

python -m benchmarks.encoder_time --json=encoder_time.json
"""

from collections.abc import Callable
from collections.abc import Iterator
import json
import os
import pathlib
import sys
import time
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import numpy as np
import torch

from benchmarks import torch_encoders
from i2ploc import compilation
from i2ploc.models.encoders import efficientnet
from i2ploc.models.weights import efficientnet as efficientnet_lib
from i2ploc.models.weights import sources
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import vit as vit_lib

TURNS = flags.DEFINE_integer('turns', 40, 'How often each is run.')
NAMES = flags.DEFINE_multi_string('case', [], 'Only these cases.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
FOCUS, EFFICIENTNET = 'focus_vit_s14', 'efficientnet_lite0'


class Case(NamedTuple):
  """An encoder and an image.

  Attributes:
    name: of both.
    ours: takes nothing, returns [N, D] when it is computed.
    theirs: the same of torch, by what of torch it uses.
  """

  name: str
  ours: Callable[[], np.ndarray]
  theirs: dict[str, Callable[[], np.ndarray]]


def _image(height, width):
  rng = np.random.default_rng(0)
  return rng.normal(size=(1, height, width, 3)).astype(np.float32)


def _ours(model, variables, images):
  apply = compilation.jit(lambda variables, x: model.apply(variables, x)[0])
  variables, images = jax.device_put((variables, images))
  return lambda: np.asarray(apply(variables, images)[0])


def _theirs(module, images, layout=torch.contiguous_format):
  x = torch.tensor(images).permute(0, 3, 1, 2).contiguous(memory_format=layout)

  def run():
    with torch.inference_mode():
      return module(x)[0].numpy()

  return run


def vit(height: int, width: int) -> Case:
  """The published ViT-S/14."""
  path = sources.find(FOCUS)
  images = _image(height, width)
  model, variables = vit_lib.load_vit(path, (height, width))
  theirs = _theirs(torch_encoders.load_dinov2(path, (height, width)), images)
  return Case(
    f'{FOCUS} {height} x {width}',
    _ours(model, variables, images),
    {'eager': lambda: theirs()[1:]},
  )


def efficientnet_lite0(height: int, width: int) -> Case:
  """The published EfficientNet-Lite0, with the padding that torch has."""
  path = sources.find(EFFICIENTNET)
  images = _image(height, width)
  model = efficientnet.EfficientNetLite0(padding='symmetric')
  variables = efficientnet_lib.load_efficientnet_variables(path, model)
  tensors = tensor_files.read_tensors(path)

  def as_tokens(run):
    return lambda: run().reshape(efficientnet.HEAD, -1).T

  last = torch.channels_last
  theirs = {
    'eager': _theirs(torch_encoders.EfficientNetLite0(tensors), images),
    'channels last': _theirs(
      torch_encoders.EfficientNetLite0(tensors).channels_last(), images, last
    ),
  }
  return Case(
    f'{EFFICIENTNET} {height} x {width}',
    _ours(model, variables, images),
    {name: as_tokens(run) for name, run in theirs.items()},
  )


CASES = {
  'vit_224': lambda: vit(224, 224),
  'vit_672': lambda: vit(224, 672),
  'efficientnet_224': lambda: efficientnet_lite0(224, 224),
}


def _seconds(run):
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def measure(case: Case, turns: int) -> Iterator[dict]:
  """Rows of the table: ours beside each of theirs."""
  ours = case.ours()
  for kind, theirs in case.theirs.items():
    expected = theirs()
    apart = float(np.abs(ours - expected).max() / np.abs(expected).max())
    if not apart < 1e-4:
      sys.exit(f'{case.name}: {apart} from torch, {kind}')
  for _ in range(3):
    case.ours()
    for run in case.theirs.values():
      run()
  spent = {name: [] for name in ('ours', *case.theirs)}
  for _ in range(turns):
    spent['ours'].append(_seconds(case.ours))
    for kind, run in case.theirs.items():
      spent[kind].append(_seconds(run))
  for kind in case.theirs:
    ratios = np.asarray(spent['ours']) / np.asarray(spent[kind])
    yield dict(
      case=case.name,
      torch=kind,
      ours_ms=1e3 * float(np.median(spent['ours'])),
      torch_ms=1e3 * float(np.median(spent[kind])),
      ratio=float(np.median(ratios)),
      quartiles=[float(np.percentile(ratios, q)) for q in (25, 75)],
      turns=turns,
    )


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  if hasattr(os, 'sched_setaffinity'):  # one core, before JAX counts them
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  torch.set_num_threads(1)
  unknown = sorted(set(NAMES.value) - set(CASES))
  if unknown:
    sys.exit(f'unknown cases {unknown}; known: {list(CASES)}.')
  rows = []
  print(f'{"case":32}{"torch":16}{"ours":>9}{"torch":>9}  ratio (quartiles)')
  for name in NAMES.value or CASES:
    for row in measure(CASES[name](), TURNS.value):
      rows.append(row)
      low, high = row['quartiles']
      print(
        f'{row["case"]:32}{row["torch"]:16}{row["ours_ms"]:6.1f} ms'
        f'{row["torch_ms"]:6.1f} ms  {row["ratio"]:.2f} ({low:.2f} to '
        f'{high:.2f})',
        flush=True,
      )
  if JSON.value:
    versions = {'jax': jax.__version__, 'torch': torch.__version__}
    text = json.dumps({'versions': versions, 'rows': rows}, indent=1)
    pathlib.Path(JSON.value).write_text(text)


if __name__ == '__main__':
  app.run(main)
