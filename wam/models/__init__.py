"""Floor 1: the decoder, its heads, and how Hugging Face names the same things.

Outside this package a network is `LanguageModel` (or `ScalarModel`) and a nested dict of arrays; Flax NNX stays inside.
"""
