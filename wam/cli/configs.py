"""Config files on the command line: `--config FILE` and `--config.section.key=value`, by ml_collections."""

import contextlib
import io
import itertools
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from wam.core.errors import ConfigError, MissingFile


def parse(arguments: Sequence[str], *, verb: str) -> tuple[dict[str, Any], list[str]]:
  """Takes the config and its overrides out of the arguments.

  Returns:
    The config as nested plain data, and the other arguments in their order.

  Raises:
    MissingFile: if the file does not exist.
    ConfigError: if there is no --config, the file fails, or an override names an unknown key or a wrong type.
  """
  ours = re.compile(r"--?config([.=].*)?$")
  mine: list[str] = []
  others: list[str] = []
  queue = list(arguments)
  while queue:
    argument = queue.pop(0)
    if not ours.match(argument):
      others.append(argument)
      continue
    mine.append(argument)
    if "=" not in argument and queue:
      mine.append(queue.pop(0))
  path = _path(mine, verb)
  values = flags.FlagValues()
  argv = [f"wam {verb}", *mine]
  config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
  try:
    # absl prints advice of its own to stdout and stderr before it raises.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
      # ml_collections loads the file by a function that Python 3.12 has not.
      warnings.simplefilter("ignore", DeprecationWarning)
      values(argv)
    return _plain(values.config), others
  except flags.Error as error:
    raise ConfigError(_one_line(error)) from error
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ConfigError(f"{path}: {_one_line(error)}") from error
  except SyntaxError as error:
    raise ConfigError(f"{path}, line {error.lineno}: {error.msg}") from error


def _path(arguments: Sequence[str], verb: str) -> str:
  """The file that the arguments name, which must exist."""
  given = [
    value if separator else following
    for argument, following in itertools.pairwise([*arguments, ""])
    for name, separator, value in [argument.partition("=")]
    if name.lstrip("-") == "config"
  ]
  if not given or not given[0]:
    raise ConfigError(f"give a config, as in `wam {verb} --config configs/alignment_tax/tiny.py`")
  path = given[-1].partition(":")[0]
  if not pathlib.Path(path).is_file():
    raise MissingFile(f"no config file {path}; the repository's are in configs/")
  return path


def _plain(config: Any) -> dict[str, Any]:
  return {key: _plain(v) if hasattr(v, "items") else _value(v) for key, v in config.items()}


def _value(value: Any) -> Any:
  """Tuples as lists: what JSON makes of them, so that a run's config equals itself."""
  return [_value(v) for v in value] if isinstance(value, list | tuple) else value


def _one_line(error: BaseException) -> str:
  text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
  # ml_collections quotes its message in a KeyError, newline and all.
  near = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
  if near:
    return f"unknown key '{near[2]}'. Did you mean '{near[1]}'?"
  bare = re.fullmatch(r"[\"'\\]*(\w+)[\"'\\]*", text)
  return f"unknown key '{bare[1]}'" if bare else " ".join(text.split())
