# SPDX-License-Identifier: Apache-2.0
"""Image localization against LiDAR, photo and object maps."""

__version__ = '0.7.0'
