"""`python -m experiments.reward_data`."""

import sys

from experiments.reward_data import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
