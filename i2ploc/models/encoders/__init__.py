# SPDX-License-Identifier: Apache-2.0
"""Encoders of images, points and texts: raw tensors in, tokens out."""
