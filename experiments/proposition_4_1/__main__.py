"""`python -m experiments.proposition_4_1`."""

import sys

from experiments.proposition_4_1 import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
