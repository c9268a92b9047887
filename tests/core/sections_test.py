"""Config sections as keyword arguments."""

import dataclasses

import pytest

from wam.core import sections
from wam.core.errors import ConfigError


def train(*, learning_rate, schedule="constant", total_steps):
  return learning_rate, schedule, total_steps


@dataclasses.dataclass
class Size:
  width: int
  depth: int = 2


def test_call_splats_the_section():
  assert sections.call(train, {"learning_rate": 1.0}, "sft", total_steps=5) == (1.0, "constant", 5)
  assert sections.call(Size, {"width": 3}, "model") == Size(3, 2)


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"lerning_rate": 1.0}, "sft: unknown key 'lerning_rate'. Did you mean 'learning_rate'?"),
    ({"learning_rate": 1.0, "zzz": 2}, "unknown key 'zzz'. Known keys: learning_rate, schedule"),
    ({"learning_rate": 1.0, "total_steps": 2}, "unknown key 'total_steps'"),
    ({"schedule": "cosine"}, "sft: missing key 'learning_rate'"),
    (3, "sft: expected a section of keys and values, found 3"),
  ],
)
def test_what_does_not_fit_is_named(section, message):
  with pytest.raises(ConfigError) as found:
    sections.check(train, section, "sft", given=["total_steps"])
  assert message in str(found.value)


def test_keywords_handed_on_count_too():
  def outer(*, epochs, **keywords): ...

  sections.check(outer, {"epochs": 1, "learning_rate": 1.0, "total_steps": 2}, "x", also=[train])
  with pytest.raises(ConfigError, match="missing key 'learning_rate'"):
    sections.check(outer, {"epochs": 1, "total_steps": 2}, "x", also=[train])
