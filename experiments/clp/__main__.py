"""`python -m experiments.clp`."""

import sys

from experiments.clp import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
