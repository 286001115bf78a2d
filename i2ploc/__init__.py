# SPDX-License-Identifier: Apache-2.0
"""Image-to-point-cloud localization: where was this taken?"""
