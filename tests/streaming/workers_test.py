"""Forked workers; in a process of their own, since that of the tests has loaded JAX and must not be forked."""

import os
import subprocess
import sys
import time

import pytest

from wam.streaming import workers


def run(code):
  program = "import os, signal, sys, time\nfrom wam.streaming import workers\nfrom wam.core.errors import *\n"
  return subprocess.run(
    [sys.executable, "-c", program + code], capture_output=True, text=True, timeout=60
  )


def test_results_of_all_jobs_arrive():
  code = """
assert workers.can_fork()
for num_jobs, num_workers in [(0, 2), (1, 3), (2, 2), (57, 3), (5, 8)]:
  found = []
  workers.run(num_jobs, lambda i: (i * i, os.getpid()), found.append, num_workers=num_workers)
  assert sorted(x for x, _ in found) == [i * i for i in range(num_jobs)]
  pids = {p for _, p in found}
  assert os.getpid() not in pids and len(pids) <= num_workers
"""
  result = run(code)
  assert result.returncode == 0, result.stderr


def test_large_results_pass():
  code = "found = []; workers.run(3, lambda i: b'x' * 10**6, found.append, num_workers=2); assert len(found) == 3"
  assert run(code).returncode == 0


@pytest.mark.parametrize(
  ("job", "expected"),
  [
    ("raise NonFinite('tensor x')", "NonFinite: tensor x"),
    ("1 / 0", "ZeroDivisionError"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "a worker process was killed"),
    ("raise type('Odd', (Exception,), {})('odd one')", "odd one"),
  ],
)
def test_the_first_error_ends_all(job, expected):
  code = f"""
def work(i):
  if i == 1:
    {job}
  time.sleep(30 if i > 1 else 0)
workers.run(8, work, lambda _: None, num_workers=2)
"""
  start = time.monotonic()
  result = run(code)
  assert result.returncode == 1
  assert expected in result.stderr
  assert time.monotonic() - start < 20


def test_workers_end_with_their_parent(tmp_path):
  code = f"""
def work(i):
  open({str(tmp_path)!r} + f"/{{os.getpid()}}", "w").close()
  time.sleep(60)
workers.run(2, work, print, num_workers=2)
"""
  program = "import os, time\nfrom wam.streaming import workers\n" + code
  process = subprocess.Popen([sys.executable, "-c", program])
  deadline = time.monotonic() + 30
  while len(list(tmp_path.iterdir())) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.kill()
  process.wait()
  pids = [int(p.name) for p in tmp_path.iterdir()]
  while any(_alive(pid) for pid in pids):
    assert time.monotonic() < deadline
    time.sleep(0.02)


def _alive(pid):
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
  except FileNotFoundError:
    return False


def test_not_where_jax_is_loaded():
  assert "jaxlib" in sys.modules
  assert not workers.can_fork()
  assert os.getpid() > 0
