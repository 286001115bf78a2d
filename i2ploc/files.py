# SPDX-License-Identifier: Apache-2.0
"""The workdir that the verbs share: checkpoints, and files written whole."""

import os
import pathlib

from i2ploc.training import checkpoint


def open_checkpoints(config, workdir: str) -> checkpoint.Checkpoints:
  """The checkpoints of a workdir; new ones tell which config made them."""
  return checkpoint.Checkpoints(
    pathlib.Path(workdir) / 'checkpoints',
    provenance={'config': config.to_dict()},
  )


def save_text(workdir: str, name: str, text: str) -> None:
  """Writes a file of the workdir, whole or not at all."""
  path = pathlib.Path(workdir) / name
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(f'.{name}.tmp')
  draft.write_text(text)
  os.replace(draft, path)
