"""Recipes in mergekit's format: read, checked, and made into a plan of outputs."""
