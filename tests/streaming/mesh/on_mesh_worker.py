"""One process of a distributed merge: merges by the methods it is given; see on_mesh_test.py."""

import json
import pathlib
import sys
from typing import Any

import jax

# The repository's root: for the cases.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.streaming.mesh import mesh_cases
from wam.streaming.mesh.on_mesh import merge_checkpoints

sys.path.pop(0)


def read_so_far() -> int:
  """Bytes that this process has read from files."""
  lines = pathlib.Path("/proc/self/io").read_text().splitlines()
  return int(dict(line.split(": ") for line in lines)["rchar"])


def main(
  directory: pathlib.Path,
  results: pathlib.Path,
  address: str,
  index: int,
  cases: list[tuple[str, bool]],
) -> None:
  jax.config.update("jax_num_cpu_devices", 4)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(address, num_processes=2, process_id=index)
  assert jax.process_count() == 2 and jax.device_count() == 8
  mesh = jax.make_mesh((8,), ("fsdp",))
  notes = {}

  def merge(key: str, name: str, members: list[pathlib.Path], out: str, **keywords: Any) -> None:
    before = read_so_far()
    report = merge_checkpoints(name, members, results / out, mesh=mesh, **keywords)
    notes[key] = {
      "held": report.bytes_read,
      "written": report.bytes_written,
      "read": read_so_far() - before,
      "update": report.total().update,
    }

  for name, with_init in cases:
    members, keywords = mesh_cases.arguments(name, with_init, lambda x: directory / x)
    merge(f"{name} {with_init}", name, members, f"{name} {with_init}", **keywords)
  if (directory / "large 0").exists():
    merge("large", "linear", [directory / f"large {i}" for i in range(2)], "large merged")
  (results / f"notes{index}.json").write_text(json.dumps(notes))


if __name__ == "__main__":
  source, results, address, index, cases = sys.argv[1:]
  main(pathlib.Path(source), pathlib.Path(results), address, int(index), json.loads(cases))
