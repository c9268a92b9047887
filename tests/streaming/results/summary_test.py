"""The plan in words, and the bytes it speaks of."""

import ml_dtypes

from tests.streaming.in_memory_checkpoint import MemorySink
from tests.streaming.small_models import llama, plan
from wam.streaming.engine import execute
from wam.streaming.recipes.rule_checks import needs_sums
from wam.streaming.results.summary import describe, duration, size, traffic

# Entries of a small model: two matrices [5, 4], three layers of 4 + 16 + 24, a norm of 4.
ENTRIES = 2 * 20 + 3 * 44 + 4
LINEAR = {"merge_method": "linear", "models": ["A", "B"], "parameters": {"weight": 1.0}}


def sources():
  return tuple(llama(x, dtype=ml_dtypes.bfloat16) for x in ("S", "A", "B"))


def test_traffic_of_one_pass():
  made = plan({**LINEAR, "out_dtype": "float32"}, *sources())
  assert traffic(made) == (2 * 2 * ENTRIES, 4 * ENTRIES, 0)
  sink = MemorySink(made.outputs)
  report = execute(made.outputs, sink, threads=1)
  assert (report.bytes_read, report.bytes_written) == traffic(made)[:2]


def test_traffic_of_two_passes():
  made = plan({"merge_method": "model_stock", "base_model": "S", "models": ["A", "B"]}, *sources())
  assert needs_sums(made.outputs[0], 20)
  assert traffic(made) == (2 * 3 * 2 * ENTRIES, 2 * ENTRIES, 3 * 2 * ENTRIES)
  report = execute(made.outputs, MemorySink(made.outputs), threads=1)
  assert report.bytes_read == traffic(made).read


def test_copies_are_read_once():
  data = {**LINEAR, "models": [{"model": "A", "parameters": {"weight": 0.0}}, "B"]}
  made = plan(data, *sources())
  assert traffic(made).read == 2 * ENTRIES
  assert "12 of 12 tensors are copies of one input" in describe(made)


def test_a_description():
  made = plan(
    {
      "merge_method": "ties",
      "name": "mine",
      "base_model": "S",
      "models": [{"model": "A", "parameters": {"weight": [0.25, 0.75]}}, "B"],
      "parameters": {"weight": 1.0, "density": 0.5, "lambda": 0.9},
      "out_dtype": "float32",
    },
    *sources(),
  )
  text = describe(made, bytes_per_second=1000)
  lines = text.splitlines()
  assert lines[0] == "mine: ties of 3 checkpoints into 12 tensors of 176 numbers"
  assert lines[1].startswith("  reads   S: 12 tensors, 352 B of bfloat16 in 0 files")
  for part in (
    "2.11 kB in all, 1.06 kB of it again for sums or thresholds",
    "merges  ties of 2 members from a common start",
    "weight 0.25 to 0.75, density 0.5",
    "weight 1, density 0.5",
    "scale 0.9, normalize weights, rescale none, elect weighted, zero_sign positive",
    "writes  704 B float32; config of S",
    "time    about 2.8 s at 1.00 kB/s",
    "notes   weight [0.25, 0.75]: outside the layers the first value",
  ):
    assert part in text, part
  assert "time" not in describe(made)


def test_numbers_for_people():
  assert size(45e9) == "45 GB"
  assert size(1234) == "1.23 kB"
  assert duration(59.6) == "60 s"
  assert duration(120) == "2 min"
  assert duration(7199) == "2 h 0 min"
