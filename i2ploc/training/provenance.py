# SPDX-License-Identifier: Apache-2.0
"""Compares a config with the one that a checkpoint or a map was made with.

Equal shapes do not make equal runs: another batch size, seed or option without
parameters would go unnoticed. What differs is listed, and refused unless the
user allows it.
"""

from collections.abc import Callable
from collections.abc import Mapping
import hashlib
import json
import sys
from typing import Any

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.training import checkpoint

Changes = dict[str, tuple[Any, Any]]


class _Absent:
  """A field that one of two configs does not have."""

  def __repr__(self) -> str:
    return 'absent'


ABSENT = _Absent()


def config_changes(
  saved: Mapping[str, Any], config: Mapping[str, Any]
) -> Changes:
  """Fields of two configs that differ, by dotted name: (saved, now).

  Args:
    saved: a config as read from a checkpoint.
    config: a config as a dict.

  Returns:
    `ABSENT` stands for a field that only the other one has: an option that
    was added or removed changes a run too.
  """
  # Tuples are lists and integers may be floats in JSON.
  saved, config = (
    dict(_leaves(json.loads(json.dumps(files.plain(one)))))
    for one in (saved, config)
  )
  return {
    name: (saved.get(name, ABSENT), config.get(name, ABSENT))
    for name in sorted(saved.keys() | config.keys())
    if saved.get(name, ABSENT) != config.get(name, ABSENT)
  }


def _leaves(value, prefix=''):
  for name, one in value.items():
    if isinstance(one, dict) and one:
      yield from _leaves(one, f'{prefix}{name}.')
    else:
      yield prefix + name, one


def describe_changes(changes: Mapping[str, tuple[Any, Any]]) -> str:
  """One phrase for people, such as 'model.width: 64 before, 96 now'."""
  said = [f'{k}: {a!r} before, {b!r} now' for k, (a, b) in changes.items()]
  more = f' and {len(said) - 8} more' if len(said) > 8 else ''
  return '; '.join(said[:8]) + more


def check_changes(
  what: str,
  changes: Mapping[str, tuple[Any, Any]],
  remedy: str,
  *,
  allowed: bool,
) -> None:
  """Refuses changes, or says what is allowed to differ.

  Args:
    what: that was made with another config, such as 'DIR holds a run'.
    changes: of `config_changes`, those that matter.
    remedy: what to do, as a command to the user, without an end.
    allowed: whether the user wants them.

  Raises:
    InputError: there are some, and they are not allowed.
  """
  if not changes:
    return
  told = f'{what} of another config: {describe_changes(changes)}'
  if not allowed:
    raise InputError(f'{told}. {remedy}, or allow it with --allow_changes.')
  print(f'{told}; allowed', file=sys.stderr, flush=True)


def check_model(
  checkpoints: checkpoint.Checkpoints,
  config: Any,
  *,
  allow_changes: bool = False,
) -> None:
  """Refuses a config whose model is not the one that was trained.

  Args:
    checkpoints: of the run.
    config: with `model`; its dtype may be another.
    allow_changes: whether fields without parameters may be others; shapes
      cannot.

  Raises:
    InputError: fields of the model differ.
  """
  saved = (checkpoints.provenance() or {}).get('config', {})
  changes = config_changes(saved, config.to_dict()) if saved else {}
  check_changes(
    f'{checkpoints.directory} holds a model',
    only(changes, _is_model),
    'Use the --config that it was trained with, or another --workdir',
    allowed=allow_changes,
  )


def only(
  changes: Mapping[str, tuple[Any, Any]], matters: Callable[[str], bool]
) -> Changes:
  """The changes whose names matter."""
  return {name: one for name, one in changes.items() if matters(name)}


def _is_model(name):
  return name.startswith('model.') and name != 'model.dtype'


# Of `data`, what says where something lies, or is of trainings or queries only.
_NOT_OF_A_MAP = (
  *('data.packed', 'data.train', 'data.validation', 'data.target'),
  *('data.cross_drive', 'data.max_offset', 'data.town_run'),
  *('data.crops', 'data.query_resize'),
)


def is_of_map(name: str) -> bool:
  """Whether a field of a config decides what a map holds, or what asks it."""
  if name in ('task', 'query_side', 'map_side') or _is_model(name):
    return True
  return name.startswith('data.') and not (
    name.startswith(_NOT_OF_A_MAP) or name.endswith('_dir')
  )


def text(config: Any) -> str:
  """A config as a line of JSON, of which a map has the `digest`."""
  return json.dumps(config.to_dict(), sort_keys=True)


def digest(config: Any) -> str:
  """Returns a sha256, 64 hexadecimal digits."""
  return hashlib.sha256(text(config).encode()).hexdigest()
