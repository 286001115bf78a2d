# SPDX-License-Identifier: Apache-2.0
"""Tables that people write: CSV with a header, in any order of columns.

Commas, semicolons or tabs; the header decides. Columns have several names, as
spreadsheets, street-view exports and papers call them; case does not matter,
and columns of other names are left alone. Names of photos are compared as text
of one Unicode form, since disks write accents in two ways.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import math
import pathlib
from typing import NamedTuple
import unicodedata

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError

DELIMITERS = ',;\t'


class Table(NamedTuple):
  """A file with a header.

  Attributes:
    header: the names of its columns, as they are.
    columns: by what they mean, their place; of the known ones.
    rows: cells of every row that is not blank, by line number from 1.
  """

  header: list[str]
  columns: dict[str, int]
  rows: dict[int, list[str]]

  def cell(self, cells: Sequence[str], meaning: str) -> str:
    """A cell without blanks; '' where the column or the cell is missing."""
    place = self.columns.get(meaning, len(cells))
    return cells[place].strip() if place < len(cells) else ''


def read_table(
  path: pathlib.Path, names: Mapping[str, Sequence[str]], what: str
) -> Table:
  """Reads a table.

  Args:
    path: of the file.
    names: by what a column may mean, how it may be called, in lower case.
    what: the file holds, for messages.

  Raises:
    MissingFileError: there is no such file.
    InputError: no text, or two columns of one meaning.
  """
  if not path.is_file():
    raise MissingFileError(f'{path}: no such file of {what}.')
  try:
    # Spreadsheets begin UTF-8 with a mark.
    with path.open(encoding='utf-8-sig', newline='') as file:
      first = file.readline()
      file.seek(0)
      delimiter = max(DELIMITERS, key=first.count)
      lines = {
        line: cells
        for line, cells in enumerate(csv.reader(file, delimiter=delimiter), 1)
        if any(cell.strip() for cell in cells)
      }
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError(f'{path} is not a CSV file: {error}.') from error
  header = [cell.strip() for cell in lines.pop(1, ())]
  columns: dict[str, int] = {}
  for place, cell in enumerate(header):
    for meaning, called in names.items():
      if cell.lower() not in called:
        continue
      if meaning in columns:
        raise InputError(
          f'{path}: two columns say {meaning}: {header[columns[meaning]]!r} and'
          f' {cell!r}. Keep one.'
        )
      columns[meaning] = place
  return Table(header, columns, lines)


def number(text: str) -> float:
  """A float; NaN of what is none.

  >>> number('1e3'), number('north')
  (1000.0, nan)
  """
  try:
    return float(text)
  except ValueError:
    return math.nan


def photo_name(text: str) -> str:
  """A photo's name as names are compared.

  >>> photo_name('.\\\\a\\\\b.jpg')
  'a/b.jpg'
  """
  return same_form(text.strip().replace('\\', '/').removeprefix('./'))


def same_form(name: str) -> str:
  """A name with accents in one Unicode form."""
  return unicodedata.normalize('NFC', name)
