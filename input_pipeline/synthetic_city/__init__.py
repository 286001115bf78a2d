# SPDX-License-Identifier: Apache-2.0
"""The embedded dataset: towns, drives and sensors made from a seed."""
