"""A toy to train: a linear map, batches that are a function of their number, and a run of two stages."""

import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam.training import loop, optimizers, sharding
from wam.training.workdir import Run, open_workdir


class NumberedBatches:
  """Batch n is drawn from the generator of seed n; `delay` seconds each, so that a kill meets the run at work."""

  def __init__(self, batch_size: int = 8, delay: float = 0.0):
    self.number = 0
    self._batch_size, self._delay = batch_size, delay

  def __next__(self) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(self.number)
    self.number += 1
    time.sleep(self._delay)
    x = draw.normal(size=(self._batch_size, 4)).astype(np.float32)
    return {"x": x, "y": (x @ np.arange(12, dtype=np.float32).reshape(4, 3))}

  def get_state(self) -> Any:
    return {"number": self.number}

  def set_state(self, state: Any) -> None:
    self.number = state["number"]


def init() -> dict[str, Any]:
  kernel = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
  return {"a": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros((3,), jnp.float32)}}


def loss_fn(params: Any, batch: Any, key: jax.Array, frozen: Any = ()) -> Any:
  """Squared error with noise on the input: the random stream is part of what a resume must replay."""
  noise = 0.1 * jax.random.normal(key, batch["x"].shape)
  bias = jnp.broadcast_to(params["a"]["bias"], batch["y"].shape)
  error = (batch["x"] + noise) @ params["a"]["kernel"] + bias - batch["y"]
  count = jnp.float32(batch["x"].shape[0])
  return jnp.sum(error**2), count, {"absolute": (jnp.sum(jnp.abs(error)), count)}


def run(
  workdir: str | pathlib.Path, *, steps: int, delay: float = 0.0, devices: int = 1, **settings: Any
) -> Any:
  """Two stages over one input; their result."""
  batches = NumberedBatches(delay=delay)
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  directory = open_workdir(workdir, config={"steps": steps}, command="toy")
  with Run(
    directory,
    seed=3,
    mesh=mesh,
    rules=sharding.REPLICATED,
    tensorboard=False,
    show=False,
    **settings,
  ) as opened:
    params = init()
    for stage in ("first", "second"):
      tx = optimizers.make(learning_rate=0.05, total_steps=steps, schedule="cosine")
      params = loop.fit(
        params,
        batches,
        run=opened,
        stage=stage,
        loss_fn=loss_fn,
        tx=tx,
        num_steps=steps,
        log_every=7,
      )
  return params


if __name__ == "__main__":
  run(sys.argv[1], steps=int(sys.argv[2]), delay=float(sys.argv[3]), save_every_steps=5)
