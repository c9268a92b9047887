"""A run that is killed again and again ends with the bits of one that was left alone."""

import errno
import gc
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from wam.checkpoints import orbax, records
from wam.core.errors import BadCheckpoint, NonFinite
from wam.training import loop
from wam.training.interrupts import Interrupted

TOY = pathlib.Path(__file__).with_name("toy.py")
STEPS = 30


@pytest.fixture(scope="module")
def toy():
  sys.path.insert(0, str(TOY.parent))
  try:
    import toy
  finally:
    sys.path.remove(str(TOY.parent))
  return toy


@pytest.fixture(scope="module")
def undisturbed(toy, tmp_path_factory) -> tuple[dict, list[dict]]:
  """Parameters and records of an uninterrupted run that never saves on the way."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  params = toy.run(workdir, steps=STEPS, save_every_seconds=None)
  return jax.device_get(params), timeless(workdir)


def timeless(workdir: pathlib.Path) -> list[dict]:
  return [records.without_times(record) for record in records.read(workdir)]


def equal(a, b) -> bool:
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def start(workdir: pathlib.Path, delay: float) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, str(TOY), str(workdir), str(STEPS), str(delay)],
    stderr=subprocess.PIPE,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
  )


def progress_of(workdir: pathlib.Path) -> int:
  """How far a run is, seen from outside: whole checkpoints and results."""
  found = [*workdir.glob("checkpoints/*/steps/*"), *workdir.glob("checkpoints/*/result")]
  return hash(tuple(sorted(str(path) for path in found)))


def test_killed_run_ends_with_the_same_bits(undisturbed, tmp_path):
  draw = random.Random(0)
  kills = 0
  while kills < 4:
    before = progress_of(tmp_path)
    process = start(tmp_path, delay=0.02)
    # It gets at least one checkpoint further; then it dies at any moment, often while it writes the next.
    while progress_of(tmp_path) == before and process.poll() is None:
      time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.25))
    if process.poll() is not None:
      break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    kills += 1
  assert kills >= 3, process.stderr.read().decode()[-2000:]
  # The machine may also die half-way through a line.
  with (tmp_path / records.FILE_NAME).open("a") as file:
    file.write('{"kind": "metr')
  process = start(tmp_path, delay=0.0)
  assert process.wait(timeout=120) == 0, process.stderr.read().decode()[-2000:]
  process.stderr.close()

  params, expected = undisturbed
  assert equal(orbax.load(tmp_path / "checkpoints/second/result"), params)
  assert timeless(tmp_path) == expected


def test_sigterm_saves_and_the_next_run_goes_on(toy, undisturbed, tmp_path, monkeypatch):
  count = 0
  following = toy.NumberedBatches.__next__

  def interrupting(self):
    nonlocal count
    count += 1
    if count == 12:
      os.kill(os.getpid(), signal.SIGTERM)
    return following(self)

  monkeypatch.setattr(toy.NumberedBatches, "__next__", interrupting)
  with pytest.raises(Interrupted, match=r"first: stopped by SIGTERM after step 11 of 30") as caught:
    toy.run(tmp_path, steps=STEPS)
  assert caught.value.exit_status == 128 + signal.SIGTERM
  assert (tmp_path / "checkpoints/first/steps/11").is_dir()

  params, expected = undisturbed
  assert equal(jax.device_get(toy.run(tmp_path, steps=STEPS)), params)
  assert timeless(tmp_path) == expected


def test_finished_stages_are_loaded_and_leave_the_input_where_they_left_it(
  toy, undisturbed, tmp_path
):
  params, _ = undisturbed
  toy.run(tmp_path, steps=STEPS)
  before = (tmp_path / records.FILE_NAME).read_bytes()
  # As if the run had been killed between the stages, before the second one saved anything.
  orbax.remove(tmp_path / "checkpoints/second")
  assert equal(jax.device_get(toy.run(tmp_path, steps=STEPS)), params)
  assert timeless(tmp_path) == [records.without_times(json.loads(x)) for x in before.splitlines()]


def test_resume_on_another_mesh(toy, undisturbed, tmp_path, monkeypatch):
  """A checkpoint does not remember how many devices wrote it; the numbers agree up to the order of sums."""
  params, _ = undisturbed
  with monkeypatch.context() as patched:
    patched.setattr(
      loop.Trainer, "decide", lambda self, *_: signal.SIGTERM if self.step == 9 else 0
    )
    with pytest.raises(Interrupted):
      toy.run(tmp_path, steps=STEPS, devices=1)
  resumed = toy.run(tmp_path, steps=STEPS, devices=8)
  assert len(resumed["a"]["kernel"].sharding.device_set) == 8
  for x, y in zip(jax.tree.leaves(resumed), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_full_disk_leaves_the_checkpoint_before(toy, undisturbed, tmp_path, monkeypatch):
  real = orbax.ocp.training.Checkpointer.save
  saves = 0

  def full(self, step, state, **keywords):
    nonlocal saves
    saves += 1
    if saves == 2:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(self, step, state, **keywords)

  monkeypatch.setattr(orbax.ocp.training.Checkpointer, "save", full)
  with pytest.raises(records.CannotWrite, match="No space left on device") as caught:
    toy.run(tmp_path, steps=STEPS, save_every_steps=5)
  assert "checkpoints/first/steps/10" in str(caught.value)
  assert [p.name for p in (tmp_path / "checkpoints/first/steps").iterdir()] == ["5"]
  params, expected = undisturbed
  assert equal(jax.device_get(toy.run(tmp_path, steps=STEPS)), params)
  assert timeless(tmp_path) == expected


# The reads that Orbax had begun call back into its closed event loop, each an unraisable error of its own.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoint_is_named(toy, tmp_path, monkeypatch):
  monkeypatch.setattr(
    loop.Trainer, "decide", lambda self, *_: signal.SIGTERM if self.step == 9 else 0
  )
  with pytest.raises(Interrupted):
    toy.run(tmp_path, steps=STEPS)
  for path in (tmp_path / "checkpoints/first/steps/9").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(path.read_bytes()[:10])
  with pytest.raises(BadCheckpoint, match="steps/9"):
    toy.run(tmp_path, steps=STEPS)
  # So that the callbacks, and the coroutines that nobody awaits any more, come up in this test and not in the next.
  time.sleep(0.5)
  gc.collect()


def test_nan_loss_names_stage_and_step_and_is_not_saved(toy, tmp_path, monkeypatch):
  following = toy.NumberedBatches.__next__

  def poisoned(self):
    batch = following(self)
    if self.number == 9:
      batch["y"][0, 0] = np.nan
    return batch

  monkeypatch.setattr(toy.NumberedBatches, "__next__", poisoned)
  with pytest.raises(
    NonFinite, match=r"first: the loss of step 9 is not finite.*last saved step is 5"
  ):
    toy.run(tmp_path, steps=STEPS, save_every_steps=5)
  assert [p.name for p in (tmp_path / "checkpoints/first/steps").iterdir()] == ["5"]
  assert [record["step"] for record in records.read(tmp_path)] == [7]
