# SPDX-License-Identifier: Apache-2.0
"""Answers: a query against a map."""
