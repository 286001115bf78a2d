# SPDX-License-Identifier: Apache-2.0
"""Which leaves of a config a run reads."""

import ml_collections

from tests import configs_test


class Recorder:
  """Stands for a ConfigDict and remembers which leaves were read.

  Writing the whole config down is not reading it; unpacking a sub-dict into a
  signature is, because the signature refuses what it does not know.
  """

  def __init__(self, config, read, prefix=''):
    self._config, self._read, self._prefix = config, read, prefix

  def __getattr__(self, name):
    return self[name]

  def __getitem__(self, name):
    value = self._config[name]
    if isinstance(value, ml_collections.ConfigDict):
      return Recorder(value, self._read, f'{self._prefix}{name}.')
    self._read.add(self._prefix + name)
    return value

  def __contains__(self, name):
    return name in self._config

  def keys(self):
    return self._config.keys()

  def to_dict(self):
    if self._prefix:
      self._read.update(configs_test.leaves(self._config, self._prefix))
    return self._config.to_dict()
