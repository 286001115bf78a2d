# SPDX-License-Identifier: Apache-2.0
"""Planners: which frames every step of a round of training looks at."""
