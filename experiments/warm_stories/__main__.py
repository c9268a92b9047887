"""`python -m experiments.warm_stories`."""

import sys

from experiments.warm_stories import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
