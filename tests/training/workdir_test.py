import json
import os
import signal

import pytest

from wam.core.errors import BadData, ConfigError, WamError
from wam.training import workdir
from wam.training.interrupts import Interrupted, Interrupts

CONFIG = {"seed": 0, "sft": {"num_steps": 100, "rates": (1, 2)}}


def test_config_is_written_once(tmp_path):
  directory = workdir.open_workdir(tmp_path / "a/b", config=CONFIG, command="wam run")
  content = json.loads((directory / "config.json").read_text())
  assert content["config"] == {"seed": 0, "sft": {"num_steps": 100, "rates": [1, 2]}}
  assert content["command"] == "wam run"
  assert content["versions"]["jax"]
  before = (directory / "config.json").stat().st_mtime_ns
  workdir.open_workdir(directory, config=CONFIG, command="wam run")
  assert (directory / "config.json").stat().st_mtime_ns == before


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path):
  workdir.open_workdir(tmp_path, config=CONFIG, command="")
  (tmp_path / "records.jsonl").write_text('{"kind": "metric"}\n')
  other = {"seed": 0, "sft": {"num_steps": 200, "rates": [1, 2]}, "rsf": {"n": 4}}
  with pytest.raises(ConfigError) as caught:
    workdir.open_workdir(tmp_path, config=other, command="")
  assert "rsf.n is absent there and 4 here; sft.num_steps is 100 there and 200 here" in str(
    caught.value
  )
  assert "seed" not in str(caught.value).split("config: ")[1]


def test_a_run_that_never_began_can_change_its_config(tmp_path):
  workdir.open_workdir(tmp_path, config=CONFIG, command="first")
  workdir.open_workdir(tmp_path, config={"seed": 1}, command="second")
  content = json.loads((tmp_path / "config.json").read_text())
  assert (content["config"], content["command"]) == ({"seed": 1}, "second")


def test_unusable_workdirs_are_refused(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ConfigError, match="is a file"):
    workdir.open_workdir(tmp_path / "file", config={}, command="")
  with pytest.raises(WamError, match="cannot make the workdir"):
    workdir.open_workdir(tmp_path / "file/below", config={}, command="")
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(BadData, match="not the config of a run"):
    workdir.open_workdir(tmp_path, config={}, command="")


def test_signals_are_noted_and_handlers_put_back():
  before = signal.getsignal(signal.SIGTERM)
  with Interrupts() as interrupts:
    interrupts.check("nothing")
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGTERM during the test") as caught:
      interrupts.check("the test")
    assert caught.value.exit_status == 143
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_start_checks_its_section_before_it_writes(tmp_path):
  start = workdir.Start(tmp_path / "run", CONFIG, "wam run", show=False)
  with pytest.raises(ConfigError, match="save_every_step"):
    start.open(seed=0, checkpoints={"save_every_step": 3})
  assert not (tmp_path / "run").exists()
  with start.open(seed=3, checkpoints={"save_every_steps": 3}) as run:
    assert (run.seed, run.save_every_steps, run.show) == (3, 3, False)
  assert (tmp_path / "run" / "config.json").exists()
