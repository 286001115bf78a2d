# SPDX-License-Identifier: Apache-2.0
"""One script per claim."""
