# SPDX-License-Identifier: Apache-2.0
"""Parity: how far our modules are from the reference code.

Compares outputs, gradients and statistics with what the reference code gave
for the same weights and inputs, and prints the largest difference of each:
absolute, or relative to the largest value of an array that exceeds 1. Exits
with 1 if one is beyond its tolerance. A new row is a function in `parity_rows`
and its entry in MODULES there.

python benchmarks/parity.py --json=parity.json
"""

import json
import pathlib
import sys

from absl import app
from absl import flags

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.parity_rows import table

GOLDEN = flags.DEFINE_string(
  'golden', None, 'Folder of the reference outputs; default: tests/golden.'
)
NAMES = flags.DEFINE_multi_string('module', [], 'Only these modules.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')


def main(argv: list[str]) -> None:
  """Compares, prints and writes."""
  del argv
  folders = (pathlib.Path(GOLDEN.value),) if GOLDEN.value else table.FOLDERS
  try:
    rows = table.show(table.select(NAMES.value), folders)
  except ValueError as error:
    sys.exit(f'{error}.')
  if not rows:
    sys.exit('Nothing was compared; give the right folder as --golden.')
  if JSON.value:
    numbers = [row._asdict() | {'ok': row.ok} for row in rows]
    pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=1))
  sys.exit(0 if all(row.ok for row in rows) else 1)


if __name__ == '__main__':
  app.run(main)
