"""Jobs on a few threads: order of results, errors, nested sweeps."""

import threading
import time

import pytest

from wam.streaming.sweeps import Pool


def adding_job(n, log):
  first = yield [lambda i=i: i for i in range(n)]
  assert first == list(range(n))
  second = yield [lambda x=x: 2 * x for x in first]
  log.append(sum(second))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_every_job_gets_its_results_in_order(num_threads):
  log = []
  Pool((adding_job(n, log) for n in [0, 1, 2, 17, 40]), num_threads).run()
  assert sorted(log) == sorted(n * (n - 1) for n in [0, 1, 2, 17, 40])


def test_a_sweep_is_shared_among_threads():
  seen = set()
  together = threading.Barrier(3, timeout=20)

  def wait():
    seen.add(threading.get_ident())
    together.wait()

  def job():
    yield [wait] * 3

  Pool(iter([job()]), 3).run()
  assert len(seen) == 3


def test_the_first_error_ends_everything_and_reaches_the_caller():
  done = []

  def bad():
    yield [lambda: done.append(1), lambda: 1 / 0]

  def slow():
    for _ in range(1000):
      yield [lambda: time.sleep(0.001), lambda: None]
    done.append("all of it")

  with pytest.raises(ZeroDivisionError):
    Pool(iter([bad(), slow(), slow()]), 2).run()
  assert "all of it" not in done
  assert threading.active_count() <= 20


def test_an_error_of_the_watcher_stops_the_threads():
  before = threading.active_count()

  def endless():
    while True:
      yield [lambda: time.sleep(0.001)] * 2

  def interrupted():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    Pool(iter([endless()]), 2).run(interrupted, interval=0.01)
  assert threading.active_count() == before


def test_jobs_are_begun_only_when_threads_are_free():
  begun, ended = [], []

  def job(i):
    begun.append(i)
    yield [lambda: time.sleep(0.002)] * 3
    ended.append(i)
    assert len(begun) - len(ended) <= 3

  Pool((job(i) for i in range(20)), 2).run()
  assert len(ended) == 20
