"""Seconds and memory of the derivatives along K parts: forward mode, backward passes, and inference alone.

python benchmarks/adaptive.py [--sizes 8m 300m] [--parts 3 9] [--rounds 3] [--length 256] [--batch 8] [--json FILE]

300m takes up to 7 GB and, with 2 rows, some five minutes a round.

Every measurement is a process of its own: a decoder of that size, θ_0 and θ in float32 (θ is 1.01·θ_0: what the numbers
are does not matter), and one program of

- "inference": the log-likelihood of the batch under θ_0 itself;
- "value": of the average, merged in the program, each weight where it is used;
- "forward": the average's log-likelihood and its K derivatives in forward mode (wam.merging.adaptive.forward);
- "reverse": the same by a backward pass to the K ratios;
- "reverse, remat": that with every layer's activations recomputed, in stacked layers (XLA keeps
  them in unrolled ones);
- "full backward": the gradient with respect to all weights of the average, which a naive search goes through.

"temporary" is what XLA plans beside arguments and results; "resident" is by how much the process grows at most during
a call (VmHWM, reset before; Linux only). Processes follow one another in turns (A B C A B C ...), so that a change of
the machine's load meets all. "x work" are floating-point operations as XLA counts them; it does not know how often a
loop runs.
"""

import argparse
import ctypes
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

STACKED = "reverse, remat"
MODES = ("inference", "value", "forward", "reverse", STACKED, "full backward")
SIZES = {
  "tiny": {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_layers": 9, "num_heads": 2},
  "8m": {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_layers": 9, "num_heads": 8,
    "num_kv_heads": 4,
  },
  "300m": {
    "vocab_size": 16000, "hidden_size": 1024, "intermediate_size": 2816, "num_layers": 24, "num_heads": 16,
    "num_kv_heads": 8,
  },
}  # fmt: skip
MIB = 2**20


def program(mode: str, model: Any, layout: Any) -> Callable[..., Any]:
  """(ratios, α, θ_0, θ, tokens) -> what the mode computes."""
  import jax

  from wam.losses import sequence
  from wam.merging import adaptive

  def likelihood(params: Any, tokens: Any) -> Any:
    output = model.apply(params, tokens, logits=False, remat=mode == STACKED)
    logprobs = sequence.token_logprobs_from_hidden(
      output.hidden, tokens, lambda hidden: model.logits(params, hidden), chunk=64
    )
    return logprobs.mean()

  if mode == "inference":
    return lambda ratios, alpha, init, tuned, tokens: likelihood(init, tokens)
  if mode == "full backward":
    merged = adaptive.value(lambda params, tokens: params, layout)
    backward = jax.value_and_grad(likelihood)
    return lambda *arguments: backward(merged(*arguments), arguments[-1])
  make = {"value": adaptive.value, "forward": adaptive.forward}.get(mode, adaptive.reverse)
  return make(likelihood, layout)


def growth(call: Callable[[], Any]) -> int:
  """By how many bytes the process grows at most while something runs."""

  def now(name: str) -> int:
    text = pathlib.Path("/proc/self/status").read_text()
    return next(int(x.split()[1]) * 1024 for x in text.splitlines() if x.startswith(name))

  # What the compiler has left behind would be taken for the program's; 5 resets the peak.
  ctypes.CDLL("libc.so.6").malloc_trim(0)
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  before = now("VmRSS")
  call()
  return now("VmHWM") - before


def worker(size: str, mode: str, parts: int, length: int, batch: int, calls: int) -> None:
  """Measures one program, and prints a JSON object."""
  import jax
  import jax.numpy as jnp

  from wam.core import trees
  from wam.merging import adaptive
  from wam.models.config import DecoderConfig
  from wam.models.decoder import LanguageModel

  model = LanguageModel(DecoderConfig(**SIZES[size]))
  init = model.init(jax.random.key(0), stacked=mode == STACKED)
  tuned = jax.tree.map(lambda x: 1.01 * x, init)
  tokens = jax.random.randint(jax.random.key(1), (batch, length), 0, SIZES[size]["vocab_size"])
  arguments = (jnp.linspace(0.1, 0.5, parts), jnp.float32(0.3), init, tuned, tokens)
  jax.block_until_ready(arguments)
  layout = adaptive.layout(init, parts, scope="linear")
  start = time.perf_counter()
  compiled = jax.jit(program(mode, model, layout)).lower(*arguments).compile()
  compiling = time.perf_counter() - start
  found = jax.block_until_ready(compiled(*arguments))
  seconds, cpu = [], time.process_time()
  for _ in range(calls):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    seconds.append(time.perf_counter() - start)
  slopes = found[1].tolist() if mode in ("forward", "reverse", STACKED) else None
  answer = {
    "params": trees.num_params(init),
    "seconds": min(seconds),
    "cpu_seconds": (time.process_time() - cpu) / calls,
    "compile_seconds": compiling,
    "temporary": compiled.memory_analysis().temp_size_in_bytes,
    "resident": growth(lambda: jax.block_until_ready(compiled(*arguments))),
    "flops": compiled.cost_analysis()["flops"],
    "slopes": slopes,
  }
  print(json.dumps(answer))


def measure(size: str, mode: str, parts: int, options: argparse.Namespace) -> dict[str, Any]:
  """One measurement in a process of its own."""
  batch = options.batch or (2 if size == "300m" else 8)
  numbers = [size, mode, parts, options.length, batch, options.calls]
  command = [sys.executable, __file__, "--worker", json.dumps(numbers)]
  return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def report(size: str, parts: int, rows: dict[str, list[dict[str, Any]]]) -> None:
  """A Markdown table; ratios to inference are medians over the rounds."""
  params = next(iter(rows.values()))[0]["params"]
  head = [
    "seconds, median (range)",
    "x inference",
    "x work",
    "CPU s",
    "temporary MiB",
    "resident MiB",
    "compile s",
  ]
  print(f"\n| {params / 1e6:.1f} M ({size}), K = {parts} | {' | '.join(head)} |")
  print(f"|{'---|' * (len(head) + 1)}")
  alone = rows.get("inference")
  for mode, every in rows.items():
    seconds = [r["seconds"] for r in every]
    cells = [
      f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f}, n={len(seconds)})"
    ]
    if alone:
      pairs = zip(every, alone, strict=True)
      cells += [f"{statistics.median(a['seconds'] / b['seconds'] for a, b in pairs):.2f}"]
      cells += ["-" if mode == STACKED else f"{every[0]['flops'] / alone[0]['flops']:.2f}"]
    else:
      cells += ["-", "-"]
    cpu, compiling, grown = (
      statistics.median(r[name] for r in every)
      for name in ("cpu_seconds", "compile_seconds", "resident")
    )
    cells += [f"{cpu:.2f}", f"{every[0]['temporary'] / MIB:.0f}", f"{grown / MIB:.0f}"]
    print(f"| {mode} | {' | '.join([*cells, f'{compiling:.1f}'])} |", flush=True)


def check(rows: dict[str, list[dict[str, Any]]]) -> None:
  """All modes have found the same derivatives."""
  found = {mode: every[0]["slopes"] for mode, every in rows.items() if every[0]["slopes"]}
  first = next(iter(found.values()), None)
  for mode, slopes in found.items():
    scale = max(map(abs, first or []))
    if any(abs(a - b) > 1e-3 * scale + 1e-7 for a, b in zip(slopes, first or [], strict=True)):
      raise SystemExit(f"{mode} found the derivatives {slopes}, and another mode {first}")


def main() -> None:
  """Parses the command line, measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["8m"])
  parser.add_argument("--parts", nargs="+", type=int, default=[3])
  parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--calls", type=int, default=3, help="of which the fastest counts")
  parser.add_argument("--length", type=int, default=256, help="tokens of a row")
  parser.add_argument("--batch", type=int, help="rows; default 8, and 2 for 300m")
  parser.add_argument("--json", type=pathlib.Path)
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    worker(*json.loads(options.worker))
    return
  everything = []
  for size in options.sizes:
    for parts in options.parts:
      rows: dict[str, list[dict[str, Any]]] = {mode: [] for mode in options.modes}
      for _ in range(options.rounds):
        for mode in options.modes:
          rows[mode].append(measure(size, mode, parts, options))
      check(rows)
      report(size, parts, rows)
      everything.append({"size": size, "parts": parts, "rows": rows})
  if options.json:
    options.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
  main()
