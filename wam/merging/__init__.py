"""Floor 1: merging as pure functions on pytrees. Start with `methods.METHODS` and `methods.merge`."""
