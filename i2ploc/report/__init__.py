# SPDX-License-Identifier: Apache-2.0
"""Pictures of a workdir; never imports jax."""
