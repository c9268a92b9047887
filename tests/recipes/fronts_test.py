"""Hypervolumes and selection from records, against numbers worked out by hand."""

import numpy as np
import pytest

from wam.checkpoints import records
from wam.recipes import fronts
from wam.training.workdir import Run


def _point(family, label, gold, f1, nats, *, split="test", seed=0, proxy=None):
  """All items alike, so that every bootstrap replicate equals the measurement."""
  items = {"reward_gold": [gold] * 4, "reward_proxy": [gold if proxy is None else proxy] * 4}
  if seed == 0:
    items |= {"qa": [[f1, 1.0]] * 5, "text": [[nats * 10, 10.0]] * 3}
  return {"kind": "point", "stage": "evaluation", "step": 0, "family": family, "label": label,
          "split": split, "seed": seed, "items": items}  # fmt: skip


TASKS = [
  {"kind": "task", "stage": "evaluation", "step": 0, "name": "qa", "metric": "f1", "in_mean": True},
  {
    "kind": "task",
    "stage": "evaluation",
    "step": 1,
    "name": "text",
    "metric": "nats_per_token",
    "in_mean": True,
  },
]
# (family, label, gold, f1, nats per token)
POINTS = [
  ("init", "before RLHF", 0.0, 0.8, 1.0),
  ("early stopping", "iteration 1", 0.5, 0.4, 2.0),
  ("early stopping", "iteration 2", 1.0, 0.2, 4.0),
  ("model averaging", "α = 0.5", 0.75, 0.6, 1.25),
  ("model averaging", "α = 1", 1.0, 0.2, 4.0),
]


@pytest.fixture
def run(tmp_path):
  with Run(tmp_path, seed=0, show=False, tensorboard=False) as current:
    for record in [*TASKS, *(_point(*p, seed=s) for p in POINTS for s in range(2))]:
      current.records.append(**record)
    for family, label, gold, f1, nats in POINTS:
      proxy = {"α = 0.5": 0.9}.get(label, gold)
      current.records.append(
        **_point(family, label, 1 - gold, f1, nats, split="validation", proxy=proxy)
      )
    yield current


def _of_kind(run, kind):
  return [r for r in records.read(run.directory / "records.jsonl") if r["kind"] == kind]


def test_hypervolumes_by_hand(run):
  fronts.write(run, families=("early stopping", "model averaging"), anchor="init")
  found = {(r["family"], r["y"]): r for r in _of_kind(run, "front")}
  # Reference (0, 0.2): the anchor has no reward above it, the last point no skill.
  assert found["early stopping", "qa"]["reference"] == pytest.approx([0.0, 0.2])
  assert found["early stopping", "qa"]["hypervolume"] == pytest.approx(0.5 * 0.2)
  assert found["model averaging", "qa"]["hypervolume"] == pytest.approx(0.75 * 0.4)
  # Losses: 4 nats are the worst; the record shows them as they are read.
  assert found["early stopping", "text"]["reference"] == pytest.approx([0.0, 4.0])
  assert found["model averaging", "text"]["hypervolume"] == pytest.approx(0.75 * 2.75)
  # Shares of the start: iteration 1 (0.4/0.8 + 1/2)/2, α = 0.5 (0.6/0.8 + 1/1.25)/2, the worst (0.25 + 0.25)/2.
  assert found["early stopping", "mean"]["hypervolume"] == pytest.approx(0.5 * (0.5 - 0.25))
  assert found["model averaging", "mean"]["hypervolume"] == pytest.approx(0.75 * (0.775 - 0.25))
  for record in found.values():
    assert record["low"] == pytest.approx(record["hypervolume"]) == record["high"]
    assert record["x"] == "reward_gold" and record["level"] == 0.95


def test_a_skill_can_be_left_out_of_the_mean(run):
  run.records.drop(lambda record: record["kind"] == "task")
  for task in TASKS:
    run.records.append(**task | {"in_mean": task["name"] == "qa"})
  fronts.write(run, families=("model averaging",), anchor="init")
  (record,) = (r for r in _of_kind(run, "front") if r["y"] == "mean")
  assert record["hypervolume"] == pytest.approx(0.75 * (0.6 - 0.2) / 0.8)


def test_no_front_against_shares_of_nothing(run):
  every = records.read(run.directory / records.FILE_NAME)
  run.records.drop(lambda record: record["kind"] in ("point", "task"))
  for task in TASKS:
    run.records.append(**task | {"in_mean": task["name"] == "qa"})
  for record in every:
    if record["kind"] == "point":
      items = record["items"]
      items |= {"qa": [[0.0, 1.0]] * 5} if "qa" in items else {}
      run.records.append(**record | {"items": items})
  fronts.write(run, families=("model averaging",), anchor="init")
  assert [r["y"] for r in _of_kind(run, "front")] == ["qa", "text"]


def test_writing_twice_replaces(run):
  for _ in range(2):
    fronts.write(run, families=("early stopping",), anchor="init")
  assert len(_of_kind(run, "front")) == 3


def test_noise_gives_an_interval_around_the_value(run):
  draw = np.random.default_rng(0)
  run.records.drop(lambda record: record["kind"] == "point")
  for family, label, gold, f1, nats in POINTS:
    record = _point(family, label, gold, f1, nats)
    record["items"]["reward_gold"] = (gold + 0.2 * draw.standard_normal(30)).tolist()
    run.records.append(**record)
  fronts.write(run, families=("model averaging",), anchor="init")
  record = next(r for r in _of_kind(run, "front") if r["y"] == "qa")
  assert record["low"] < record["hypervolume"] < record["high"]


def test_selection_sees_proxy_and_validation_only(run):
  """On validation the gold reward is upside down here: a rule that looked at it would choose otherwise."""
  label = fronts.select(run, families=("model averaging",), before="init", after="α = 1")
  assert label == "α = 0.5"
  (record,) = _of_kind(run, "selection")
  # Gain kept 0.9; mean skill lost (1 - 0.775) of (1 - 0.25).
  assert record["trade"] == pytest.approx(0.9 - 0.225 / 0.75)
  assert record["split"] == "validation" and record["oracle"] is False


def test_no_selection_where_nothing_was_bought(run):
  run.records.drop(lambda record: record["kind"] == "point" and record["label"] == "α = 1")
  run.records.append(**_point("model averaging", "α = 1", 0.0, 0.1, 5.0, split="validation"))
  assert fronts.select(run, families=("model averaging",), before="init", after="α = 1") is None
  assert not _of_kind(run, "selection")
