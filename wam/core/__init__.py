"""Floor 0: types, errors, random streams, named trees, parts and the algebra of weights (jax and numpy only)."""
