# SPDX-License-Identifier: Apache-2.0
"""The splits of an experiment: drives, RGB-D sequences, crops."""
