# SPDX-License-Identifier: Apache-2.0
"""Who is a positive of whom, and the search for the nearest descriptors."""
