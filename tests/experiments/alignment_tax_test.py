"""The claims on made-up points, of which it is known whether they hold."""

import numpy as np
import pytest

from experiments.alignment_tax import claims, measurements, run, runs
from experiments.alignment_tax.measurements import Measured
from wam.algorithms import adaptive_averaging
from wam.core import sections
from wam.recipes import adaptive, alignment_tax, tuning

COLUMNS = ["reward", "facts", "passages", "translation", "mean"]


def made_up(seed, *, bend=0.3, rivals=0.0, inside=0.2):
  """A run whose average keeps `bend` more skill than the straight line, and rivals `rivals` more."""
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
  families, labels, ratios, values = zip(*rows, strict=True)
  return Measured(seed, list(families), list(labels), list(ratios), COLUMNS, np.array(values))


def judged(**keywords):
  some = {
    name: [made_up(s + i, **keywords) for s in range(3)] for i, name in enumerate(runs.ALGORITHMS)
  }
  return {entry.claim: entry.verdict for entry in run.judge(some, hardware="none")}


def test_claims_that_hold():
  found = judged()
  assert found.pop("TAX-1 common sense") == "not reproduced"
  assert found.pop("TAX-6") == "not reproduced"
  assert found.pop("TAX-9") == "inconclusive"
  assert set(found.values()) == {"reproduced"}
  assert len(found) == len(claims.CLAIMS) - 3


def test_claims_that_do_not_hold():
  found = judged(bend=0.0, rivals=0.3, inside=-0.2)
  assert {found[name] for name in ("TAX-2", "TAX-3", "TAX-4", "TAX-5")} == {"not reproduced"}


def test_noise_is_inconclusive():
  compared = measurements.over_seeds([-1.0, 1.0, 0.5])
  assert measurements.verdict([compared]) == "inconclusive"
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


def test_claims_need_their_runs():
  found = run.judge({"dpo": [made_up(0), made_up(1)]}, hardware="none")
  assert found == []


@pytest.mark.parametrize("algorithm", runs.ALGORITHMS)
def test_configs_are_the_recipe_s(algorithm):
  """Their keys, and the runs that they ask for."""
  config = runs.config(algorithm, 1)
  config.pop("recipe")
  given = ("workdir", "command", "config", "show")
  sections.check(alignment_tax.alignment_tax, config, "config", given=given)
  searches, _, settings = adaptive.read(**config["adaptive"])
  for search in searches:
    adaptive_averaging.Settings(**search._asdict(), **settings)
  plans = tuning.plans(
    algorithms={algorithm: config[algorithm]},
    mitigation=None,
    comparisons=config.get("comparisons"),
  )
  assert len(plans) == {"rsf": 27, "ppo": 5, "dpo": 1}[algorithm]
  assert config["problem"]["seed"] == config["seed"] == 1
