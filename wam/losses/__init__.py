"""Floor 1: losses as pure functions of arrays, without reductions."""
