"""`python -m experiments.elastic_reset`."""

import sys

from experiments.elastic_reset import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
