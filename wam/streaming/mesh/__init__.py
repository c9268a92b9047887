"""Orbax checkpoints merged on a mesh, every process its shards."""
