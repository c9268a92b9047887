"""Measures several systems in turns, A B C A B C ..., on the same cores; prints medians, spreads and ratios.

Each system lives in a process (and an environment) of its own and sleeps while the others are measured, so that a slow
minute of the machine hits all of them. Used by training.py, sampling.py and preferences.py.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
ENVIRONMENTS = {"wam": ".venv", "torch": ".venv-bench-torch", "tunix": ".venv-bench-tunix"}


class System(NamedTuple):
  """A row of the table: its label, the environment it runs in and the function of a module that builds it."""

  label: str
  environment: str
  function: str


def run(systems: Sequence[System], description: str, *, unit: str = "tokens") -> None:
  """Parses the command line, measures and prints; `unit` is what the systems count."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument(
    "--repeats", type=int, default=5, help="rounds; each measures every system once"
  )
  parser.add_argument("--quick", action="store_true", help="tiny shapes: does it run?")
  parser.add_argument("--cores", type=int, default=2, help="how many cores all systems share")
  parser.add_argument("--only", default="", help="part of a label; the first system always runs")
  parser.add_argument("--json", type=pathlib.Path, help="also write every measurement to this file")
  options = parser.parse_args()
  cores = sorted(os.sched_getaffinity(0))[: options.cores]
  os.sched_setaffinity(0, cores)
  chosen = [s for i, s in enumerate(systems) if i == 0 or options.only in s.label]
  size = "quick" if options.quick else "full"
  workers = {s.label: w for s in chosen if (w := start(s, size))}
  load = os.getloadavg()[0]
  results: dict[str, list[dict[str, float]]] = {label: [] for label in workers}
  for _ in range(options.repeats):
    for label, worker in workers.items():
      results[label].append(ask(worker))
  for worker in workers.values():
    assert worker.stdin is not None
    worker.stdin.close()
    worker.wait(timeout=60)
  print(f"\ncores {cores}, load {load:.1f} before and {os.getloadavg()[0]:.1f} after, {size} shape")
  print(table(results, unit))
  if options.json:
    options.json.write_text(json.dumps(results, indent=1))


def start(system: System, size: str) -> subprocess.Popen[str] | None:
  """A worker that is built and warm; None, with a message, where its environment is missing or it fails."""
  python = HERE.parent / ENVIRONMENTS[system.environment] / "bin" / "python"
  if not python.exists():
    print(f"{system.label}: left out, no {python.parent.parent.name} (see benchmarks/README.md)")
    return None
  threads = str(len(os.sched_getaffinity(0)))
  environment = os.environ | {
    "OMP_NUM_THREADS": threads,
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(HERE.parent) if system.environment == "wam" else "",
  }
  worker = subprocess.Popen(
    [str(python), str(HERE / "worker.py"), system.function, size],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE if not sys.flags.dev_mode else None,
    text=True,
    env=environment,
  )
  assert worker.stdout is not None
  line = worker.stdout.readline()
  if not line:
    errors = worker.stderr.read() if worker.stderr else ""
    print(f"{system.label}: left out, it failed:\n  " + "\n  ".join(errors.splitlines()[-3:]))
    worker.wait()
    return None
  ready = json.loads(line)
  versions = ", ".join(f"{name} {version}" for name, version in ready["versions"].items())
  print(f"{system.label}: ready after {ready['start_seconds']:.1f} s ({versions})", flush=True)
  if worker.stderr:
    # Nobody reads on; a full pipe would stop the worker.
    subprocess.Popen(["cat"], stdin=worker.stderr, stdout=subprocess.DEVNULL)
  return worker


def ask(worker: subprocess.Popen[str]) -> dict[str, Any]:
  """One measurement."""
  assert worker.stdin is not None and worker.stdout is not None
  worker.stdin.write("\n")
  worker.stdin.flush()
  answer: dict[str, Any] = json.loads(worker.stdout.readline())
  return answer


def table(results: dict[str, list[dict[str, float]]], unit: str) -> str:
  """Units a second and, for each system, how many times faster the first one is (median of the ratios of rounds)."""
  speeds = {label: [m["count"] / m["seconds"] for m in rows] for label, rows in results.items()}
  first = next(iter(speeds.values()))
  digits = 3 if unit == "steps" else 0
  lines = [
    f"| system | {unit}/s, median | min to max | CPU s / run | first / this |",
    "|---|---|---|---|---|",
  ]
  for label, values in speeds.items():
    ratios = [a / b for a, b in zip(first, values, strict=True)]
    cpu = statistics.median(m["cpu_seconds"] for m in results[label])
    lines.append(
      f"| {label} | {statistics.median(values):.{digits}f} | {min(values):.{digits}f} to {max(values):.{digits}f} |"
      f" {cpu:.2f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
    )
  return "\n".join(lines)
