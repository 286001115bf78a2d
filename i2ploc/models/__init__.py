# SPDX-License-Identifier: Apache-2.0
"""Encoders and aggregators: sensor tensors to tokens to descriptors."""
