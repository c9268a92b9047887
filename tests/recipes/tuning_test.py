"""Which runs of RLHF a config asks for."""

import pytest

from wam.core.errors import ConfigError
from wam.recipes import tuning

MAIN = {"num_iterations": 3, "batch_size": 8}


def plans(comparisons=None, *, mitigation=None, **algorithms):
  return tuning.plans(
    algorithms=algorithms or {"rsf": MAIN}, mitigation=mitigation, comparisons=comparisons
  )


def test_the_main_run_comes_first():
  main, *others = plans({"L2": {"0.1": {"mitigation": {"l2": {"coefficient": 0.1}}}}})
  assert main == tuning.Plan("rsf", "", "", MAIN, {})
  assert main.stage == "rsf"
  assert tuning.num_iterations(main) == 3
  (other,) = others
  assert other == tuning.Plan("rsf", "L2", "0.1", MAIN, {"l2": {"coefficient": 0.1}})
  assert other.stage == "rsf-L2-0.1"


def test_settings_differ_from_those_of_the_main_run():
  (_, other) = plans({"KL penalty": {"β = 0.1": {"settings": {"kl_coef": 0.1}}}})
  assert other.section == MAIN | {"kl_coef": 0.1}
  assert other.stage == "rsf-KL_penalty-0.1"
  assert "kl_coef" not in MAIN


@pytest.mark.parametrize("algorithms", [{"rsf": None}, {"rsf": MAIN, "ppo": MAIN}])
def test_one_algorithm(algorithms):
  with pytest.raises(ConfigError, match="section of one algorithm"):
    plans(**algorithms)


def test_misspelt_keys_and_equal_names_are_refused():
  with pytest.raises(ConfigError, match=r"comparisons.L2.a: unknown key 'mitigations'"):
    plans({"L2": {"a": {"mitigations": {}}}})
  with pytest.raises(ConfigError, match="rsf-L2-a"):
    plans({"L2": {"a": {}, "a ": {}}})
