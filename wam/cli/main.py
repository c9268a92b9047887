"""`wam VERB ...`: dispatches to the verbs; user errors become one line and exit status 2.

Verbs are imported when they are called, so that `wam --help` takes no time.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from wam.core.errors import WamError, unknown_name

VERBS = {
  "merge": "checkpoints into one, from disk to disk",
  "diff": "what a merge of checkpoints will face: norms, cosines, sign conflicts",
  "run": "train, merge and measure as a config says, and write the report",
  "evaluate": "score models on the tasks of a config",
  "sample": "draw completions from a model",
  "connectivity": "scores along the line between two models, and the barriers",
  "report": "draw the report of a run again",
}
# Verbs whose threads each work on arrays of their own.
_OWN_THREADS = ("merge", "diff")


def main(arguments: Sequence[str]) -> int:
  """Runs the command line.

  Args:
    arguments: without the program's name.

  Returns:
    The exit status: 0; 2 for anything that the user can mend; 128 + the signal's number when interrupted.
  """
  if not arguments or arguments[0] in ("-h", "--help", "help"):
    print(_usage())
    return 0
  if arguments[0] in ("-V", "--version"):
    from wam import __version__

    print(__version__)
    return 0
  verb, *rest = arguments
  if verb in _OWN_THREADS:
    # Read when NumPy is loaded; its own threads would contend with ours, and sum in another order on other machines.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
  try:
    if verb not in VERBS:
      raise unknown_name("verb", verb, VERBS)
    return int(importlib.import_module(f"wam.cli.{verb}").main(rest))
  except BrokenPipeError:
    # The reader of a pipe (head) has seen enough.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except WamError as error:
    print(f"wam {verb}: {error}", file=sys.stderr)
    return 2
  except Exception as error:
    # `Interrupted` has the exit status of its signal; importing it here would load JAX before it is needed.
    status = getattr(error, "exit_status", None)
    if status is None:
      raise
    print(f"wam {verb}: {error}", file=sys.stderr)
    return int(status)


def console() -> None:
  """The entry point of the console script."""
  sys.exit(main(sys.argv[1:]))


def _usage() -> str:
  verbs = "\n".join(f"  {verb:<13} {text}" for verb, text in VERBS.items())
  return f"usage: wam VERB ...\n\n{verbs}\n\n`wam VERB --help` says more."


if __name__ == "__main__":
  console()
