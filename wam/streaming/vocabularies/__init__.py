"""Tokenizers of a merge: one vocabulary out of several, rows permuted by token, files that fit."""
