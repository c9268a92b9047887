"""PPO with KL penalties and with resets to the moving average, for each seed, and the claim in the ledger."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import figures, studies
from experiments.alignment_tax import runs
from experiments.elastic_reset import claims
from experiments.figures import Panel
from experiments.studies import Point, Study
from wam.checkpoints import records
from wam.recipes import alignment_tax

# Of 192 updates, so that each run ends in a reset. The paper's average has a span of 200 of several thousand updates.
EVERY, DECAY = (48, 96), 0.95
SMALL = 0.02


def config(seed: int) -> dict[str, Any]:
  """The runs of PPO of `experiments.alignment_tax` with all their KL penalties, and resets; hardly any averages."""
  made = runs.config("ppo", seed)
  del made["adaptive"]
  made["averaging"] = {"alphas": [0.5], "num_parts": 3}
  made["comparisons"][claims.RESET] = {
    f"every {every}, β = {beta:g}": {
      "settings": {"kl_coef": beta},
      "mitigation": {"elastic_reset": {"every": every, "decay": DECAY}},
    }
    for every, beta in ((EVERY[0], 0.0), (EVERY[0], SMALL), (EVERY[1], SMALL))
  }
  return made


def read(workdir: pathlib.Path, *, seed: int) -> Study:
  """The points that the claim is about, means over sampling seeds; the main run, too, has a KL penalty."""
  rows: dict[tuple[str, str], list[dict[str, float]]] = {}
  for record in records.read(workdir / records.FILE_NAME):
    if record["kind"] != "point" or record["split"] != "test":
      continue
    family, label = record["family"], record["label"]
    if (family, label) == (alignment_tax.AVERAGED, alignment_tax.AFTER):
      family, label = claims.PENALTY, "main"
    if family in (claims.START, claims.RESET, claims.PENALTY):
      values = {name: record[name] for name in ("kl", "reward_gold", "reward_proxy")}
      rows.setdefault((family, label), []).append(values)
  points = [
    Point(claims.STUDY, family, "test", label, {}, {n: float(np.mean([v[n] for v in found])) for n in found[0]})
    for (family, label), found in rows.items()
  ]  # fmt: skip
  return Study(seed, points)


def draw(runs: Sequence[Study], results: pathlib.Path) -> None:
  """Writes fronts.png: reward against the KL, a panel a judge and seed."""
  panels = []
  for judge in ("gold", "proxy"):
    for run in runs:
      resets = run.of(claims.STUDY, claims.RESET)
      lines = {claims.PENALTY: [claims.penalised(run, judge)]} | {
        f"{claims.RESET}, {p.label}": [
          (np.array([p.values["kl"]]), np.array([p.values[f"reward_{judge}"]]))
        ]
        for p in resets
      }
      panels.append(Panel(f"seed {run.seed}", "KL to the start, nats", f"{judge} reward", lines))
  figures.draw(panels, results / "fronts.png")


def main(arguments: Sequence[str]) -> int:
  """See `studies.main`."""
  return studies.main(
    arguments,
    directory=pathlib.Path(__file__).resolve().parent,
    make_config=config,
    claims=claims.CLAIMS,
    draw=draw,
    read=read,
  )
