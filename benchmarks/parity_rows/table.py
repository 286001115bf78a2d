# SPDX-License-Identifier: Apache-2.0
"""All modules that have a reference, and the table of how far they are off."""

from collections.abc import Sequence
import os
import pathlib

from benchmarks.parity_rows import clip
from benchmarks.parity_rows import comparison
from benchmarks.parity_rows import encoders
from benchmarks.parity_rows import lip_loc
from benchmarks.parity_rows import lip_loc_loss
from benchmarks.parity_rows import losses
from benchmarks.parity_rows import saliency_i2ploc
from benchmarks.parity_rows import saliency_parts
from i2ploc.errors import MissingFileError

MODULES = (
  *saliency_parts.MODULES,
  *losses.MODULES,
  *encoders.MODULES,
  *clip.MODULES,
  *saliency_i2ploc.MODULES,
  *lip_loc.MODULES,
  *lip_loc_loss.MODULES,
)
ROOT = pathlib.Path(__file__).resolve().parents[2]
VARIABLE = 'I2PLOC_GOLDEN'


def find_golden(given: str | None = None) -> pathlib.Path:
  """The folder of the reference outputs.

  Args:
    given: the folder; None for that in the environment, or beside the checkout.

  Raises:
    FileNotFoundError: it does not exist.
  """
  given = given or os.environ.get(VARIABLE)
  folder = pathlib.Path(given or ROOT.parent / 'shared' / 'golden')
  if not folder.is_dir():
    raise FileNotFoundError(
      f'no reference outputs in {folder}; give their folder as --golden or as '
      f'${VARIABLE}'
    )
  return folder


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
  modules: Sequence[comparison.Module], golden: pathlib.Path
) -> list[comparison.Row]:
  """Compares and prints; returns the rows.

  A module whose published weights are not on this machine has none.
  """
  rows = []
  print(
    f'{"module":30}{"quantity":30}{"reference":28}{"difference":>10}'
    f'{"tolerance":>11}'
  )
  for module in modules:
    try:
      found = comparison.rows(module, golden)
    except MissingFileError as error:
      print(f'{module.name:30}skipped: {error}', flush=True)
      continue
    for row in found:
      print(line(row), flush=True)
    rows += found
  failed = sum(not row.ok for row in rows)
  print(f'{len(rows)} rows, {failed} beyond their tolerance')
  return rows
