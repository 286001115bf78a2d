# SPDX-License-Identifier: Apache-2.0
"""Folders of photos: which files, where taken, and which answers are right."""
