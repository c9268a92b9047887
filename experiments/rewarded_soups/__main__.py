"""`python -m experiments.rewarded_soups`."""

import sys

from experiments.rewarded_soups import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
