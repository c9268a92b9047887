"""The loop apart from resuming (resume_test.py): what it records, that it compiles once, that it waits rarely."""

import io
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.checkpoints import records
from wam.core.errors import MissingFile, NonFinite
from wam.training import kept, loop, optimizers, sharding
from wam.training.progress import Progress
from wam.training.workdir import Run

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import toy

sys.path.pop(0)


def fit(
  tmp_path, *, loss_fn=toy.loss_fn, params=None, learning_rate=0.05, num_steps=10, **keywords
):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  tx = optimizers.make(name="sgd", learning_rate=learning_rate, total_steps=10, clip_norm=None)
  with Run(tmp_path, seed=0, mesh=mesh, rules=sharding.REPLICATED, show=False) as run:
    return loop.fit(
      toy.init() if params is None else params,
      toy.NumberedBatches(),
      run=run,
      stage="toy",
      loss_fn=loss_fn,
      tx=tx,
      num_steps=num_steps,
      **{"log_every": 4} | keywords,
    )


def test_records_are_averages_over_the_steps_since_the_last(tmp_path):
  losses = []

  def loss_fn(params, batch, key, frozen=()):
    """The loss is known: the batch's first number; the weight too."""
    del key
    return batch["x"][0, 0] + 0.0 * params["a"]["bias"].sum(), jnp.float32(2), {}

  fit(tmp_path, loss_fn=loss_fn, count_tokens=lambda batch: 5)
  batches = toy.NumberedBatches()
  losses = [float(next(batches)["x"][0, 0]) / 2 for _ in range(10)]
  metrics = [r for r in records.read(tmp_path) if r["kind"] == "metric"]
  assert [r["step"] for r in metrics] == [4, 8, 10]
  np.testing.assert_allclose(
    [r["loss"] for r in metrics], [np.mean(losses[:4]), np.mean(losses[4:8]), np.mean(losses[8:])],
    rtol=1e-5,
  )  # fmt: skip
  assert all(r["tokens_per_second"] > 0 for r in metrics)
  last = records.read(tmp_path)[-1]
  assert (last["kind"], last["stage"], last["step"]) == ("stage", "toy", 10)
  assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_loss_is_traced_once(tmp_path):
  traces = 0

  def counting(*arguments):
    nonlocal traces
    traces += 1
    return toy.loss_fn(*arguments)

  fit(tmp_path, loss_fn=counting, num_steps=9)
  assert traces == 1


def test_the_host_fetches_only_when_it_logs(tmp_path, monkeypatch):
  fetches = 0
  original = loop.Trainer.check

  def counting(self):
    nonlocal fetches
    fetches += 1
    return original(self)

  monkeypatch.setattr(loop.Trainer, "check", counting)
  fit(tmp_path, num_steps=12)
  assert fetches == 3


def test_parameters_given_are_not_consumed(tmp_path):
  params = toy.init()
  result = fit(tmp_path, params=params)
  np.testing.assert_array_equal(params["a"]["kernel"], toy.init()["a"]["kernel"])
  assert not np.array_equal(result["a"]["kernel"], params["a"]["kernel"])


def test_diverged_parameters_are_not_a_result(tmp_path):
  def loss_fn(params, batch, key, frozen=()):
    """Finite itself, with an infinite gradient at the last step."""
    del batch, key
    return jnp.sqrt(jnp.abs(params["a"]["kernel"]).sum() * 0.0), jnp.float32(1), {}

  with pytest.raises(NonFinite, match=r"toy: the parameters a/kernel are not finite after step 1"):
    fit(tmp_path, loss_fn=loss_fn, num_steps=1)
  assert not (tmp_path / "checkpoints/toy/result").exists()


def test_plain_progress_is_rare_and_says_what_matters(monkeypatch):
  now = 0.0
  monkeypatch.setattr("wam.training.progress.time.monotonic", lambda: now)
  file = io.StringIO()
  with Progress("sft", 100, file=file) as progress:
    for step in range(1, 101):
      now += 0.5
      progress.update(step, {"loss": 2.0, "tokens_per_second": 41234.5} if step % 20 == 0 else None)
  lines = file.getvalue().splitlines()
  assert len(lines) == 11  # 50 seconds, one every 5, and the last
  assert lines[0] == "sft 10/100  0:45 left"
  assert lines[3] == "sft 40/100  loss 2  tokens/s 41234  0:30 left"
  assert lines[-1].endswith("0:50 taken")


def test_kept_parameters_are_those_of_a_run_that_ends_there(tmp_path):
  fit(tmp_path / "long", keep_steps=(4, 7))
  ended = fit(tmp_path / "short", num_steps=4)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  with Run(tmp_path / "long", seed=0, mesh=mesh, rules=sharding.REPLICATED, show=False) as run:
    assert kept.steps(run, "toy") == [4, 7]
    found = kept.load(run, 4, toy.init(), stage="toy")
    jax.tree.map(np.testing.assert_array_equal, found, ended)
    assert not np.array_equal(
      kept.load(run, 7, toy.init(), stage="toy")["a"]["kernel"], found["a"]["kernel"]
    )
    with pytest.raises(MissingFile, match="kept/5"):
      kept.load(run, 5, toy.init(), stage="toy")
