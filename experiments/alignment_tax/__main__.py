"""`python -m experiments.alignment_tax`."""

import sys

from experiments.alignment_tax import run

if __name__ == "__main__":
  sys.exit(run.main(sys.argv[1:]))
