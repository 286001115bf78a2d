# SPDX-License-Identifier: Apache-2.0
"""The embedded earth: land from above, as satellites and astronauts see it."""
