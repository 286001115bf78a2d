# SPDX-License-Identifier: Apache-2.0
"""Tests of input_pipeline.readers."""
