# SPDX-License-Identifier: Apache-2.0
"""The data of experiments: drives and photos, RGB-D sequences, crops."""
