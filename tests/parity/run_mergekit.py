"""Runs mergekit on every recipe of a folder; executed by the interpreter of its own environment.

usage: python run_mergekit.py FOLDER    FOLDER/NAME.yaml -> FOLDER/NAME.theirs/, or FOLDER/NAME.error with the message
"""

import pathlib
import sys


def main(folder):
  # Not above: this file is also looked through for doctests, where mergekit is not installed.
  import yaml
  from mergekit.config import MergeConfiguration
  from mergekit.merge import run_merge
  from mergekit.options import MergeOptions

  for path in sorted(folder.glob("*.yaml")):
    try:
      config = MergeConfiguration.model_validate(yaml.safe_load(path.read_text()))
      out = folder / f"{path.stem}.theirs"
      run_merge(config, str(out), MergeOptions(random_seed=0, quiet=True, write_model_card=False))
    except Exception as error:  # told to the test, which knows where one is expected
      path.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
