# SPDX-License-Identifier: Apache-2.0
"""Kinds of questions: what to train, how to map, measure and answer.

Each has `make_task(config, data)`, which hands the verbs what they need.
"""
