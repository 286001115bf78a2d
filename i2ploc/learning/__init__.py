# SPDX-License-Identifier: Apache-2.0
"""What training minimises: embeddings of a batch, and losses on them."""
