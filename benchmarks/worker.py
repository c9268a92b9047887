"""One system in its own process: builds it, warms it up, then measures once for every line on standard input.

  python worker.py systems_torch:bare_sft full

Answers with one JSON object a line on what was standard output; all that the system prints goes to standard error.
"""

import importlib
import json
import os
import sys
import time


def main() -> None:
  """Runs until standard input ends."""
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  module, _, function = sys.argv[1].partition(":")
  import shape

  start = time.perf_counter()
  build = getattr(importlib.import_module(module), function)
  measure, versions = build(shape.QUICK if sys.argv[2] == "quick" else shape.FULL)
  measure()
  ready = {"start_seconds": time.perf_counter() - start, "versions": versions}
  print(json.dumps(ready), file=answers, flush=True)
  for _ in sys.stdin:
    before = time.process_time()
    count, seconds = measure()
    answer = {"count": count, "seconds": seconds, "cpu_seconds": time.process_time() - before}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  main()
