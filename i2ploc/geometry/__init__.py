# SPDX-License-Identifier: Apache-2.0
"""Sensor geometry: pure functions on arrays, broadcasting over leading axes."""
