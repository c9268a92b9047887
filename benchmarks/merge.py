"""Seconds and memory of whole merges from the shell prompt: wam, mergekit and plain copies of the same files, in turns.

python benchmarks/merge.py [--size 1b] [--rounds 3] [--mergekit-rounds 1] [--only ties slerp] [--folder DIR]

Makes its own checkpoints of TinyLlama's shape (1.1 B parameters, bfloat16, a base and three fine-tunes, 2.2 GB each; or
of 87 M) and leaves them in the folder. "copy" reads all inputs and writes the output with `cat`. Page cache warm, and
nothing is fsynced by any of them. mergekit is left out, with a message, where its environment is missing.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import ml_dtypes
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
WAM = ROOT / ".venv/bin/wam"
MERGEKIT = ROOT / ".venv-mergekit/bin/mergekit-yaml"
SHARD_BYTES = 500_000_000
# TinyLlama, and a network of a tenth of its size.
SIZES = {
  "1b": {
    "layers": 22,
    "width": 2048,
    "mlp": 5632,
    "kv": 256,
    "vocab": 32000,
    "heads": 32,
    "kv_heads": 4,
  },
  "100m": {
    "layers": 10,
    "width": 768,
    "mlp": 2048,
    "kv": 192,
    "vocab": 16000,
    "heads": 12,
    "kv_heads": 3,
  },
}


class Case(NamedTuple):
  """A recipe, and how many models are read for it, the base included."""

  models: int
  recipe: str


def recipe(method: str, names: str, *, base: bool, each: str = "", shared: str = "") -> str:
  """A recipe in the format that both read; {0} is the base, {1} to {3} the fine-tunes."""
  text = f"merge_method: {method}\n" + ("base_model: {0}\n" if base else "") + "models:\n"
  for name in names:
    text += f"  - model: {{{name}}}\n" + (f"    parameters: {{{{{each}}}}}\n" if each else "")
  return text + (f"parameters: {{{{{shared}}}}}\n" if shared else "") + "dtype: bfloat16\n"


THIRD = "weight: 0.3"
HALF = "weight: 0.3, density: 0.5"
CASES = {
  "linear of 2": Case(2, recipe("linear", "01", base=False, each="weight: 0.5")),
  "linear of 4": Case(4, recipe("linear", "0123", base=False, each="weight: 0.25")),
  "slerp": Case(2, recipe("slerp", "01", base=True, shared="t: 0.5")),
  "task_arithmetic": Case(4, recipe("task_arithmetic", "123", base=True, each=THIRD)),
  "model_stock": Case(4, recipe("model_stock", "123", base=True)),
  "karcher": Case(3, recipe("karcher", "123", base=False)),
  "dare_linear": Case(4, recipe("dare_linear", "123", base=True, each=HALF)),
  "dare_ties": Case(4, recipe("dare_ties", "123", base=True, each=HALF)),
  "breadcrumbs": Case(4, recipe("breadcrumbs", "123", base=True, each=HALF)),
  "ties": Case(4, recipe("ties", "123", base=True, each=HALF)),
  "della": Case(4, recipe("della", "123", base=True, each=HALF)),
  "sce": Case(4, recipe("sce", "123", base=True, shared="select_topk: 0.5")),
}


def shapes(size: dict[str, int]) -> dict[str, tuple[int, ...]]:
  """The tensors of a Llama."""
  width, mlp, kv = size["width"], size["mlp"], size["kv"]
  found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size["vocab"], width)}
  for i in range(size["layers"]):
    layer = f"model.layers.{i}."
    found |= {f"{layer}self_attn.{n}_proj.weight": (width, width) for n in "qo"}
    found |= {f"{layer}self_attn.{n}_proj.weight": (kv, width) for n in "kv"}
    found |= {f"{layer}mlp.{n}_proj.weight": (mlp, width) for n in ("gate", "up")}
    found |= {f"{layer}mlp.down_proj.weight": (width, mlp)}
    found |= {f"{layer}{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
  return found | {"model.norm.weight": (width,), "lm_head.weight": (size["vocab"], width)}


def drawn(seed: list[int], shape: tuple[int, ...], scale: float) -> np.ndarray:
  """Normal numbers of this deviation, float32."""
  return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(scale)


def make_models(folder: pathlib.Path, size: dict[str, int]) -> list[pathlib.Path]:
  """A base with weights of deviation 0.02, and fine-tunes that moved by 5e-4."""
  from wam.checkpoints import safetensors

  config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": size["width"],
    "intermediate_size": size["mlp"],
    "num_hidden_layers": size["layers"],
    "num_attention_heads": size["heads"],
    "num_key_value_heads": size["kv_heads"],
    "vocab_size": size["vocab"],
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
  }
  every = shapes(size)
  paths = [folder / f"m{i}" for i in range(4)]
  for i, path in enumerate(paths):
    if path.is_dir():
      continue

    def tensor(name: str, i: int = i) -> np.ndarray:
      number = list(every).index(name)
      values = drawn([0, number], every[name], 0.02)
      if i:
        values += drawn([i, number], every[name], 5e-4)
      return values.astype(ml_dtypes.bfloat16)

    with safetensors.new_directory(path) as directory:
      (directory / "config.json").write_text(json.dumps(config))
      sizes = {n: 2 * int(np.prod(s)) for n, s in every.items()}
      safetensors.write_tensors(directory, sizes, tensor, shard_bytes=SHARD_BYTES)
    print(f"made {path}", flush=True)
  return paths


class Run(NamedTuple):
  """One run of a command; memory in bytes, the resident one of its largest process."""

  seconds: float
  cpu: float
  resident: float
  anonymous: float


def anonymous(pid: int) -> int:
  """Private memory of a process and of those it has started, in bytes."""
  total = 0
  try:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
      if line.startswith("RssAnon:"):
        total = int(line.split()[1]) * 1024
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
  except OSError:
    return total
  return total + sum(anonymous(int(child)) for child in children)


def measure(command: list[str], environment: dict[str, str] | None = None) -> Run:
  """Runs a command to its end; the anonymous memory of all its processes is sampled every 10 ms."""
  start = time.perf_counter()
  with open(os.devnull, "w") as null:
    process = subprocess.Popen(
      command, stdout=null, stderr=subprocess.PIPE, env=environment or dict(os.environ)
    )
  peak = [0]
  ended = threading.Event()

  def watch() -> None:
    while not ended.wait(0.01):
      peak[0] = max(peak[0], anonymous(process.pid))

  watcher = threading.Thread(target=watch)
  watcher.start()
  errors = process.stderr.read() if process.stderr else b""
  _, status, usage = os.wait4(process.pid, 0)
  seconds = time.perf_counter() - start
  ended.set()
  watcher.join()
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise SystemExit(f"{' '.join(command)}:\n{errors.decode()[-2000:]}")
  return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, peak[0])


def commands(
  case: Case, models: list[pathlib.Path], folder: pathlib.Path, hashes: bool
) -> dict[str, list[str]]:
  """What is typed for a case, by system."""
  path, out = folder / "recipe.yaml", folder / "out"
  path.write_text(case.recipe.format(*models))
  inputs = [str(p) for m in models[: case.models] for p in sorted(m.glob("*.safetensors"))]
  last = [str(p) for p in sorted(models[case.models - 1].glob("*.safetensors"))]
  rest = [p for p in inputs if p not in last]
  copy = f"cat {' '.join(rest)} > /dev/null; mkdir -p {out}; cat {' '.join(last)} > {out}/copy"
  found = {
    "copy": ["sh", "-c", copy],
    "wam": [str(WAM), "merge", str(path), str(out), "--no-hashes"],
  }
  if hashes:
    found["wam, with SHA-256 of everything"] = [str(WAM), "merge", str(path), str(out)]
  if MERGEKIT.exists():
    found["mergekit"] = [str(MERGEKIT), str(path), str(out)]
  return found


def main() -> None:
  """Parses the command line, measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", choices=SIZES, default="1b")
  parser.add_argument("--rounds", type=int, default=3, help="of wam and of copying")
  parser.add_argument("--mergekit-rounds", type=int, default=1, help="it takes minutes for some")
  parser.add_argument("--only", nargs="+", default=list(CASES), help="names of cases")
  parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "build" / "benchmark-merge")
  parser.add_argument("--json", type=pathlib.Path, help="write every measurement to this file")
  options = parser.parse_args()
  folder = options.folder.resolve() / options.size
  folder.mkdir(parents=True, exist_ok=True)
  models = make_models(folder, SIZES[options.size])
  if not MERGEKIT.exists():
    print(f"mergekit is left out: no {MERGEKIT.parent.parent.name} (see benchmarks/README.md)")
  # No hash is remembered from one run to the next.
  fresh = dict(os.environ) | {"XDG_CACHE_HOME": str(folder / "cache")}
  results: dict[str, dict[str, list[Run]]] = {}
  print(f"load {os.getloadavg()[0]:.1f} before", flush=True)
  for name, case in CASES.items():
    if name not in options.only:
      continue
    found = results.setdefault(name, {})
    for number in range(options.rounds):
      for system, command in commands(case, models, folder, hashes=name == "linear of 2").items():
        if system == "mergekit" and number >= options.mergekit_rounds:
          continue
        shutil.rmtree(folder / "out", ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        # What the one before has left to be written must not slow this one.
        os.sync()
        found.setdefault(system, []).append(measure(command, fresh))
    print(row(name, found), flush=True)
  shutil.rmtree(folder / "out", ignore_errors=True)
  print(f"load {os.getloadavg()[0]:.1f} after; {sys.version.split()[0]}")
  if options.json:
    plain = {
      n: {s: [r._asdict() for r in runs] for s, runs in f.items()} for n, f in results.items()
    }
    options.json.write_text(json.dumps(plain, indent=1))


def row(name: str, found: dict[str, list[Run]]) -> str:
  """Medians and ranges of a case: seconds of each, wam against the others, memory."""
  lines = []
  ours = statistics.median(r.seconds for r in found["wam"])
  for system, runs in found.items():
    seconds = [r.seconds for r in runs]
    middle = statistics.median(seconds)
    lines.append(
      f"| {name} | {system} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}, n={len(runs)}) |"
      f" {statistics.median(r.cpu for r in runs):.1f} | {max(r.anonymous for r in runs) / 2**20:.0f} |"
      f" {max(r.resident for r in runs) / 2**20:.0f} | {middle / ours:.2f} |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  main()
