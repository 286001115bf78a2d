# SPDX-License-Identifier: Apache-2.0
"""Published weights: where they come from, and how they are loaded.

A file here maps the names of one family of checkpoints to ours. It is called
after the architecture (`vit`, `resnet`, `clip`) or, where a paper released the
weights of a whole model under names of its own, after that release
(`lip_loc`, `saliency_i2ploc`): the only modules of the library that are named
after papers.
"""
