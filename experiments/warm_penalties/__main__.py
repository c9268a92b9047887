"""`python -m experiments.warm_penalties`."""

import sys

from experiments.warm_penalties import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
