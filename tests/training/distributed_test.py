"""Two processes that talk through gloo train as one process does, stop together and go on together."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from wam.checkpoints import records
from wam.training import loop, optimizers, sharding
from wam.training.workdir import Run

WORKER = pathlib.Path(__file__).with_name("distributed_worker.py")
sys.path.insert(0, str(WORKER.parent))
import toy  # noqa: E402

sys.path.pop(0)


def run_two(workdir: pathlib.Path, stop_after: int) -> list[tuple[int, str]]:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      [sys.executable, str(WORKER), str(workdir), address, str(index), str(stop_after)],
      stderr=subprocess.PIPE,
      text=True,
      env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    for index in range(2)
  ]
  try:
    errors = [process.communicate(timeout=120)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(p.returncode, error) for p, error in zip(processes, errors, strict=True)]


def test_two_processes_equal_one(tmp_path):
  stopped = run_two(tmp_path / "two", stop_after=5)
  assert all("Interrupted: toy: stopped by SIGTERM after step 5 of 10" in e for _, e in stopped), (
    stopped
  )
  finished = run_two(tmp_path / "two", stop_after=0)
  assert [code for code, _ in finished] == [0, 0], finished

  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  rules = sharding.REPLICATED
  with Run(tmp_path / "one", seed=3, mesh=mesh, rules=rules, tensorboard=False, show=False) as run:
    tx = optimizers.make(learning_rate=0.05, total_steps=10)
    expected = loop.fit(
      toy.init(),
      toy.NumberedBatches(),
      run=run,
      stage="toy",
      loss_fn=toy.loss_fn,
      tx=tx,
      num_steps=10,
      log_every=5,
    )
  for index in range(2):
    with np.load(tmp_path / f"two/result{index}.npz") as found:
      for name, x in expected["a"].items():
        np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-6)
  one, two = (
    [records.without_times(r) for r in records.read(tmp_path / name)] for name in ("one", "two")
  )
  assert len(one) == len(two) == 3
  for a, b in zip(one[:2], two[:2], strict=True):
    assert a["step"] == b["step"]
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
