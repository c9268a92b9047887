"""Measurement records become values with intervals; what the reports read of them is refused by line."""

import json

import pytest

from tests.report import study_runs
from wam.core.errors import BadData
from wam.report import measurements
from wam.report.points import Estimate
from wam.report.records import read_run


def record(**fields):
  return {
    "kind": "measurement",
    "study": "front",
    "family": "a",
    "label": "b",
    "values": {},
  } | fields


def test_halves_and_intervals_become_ends():
  (point,) = measurements.collect(
    [record(values={"p": 1.0, "q": 2.0, "r": 3.0}, halves={"p": 0.25}, intervals={"q": [1.5, 2.75]}, seeds=3)]
  )  # fmt: skip
  assert point.values == {
    "p": Estimate(1.0, 0.75, 1.25, 3),
    "q": Estimate(2.0, 1.5, 2.75, 3),
    "r": Estimate(3.0, None, None, 3),
  }


def test_a_point_written_twice_counts_once_and_places_tell_points_apart():
  first, second = record(values={"p": 1.0}, x={"n": 2}), record(values={"p": 5.0}, x={"n": 2})
  found = measurements.collect([first, record(values={"p": 2.0}, x={"n": 4}), second])
  assert [(p.x["n"], p.mean("p")) for p in found] == [(2.0, 5.0), (4.0, 2.0)]


def test_values_that_are_no_numbers_are_left_out():
  values = {"p": float("nan"), "q": "7", "r": True, "s": 0.5}
  (point,) = measurements.collect(
    [record(values=values, x={"n": None}, halves={"s": float("inf")})]
  )
  assert point.values == {"s": Estimate(0.5, None, None, 1)}
  assert point.x == {}


def test_rewards_need_a_lambda_and_a_value():
  points = measurements.collect(
    [record(x={"lambda_a": 0.5, "lambda_b": 0.5, "lambda_c": 0}, values={"reward_a": 1, "b": 2})]
  )
  assert measurements.rewards(points) == ["a", "b"]
  assert [measurements.reward_value(points, name) for name in "abc"] == ["reward_a", "b", None]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ({"kind": "measurement", "family": "a", "label": "b", "values": {}}, "'study' (text)"),
    (record(values=[1]), "'values' (an object)"),
    (record(x=3), "'x' of a measurement must be an object"),
    ({"kind": "samples", "family": "a", "label": "b", "prompts": []}, "'completions' (a list)"),
    (
      {"kind": "samples", "family": "a", "label": "b", "prompts": ["p"], "completions": []},
      "found 1 prompts and 0 completions",
    ),
    ({"kind": "fit", "family": "a", "curve": 3, "values": {}}, "'curve' (text)"),
    ({"kind": "cosines"}, "'values' (an object)"),
  ],
)
def test_a_bad_record_is_named_by_its_line(write_run, line, message):
  workdir = write_run([*study_runs.soups()[:4], line])
  with pytest.raises(BadData, match=r"records\.jsonl:5: ") as caught:
    read_run(workdir)
  assert message in str(caught.value)


def test_made_up_records_are_as_the_recipes_write_them(write_run):
  """They can be read; JSON brings them back as they are."""
  for number, make in enumerate(study_runs.RUNS.values()):
    records = make()
    run = read_run(write_run(records, name=f"run{number}"))
    assert run.records == json.loads(json.dumps(records))
