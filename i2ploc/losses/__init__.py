# SPDX-License-Identifier: Apache-2.0
"""Losses on similarities and relations."""
