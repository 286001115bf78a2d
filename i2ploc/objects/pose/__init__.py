# SPDX-License-Identifier: Apache-2.0
"""The camera pose from objects: proposals, search, verification, refinement."""
