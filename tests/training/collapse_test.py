import numpy as np
import pytest

from wam.core.errors import ConfigError
from wam.training import collapse
from wam.training.collapse import Measurement, Rule

HEALTHY = Measurement(length=20.0, finished=0.9, reward=2.0, reward_std=0.5)
RULE = Rule()


def after(*measurements, start=None):
  """The state after iterations with these measurements."""
  state = collapse.init(20) if start is None else start
  for i, now in enumerate(measurements, 1):
    state = collapse.update(state, now, i)
  return state


def test_measures_completions():
  lengths, finished = np.asarray([1, 3, 5, 7]), np.asarray([True, False, True, True])
  rewards = np.asarray([0.5, 1.5, 0.5, 1.5], np.float32)
  assert collapse.measure(lengths, finished, rewards) == Measurement(4.0, 0.75, 1.0, 0.5)


@pytest.mark.parametrize(
  ("changes", "signals"),
  [
    ({}, ()),
    ({"length": 10.1}, ()),
    ({"length": 9.9}, ("length",)),
    ({"length": 90.0}, ()),
    ({"finished": 0.61}, ()),
    ({"finished": 0.59}, ("truncation",)),
    ({"reward": 1.51}, ()),
    ({"reward": 1.49}, ("reward",)),
    ({"reward": 9.0}, ()),
    ({"length": 2.0, "finished": 0.0, "reward": -3.0}, ("length", "truncation", "reward")),
  ],
)
def test_signals(changes, signals):
  now = HEALTHY._replace(**changes)
  assert collapse.value(after(HEALTHY, HEALTHY), now, RULE) == signals
  silent = Rule(length_drop=None, truncation_rise=None, reward_drop=None)
  assert collapse.value(after(HEALTHY, HEALTHY), now, silent) == ()


def test_a_policy_without_ancestors_has_not_collapsed():
  nothing = Measurement(0.0, 0.0, -1e9, 0.0)
  assert collapse.value(collapse.init(3), nothing, RULE) == ()


def test_before_is_a_window():
  """The mean of the last three: a slow decline is none, a drop against the three is."""
  slow = [HEALTHY._replace(length=20.0 * 0.8**i) for i in range(8)]
  for i in range(1, 8):
    assert collapse.value(after(*slow[:i]), slow[i], RULE) == ()
  state = after(*(HEALTHY._replace(length=x) for x in (500.0, 30.0, 20.0, 10.0)))
  assert collapse.value(state, HEALTHY._replace(length=10.1), RULE) == ()
  assert collapse.value(state, HEALTHY._replace(length=9.9), RULE) == ("length",)
  assert collapse.value(state, HEALTHY._replace(length=9.9), Rule(window=1)) == ()


def test_three_policies_back_along_the_branch():
  """Iterations of the branch that was left are never gone back to, as lower numbers would be."""
  state = after(*[HEALTHY] * 5)
  assert collapse.origin(state) == 5 and not state.pause
  state = collapse.back(state, RULE)  # found in iteration 6
  assert collapse.origin(state) == 2 and state.pause == 1
  state = collapse.update(state, HEALTHY, 7)  # the critic alone
  assert collapse.origin(state) == 2 and state.pause == 0
  state = collapse.update(state, HEALTHY, 8)
  assert collapse.origin(state) == 8
  state = collapse.back(state, RULE)  # found in iteration 9; the policies were 0, 1, 2, 8
  assert collapse.origin(state) == 0 and state.depth == 0 and state.pause == 1


def test_measurements_go_back_with_the_policy():
  """What the policies on the abandoned branch measured is compared with nothing."""
  rising = [HEALTHY._replace(reward=float(i)) for i in range(6)]
  state = collapse.back(after(*rising), RULE)
  assert collapse.origin(state) == 3
  # The policy that iteration 3 left measured 3 in iteration 4; now it is compared with 0, 1 and 2.
  assert collapse.value(state, rising[3], RULE) == ()
  assert collapse.value(state, rising[3]._replace(reward=0.49), RULE) == ("reward",)


def test_never_goes_back_beyond_the_start():
  assert collapse.origin(collapse.back(after(HEALTHY), Rule(back=9))) == 0
  state = collapse.back(after(HEALTHY), Rule(back=1, warm_up=2))
  pauses = []
  for i in (3, 4, 5):
    pauses.append(int(state.pause))
    state = collapse.update(state, HEALTHY, i)
  assert pauses == [2, 1, 0] and collapse.origin(state) == 5


def test_states_keep_their_shapes():
  """They are saved: leaves of one shape and dtype throughout."""
  states = [collapse.init(20), after(HEALTHY), collapse.back(after(HEALTHY), RULE)]
  found = {tuple((x.shape, x.dtype.name) for x in map(np.asarray, state)) for state in states}
  assert found == {(((21,), "int32"), ((21, 4), "float32"), ((), "int32"), ((), "int32"))}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"back": 0}, "back: expected at least 1"),
    ({"window": 0}, "window: expected at least 1"),
    ({"warm_up": -1}, "warm_up: expected at least 0"),
    ({"length_drop": 0.0}, "length_drop: expected a number above 0"),
    ({"reward_drop": float("nan")}, "reward_drop: expected a number above 0"),
  ],
)
def test_refuses_numbers_that_mean_nothing(changes, message):
  with pytest.raises(ConfigError, match=message):
    Rule(**changes)
