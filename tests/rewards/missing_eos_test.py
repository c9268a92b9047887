import numpy as np
import pytest

from wam.core.errors import ConfigError, UnknownName
from wam.rewards import missing_eos

REWARDS = np.asarray([0.75, -1.6, 2.25], np.float32)
FINISHED = np.asarray([True, False, True])


@pytest.mark.parametrize(
  ("rule", "penalty", "rewards", "scorable"),
  [
    ("keep", None, [0.75, -1.6, 2.25], [True, True, True]),
    ("penalty", 0.5, [0.75, -2.1, 2.25], [True, True, True]),
    ("drop", None, [0.75, -1.6, 2.25], [True, False, True]),
  ],
)
def test_rules(rule, penalty, rewards, scorable):
  found = missing_eos.apply(REWARDS, FINISHED, rule=rule, penalty=penalty)
  np.testing.assert_allclose(found[0], rewards, rtol=1e-6)
  assert found[0].dtype == np.float32
  assert found[1].tolist() == scorable
  assert REWARDS[1] == np.float32(-1.6)


def test_refuses_what_means_nothing():
  with pytest.raises(UnknownName, match="Did you mean 'penalty'"):
    missing_eos.check("penalti", None)
  for rule, penalty in (("penalty", None), ("keep", 1.0), ("drop", 0.0)):
    with pytest.raises(ConfigError, match="belongs to 'penalty'"):
      missing_eos.check(rule, penalty)
  for penalty in (-1.0, float("nan"), float("inf")):
    with pytest.raises(ConfigError, match="expected 0 or more"):
      missing_eos.check("penalty", penalty)
