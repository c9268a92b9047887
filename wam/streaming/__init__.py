"""Floor 2: checkpoints merged from disk to disk, a piece at a time. NumPy only; no module here loads JAX on import."""
