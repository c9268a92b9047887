"""`python -m experiments.bond`."""

import sys

from experiments.bond import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
