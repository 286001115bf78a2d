# SPDX-License-Identifier: Apache-2.0
"""What a user can mend: the only exceptions that main.py shows as one line.

A message says what was found, what was expected and what to do next. Any other
exception is a fault of the program and keeps its traceback.
"""


class InputError(ValueError):
  """Data, files, flags or arguments that cannot be used as they are."""


class MissingFileError(InputError, FileNotFoundError):
  """A file or folder that is not where it should be."""
