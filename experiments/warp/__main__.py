"""`python -m experiments.warp`."""

import sys

from experiments.warp import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
