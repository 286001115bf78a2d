# SPDX-License-Identifier: Apache-2.0
"""Public datasets in their own file layouts."""
