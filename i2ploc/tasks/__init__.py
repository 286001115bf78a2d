# SPDX-License-Identifier: Apache-2.0
"""What each kind of question needs: a model to train, an index, stages."""
