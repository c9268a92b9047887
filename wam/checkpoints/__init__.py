"""Floor 1: what lies on disk: safetensors directories, Orbax checkpoints, records."""
