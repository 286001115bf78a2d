# SPDX-License-Identifier: Apache-2.0
"""Published weights: where they come from, and how they are loaded."""
