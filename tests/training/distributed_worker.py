"""One process of a distributed run: trains the toy and leaves its result; see distributed_test.py."""

import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import toy

from wam.training import loop, optimizers, sharding
from wam.training.workdir import Run, open_workdir


class Slices(toy.NumberedBatches):
  """This process' rows of every batch."""

  def __next__(self):
    batch = super().__next__()
    size = 8 // jax.process_count()
    rows = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
    return {name: x[rows] for name, x in batch.items()}


def main(workdir: str, address: str, index: int, stop_after: int) -> None:
  jax.config.update("jax_num_cpu_devices", 2)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(address, num_processes=2, process_id=index)
  assert jax.process_count() == 2 and jax.device_count() == 4
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2})
  rules = (
    (".*kernel", jax.sharding.PartitionSpec("fsdp", None)),
    (".*", jax.sharding.PartitionSpec()),
  )
  directory = open_workdir(workdir, config={}, command="")
  keywords = {"mesh": mesh, "rules": rules, "tensorboard": False, "show": False}
  with Run(directory, seed=3, save_every_steps=4, save_every_seconds=None, **keywords) as run:
    if stop_after and index == 1:
      # One process alone is told to stop; both leave after the same step.
      run.interrupts.requested = 15
    result = loop.fit(
      toy.init(),
      Slices(),
      run=run,
      stage="toy",
      loss_fn=toy.loss_fn,
      tx=optimizers.make(learning_rate=0.05, total_steps=10),
      num_steps=10,
      log_every=5,
    )
  whole = sharding.fetch(result)
  np.savez(f"{workdir}/result{index}.npz", **whole["a"])


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
