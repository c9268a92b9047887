"""What the members of a population of reward models are made from: their settings, starts, pairs and orders.

Leaves out their training, and what is made of them (reward_populations.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam.core import rng, sections
from wam.core.errors import ConfigError
from wam.core.types import Params
from wam.data import corruption, encoding
from wam.data.batching import Batches
from wam.data.examples import Pair
from wam.models.heads import ScalarModel
from wam.recipes import stages
from wam.recipes.policies import Policy
from wam.training import sharding
from wam.training.workdir import Run

STAGE = "warm"
SPLITS = ("train", "validation")


def member_sections(
  members: Sequence[Mapping[str, Any]] | Mapping[str, Any],
) -> list[dict[str, Any]]:
  """The members' sections with their "seed" and "start", from a list of them or from the keys of `grid`.

  Raises:
    ConfigError: if there is no member, or a start or a seed is no whole number.
  """
  if isinstance(members, Mapping):
    every = sections.call(grid, members, f"{STAGE}.members")
  else:
    every = [{"start": -1, "seed": m, **section} for m, section in enumerate(members)]
  if not every:
    raise ConfigError(f"{STAGE}.members: a population needs at least one member (M = 0)")
  for m, each in enumerate(every):
    for key in ("start", "seed"):
      if not isinstance(each[key], int):
        raise ConfigError(f"{STAGE}.members[{m}]: {key} is {each[key]!r}, expected a whole number")
  return every


def grid(
  *,
  num_members: int,
  learning_rates: Sequence[float],
  dropouts: Sequence[float] = (0.0,),
  starts: Sequence[int] = (-1,),
) -> list[dict[str, Any]]:
  """Members over a grid; WARM has 1e-5, 4e-5, 1e-4 and dropouts 0.05, 0.1.

  Member m has the learning rate m mod L, the dropout ⌊m/L⌋ mod D and the start (m + ⌊m/L⌋) mod S, so that few members
  already have all learning rates, and each learning rate meets all starts.

  Raises:
    ConfigError: if a list is empty, or there is no member.
  """
  lists = {"learning_rates": learning_rates, "dropouts": dropouts, "starts": starts}
  empty = [name for name, values in lists.items() if not len(values)]
  if empty or num_members < 1:
    raise ConfigError(
      f"{STAGE}.members: num_members is {num_members}, and {', '.join(empty) or 'no list'} is empty; expected at least"
      " one of each"
    )
  rounds = [divmod(m, len(learning_rates)) for m in range(num_members)]
  return [
    {
      "learning_rate": learning_rates[place],
      "dropout": dropouts[turn % len(dropouts)],
      "start": starts[(m + turn) % len(starts)],
      "seed": m,
    }
    for m, (turn, place) in enumerate(rounds)
  ]


def pair_rows(
  pairs: Mapping[str, Sequence[Pair]], policy: Policy, run: Run, *, length: int, label_noise: float
) -> tuple[dict[str, encoding.Rows], dict[str, np.ndarray]]:
  """Tokenised pairs by split, exactly ⌊label_noise·N⌋ of the training pairs swapped, and which rows those are.

  Writes which pairs were swapped (a record of kind "corruption").
  """
  noisy = corruption.swap_labels(
    pairs["train"], label_noise, seed=run.seed, stream=f"{STAGE}/corruption"
  )
  given = {"train": noisy.pairs, "validation": pairs["validation"]}
  rows = {
    split: encoding.pair_rows(policy.tokenizer, given[split], length=length, trim=True)
    for split in SPLITS
  }
  fields = {"share": label_noise, "pairs": len(noisy.pairs), "swapped": noisy.swapped}
  fields |= {f"{split}_dropped": len(given[split]) - len(rows[split].kept) for split in SPLITS}
  stages.once(run, kind="corruption", stage=f"{STAGE}_labels", fields=fields)
  return rows, corruption.rows_by_label(rows["train"].kept, noisy.swapped)


def batches(rows: Mapping[str, np.ndarray], size: int, run: Run, order: int | str) -> Batches:
  """Rows in an order that is a member's own."""
  sharding.check_batch_size(size, run.mesh)
  return Batches(rows, batch_size=size, seed=run.seed, stream=f"{STAGE}/batches/{order}")


def starts(
  model: ScalarModel, references: Sequence[Params], numbers: Sequence[int], run: Run
) -> Any:
  """Where members start: one head for all, and their trunks; one tree where all have the same trunk."""
  found: dict[int, Params] = {}
  for number in numbers:
    if not -len(references) <= number < len(references):
      raise ConfigError(
        f"{STAGE}.members: there is no start {number} among {len(references)} checkpoints of supervised fine-tuning;"
        " sft.keep_percents keeps more"
      )
    place = number % len(references)
    key = rng.key(run.seed, f"{STAGE}/head")
    found.setdefault(place, model.init(key, decoder=references[place]))
  if len(found) == 1:
    return next(iter(found.values()))
  return [found[number % len(references)] for number in numbers]


def seed(run: Run, number: int) -> int:
  """The seed of a member's dropout: its own number's, and the run's."""
  return int(rng.generator(run.seed, f"{STAGE}/member {number}").integers(2**31))
