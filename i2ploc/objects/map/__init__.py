# SPDX-License-Identifier: Apache-2.0
"""Maps of ellipsoids: their landmarks, files and construction."""
