# SPDX-License-Identifier: Apache-2.0
"""Compares a config with the one that a checkpoint was trained with."""

from collections.abc import Mapping
import json
from typing import Any

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.training import checkpoint


def config_changes(
  saved: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """Fields of two configs that differ, by dotted name: (saved, now).

  Fields that only one of them has are ignored: configs gain and lose fields
  between versions of this program.

  Args:
    saved: a config as read from a checkpoint.
    config: a config as a dict.
  """
  # Tuples are lists and integers may be floats in JSON.
  saved, config = (
    dict(_leaves(json.loads(json.dumps(files.plain(one)))))
    for one in (saved, config)
  )
  return {
    name: (saved[name], config[name])
    for name in sorted(saved.keys() & config.keys())
    if saved[name] != config[name]
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


def check_model(checkpoints: checkpoint.Checkpoints, config: Any) -> None:
  """Refuses a config whose model is not the one that was trained.

  Equal shapes do not make equal models: a changed option without parameters
  would go unnoticed.

  Args:
    checkpoints: of the run.
    config: with `model`; its dtype may be another.

  Raises:
    InputError: fields of the model differ.
  """
  saved = (checkpoints.provenance() or {}).get('config', {})
  changes = _only_model(config_changes(saved, config.to_dict()))
  if changes:
    raise InputError(
      f'{checkpoints.directory} belongs to another model:'
      f' {describe_changes(changes)}. Use the --config that it was trained'
      ' with, or another --workdir.'
    )


def _only_model(changes):
  return {
    name: change
    for name, change in changes.items()
    if name.startswith('model.') and name != 'model.dtype'
  }
