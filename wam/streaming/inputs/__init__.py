"""Checkpoints as they are read: Hugging Face, bare safetensors, Orbax, LoRA adapters applied on the fly."""
