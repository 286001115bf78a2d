# SPDX-License-Identifier: Apache-2.0
"""Cameras among named objects: detections, maps of ellipsoids, poses."""
