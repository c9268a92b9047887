"""The claims on made-up points, of which it is known whether they hold."""

import csv

import numpy as np
import pytest

from experiments import verdicts
from experiments.alignment_tax import claims, figure, measurements, run, runs
from experiments.alignment_tax.measurements import Measured
from wam.core import sections
from wam.recipes import adaptive, alignment_tax, tuning

COLUMNS = ["reward", "facts", "passages", "translation", "mean"]


def made_up(seed, *, bend=0.3, rivals=0.0, inside=0.2, agrees=0.1):
  """A run whose average keeps `bend` more skill than the straight line, and rivals `rivals` more.

  Likelihood rises along its grid, and skill with it by `agrees`.
  """
  draw = np.random.default_rng(seed)
  rows = []

  def add(family, label, ratios, reward, skill):
    noise = draw.normal(0, 1e-3, 2)
    skill = skill + noise[1]
    rows.append((family, label, ratios, [reward + noise[0], *[skill] * 4]))

  def path(x, more):
    return 1 - x + more * 4 * x * (1 - x)

  add("init", "before RLHF", (0, 0, 0), 0.0, 1.0)
  for i in range(1, 5):
    add("early stopping", f"iteration {i}", (), i / 4, path(i / 4, 0.0))
  for x in (0.0, 0.25, 0.5, 0.75, 1.0):
    add("model averaging", f"α = {x:g}", (x,) * 3, x, path(x, bend))
  for x in (0.0, 0.5):
    add("part-wise", f"input, α = {x:g}", (x, 1, 1), 1 + inside, inside)
    add("part-wise", f"output, α = {x:g}", (1, 1, x), 0.5, 0.5)
  add("patterns", "(0.5|0.5|0.4)", (0.5, 0.5, 0.4), 0.45, path(0.45, bend) - 0.1)
  for parts, more in ((2, 0.0), (3, 0.1), (6, 0.05)):
    add("adaptive", f"K = {parts}, α = 0.5", (0.5,) * parts, 0.5, path(0.5, bend) + more)
  for family in ("L1", "L2", "distillation", "LoRA", "replay", "KL penalty"):
    for x in (0.25, 0.5, 0.75):
      add(family, f"{x}", (), x, path(x, rivals))
  for anchors, more in (("samples", 0.2), ("corpus", 0.3)):
    add(
      f"adaptive, anchored by {anchors}", "K = 3, α = 0.5", (0.5,) * 3, 0.5, path(0.5, bend) + more
    )
  likelihoods = {}
  for x in (0.1, 0.2, 0.3, 0.4):
    point = (x, 0.4, round(0.8 - x, 6))
    add("ratio grid", f"{x}", point, 0.5, path(0.5, bend) + x * agrees)
    likelihoods[point] = {"examples": x, "samples": 1 - x / 2, "corpus": 1 - x / 2}
  families, labels, ratios, values = zip(*rows, strict=True)
  return Measured(
    seed, list(families), list(labels), list(ratios), COLUMNS, np.array(values), likelihoods
  )


def judged(**keywords):
  some = {
    name: [made_up(s + i, **keywords) for s in range(3)] for i, name in enumerate(runs.ALGORITHMS)
  }
  found = run.verdicts(some, "gold", "none")
  return {entry.claim.removesuffix(" (gold)"): entry.verdict for entry in found}


def test_claims_that_hold():
  found = judged()
  assert found.pop("TAX-1 common sense") == "not reproduced"
  assert found.pop("TAX-6") == "not reproduced"
  assert found.pop("TAX-9") == "inconclusive"
  assert set(found.values()) == {"reproduced"}
  assert len(found) == len(claims.CLAIMS) - 3


def test_objectives_that_point_the_wrong_way():
  found = judged(agrees=-0.1)
  assert {v for name, v in found.items() if name.startswith("AMA objective")} == {"not reproduced"}


def test_with_anchors_both_likelihoods_count():
  run_ = made_up(0)
  row = run_.labels.index("0.2")
  assert measurements.objective(run_, row, None) == pytest.approx(0.2)
  assert measurements.objective(run_, row, "corpus") == pytest.approx(0.2 + 0.9)


def test_claims_that_do_not_hold():
  found = judged(bend=0.0, rivals=0.3, inside=-0.2)
  assert {found[name] for name in ("TAX-2", "TAX-3", "TAX-4", "TAX-5")} == {"not reproduced"}


def test_points_and_figure_are_written(tmp_path):
  some = {name: [made_up(s) for s in range(2)] for name in ("rsf", "ppo")}
  doubled = {
    name: [m._replace(values=m.values * 2) for m in members] for name, members in some.items()
  }
  measurements.write({"gold": some, "proxy": doubled}, tmp_path / "points.csv")
  with (tmp_path / "points.csv").open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 4 * len(made_up(0).labels)
  row = next(row for row in rows if row["family"] == "ratio grid" and row["label"] == "0.2")
  assert row["ratios"] == "0.2|0.4|0.6"
  assert float(row["reward proxy"]) == pytest.approx(2 * float(row["reward gold"]), rel=1e-4)
  assert float(row["examples"]) == 0.2 and float(row["corpus"]) == 0.9
  assert [row["examples"] for row in rows if row["family"] == "L1"] == [""] * 12
  figure.draw(some, "gold", tmp_path / "fronts.png")
  assert (tmp_path / "fronts.png").read_bytes().startswith(b"\x89PNG")


def test_noise_is_inconclusive():
  compared = verdicts.over_seeds([-1.0, 1.0, 0.5])
  assert verdicts.verdict([compared]) == "inconclusive"
  # Student's t with two degrees of freedom: 4.303 standard errors.
  error = np.std([-1.0, 1.0, 0.5], ddof=1) / np.sqrt(3)
  assert compared.high - compared.mean == pytest.approx(4.3027 * error, rel=1e-4)


def test_curves_go_straight_from_point_to_point():
  run_ = made_up(0)
  rows = [run_.before, run_.after]
  exact = run_._replace(values=np.array(run_.values))
  exact.values[rows[0], [0, -1]] = 0.0, 1.0
  exact.values[rows[1], [0, -1]] = 1.0, 0.0
  middle = exact.labels.index("α = 0.5")
  exact.values[middle, [0, -1]] = 0.4, 0.9
  above = measurements.at_equal_reward(exact, middle, rows, "mean")
  assert above == pytest.approx(0.9 - 0.6)
  # A point that another one dominates is no part of the front.
  rows.append(exact.labels.index("α = 0.75"))
  exact.values[rows[-1], [0, -1]] = 0.3, 0.0
  assert measurements.at_equal_reward(exact, middle, rows, "mean") == pytest.approx(above)


def test_claims_need_their_runs():
  found = run.verdicts({"ppo": [made_up(0), made_up(1)]}, "gold", "none")
  assert [entry.claim for entry in found] == ["TAX-4 (gold)", "TAX-8 (gold)", "AMA-5"]
  assert [entry.seeds for entry in found] == [(0, 1), (0, 1), ()]
  # Arithmetic is judged once.
  found = run.verdicts({"ppo": [made_up(0), made_up(1)]}, "proxy", "none")
  assert [entry.claim for entry in found] == ["TAX-4 (proxy)", "TAX-8 (proxy)"]


@pytest.mark.parametrize("algorithm", runs.ALGORITHMS)
def test_configs_are_the_recipe_s(algorithm):
  """Their keys, and the runs that they ask for."""
  config = runs.config(algorithm, 1)
  config.pop("recipe")
  sections.check(alignment_tax.recipe, config, "config", given=("start",))
  found = adaptive.read(config["adaptive"])
  assert len(found.searches) == {"rsf": 15, "ppo": 3, "dpo": 3}[algorithm]
  assert len(found.grid) == 25
  plans = tuning.plans(
    algorithms={algorithm: config[algorithm]},
    mitigation=None,
    comparisons=config.get("comparisons"),
  )
  assert len(plans) == {"rsf": 27, "ppo": 5, "dpo": 1}[algorithm]
  assert config["problem"]["seed"] == config["seed"] == 1
