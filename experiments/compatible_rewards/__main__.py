"""`python -m experiments.compatible_rewards`."""

import sys

from experiments.compatible_rewards import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
