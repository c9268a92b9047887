"""The recipe at toy size: what it records and leaves, that it resumes, exact degeneracies, and what it refuses."""

import functools
import math
import types

import jax
import numpy as np
import pytest

from wam import pretrained
from wam.checkpoints import records
from wam.core.errors import ConfigError, UnknownName
from wam.recipes import measurements, runs, warm, warm_accuracy, warm_lines, warm_selection
from wam.training import sharding
from wam.training.interrupts import Interrupted
from wam.training.workdir import Run

OPTIMIZER = {"learning_rate": 1e-2}
STAGE = {"num_steps": 4, "batch_size": 8, "length": 24, "optimizer": OPTIMIZER}
STUDIES = ("accuracy", "interpolation", "domain_model", "best_of_n", "over_optimisation")


def config(**changes):
  return {
    "recipe": "warm",
    "seed": 0,
    "problem": {
      "kind": "world",
      "size": {"num_names": 8, "num_values": 4, "num_pairs": 2},
      "num_corpus": 60,
      "num_demonstrations": 40,
      "num_pairs": 33,
      "num_validation_pairs": 16,
      "num_prompts": 16,
      "num_items": 6,
    },
    "model": {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2},
    "sft": STAGE | {"keep_percents": (50,)},
    "warm": STAGE
    | {
      "members": [
        {"learning_rate": 1e-2, "dropout": 0.1},
        {"learning_rate": 1e-2, "dropout": 0.1},
        {"learning_rate": 2e-2, "dropout": 0.1, "start": -2},
      ],
      "probe_steps": 2,
      "label_noise": 0.25,
      "keep_percents": (50,),
    },
    "sampling": {"prompt_length": 9, "max_new_tokens": 6},
    "reinforce": {
      "num_iterations": 2,
      "prompts_per_iteration": 8,
      "samples_per_prompt": 2,
      "batch_size": 8,
      "optimizer": OPTIMIZER,
    },
    "ood": {"iterations": (0, 1), "shift": {"num_iterations": 1}},
    "accuracy": {"orders": ("best_first", "worst_first", "random")},
    "interpolation": {"num_points": 3},
    "domain_model": {"coefficients": (1.0, 0.5)},
    "best_of_n": {"num_candidates": 8, "prompts_per_call": 3},
    "over_optimisation": {"proxies": ("best single", "warm"), "kl_coefs": (0.0, 0.1)},
  } | changes


def timeless(directory):
  """In one order: a record that is written again stands at the end."""
  return sorted(str(records.without_times(r)) for r in records.read(directory))


def carry_out(directory):
  """On one device: programs that are split over eight virtual ones take long to compile."""
  one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(warm.sharding, "make_mesh", one)
    runs.run(config(), directory, command="a test", show=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp("warm") / "run"
  carry_out(directory)
  return directory


def measured(directory, study):
  every = [r for r in records.read(directory) if r["kind"] == "measurement"]
  return [r for r in every if r["study"] == study]


@pytest.mark.slow
def test_every_study_is_recorded(whole):
  for study in (*STUDIES, "members"):
    found = measured(whole, study)
    assert found, study
    assert all(np.isfinite(list(r["values"].values())).all() for r in found)
  splits = {r["split"] for r in measured(whole, "accuracy")}
  assert splits == {"clean_train", "corrupt_train", "validation", "out_of_distribution"}
  kinds = {r["family"] for r in measured(whole, "interpolation")}
  assert kinds == {"same run", "same configuration", "Baklava"}
  fits = [r for r in records.read(whole) if r["kind"] == "fit"]
  assert {r["curve"] for r in fits} == {"best_of_n"}  # two iterations are no curve to fit


@pytest.mark.slow
def test_one_member_is_every_ensemble_and_average_of_one(whole):
  by_name = {(r["split"], r["family"], r["label"]): r for r in measured(whole, "accuracy")}
  for split in ("clean_train", "corrupt_train", "validation", "out_of_distribution"):
    best = by_name[split, "best single", "best of 3 on validation"]["values"]
    for family in ("WARM", "ensemble mean", "ensemble worst case", "ensemble uncertainty weighted"):
      assert by_name[split, family, "M = 1"]["values"] == best
    # All members averaged are one model, whichever came first.
    last = by_name[split, "WARM", "M = 3"]["values"]["accuracy"]
    assert by_name[split, "WARM, worst first", "M = 3"]["values"]["accuracy"] == pytest.approx(last)
  whole_model = [r for r in measured(whole, "domain_model") if r["label"] == "λ = 1"]
  for record in whole_model:
    same = by_name[record["split"], "WARM", "M = 3"]["values"]
    assert record["values"]["accuracy"] == pytest.approx(same["accuracy"])


@pytest.mark.slow
def test_best_of_one_is_the_mean_whoever_chooses(whole):
  found = measured(whole, "best_of_n")
  ones = [r for r in found if r["x"]["n"] == 1]
  assert len({r["family"] for r in ones}) == len(ones) >= 8
  np.testing.assert_allclose([r["values"]["gold"] for r in ones], ones[0]["values"]["gold"])
  assert {r["x"]["n"] for r in found} == {1, 2, 4, 8}
  for record in found:
    n = record["x"]["n"]
    assert record["x"]["kl"] == pytest.approx(math.log(n) - (n - 1) / n)
    assert 0 <= record["values"]["win_rate"] <= 1
  by_family = {r["family"]: r["values"]["proxy"] for r in found if r["x"]["n"] == 8}
  assert all(by_family[r["family"]] > r["values"]["proxy"] for r in ones)


@pytest.mark.slow
def test_policies_start_at_the_same_point(whole):
  found = measured(whole, "over_optimisation")
  assert {r["family"] for r in found} == {
    "best single, β = 0", "best single, β = 0.1", "WARM, β = 0", "WARM, β = 0.1"
  }  # fmt: skip
  starts = [r for r in found if r["x"]["iteration"] == 0]
  assert len({r["values"]["gold"] for r in starts}) == 1
  assert all(r["values"]["kl"] == 0 for r in starts)
  assert all(r["values"]["kl"] > 0 for r in found if r["x"]["iteration"])


@pytest.mark.slow
def test_models_are_left_as_directories(whole):
  loaded = pretrained.load_scalar(whole / "models/warm")
  assert loaded.params["head"]["kernel"].shape == (16, 1)
  for name in ("policy-WARM_0.1", "policy-best_single_0"):
    assert pretrained.load(whole / "models" / name).tokenizer is not None


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_records(whole, tmp_path, monkeypatch):
  """Killed in every study, between two results and before they are written; every run goes on where it was."""
  drawn = []
  draw = warm_selection.draw

  def counted(*arguments, **keywords):
    drawn.append(keywords["stream"])
    return draw(*arguments, **keywords)

  once = measurements.once
  killed = set()

  def killing(run, stage, make):
    def dying():
      found = make()
      if stage not in killed:
        killed.add(stage)
        raise KeyboardInterrupt
      return found

    once(run, stage, dying)

  monkeypatch.setattr(warm_selection, "draw", counted)
  monkeypatch.setattr(measurements, "once", killing)
  directory = tmp_path / "run"
  for _ in range(20):
    try:
      carry_out(directory)
      break
    except KeyboardInterrupt:
      continue
  assert {"members", "accuracy", "interpolation", "domain_model", "best_of_n"} < killed
  assert len(killed) == 9  # and four policies
  assert timeless(directory) == timeless(whole)
  assert drawn.count("best_of_n") == 1  # the candidates were kept
  loaded = [pretrained.load_scalar(d / "models/warm").params for d in (directory, whole)]
  jax.tree.map(np.testing.assert_array_equal, *loaded)


@pytest.mark.slow
def test_a_run_that_is_done_measures_nothing(whole, monkeypatch):
  before = timeless(whole)
  for module in (warm_accuracy, warm_lines):
    monkeypatch.setattr(module, "score_pairs", None)
  monkeypatch.setattr(warm_selection, "draw", None)
  carry_out(whole)
  assert timeless(whole) == before


def test_kinds_of_pairs():
  plain = {"learning_rate": 1, "dropout": 0.1, "start": -1}
  found = types.SimpleNamespace(
    along=["a", "b", "c"],
    raw=[0, 1, 2, 3, 4],
    sections=[
      plain | {"seed": 0},
      plain | {"seed": 1, "dropout": 0.2},  # differs in neither of the three ways
      plain | {"seed": 2, "learning_rate": 2},
      plain | {"seed": 3, "start": -2},
      plain | {"seed": 4},
    ],
  )
  assert warm_lines.kinds_of_pairs(found) == {
    "same run": ("a", "c"),
    "same configuration": (0, 4),
    "different learning rates": (0, 2),
    "Baklava": (0, 3),
  }


def test_a_study_is_written_once_and_whole(tmp_path):
  calls = []

  def make():
    calls.append(1)
    return [measurements.point("s", "f", str(i), {"a": i}, x={"n": i}) for i in range(3)]

  with Run(tmp_path, seed=0, tensorboard=False, show=False) as run:
    run.records.append(
      kind="measurement", stage="s", step=0, **make()[0]
    )  # of a run that was killed
    measurements.once(run, "s", make)
    measurements.once(run, "s", make)
    assert [r["values"]["a"] for r in measurements.read(run, "s")] == [0, 1, 2]
  assert len(calls) == 2


def test_an_interruption_leaves_no_half_study(tmp_path):
  def make():
    raise Interrupted("stop", signal_number=15)

  with Run(tmp_path, seed=0, tensorboard=False, show=False) as run:
    with pytest.raises(Interrupted):
      measurements.once(run, "s", make)
    assert measurements.read(run, "s") == []


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    ({"warm": config()["warm"] | {"members": []}}, ConfigError, "M = 0"),
    ({"accuracy": {"orders": ("best",)}}, UnknownName, "best_first"),
    ({"accuracy": {"order": ()}}, ConfigError, "accuracy: unknown key 'order'"),
    ({"interpolation": {"num_points": 4}}, ConfigError, "odd number"),
    ({"interpolation": {"splits": ("test",)}}, UnknownName, "out_of_distribution"),
    ({"domain_model": {"coefficients": (1.5,)}}, ConfigError, r"domain_model.coefficients.*1.5"),
    ({"best_of_n": {"num_candidates": 8, "ns": (16,)}}, ConfigError, "ns from 1"),
    ({"over_optimisation": {"proxies": ("wram",)}}, UnknownName, "warm"),
    ({"over_optimisation": {"kl_coefs": (-1.0,)}}, ConfigError, "kl_coef"),
    ({"reinforce": None}, ConfigError, "reinforce: this section is missing"),
    ({"ood": {"iterations": (0, 5)}}, ConfigError, r"ood.iterations.*\[5\]"),
    ({"ood": {"samples_per_prompt": 3}}, ConfigError, "even samples_per_prompt"),
    ({"control": {"batch_size": 1}}, ConfigError, "control: missing key"),
    ({"besst_of_n": {}}, ConfigError, "best_of_n"),
  ],
)
def test_refused_before_anything_is_written(tmp_path, change, error, message):
  with pytest.raises(error, match=message):
    runs.run(config(**change), tmp_path / "run", command="", show=False)
  assert not (tmp_path / "run").exists()
