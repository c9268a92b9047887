"""Compiles the steps of a config for a TPU slice that is not there: what each device holds, and how much is left.

python benchmarks/compile_for_tpu.py --config configs/alignment_tax/openllama_3b.py --topology v5p:2x2x2 --steps sft
python benchmarks/compile_for_tpu.py --config configs/alignment_tax/openllama_3b.py --devices 8 --memory 80

The first form needs the wheel `libtpu` (libtpu==0.0.42.* for jax 0.10.2) but no TPU; best in an environment of its own,
with JAX_PLATFORMS=cpu, one process at a time. The compiler refuses a program whose temporaries alone exceed the chip;
whether all of it fits is in "left". The second form is arithmetic on shapes, for GPUs: weights, moments and gradients,
without activations. The programs are those of full_size.py.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from full_size import PROGRAMS, Program, published
from jax.sharding import Mesh

from wam.cli import configs
from wam.models.decoder import LanguageModel
from wam.training import sharding

GIB = 2**30
# GiB of memory and TFLOP/s (bfloat16) of a chip, by what JAX calls it.
CHIPS = {
  "TPU v4": (32, 275),
  "TPU v5": (95, 459),
  "TPU v5 lite": (16, 197),
  "TPU v6 lite": (32, 918),
}


def main(arguments: Sequence[str]) -> int:
  """Compiles and prints, or computes and prints."""
  config, rest = configs.parse(arguments, verb="run")
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--topology", help="such as v5p:2x2x2, v5e:4x4, v6e:2x4")
  parser.add_argument("--devices", type=int, help="without topology: how many devices")
  parser.add_argument("--memory", type=float, default=80, help="without topology: GB of each")
  parser.add_argument("--steps", nargs="+", default=["sft"], choices=list(PROGRAMS))
  parser.add_argument("--json", help="append one line a step to this file")
  given = parser.parse_args(rest)
  model = LanguageModel(published(os.path.basename(config["model"]["path"])))
  print(f"{model.config.num_params() / 1e9:.2f} B parameters")
  if not given.topology:
    print(json.dumps(arithmetic(config, model, given.devices or 8, given.memory), indent=1))
    return 0
  # Asked for a topology libtpu would look for the machine it runs on.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  from jax.experimental import topologies

  devices = topologies.get_topology_desc(platform="tpu", topology_name=given.topology).devices
  mesh = sharding.make_mesh(config.get("mesh"), devices=devices)
  for name in given.steps:
    program = PROGRAMS[name](config, model, mesh)
    try:
      found = measure(program, mesh)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      found = {"step": name, "what": program.what, "does_not_fit": str(error).splitlines()[0]}
    found = {"topology": given.topology, **found}
    print(json.dumps(found, indent=1), flush=True)
    if given.json:
      with open(given.json, "a", encoding="utf-8") as file:
        file.write(json.dumps({"model": config["model"]["path"], **found}) + "\n")
  return 0


def arithmetic(
  config: Mapping[str, Any], model: LanguageModel, devices: int, memory: float
) -> dict[str, Any]:
  """GB on each of the devices that weights take while RSF runs, all of them sharded over `fsdp`, and what is left.

  float32: the policy, two moments of Adam and its gradient; θ_0; and the reward models, as large as the policy.
  """
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
  one = 4 * sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) / devices / 1e9
  rewards = 2 if config["problem"].get("control_pairs") else 1
  return {
    "devices": devices,
    "GB_each": memory,
    "policy_moments_gradient": round(4 * one, 1),
    "reference_and_reward_models": round((1 + rewards) * one, 1),
    "left_for_activations": round(memory - (5 + rewards) * one, 1),
  }


def measure(program: Program, mesh: Mesh) -> dict[str, Any]:
  """Compiles a program; memory in GiB a device, work in TFLOP a device if it is split evenly."""
  began = time.monotonic()
  with jax.set_mesh(mesh):
    traced = program.function.trace(*program.arguments)
    compiled = traced.lower().compile()
  memory = compiled.memory_analysis()
  kind = mesh.devices.flat[0].device_kind
  size, speed = CHIPS.get(kind, (math.nan, math.nan))
  # What is donated is counted once: the output lies in its place.
  peak = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  work = flops(traced.jaxpr.jaxpr) / mesh.size
  found = {
    "step": program.name,
    "what": program.what,
    "chip": kind,
    "chips": mesh.size,
    "arguments": memory.argument_size_in_bytes / GIB,
    "temporary": memory.temp_size_in_bytes / GIB,
    "output_not_in_place": (memory.output_size_in_bytes - memory.alias_size_in_bytes) / GIB,
    "code": memory.generated_code_size_in_bytes / GIB,
    "beside": program.beside / GIB,
    "together": (peak + program.beside) / GIB,
    "memory_of_the_chip": size,
    "left": size - (peak + program.beside) / GIB,
    "tflop": work / 1e12,
    "seconds_at_peak_speed": work / 1e12 / speed,
    "compile_seconds": time.monotonic() - began,
  }
  return {n: round(v, 2) if isinstance(v, float) else v for n, v in found.items()}


def flops(jaxpr: Any) -> float:
  """Multiplications and additions of all matrix products, those inside scans as often as they run.

  The compiler's own count takes the body of a loop once. The body of a while loop counts once here, too: how often it
  runs is not in the program.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      outputs = math.prod(equation.outvars[0].aval.shape)
      total += 2.0 * outputs * math.prod(left[axis] for axis in contracted)
      continue
    times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    for value in equation.params.values():
      for inner in value if isinstance(value, list | tuple) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          total += times * flops(inner)
  return total


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
