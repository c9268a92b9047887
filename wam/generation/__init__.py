"""Text from a model: `sampling.generate` and the choice of one token, `selection`."""
