# SPDX-License-Identifier: Apache-2.0
"""Comparisons with outputs of reference code, by what they compare."""
