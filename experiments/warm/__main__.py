"""`python -m experiments.warm`."""

import sys

from experiments.warm import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
