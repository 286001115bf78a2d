# SPDX-License-Identifier: Apache-2.0
"""Hypotheses by the thousand: sample, solve, score, refine."""
