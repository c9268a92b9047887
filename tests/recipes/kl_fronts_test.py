"""Fronts of reward against KL from records, against numbers worked out by hand."""

import numpy as np
import pytest

from wam.checkpoints import records
from wam.core.errors import ConfigError
from wam.recipes import kl_fronts
from wam.training.workdir import Run

# (family, label, gold reward, KL); the proxy is twice the gold reward.
POINTS = [
  ("init", "SFT", 1.0, 0.0),
  ("a: x", "1", 2.0, 1.0),
  ("a: x", "2", 4.0, 3.0),
  ("a: y", "1", 3.0, 2.0),
  ("b", "1", 0.5, 0.5),
  ("b", "2", 9.0, 5.0),
]
LINES = {"b": ["b"], "a": ["a: x", "a: y"], "a: x": ["a: x"]}


def _point(family, label, gold, kl, seed, split="test", noise=0.0):
  draw = np.random.default_rng([seed, len(label), int(10 * kl)])
  rewards = gold + noise * draw.standard_normal(40)
  items = {"reward_gold": rewards.tolist(), "reward_proxy": (2 * rewards).tolist(), "kl": [kl] * 40}
  return {"kind": "point", "stage": "evaluation", "step": 0, "family": family, "label": label,
          "split": split, "seed": seed, "items": items}  # fmt: skip


@pytest.fixture
def run(tmp_path):
  with Run(tmp_path, seed=0, show=False, tensorboard=False) as current:
    yield current


def _write(run, noise=0.0, **keywords):
  for point in POINTS:
    for seed in range(2):
      run.records.append(**_point(*point, seed, noise=noise))
  arguments = {"lines": LINES, "anchor": "init", "limit": 4.0, "budgets": (0.5, 2.5)} | keywords
  kl_fronts.write(run, **arguments)
  return records.read(run.directory)


def test_volumes_by_hand(run):
  found = {(r["family"], r["x"]): r for r in _write(run) if r["kind"] == "front"}
  # Above (1, KL 4): (2, 1), (4, 3) -> 1·3 + 2·1; with (3, 2) in between 1·3 + 1·2 + 1·1.
  assert found["a: x", "reward_gold"]["hypervolume"] == pytest.approx(5)
  assert found["a", "reward_gold"]["hypervolume"] == pytest.approx(6)
  # One point is worse than θ_SFT, the other one beyond the limit.
  assert found["b", "reward_gold"]["hypervolume"] == 0
  assert found["a", "reward_proxy"]["hypervolume"] == pytest.approx(12)
  record = found["a", "reward_gold"]
  assert record["reference"] == [1.0, 4.0] and record["y"] == "kl"
  assert record["low"] == pytest.approx(6) == record["high"]


def test_the_limit_is_that_of_the_first_line(run):
  found = {(r["family"], r["x"]): r for r in _write(run, limit=None) if r["kind"] == "front"}
  assert found["a", "reward_gold"]["reference"] == [1.0, 5.0]
  assert found["a", "reward_gold"]["hypervolume"] == pytest.approx(9)


def test_rewards_within_budgets(run):
  found = {
    (r["family"], r["x"]["kl"]): r["values"]["reward_gold"]
    for r in _write(run)
    if r["kind"] == "measurement" and "reward_gold" in r["values"]
  }
  # Straight from (1, 0) to (2, 1), and from (2, 1) to (4, 3).
  assert found["a: x", 0.5] == pytest.approx(1.5)
  assert found["a: x", 2.5] == pytest.approx(3.5)
  # The other family has 3 at 2, and may stay there; it is not mixed into this one's path.
  assert found["a", 2.5] == pytest.approx(3.5)
  # Nothing is bought by going to 0.5 first: θ_SFT itself is within the budget.
  assert found["b", 0.5] == pytest.approx(1.0)
  # (9 - 0.5)·2/4.5 further
  assert found["b", 2.5] == pytest.approx(0.5 + 8.5 * 2 / 4.5)


def test_a_line_that_ends_within_the_budget():
  kl, rewards = np.asarray([2.0, 0.0, 1.0]), np.asarray([1.5, 1.0, 3.0])
  assert kl_fronts.reward_within(rewards, kl, 10.0) == 3.0
  assert kl_fronts.reward_within(rewards, kl, 1.5) == 3.0
  assert kl_fronts.reward_within(rewards, kl, 0.25) == 1.5


def test_noise_gives_intervals(run):
  every = _write(run, noise=0.5)
  front = next(r for r in every if r["kind"] == "front" and r["family"] == "a")
  assert front["low"] < front["hypervolume"] < front["high"]
  measured = next(r for r in every if r["kind"] == "measurement" and r["family"] == "a: x")
  assert measured["halves"]["reward_gold"] > 0.05


def test_writing_twice_replaces(run):
  first = len(_write(run))
  kl_fronts.write(run, lines=LINES, anchor="init", limit=4.0, budgets=(0.5, 2.5))
  assert len(records.read(run.directory)) == first


def test_the_choice_is_within_the_limit(run):
  """By the proxy reward on the validation split, where the first point is the best of those allowed."""
  for label, gold, kl in (("1", 5.0, 1.0), ("2", 4.0, 3.0), ("3", 9.0, 5.0)):
    run.records.append(**_point("w", label, gold, kl, 0, split="validation"))
  run.records.append(**_point("other", "1", 99.0, 0.1, 0, split="validation"))
  assert kl_fronts.select(run, family="w", limit=4.0) == "1"
  assert kl_fronts.select(run, family="w", limit=None) == "3"
  (record,) = (r for r in records.read(run.directory) if r["kind"] == "selection")
  assert record["label"] == "3" and record["split"] == "validation" and not record["oracle"]
  assert kl_fronts.select(run, family="w", limit=0.5) is None
  assert all(r["kind"] != "selection" for r in records.read(run.directory))


def test_limits_that_cannot_be():
  kl_fronts.check_limits(None, ())
  for limit, budgets in ((0.0, ()), (1.0, (-1.0,)), (float("inf"), ())):
    with pytest.raises(ConfigError, match="nats of a completion above 0"):
      kl_fronts.check_limits(limit, budgets)
