# SPDX-License-Identifier: Apache-2.0
"""State, step, checkpoints and loop: callables in, nothing built here."""
