"""Where the time of an iteration of PPO and of RSF goes: generation, reward, update; and tokens a second.

python benchmarks/online.py [--iterations 4] [--quick] [--only ppo] [--cores 2] [--json FILE]

One decoder, its reward model and (PPO) its critic, all of the size in shape.py, with fresh weights and without EOS, so
that every completion has full length. PPO samples one completion a prompt and trains twice on all of them; RSF samples
four, keeps the best of each prompt and trains twice on those. The first iteration compiles and does not count; saving
the parameters after an iteration is left out. What PPO reads before it trains (policy, reference, critic) is a part of
its update.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Mapping
from typing import Any

BATCH = 8
SETTINGS: Mapping[str, Mapping[str, Any]] = {
  "ppo": {"samples_per_prompt": 1, "epochs": 2, "optimizer": {"learning_rate": 1e-6}},
  "rsf": {
    "samples_per_prompt": 4,
    "epochs": 2,
    "optimizer": {"learning_rate": 1e-6},
    "require_eos": False,
  },
}
PARTS = ("generation", "reward", "update")


def main() -> None:
  """Parses the command line, measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--iterations", type=int, default=4, help="measured, after one that compiles")
  parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run?")
  parser.add_argument("--only", default="", help="part of an algorithm's name")
  parser.add_argument("--cores", type=int, default=2)
  parser.add_argument("--json", type=pathlib.Path, help="also write every measurement to this file")
  options = parser.parse_args()
  # Before jax is loaded, which counts the cores.
  cores = sorted(os.sched_getaffinity(0))[: options.cores]
  os.sched_setaffinity(0, cores)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  load = os.getloadavg()[0]
  results = {
    name: measure(name, quick=options.quick, iterations=options.iterations)
    for name in SETTINGS
    if options.only in name
  }
  size = "quick" if options.quick else "full"
  print(f"cores {cores}, load {load:.1f} before and {os.getloadavg()[0]:.1f} after, {size} shape")
  print(table(results))
  if options.json:
    options.json.write_text(json.dumps(results, indent=1))


def measure(name: str, *, quick: bool, iterations: int) -> list[dict[str, float]]:
  """For each measured iteration: seconds of each part and of the whole, and tokens sampled and trained on."""
  import jax
  import numpy as np
  from shape import FULL, QUICK

  from wam.algorithms import ppo, rsf
  from wam.checkpoints import records
  from wam.models.config import DecoderConfig
  from wam.models.decoder import LanguageModel
  from wam.models.heads import ScalarModel
  from wam.rewards.scorers import from_model
  from wam.training import sharding
  from wam.training.workdir import Run

  shape = QUICK if quick else FULL
  config = DecoderConfig(
    vocab_size=shape.vocab_size,
    hidden_size=shape.hidden_size,
    intermediate_size=shape.intermediate_size,
    num_layers=shape.num_layers,
    num_heads=shape.num_heads,
    num_kv_heads=shape.num_kv_heads,
  )
  reward_model = ScalarModel(config)
  score = from_model(reward_model, reward_model.init(jax.random.key(1)), chunk=shape.sample_batch)
  reward_seconds = []

  def timed(*rollout: np.ndarray) -> np.ndarray:
    start = time.perf_counter()
    rewards = score(*rollout)
    reward_seconds.append(time.perf_counter() - start)
    return rewards

  size = (shape.sample_batch, shape.prompt_length)
  tokens = np.random.default_rng(0).integers(0, shape.vocab_size, size, dtype=np.int32)
  settings = dict(SETTINGS[name])
  batch = min(BATCH, shape.sample_batch)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  algorithm = {"ppo": ppo, "rsf": rsf}[name]
  with tempfile.TemporaryDirectory() as directory:
    with Run(directory, seed=0, mesh=mesh, tensorboard=False, show=False) as run:
      algorithm.run(
        LanguageModel(config),
        LanguageModel(config).init(jax.random.key(0)),
        (tokens, np.ones(size, bool)),
        timed,
        run=run,
        num_iterations=iterations + 1,
        prompts_per_iteration=shape.sample_batch,
        sampling={"max_new_tokens": shape.new_tokens, "eos_id": (), "pad_id": 0},
        batch_size=batch,
        **settings,
      )
    lines = [r for r in records.read(pathlib.Path(directory)) if r["kind"] == "metric"]
  sampled = shape.sample_batch * settings["samples_per_prompt"] * shape.new_tokens
  length = shape.prompt_length + shape.new_tokens
  return [
    {
      "generation": line["sampling_seconds"],
      "reward": reward,
      "update": line["seconds"] - line["sampling_seconds"] - reward,
      "seconds": line["seconds"],
      "sampled_tokens": sampled,
      "trained_tokens": shape.sample_batch * length * settings["epochs"],
    }
    for line, reward in list(zip(lines, reward_seconds, strict=True))[1:]
  ]


def table(results: Mapping[str, list[dict[str, float]]]) -> str:
  """Medians over the iterations."""
  lines = [
    "| iteration | seconds, median (min to max) | "
    + " | ".join(f"{part}, % of it" for part in PARTS)
    + " | new tokens/s of the generation | trained tokens/s of the update | new tokens/s of the iteration |",
    "|---|" + "---|" * (len(PARTS) + 4),
  ]
  for name, rows in results.items():
    seconds = [row["seconds"] for row in rows]
    shares = [statistics.median(row[part] / row["seconds"] for row in rows) for part in PARTS]
    speeds = [
      statistics.median(row[tokens] / row[part] for row in rows)
      for tokens, part in (
        ("sampled_tokens", "generation"),
        ("trained_tokens", "update"),
        ("sampled_tokens", "seconds"),
      )
    ]
    lines.append(
      f"| {name} | {statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | "
      + " | ".join(f"{100 * share:.0f}" for share in shares)
      + " | "
      + " | ".join(f"{speed:.0f}" for speed in speeds)
      + " |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  main()
