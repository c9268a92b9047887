"""M reward models in one program against M runs one after the other: seconds, CPU seconds and memory.

python benchmarks/population.py [--members 6] [--sizes small] [--rounds 3] [--steps 20] [--quick] [--json FILE]

Every measurement is a process of its own that takes `--steps` updates of every member from the same start, AdamW with
clipping, another learning rate and dropout for each:

- "one after the other": M runs of the single-run update, each with its own compilation, as M runs have it;
- "one program, map": members one after the other inside one program (vectorize=False), the same bits;
- "one program, vmap": all members as one larger computation.

"seconds" are those of the updates alone, "with compilation" of everything. "temporary" is what XLA plans beside
arguments and results, "resident" by how much the process grows at most (Linux only), states of the members included;
for runs one after the other only one member's state is alive at a time. Processes follow one another in turns (A B C A
B C ...), so that a change of the machine's load meets all; ratios are medians over the rounds.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

MODES = ("one after the other", "one program, map", "one program, vmap")
SIZES = {
  "tiny": {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2},
  "toy": {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4},
  "small": {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 352, "num_layers": 4, "num_heads": 4},
  "8m": {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_layers": 8, "num_heads": 8},
}  # fmt: skip
# pairs, tokens of a sequence
SHAPES = {"tiny": (4, 8), "toy": (32, 24), "small": (16, 64), "8m": (8, 128)}
RATES = (1e-5, 4e-5, 1e-4)
DROPOUTS = (0.05, 0.1)
MIB = 2**20


def resident(name: str) -> int:
  """Bytes of this process, now ("VmRSS") or at most ("VmHWM")."""
  text = pathlib.Path("/proc/self/status").read_text()
  return next(int(x.split()[1]) * 1024 for x in text.splitlines() if x.startswith(name))


def worker(size: str, mode: str, members: int, steps: int) -> None:
  """Measures one mode, and prints a JSON object."""
  import jax
  import numpy as np

  from wam.algorithms import reward_model_population
  from wam.core import rng, trees
  from wam.models.config import DecoderConfig
  from wam.models.heads import ScalarModel
  from wam.training import member_axis, population, state, step
  from wam.training.members import SETTINGS

  model = ScalarModel(DecoderConfig(**SIZES[size]))
  start = jax.block_until_ready(model.init(jax.random.key(0)))
  sections = [
    {"learning_rate": RATES[m % 3], "dropout": DROPOUTS[m % 2], "seed": m} for m in range(members)
  ]
  recipe = reward_model_population.recipe(
    model, stage="benchmark", num_steps=steps, optimizer={}, members=sections
  )
  draw = np.random.default_rng(0)
  B, T = SHAPES[size]

  def batch(*lead: int) -> dict[str, np.ndarray]:
    tokens = draw.integers(0, SIZES[size]["vocab_size"], (2, B, *lead, T)).astype(np.int32)
    mask = np.ones((B, *lead, T), bool)
    sides = {"chosen": tokens[0], "rejected": tokens[1]}
    return sides | {f"{side}_mask": mask for side in sides}

  before = resident("VmRSS")
  began, cpu, seconds, temporary, losses = time.perf_counter(), time.process_time(), 0.0, 0, []

  def repeat(compiled: Any, state: Any, batch: Any, rest: Any) -> None:
    nonlocal seconds
    jax.block_until_ready(state)
    started = time.perf_counter()
    for _ in range(steps):
      state, metrics = compiled(state, batch, *rest)
    losses.append(np.asarray(jax.block_until_ready(metrics["loss"][0])))
    seconds += time.perf_counter() - started

  if mode == MODES[0]:
    for m in range(members):
      update = step.make_update(recipe.loss_fn, recipe.optimizer(m))

      def keyed(state: Any, batch: Any, frozen: Any, update: Any = update, m: int = m) -> Any:
        return update(state, batch, rng.key(m, "benchmark/loss", state.step), frozen)

      own = jax.jit(lambda p, m=m: state.init(p, recipe.optimizer(m)))(start)
      rest, rows = ({SETTINGS: recipe.settings(m)},), batch()
      compiled = jax.jit(keyed, donate_argnums=0).lower(own, rows, *rest).compile()
      temporary = max(temporary, compiled.memory_analysis().temp_size_in_bytes)
      repeat(compiled, own, rows, rest)
      del own
  else:
    update = population.make_update(recipe, vectorize=mode == MODES[2])
    first = jax.vmap(lambda p, own: state.init(p, recipe.optimizer(0, own)))
    every = jax.jit(lambda p, own: first(member_axis.repeated(p, members), own))(
      start, recipe.own().optimizer
    )
    rest, rows = (recipe.own(), {}), batch(members)
    compiled = jax.jit(update, donate_argnums=0).lower(every, rows, *rest).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    repeat(compiled, every, rows, rest)
  answer = {
    "params": trees.num_params(start),
    "seconds": seconds,
    "total_seconds": time.perf_counter() - began,
    "cpu_seconds": time.process_time() - cpu,
    "temporary": temporary,
    "resident": resident("VmHWM") - before,
    "finite": bool(np.isfinite(np.concatenate([np.ravel(x) for x in losses])).all()),
  }
  print(json.dumps(answer))


def measure(size: str, mode: str, options: argparse.Namespace) -> dict[str, Any]:
  """One measurement in a process of its own."""
  command = [sys.executable, __file__, "--worker"]
  command.append(json.dumps([size, mode, options.members, options.steps]))
  answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
  if not answer["finite"]:
    raise SystemExit(f"{mode}: a loss is not finite")
  return answer


def report(size: str, members: int, rows: dict[str, list[dict[str, Any]]]) -> None:
  """A Markdown table; ratios are those of the first mode to each."""
  params = next(iter(rows.values()))[0]["params"]
  head = [
    "seconds, median (range)",
    "first / this",
    "with compilation",
    "first / this",
    "CPU s",
    "temporary MiB",
    "resident MiB",
  ]
  print(f"\n| {members} x {params / 1e6:.2f} M ({size}) | {' | '.join(head)} |")
  print(f"|{'---|' * (len(head) + 1)}")
  first = next(iter(rows.values()))
  for mode, every in rows.items():
    seconds = [r["seconds"] for r in every]
    found = {n: statistics.median(r[n] for r in every) for n in first[0] if n != "finite"}
    ratio = {
      n: statistics.median(a[n] / b[n] for a, b in zip(first, every, strict=True))
      for n in ("seconds", "total_seconds")
    }
    cells = [
      f"{found['seconds']:.3f} ({min(seconds):.3f} to {max(seconds):.3f}, n={len(seconds)})",
      f"{ratio['seconds']:.2f}",
      f"{found['total_seconds']:.2f}",
      f"{ratio['total_seconds']:.2f}",
      f"{found['cpu_seconds']:.2f}",
      f"{found['temporary'] / MIB:.1f}",
      f"{found['resident'] / MIB:.0f}",
    ]
    print(f"| {mode} | {' | '.join(cells)} |", flush=True)


def main() -> None:
  """Parses the command line, measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--members", type=int, default=6)
  parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["toy", "small"])
  parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=20, help="updates of every member")
  parser.add_argument("--quick", action="store_true", help="tiny shapes, once: does it run?")
  parser.add_argument("--json", type=pathlib.Path)
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    worker(*json.loads(options.worker))
    return
  if options.quick:
    options.sizes, options.rounds, options.steps = ["tiny"], 1, 5
  load, everything = os.getloadavg()[0], []
  for size in options.sizes:
    rows: dict[str, list[dict[str, Any]]] = {mode: [] for mode in options.modes}
    for _ in range(options.rounds):
      for mode in options.modes:
        rows[mode].append(measure(size, mode, options))
    report(size, options.members, rows)
    everything.append({"size": size, "rows": rows})
  print(f"\nload {load:.1f} before and {os.getloadavg()[0]:.1f} after")
  if options.json:
    options.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
  main()
