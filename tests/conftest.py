# SPDX-License-Identifier: Apache-2.0
"""Settings of the test run; they must be set before jax is imported."""

import os

# Most of the time goes into compilation; what is compiled hardly runs.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
