"""A made-up tax run with plausible numbers: what the report reads, without training anything."""

import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

SKILLS = {"facts": (1.0, 0.26), "passages": (0.8, 0.2), "translation": (1.0, 0.01)}
PARTS = ("input", "middle", "output")
HEADER = {
  "config": {
    "name": "alignment tax, tiny",
    "seed": 0,
    "world": {"facts": 120, "label_noise": 0.1},
    "rsf": {"iterations": 12, "samples": 8, "learning_rate": 1e-3},
  },
  "command": "wam run --config configs/alignment_tax/tiny.py --workdir runs/demo",
  "versions": {"wam": "0.1.0", "jax": "0.10.2"},
}


def tax_records(
  seed: int = 0, splits: tuple[str, ...] = ("validation", "test")
) -> list[dict[str, Any]]:
  """Records of all kinds: 4 stages of curves, 12 RSF iterations, 11 alphas, 9 part-wise points, 3 sampling seeds."""
  generator = np.random.default_rng(seed)
  records = [
    {"kind": "task", "name": "facts", "metric": "accuracy", "description": "Recall of facts by multiple choice."},
    {"kind": "task", "name": "passages", "metric": "token F1", "description": "Answers found in a passage."},
    {"kind": "task", "name": "translation", "metric": "BLEU", "description": "Between two invented languages."},
  ]  # fmt: skip
  records += list(_metrics(generator))
  records += [
    {"kind": "stage", "stage": stage, "seconds": seconds}
    for stage, seconds in {
      "pretrain": 141.2,
      "sft": 12.5,
      "reward model": 17.0,
      "rsf": 58.1,
    }.items()
  ]
  for split in splits:
    records += list(_points(generator, split))
  for y, values in {
    "mean": (0.30, 0.41),
    "facts": (0.36, 0.47),
    "translation": (0.27, 0.4),
  }.items():
    for family, value in zip(("early stopping", "model averaging"), values, strict=True):
      records.append(
        {"kind": "front", "family": family, "x": "reward_gold", "y": y, "reference": [0.4, 0.0],
         "hypervolume": value, "low": value - 0.02, "high": value + 0.02, "level": 0.95}
      )  # fmt: skip
  records.append({"kind": "note", "text": "KL is exact, summed over the completion."})
  return records


def _metrics(generator: np.random.Generator) -> Iterator[dict[str, Any]]:
  for step in range(10, 3001, 10):
    loss = 1.1 + 3.9 * math.exp(-step / 350) + 0.03 * generator.normal()
    record = {"kind": "metric", "stage": "pretrain", "step": step, "loss": loss}
    if step % 300 == 0:
      record["validation_loss"] = loss + 0.05
    yield record | {"tokens_per_second": 41000.0}
  for stage, start, end in (("sft", 1.6, 0.9), ("reward model", 0.69, 0.41)):
    for step in range(5, 201, 5):
      loss = end + (start - end) * math.exp(-step / 50)
      record = {"kind": "metric", "stage": stage, "step": step, "loss": loss}
      if stage == "reward model" and step % 20 == 0:
        record["accuracy"] = 0.9 - 0.4 * math.exp(-step / 50)
        record["held_out_accuracy"] = 0.84 - 0.34 * math.exp(-step / 50)
      yield record
  for step in range(1, 13):
    gain = 1 - math.exp(-step / 4)
    yield {
      "kind": "metric", "stage": "rsf", "step": step, "loss": 1.3 - 0.8 * gain,
      "reward_proxy": -0.2 + 3.1 * gain, "reward_gold": 0.46 + 0.45 * gain, "kl": 14 * gain,
    }  # fmt: skip


def _points(generator: np.random.Generator, split: str) -> Iterator[dict[str, Any]]:
  def evaluate(
    family: str, label: str, ratios: tuple[float, ...] | None, progress: float, mercy: float
  ):
    coefficients = dict(zip(PARTS, ratios, strict=True)) if ratios else {}
    for seed in range(3):
      noise = 0.006 * generator.normal()
      lost = progress**mercy
      scores = {
        name: float(start + (end - start) * lost + 0.004 * generator.normal())
        for name, (start, end) in SKILLS.items()
      }
      scores["facts"] = (
        SKILLS["facts"][0] + (SKILLS["facts"][1] - 1) * lost
      )  # likelihood: no sampling noise
      yield {
        "kind": "point", "family": family, "label": label, "coefficients": coefficients,
        "seed": seed, "split": split, "reward_proxy": -0.2 + 3.1 * progress + 5 * noise,
        "reward_gold": 0.46 + 0.45 * progress + noise, "kl": 14 * progress**2,
        "length": 9.0 + 2 * progress, "scores": scores,
      }  # fmt: skip

  yield from evaluate("init", "before RLHF", (0.0,) * 3, 0.0, 1)
  for iteration in range(1, 13):
    yield from evaluate(
      "early stopping",
      f"iteration {iteration}",
      None,
      (1 - math.exp(-iteration / 4)) / (1 - math.exp(-3)),
      0.9,
    )
  for i in range(11):
    yield from evaluate("model averaging", f"alpha={i / 10:g}", (i / 10,) * 3, (i / 10) ** 1.2, 2.2)
  for n, part in enumerate(PARTS):
    for alpha in (0.2, 0.5, 0.8):
      ratios = tuple(alpha if name == part else 1.0 for name in PARTS)
      yield from evaluate(
        "part-wise", f"{part} {alpha:g}", ratios, 0.72 + 0.28 * alpha, 1.2 + 0.7 * n
      )


@pytest.fixture
def records() -> list[dict[str, Any]]:
  return tax_records()


@pytest.fixture
def write_run(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
  """Writes a run directory from records (and a config, unless None); returns it."""

  def write(
    records: list[dict[str, Any]], header: dict[str, Any] | None = HEADER, name: str = "demo"
  ):
    workdir = tmp_path / name
    workdir.mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (workdir / "records.jsonl").write_text(lines, encoding="utf-8")
    if header is not None:
      (workdir / "config.json").write_text(json.dumps(header), encoding="utf-8")
    return workdir

  return write
