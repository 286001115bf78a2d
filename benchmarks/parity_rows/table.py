# SPDX-License-Identifier: Apache-2.0
"""All modules that have a reference, and the table of how far they are off."""

from collections.abc import Sequence
import pathlib

from benchmarks.parity_rows import aggregators
from benchmarks.parity_rows import clip
from benchmarks.parity_rows import comparison
from benchmarks.parity_rows import encoders
from benchmarks.parity_rows import lip_loc
from benchmarks.parity_rows import lip_loc_loss
from benchmarks.parity_rows import losses
from benchmarks.parity_rows import saliency_i2ploc
from benchmarks.parity_rows import saliency_parts

MODULES = (
  *saliency_parts.MODULES,
  *losses.MODULES,
  *encoders.MODULES,
  *clip.MODULES,
  *aggregators.MODULES,
  *saliency_i2ploc.MODULES,
  *lip_loc.MODULES,
  *lip_loc_loss.MODULES,
)
_ROOT = pathlib.Path(__file__).resolve().parents[2]
# The committed outputs, and those that a licence keeps out of the repository.
FOLDERS = (
  _ROOT / 'tests' / 'golden',
  _ROOT.parent / 'shared' / 'golden',
)


def find_folder(
  module: comparison.Module, folders: Sequence[pathlib.Path] = FOLDERS
) -> pathlib.Path:
  """The first of `folders` that holds the outputs which `module` needs.

  Raises:
    FileNotFoundError: none does.
  """
  for folder in folders:
    if (folder / module.reference).exists():
      return folder
  places = ' or '.join(str(folder) for folder in folders)
  raise FileNotFoundError(f'no {module.reference} in {places}')


def select(names: Sequence[str]) -> list[comparison.Module]:
  """The modules of these names, all if there are none.

  Raises:
    ValueError: no module has a name.
  """
  known = {module.name: module for module in MODULES}
  unknown = sorted(set(names) - set(known))
  if unknown:
    raise ValueError(f'unknown modules {unknown}; known: {list(known)}')
  return [known[name] for name in names] or list(MODULES)


def line(row: comparison.Row) -> str:
  """A line of the table."""
  return (
    f'{row.module:30}{row.quantity:30}{row.reference:28}'
    f'{row.difference:10.1e}{row.tolerance:11.0e}  {"ok" if row.ok else "FAIL"}'
  )


def show(
  modules: Sequence[comparison.Module],
  folders: Sequence[pathlib.Path] = FOLDERS,
) -> list[comparison.Row]:
  """Compares and prints; returns the rows.

  A module whose reference outputs or published weights are nowhere is printed
  as not compared.
  """
  rows = []
  print(
    f'{"module":30}{"quantity":30}{"reference":28}{"difference":>10}'
    f'{"tolerance":>11}'
  )
  for module in modules:
    try:
      found = comparison.rows(module, find_folder(module, folders))
    except FileNotFoundError as error:
      print(f'{module.name:30}not compared: {error}', flush=True)
      continue
    for row in found:
      print(line(row), flush=True)
    rows += found
  failed = sum(not row.ok for row in rows)
  print(f'{len(rows)} rows, {failed} beyond their tolerance')
  return rows
