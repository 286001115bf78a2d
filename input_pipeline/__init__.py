# SPDX-License-Identifier: Apache-2.0
"""Sensor data on disk to batches of raw sensor tensors."""
