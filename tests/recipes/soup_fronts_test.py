"""Fronts, connectivity and preferences from records that were written by hand."""

import numpy as np
import pytest

from tests.algorithms.small_test_models import open_run
from wam.checkpoints import records
from wam.core.errors import ConfigError, UnknownName
from wam.evaluation import pareto, simplex
from wam.recipes import soup_fronts, soup_points

NAMES = ["a", "b"]
JUDGES = ["c"]
USERS = {"even": np.array([0.5, 0.5]), "first": np.array([0.9, 0.1])}
POINTS = {
  ("init", ()): (0.0, 0.0),
  ("rewarded soups", (1.0, 0.0)): (2.0, -1.0),
  ("rewarded soups", (0.5, 0.5)): (1.5, 1.0),
  ("rewarded soups", (0.4, 0.6)): (1.2, 1.4),
  ("rewarded soups", (0.0, 1.0)): (-1.0, 2.0),
  ("MORL", (1.0, 0.0)): (2.0, -1.0),
  ("MORL", (0.5, 0.5)): (1.4, 1.2),
  ("MORL", (0.0, 1.0)): (-1.0, 2.0),
}
# What the judge says, in the order of POINTS.
JUDGED = (0.0, 1.0, 1.6, 1.7, 0.5, 1.0, 0.75, 0.5)


def written(directory, **settings):
  """The records that follow from POINTS, each with 2 seeds and 30 prompts of noise around its mean."""
  draw = np.random.default_rng(0)
  noise = draw.normal(size=(2, 2, 30)) * 0.1
  noise -= noise.mean(axis=(1, 2), keepdims=True)
  with open_run(directory) as run:
    for split, shift in (("validation", np.array([0.0, 0.3])), ("test", np.zeros(2))):
      for step, ((family, weights), mean) in enumerate(POINTS.items()):
        # On validation the soup 0.4 | 0.6 looks better than it is.
        mean = np.array(mean) + (shift if weights == (0.4, 0.6) else 0)
        items = mean[:, None, None] + noise
        # All points share the noise of prompts, but for one soup that has twice as much.
        doubled = (family, weights) == ("rewarded soups", (0.5, 0.5))
        judged = JUDGED[step] + noise[0] * (1 + doubled)
        # On validation the soup 0.4 | 0.6 looks worse than it is.
        judged = judged - shift[1] * (weights == (0.4, 0.6))
        fields = {
          "split": split,
          "family": family,
          "label": "",
          "x": {f"lambda_{n}": w for n, w in zip(NAMES, weights, strict=False)},
          "values": {f"reward_{n}": m for n, m in zip(NAMES, mean, strict=True)},
          "items": dict(zip(NAMES, items.tolist(), strict=True)) | {"c": judged.tolist()},
        }
        run.log(fields, kind="measurement", stage=soup_points.STUDY, step=step)
    keywords = {
      "names": NAMES,
      "judges": JUDGES,
      "settings": soup_fronts.Settings(num_resamples=50, **settings),
    }
    for _ in range(2):  # the second call replaces the records of the first
      chosen = soup_fronts.write(run, preferences=USERS, **keywords)
  return records.read(directory), chosen


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  return written(tmp_path_factory.mktemp("run"), reference={"a": -2.0, "b": -2.0})


def study(every, name):
  return [r for r in every if r["kind"] == "measurement" and r["stage"] == name]


def points(family):
  return np.array([mean for (name, _), mean in POINTS.items() if name == family])


def test_hypervolumes_and_their_intervals(found):
  every, _ = found
  fronts = {r["family"]: r for r in every if r["kind"] == "front"}
  assert list(fronts) == ["rewarded soups", "rewarded soups, λ of MORL", "MORL"]
  origin = np.array([-2.0, -2.0])
  for family in ("rewarded soups", "MORL"):
    front = fronts[family]
    assert front["hypervolume"] == pytest.approx(pareto.hypervolume(points(family), origin))
    assert front["low"] < front["hypervolume"] < front["high"]
    assert front["reference"] == [-2, -2] and (front["x"], front["y"]) == ("a", "b")
  # By hand: boxes above (-2, -2) of widths 4, 3.5, 3.2, 1 and heights 1, 3, 3.4, 4.
  assert fronts["rewarded soups"]["hypervolume"] == pytest.approx(4 + 3.5 * 2 + 3.2 * 0.4 + 0.6)
  assert fronts["rewarded soups, λ of MORL"]["points"] == 3


def test_against_morl(found):
  every, _ = found
  values = {r["family"]: r["values"] for r in study(every, "fronts")}
  soups, origin = values["rewarded soups"], np.array([-2.0, -2.0])
  volumes = [pareto.hypervolume(points(f), origin) for f in ("rewarded soups", "MORL")]
  assert soups["hypervolume_ratio_to_MORL"] == pytest.approx(volumes[0] / volumes[1])
  users = simplex.preferences(2, 20)
  utilities = [simplex.expected_utility(points(f), users) for f in ("rewarded soups", "MORL")]
  assert soups["expected_utility_gain_over_MORL"] == pytest.approx(utilities[0] - utilities[1])
  # Of (2, -1), (1.4, 1.2), (-1, 2) the soups reach the ends; (1.5, 1.0) lacks 0.2, (1.2, 1.4) lacks 0.2.
  assert soups["coverage_of_MORL"] == pytest.approx(2 / 3)
  assert soups["coverage_by_MORL"] == pytest.approx(2 / 4)
  assert soups["additive_epsilon_to_MORL"] == pytest.approx(0.2)
  assert "coverage_of_MORL" not in values["MORL"]
  # With the λ that both have: (1.5, 1.0) against (1.4, 1.2), beside the ends.
  shared = values["rewarded soups, λ of MORL"]
  ratio = (4 + 3.5 * 2 + 1) / (4 + 3.4 * 2.2 + 0.8)
  assert shared["hypervolume_ratio_to_MORL"] == pytest.approx(ratio)


def test_connectivity(found):
  every, _ = found
  (half, more) = [r for r in study(every, "connectivity") if r["family"] == "rewarded soups"]
  # (2 - 1)/2 = 0.5 and (-1 + 2)/2 = 0.5 at the middle.
  assert half["values"] == pytest.approx({"a": 1.0, "b": 0.5})
  assert more["values"] == pytest.approx({"a": 1.2 - (0.8 - 0.6), "b": 1.4 - (-0.4 + 1.2)})
  # All points share their noise here, and so paired differences have none.
  assert half["halves"] == pytest.approx({"a": 0.0, "b": 0.0}, abs=1e-9)


def test_lambda_for_users(found):
  every, chosen = found
  table = {(r["label"], r["family"]): r["values"] for r in study(every, "preferences")}
  equal, validated, oracle = soup_fronts.EQUAL, soup_fronts.VALIDATED, soup_fronts.ORACLE
  assert table["even", equal]["utility"] == pytest.approx((1.5 + 1.0) / 2)
  # Chosen on validation, judged on test.
  assert table["even", validated]["utility"] == pytest.approx((1.2 + 1.4) / 2)
  assert chosen == {"even": (0.4, 0.6), "first": (1.0, 0.0)}
  assert table["first", oracle]["utility"] == pytest.approx(0.9 * 2 - 0.1)
  assert table["first", oracle]["lambda_a"] == 1 and table["first", equal]["utility_of_init"] == 0
  assert len(table) == 6 and len(study(every, "preferences")) == 6


def test_a_judge_of_what_was_not_trained_on(found):
  """The inner λ is chosen on validation; what it is compared with is the better end, by the test split itself."""
  every, _ = found
  soups, mixtures = study(every, "judges")
  assert (soups["family"], soups["label"]) == ("rewarded soups", "c")
  assert soups["x"] == {"lambda_a": 0.5, "lambda_b": 0.5}
  assert soups["values"] == pytest.approx(
    {"reward_c": 1.6, "better_end": 1.0, "gain_over_better_end": 0.6}
  )
  # Paired by prompt: the noise that both share is gone.
  assert 0 < soups["halves"]["gain_over_better_end"] < 0.05
  # Worse than an end, and said so.
  assert mixtures["values"]["gain_over_better_end"] == pytest.approx(-0.25)
  assert mixtures["halves"]["gain_over_better_end"] == pytest.approx(0.0, abs=1e-9)


def test_the_worst_of_all_points_is_the_reference_otherwise(tmp_path):
  every, _ = written(tmp_path)
  fronts = [r for r in every if r["kind"] == "front"]
  assert all(front["reference"] == [-1, -1] for front in fronts)


def test_settings_that_cannot_be():
  with pytest.raises(UnknownName, match=r"fronts\.reference 'c'"):
    soup_fronts.Settings(reference={"a": 0.0, "b": 0.0, "c": 1.0}).check(NAMES)
  with pytest.raises(ConfigError, match="expected a finite number for b"):
    soup_fronts.Settings(reference={"a": 0.0}).check(NAMES)
  with pytest.raises(ConfigError, match=r"fronts\.intervals"):
    soup_fronts.Settings(intervals=0)
