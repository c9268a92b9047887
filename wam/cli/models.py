"""Models on the command line: Hugging Face directories with a tokenizer."""

import pathlib
from typing import Any

from wam.core.errors import ConfigError


def load(directory: pathlib.Path, *, stacked: bool = True) -> Any:
  """The `pretrained.Pretrained` of a directory.

  Raises:
    ConfigError: if it has no tokenizer.
    WamError: what else is wrong with it.
  """
  # Here, so that `--help` and misspelt options do not wait for JAX.
  from wam import pretrained

  loaded = pretrained.load(directory, stacked=stacked)
  if loaded.tokenizer is None:
    raise ConfigError(f"{directory} has no tokenizer; put its tokenizer.json there")
  return loaded
