# SPDX-License-Identifier: Apache-2.0
"""KITTI-360: what of it is there, and splits packed once for training."""
