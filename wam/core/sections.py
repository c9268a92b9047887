"""Config sections as keyword arguments: a misspelt or missing key is an error before anything runs."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from wam.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


def check(
  function: Callable[..., Any],
  section: Mapping[str, Any],
  name: str,
  *,
  given: Collection[str] = (),
  also: Sequence[Callable[..., Any]] = (),
) -> None:
  """Checks that `function` takes the keys of `section` as keywords, and that none it needs is missing.

  Args:
    function: takes keyword arguments; or a dataclass.
    section: plain data.
    name: of the section, for the message ("reward_model.optimizer").
    given: keywords that the program passes itself: they cannot be in the section, and are not missing.
    also: functions that `function` hands its `**keywords` on to.

  Raises:
    ConfigError: names the key, and the nearest one that exists.

  >>> def train(*, learning_rate, schedule="constant", total_steps): ...
  >>> check(train, {"learning_rate": 1e-3}, "sft.optimizer", given=["total_steps"])
  >>> check(train, {"lerning_rate": 1e-3}, "sft.optimizer", given=["total_steps"])
  Traceback (most recent call last):
  wam.core.errors.ConfigError: sft.optimizer: unknown key 'lerning_rate'. Did you mean 'learning_rate'?
  """
  if not isinstance(section, Mapping):
    raise ConfigError(f"{name}: expected a section of keys and values, found {section!r}")
  keywords = {
    key: parameter
    for each in (*also, function)
    for key, parameter in inspect.signature(each).parameters.items()
    if parameter.kind in _kinds(each) and key not in given
  }
  for key in section:
    if key not in keywords:
      known = did_you_mean(key, keywords) or f" Known keys: {', '.join(sorted(keywords))}"
      raise ConfigError(f"{name}: unknown key '{key}'.{known}")
  missing = [
    key
    for key, parameter in keywords.items()
    if parameter.default is inspect.Parameter.empty and key not in section
  ]
  if missing:
    raise ConfigError(f"{name}: missing key {', '.join(repr(key) for key in missing)}")


def _kinds(function: Callable[..., Any]) -> tuple[Any, ...]:
  """Parameters that can be keys: keyword-only ones of functions, and the fields of dataclasses."""
  only = inspect.Parameter.KEYWORD_ONLY
  return (only, inspect.Parameter.POSITIONAL_OR_KEYWORD) if inspect.isclass(function) else (only,)


def call(
  function: Callable[..., T],
  section: Mapping[str, Any],
  name: str,
  *,
  also: Sequence[Callable[..., Any]] = (),
  **given: Any,
) -> T:
  """`function(**section, **given)` after `check`."""
  check(function, section, name, given=given, also=also)
  return function(**section, **given)
