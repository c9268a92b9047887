"""The names that every floor shares.

Axes, in array comments and suffixes: M members, B batch, P prompts (also prompt length where no batch of prompts
is meant), N samples per prompt (also new tokens), T time, S cache slots, V vocabulary, D width, F hidden of the MLP,
Q query heads, K key-value heads, H head size, L layers, R rewards (also rows of a rollout, R = P*N).

Units: losses, log-probabilities and KL in nats; times in seconds; memory in bytes; lengths in tokens.
"""

from collections.abc import Mapping
from typing import Any

# One network's weights: a nested dict of arrays. Kept loose on purpose: a merge works on any pytree.
Params = dict[str, Any]
# Any pytree of arrays.
PyTree = Any
# What one measurement says: plain floats with '/'-separated names.
Metrics = Mapping[str, float]
