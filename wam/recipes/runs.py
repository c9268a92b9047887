"""From a config to its run: the recipe that it names, called with the config's sections."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from wam.core import sections
from wam.core.errors import unknown_name
from wam.recipes import alignment_tax, clp, rewarded_soups, warm, warp
from wam.training.program_cache import shared_programs
from wam.training.workdir import Start

RECIPES: dict[str, Callable[..., None]] = {
  "alignment_tax": alignment_tax.recipe,
  "clp": clp.recipe,
  "rewarded_soups": rewarded_soups.recipe,
  "warm": warm.recipe,
  "warp": warp.recipe,
}


def run(
  config: Mapping[str, Any],
  workdir: str | os.PathLike[str],
  *,
  command: str = "",
  show: bool = True,
) -> None:
  """Runs the recipe that a config names, or what is left of it, in `workdir`.

  Args:
    config: nested plain data: "recipe", a key of `RECIPES`, and the sections of that recipe; see configs/.
    workdir: records, checkpoints and config go there.
    command: how the run was started, for the report.
    show: whether to show progress.

  Raises:
    UnknownName: if there is no such recipe.
    WamError: for everything else that the user can mend, before anything is trained where it can be seen then.
  """
  name = config.get("recipe", "")
  if name not in RECIPES:
    raise unknown_name("recipe", name, RECIPES)
  keywords = {key: value for key, value in config.items() if key != "recipe"}
  start = Start(pathlib.Path(workdir), config, command, show)
  # Stages train by equal programs: members, comparisons, runs against several rewards.
  with shared_programs():
    sections.call(RECIPES[name], keywords, "config", start=start)
