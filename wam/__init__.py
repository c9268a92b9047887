"""wam: weight-averaged models for alignment, in JAX.

The subpackages stand on floors and import downwards only: core; merging, models, checkpoints, data, losses;
training, generation, rewards, pretrained; algorithms, evaluation; recipes, report; cli.
Importing `wam` itself imports nothing heavy.
"""

__version__ = "0.1.0"
