"""WARP's merges in memory against copies of the same bytes; rollouts of M policies in one batch against M calls.

python benchmarks/warp.py [--sizes 8m 1b] [--members 2 6] [--rounds 5] [--quick]

Merges, in bfloat16 (the EMA in float32, as it must be): the step of an EMA, SLERP of two task vectors (a group a
layer), and LITI, each one jitted program over the whole tree. "copy" adds nothing and multiplies nothing: it reads and
writes as many bytes as the merge must (all inputs once, the output once), by NumPy in as many threads as there are
cores, into new memory where the merge makes a new tree (SLERP, LITI), in place where it does not (EMA). GB/s count
those bytes, so that 1.0 x copy is what memory allows; SLERP reads its inputs again for the angles. In turns, in one
process, after a first call each.

Rollouts: 32 prompts of 32 tokens, 64 new ones, for each of M policies of 8 M parameters in float32; by M calls of
`generate`, or by one program over stacked policies (`jax.vmap`).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.core import trees
from wam.generation.sampling import generate
from wam.merging import averages, spherical
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel
from wam.training import anchors

SIZES = {
  "tiny": {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2},
  "8m": {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_layers": 8, "num_heads": 8},
  "1b": {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_layers": 22, "num_heads": 32,
    "num_kv_heads": 4,
  },
}  # fmt: skip
GB = 1e9


def made(shapes: Any, seed: int, dtype: Any) -> Any:
  """Weights of these shapes that are cheap to draw: a row of noise, repeated and scaled."""
  noise = np.random.default_rng(seed).standard_normal(4096, np.float32)

  def leaf(number: int, shape: tuple[int, ...]) -> jax.Array:
    values = np.resize(np.roll(noise, number), shape) * np.float32(0.02)
    return jax.device_put(values.astype(dtype))

  flat = trees.flatten(shapes)
  return trees.unflatten({n: leaf(i, x.shape) for i, (n, x) in enumerate(flat.items())})


def copier(bytes_read: int, bytes_written: int, *, in_place: bool) -> Callable[[], None]:
  """Reads so many bytes, by passes over at most 1 GiB, and writes so many, in one thread a core."""
  threads = os.cpu_count() or 1
  pool = ThreadPoolExecutor(threads)
  source = np.ones(2**27)
  kept = np.ones(bytes_written // 8) if in_place else None
  read = np.linspace(0, bytes_read // 8, threads + 1).astype(int)
  written = np.linspace(0, bytes_written // 8, threads + 1).astype(int)

  def piece(i: int, target: np.ndarray) -> None:
    own, rest = target[written[i] : written[i + 1]], read[i + 1] - read[i]
    for start in range(0, own.size, source.size):
      part = own[start : start + source.size]
      part[:] = source[: part.size]
    rest -= own.size
    for start in range(0, rest, source.size):
      source[: min(source.size, rest - start)].max(initial=0.0)

  def copy() -> None:
    target = np.empty(bytes_written // 8) if kept is None else kept
    list(pool.map(piece, range(threads), [target] * threads))

  return copy


def merges(size: str, rounds: int) -> None:
  """A table: seconds and GB/s of each merge, and of a copy of the same bytes in turns."""
  model = LanguageModel(DecoderConfig(**SIZES[size]))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
  init, first, second = (made(shapes, seed, jnp.bfloat16) for seed in range(3))
  count = trees.num_params(init)
  print(
    f"\n| {count / 1e6:.1f} M parameters | seconds, median (range) | GB/s | copy, GB/s | x copy |"
  )
  print("|---|---|---|---|---|")

  slerp = jax.jit(lambda base, a, b: spherical.slerp(base, a, b, 0.5, group="layer"))
  liti = jax.jit(lambda base, merged: averages.liti(base, merged, 0.3))
  members = [init, first, second]
  report("SLERP", lambda: slerp(*members), 6 * count, 2 * count, rounds)
  report("LITI", lambda: liti(*members[:2]), 4 * count, 2 * count, rounds)
  del init, second
  members.clear()  # the anchor needs their room
  anchor = anchors.start(first)
  move = jax.jit(lambda anchor, params: anchors.move(anchor, params, 0.01), donate_argnums=0)

  def step() -> Any:
    nonlocal anchor
    anchor = move(anchor, first)
    return anchor

  report("EMA", step, 6 * count, 4 * count, rounds, in_place=True)


def report(
  name: str, merge: Callable[[], Any], read: int, written: int, rounds: int, in_place: bool = False
) -> None:
  """Measures a merge and a copy in turns, and prints the row."""
  copy = copier(read, written, in_place=in_place)
  merged, copied = [], []
  for i in range(rounds + 1):
    took = seconds(lambda: jax.block_until_ready(merge())), seconds(copy)
    if i:
      merged.append(took[0])
      copied.append(took[1])
  total = (read + written) / GB
  ratio = statistics.median(b / a for a, b in zip(merged, copied, strict=True))
  middle = statistics.median(merged)
  print(
    f"| {name} | {middle:.4f} ({min(merged):.4f} to {max(merged):.4f}, n={rounds}) | {total / middle:.1f} |"
    f" {total / statistics.median(copied):.1f} | {ratio:.2f} |",
    flush=True,
  )


def rollouts(size: str, members: list[int], rounds: int) -> None:
  """A table: new tokens a second of M policies, called one by one and stacked."""
  model = LanguageModel(DecoderConfig(**SIZES[size]))
  length, new = (8, 8) if size == "tiny" else (32, 64)
  tokens = np.random.default_rng(0).integers(1, model.config.vocab_size, (32, length))
  tokens, mask = jnp.asarray(tokens, jnp.int32), jnp.ones((32, length), bool)

  def one(params: Any, key: jax.Array) -> jax.Array:
    settings = {"max_new_tokens": new, "eos_id": (), "pad_id": 0}
    return generate(model, params, tokens, mask, key, **settings).completions

  print(f"\n| rollouts, M policies ({size}) | M calls, tokens/s | one program, tokens/s | ratio |")
  print("|---|---|---|---|")
  together = jax.jit(jax.vmap(one))
  for count in members:
    params = [model.init(jax.random.key(i)) for i in range(count)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *params)
    keys = jax.random.split(jax.random.key(0), count)
    times: dict[str, list[float]] = {"calls": [], "program": []}
    for i in range(rounds + 1):
      took = {
        "calls": seconds(
          lambda p=params, k=keys: jax.block_until_ready([one(*x) for x in zip(p, k, strict=True)])
        ),
        "program": seconds(lambda s=stacked, k=keys: jax.block_until_ready(together(s, k))),
      }
      if i:
        for name, value in took.items():
          times[name].append(value)
    rate = {n: count * 32 * new / statistics.median(x) for n, x in times.items()}
    ratios = [a / b for a, b in zip(times["calls"], times["program"], strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {count} | {rate['calls']:.0f} | {rate['program']:.0f} | {spread} |", flush=True)


def seconds(call: Callable[[], Any]) -> float:
  """How long a call takes."""
  began = time.perf_counter()
  call()
  return time.perf_counter() - began


def main() -> None:
  """Parses the command line, measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["8m", "1b"])
  parser.add_argument("--members", nargs="+", type=int, default=[2, 6])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--quick", action="store_true", help="tiny shapes, once: does it run?")
  options = parser.parse_args()
  if options.quick:
    options.sizes, options.rounds = ["tiny"], 1
  load = os.getloadavg()[0]
  for size in options.sizes:
    merges(size, options.rounds)
  rollouts("tiny" if options.quick else "8m", options.members, options.rounds)
  print(f"\nload {load:.1f} before and {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
  main()
