"""The claims of the recipes' experiments on made-up measurements, of which it is known whether they hold."""

import functools
import json

import numpy as np
import pytest

from experiments import figures, studies
from experiments.clp import claims as clp
from experiments.clp import run as clp_run
from experiments.elastic_reset import claims as elastic
from experiments.elastic_reset import run as elastic_run
from experiments.reward_data import claims as reward_data
from experiments.reward_data import run as reward_data_run
from experiments.rewarded_soups import claims as soups
from experiments.rewarded_soups import figure as soups_figure
from experiments.studies import Point, Study
from experiments.warm import claims as warm
from experiments.warm import figure as warm_figure
from experiments.warm import run as warm_run
from experiments.warm_penalties import claims as penalties
from experiments.warm_penalties import run as penalties_run
from experiments.warp import claims as warp
from experiments.warp import figure as warp_figure
from experiments.warp_stories import run as warp_stories
from wam.core.errors import BadData
from wam.report import ledgers


def noise(seed, name):
  """A little that differs from seed to seed, the same for one name."""
  return 1e-4 * np.random.default_rng([seed, len(name), sum(map(ord, name))]).standard_normal()


def warm_study(seed, *, sign=1, judge="gold"):
  """WARM is better by as much as the paper says, or worse for sign = -1."""
  points = []

  def add(study, family, split, label, x, **values):
    points.append(Point(study, family, split, label, x, values))

  gains = {warm.CORRUPT: -0.1, warm.CLEAN: -0.02, warm.VALIDATION: 0.004, warm.OOD: 0.007}
  for split, gain in gains.items():
    for m in range(1, 7):
      for family, more in {
        warm.WARM: sign * gain,
        warm.ENSEMBLE: 0.0,
        "WARM, worst first": -sign * 0.01,
      }.items():
        value = 0.7 + 0.01 * m + more + noise(seed, family + split)
        add("accuracy", family, split, f"M = {m}", {"M": m}, accuracy=value)
  kinds = ("same run", "same configuration", "different learning rates", "Baklava")
  for rank, kind in enumerate(kinds):
    bend = sign * (0.002 + 0.004 * rank)
    for t in np.linspace(0, 1, 5):
      value = 0.7 + bend * 4 * t * (1 - t)
      add("interpolation", kind, warm.OOD, f"λ = {t}", {"lambda": t}, accuracy=value)
    summary = {"gain": bend + noise(seed, kind), "barrier": 0.0}
    add("connectivity_summary", kind, warm.OOD, "whole line", {}, **summary)
  heights = {
    warm.WARM: 0.2,
    "WARM, M = 2": 0.15,
    warm.ENSEMBLE: 0.1,
    "ensemble mean, M = 2": 0.1,
    warm.ALONG: 0.05,
    warm.SINGLE: 0.0,
    **dict.fromkeys(warm.CONSERVATIVE, 0.12),
  }
  for family, height in heights.items():
    # Everything falls behind its best n, the single model most.
    fall = sign * (0.1 - 0.3 * height)
    for n in (1, 8, 64, 512):
      gold = 0.5 + sign * height * (n > 1) - fall * (n == 512) + noise(seed, family)
      values = {judge: gold, "win_rate": 0.5 + sign * 0.45 * (n > 8)}
      add("best_of_n", family, "test", f"n = {n}", {"n": n}, **values)
    for i, kl in enumerate((0.0, 2.0, 4.0, 8.0)):
      top = 2 if (family == warm.WARM) == (sign > 0) else 1
      gold = 0.5 + sign * height * (i > 0) - 0.05 * abs(i - top) + noise(seed, family)
      place = {"kl": kl * (1 + noise(seed, "kl"))}
      add("over_optimisation", family, "test", f"iteration {i}", place, **{judge: gold})
  fit = {"r2": 0.9 + sign * (0.08 + noise(seed, "fit"))}
  return Study(seed, points, {(warm.SINGLE, curve): fit for curve in ("best_of_n", "rl")})


def warp_study(seed, *, sign=1, judge="gold"):
  """WARP's lines in the order that the paper claims, or the other way round."""
  ranks = {
    warp.LAST: 9, "WARP, episode 2": 8, warp.FIRST: 7, warp.MAIN: 9, warp.LONG: 5, warp.WIDE: 5.1,
    "static anchor: β = 0.1": 3.0, "static anchor: β = 0.1, LITI": 3.5,
    f"{warp.LONG}, LITI": 5.5, f"{warp.WIDE}, LITI": 5.6,
    **dict.fromkeys(warp.MEMBERS, 4.0), warp.LERP: 6,
    "members: M = 1, LITI": 5, "members: M = 2": 6, "members: M = 4": 7, "length: penalty on one": 7,
    "same run: iterations 30 to 60, LITI": 4.5, "step back": 9,
  }  # fmt: skip
  points = []
  judges = (judge, warp.PROXY)
  for family, rank in ranks.items():
    level = sign * (0.1 * rank + noise(seed, family))
    tilt = sign * 0.05 if family.startswith("step back") else 0.0
    for kl in (1.0, 2.0, 3.0):
      values = {f"reward_{j}": level + tilt * (kl - 2) for j in judges}
      points.append(Point("reward within a KL", family, "test", f"KL = {kl:g}", {"kl": kl}, values))
    for eta in (0.0, 0.5, 1.0):
      bend = sign * 0.1 * (eta == 0.5)
      kl = eta - bend * 0.5 + sign * {warp.FIRST: 0.1, warp.LERP: -0.1}.get(family, 0.0) * eta
      values = {f"reward_{j}": level * eta + bend for j in judges}
      values |= {"kl": kl + noise(seed, family) * eta}
      values["length"] = 9 - sign * (family == "length: penalty on one") + noise(seed, family)
      points.append(Point("front", family, "test", f"η = {eta:g}", {"eta": eta}, values))
  cosines = {"layers": 0.3 - sign * (0.2 + noise(seed, "a")), "weights": 0.999 + sign * 0.0005}
  cosines["weights"] += noise(seed, "b") / 10
  return Study(seed, points, cosines={(warp.MAIN, "episode 1"): cosines})


def soups_study(seed, *, sign=1):
  """Soups a little above MORL, or far below."""
  points = []
  better = 1 + sign * 0.06
  for family in (*soups_figure.FAMILIES, f"{soups.SOUPS}, λ of {soups.MORL}"):
    volume = 1.0 if family == soups.MORL else better + noise(seed, family)
    values = {"hypervolume": volume, soups.RATIO: volume, soups.UTILITY: volume - 1}
    if sign < 0 and family == soups.MOD:
      values["hypervolume"] = 1.2
      values[soups.RATIO] = 0.9 + noise(seed, "mod")
    points.append(Point("fronts", family, "test", "11 points", {}, values))
    rewards = {"reward_warm": 1.0, "reward_topic": 0.5 + noise(seed, family)}
    points += [
      Point("front", family, "test", f"λ = {x}", {"lambda_topic": x}, rewards) for x in (0.0, 1.0)
    ]
  gap = {name: sign * (0.1 + noise(seed, name)) for name in ("warm", "topic")}
  points += [Point("connectivity", soups.SOUPS, "test", f"λ = {x}", {}, gap) for x in (0.3, 0.6)]
  beyond = {"gain_over_better_end": sign * 0.1 + noise(seed, "gold")}
  points.append(Point("judges", soups.SOUPS, "test", "gold", {}, beyond))
  for rule, loss in {soups.ORACLE: 0.0, soups.EQUAL: 0.01, soups.VALIDATED: 0.02}.items():
    utility = 1.0 - loss * (1 if sign > 0 else 20) + noise(seed, rule) * (loss > 0)
    values = {"utility": utility, "utility_of_init": 0.0}
    points.append(Point("preferences", rule, "test", "a user", {}, values))
  return Study(seed, points)


def clp_study(seed, *, sign=1):
  values = {
    "hypervolume_ratio": 1 + sign * 0.1 + noise(seed, "a"),
    "expected_utility_gain": sign * 0.1 + noise(seed, "b"),
  }
  families = [f"CLP {kind}" for kind in clp.KINDS]
  return Study(seed, [Point("comparison", f, "test", "all", {}, values) for f in families])


def penalty_study(seed, *, sign=1):
  """The single model needs the large penalty and WARM the small one; the ensemble falls with neither."""
  points = []
  small, large = penalties.SMALL, penalties.LARGE
  needed = {warm.SINGLE: large, warm.WARM: small}
  if sign < 0:
    needed = {warm.SINGLE: small, warm.WARM: large}
  for proxy in (warm.SINGLE, warm.WARM, warm.CONSERVATIVE[0]):
    for beta in penalties.PENALTIES:
      fall = 0.0 if beta == needed.get(proxy) else 0.3
      top = 0.6
      if proxy == warm.CONSERVATIVE[0]:
        fall, top = (0.0, 0.7) if sign > 0 else (0.4, 0.6)
      for i, gold in enumerate((0.4, top, top - fall)):
        value = gold + noise(seed, proxy + str(beta)) * (1 + i)
        family = penalties.line(proxy, beta)
        place = {"iteration": i, "kl": 2.0 * i}
        values = {"gold": value}
        points.append(Point("over_optimisation", family, "test", f"iteration {i}", place, values))
  return Study(seed, points)


def data_study(seed, *, sign=1):
  """More pairs, a later and higher peak; few pairs, chance."""
  points = []
  for rank, size in enumerate(reward_data.SIZES):
    family = f"{reward_data.part(size)}: {warm.SINGLE}"
    top = 1 + rank if sign > 0 else 3 - rank
    for i in range(6):
      gold = 0.5 + 0.1 * top - 0.05 * abs(i - top) + noise(seed, family)
      place = {"iteration": i, "kl": i * (1 + noise(seed, "kl"))}
      points.append(
        Point("over_optimisation", family, "test", f"iteration {i}", place, {"gold": gold})
      )
    accuracy = 0.5 + 0.2 * (rank == 2 or sign < 0) + noise(seed, family)
    family = f"{reward_data.part(size)}: members"
    points.append(Point("members", family, "validation", "member 0", {}, {"accuracy": accuracy}))
  return Study(seed, points)


def reset_study(seed, *, sign=1):
  """Resets above, or below, the path through what the penalties reach."""
  points = []

  def add(family, label, kl, reward):
    values = {"kl": kl} | {f"reward_{j}": reward + noise(seed, label) for j in ("gold", "proxy")}
    points.append(Point("front", family, "test", label, {}, values))

  add(elastic.START, "before", 0.0, 0.3)
  for kl in (4.0, 2.0, 8.0):  # in the order of the coefficients, not of the KL
    add(elastic.PENALTY, f"{kl}", kl, 0.3 + 0.05 * kl)
  for kl in (3.0, 6.0):
    add(elastic.RESET, f"every {kl}", kl, 0.3 + 0.05 * kl + sign * 0.02)
  return Study(seed, points)


EXPERIMENTS = {
  "warm": (warm.CLAIMS, warm_study),
  "warm, control": (warm.CLAIMS, functools.partial(warm_study, judge="control")),
  "warp": (warp.of("gold"), warp_study),
  "warp, control": (warp.of("control"), functools.partial(warp_study, judge="control")),
  "rewarded_soups": ((*soups.CLAIMS, *soups.JUDGED), soups_study),
  "clp": (clp.CLAIMS, clp_study),
  "warm_penalties": (penalties.CLAIMS, penalty_study),
  "reward_data": (reward_data.CLAIMS, data_study),
  "elastic_reset": (elastic.CLAIMS, reset_study),
}


def verdicts_of(name, sign):
  claims, make = EXPERIMENTS[name]
  runs = [make(seed, sign=sign) for seed in range(3)]
  return {c.name: studies.judged(c, runs, "command", "CPU").verdict for c in claims}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_claims_hold_where_they_were_made_to(name):
  found = verdicts_of(name, 1)
  assert set(found.values()) == {"reproduced"}, found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_claim_holds_in_the_opposite_world(name):
  found = verdicts_of(name, -1)
  # Accuracies are near each other whichever is the larger.
  free = {"WARM-2"} if name.startswith("warm") else set()
  assert "reproduced" not in {v for c, v in found.items() if c not in free}, found


def test_figures_are_drawn(tmp_path):
  for make, draw in (
    (warm_study, warm_figure.draw),
    (warp_study, warp_figure.draw),
    (soups_study, soups_figure.draw),
    (penalty_study, penalties_run.draw),
    (data_study, reward_data_run.draw),
  ):
    draw([make(seed) for seed in range(2)], tmp_path)
  names = sorted(p.name for p in tmp_path.iterdir())
  assert names == [
    "accuracy.png",
    "fronts.png",
    "fronts_gold.png",
    "fronts_proxy.png",
    "over_optimisation.png",
    "peaks.png",
    "penalties.png",
  ]
  assert all(p.read_bytes().startswith(b"\x89PNG") for p in tmp_path.iterdir())
  assert clp_run.FAMILIES[0] == soups.SOUPS
  assert figures.Panel("", "", "", {}).mean


def test_configs_of_the_experiments_are_those_of_the_recipes():
  made = studies.config("warp/tiny.py", 2)
  assert made["recipe"] == "warp"
  assert made["seed"] == made["problem"]["seed"] == 2


def test_reward_models_of_several_sizes_differ_in_their_pairs_only():
  made = reward_data_run.configs(1)
  assert [c["problem"]["num_pairs"] for c in made.values()] == list(reward_data.SIZES)
  assert all(len(c["warm"]["members"]) == 1 for c in made.values())


def test_the_penalties_that_are_judged_are_those_that_are_run():
  study = penalties_run.config(1)["over_optimisation"]
  assert study["kl_coefs"] == list(penalties.PENALTIES)
  assert study["proxies"] == ["best single", "ensemble worst case", "warm"]


def test_the_seed_says_which_sentences_are_trained_on(monkeypatch):
  monkeypatch.setenv("WAM_DATA", "somewhere")
  made = warm_run.config(2, "warm/stories.py")
  pairs = made["problem"]["pairs"], made["problem"]["control_pairs"]
  assert made["seed"] == 2
  assert {part["shuffle_seed"] for found in pairs for part in found.values()} == {2}
  assert made["over_optimisation"]["proxies"][-1] == "ensemble worst case"


def test_claims_that_runs_cannot_judge_are_left_out():
  names = {claim.name for claim in warp.of("control", without=warp_stories.WITHOUT)}
  assert {"WARP-1 (control)", "WARP-1 (proxy)", "WARP-12 (control)"} <= names
  assert not any(name.startswith(("WARP-10", "WARP-11")) for name in names)


def test_a_run_is_read_judged_and_written(tmp_path):
  workdirs = {}
  for seed in range(3):
    workdirs[seed] = tmp_path / "runs" / f"clp-{seed}"
    workdirs[seed].mkdir(parents=True)
    rows = [
      {"kind": "measurement", "stage": p.study, "step": 0, **p._asdict(), "split": p.split or None}
      for p in clp_study(seed).points
    ]
    rows.append({"kind": "metric", "stage": "other", "step": 1, "loss": 1.0})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workdirs[seed] / "records.jsonl").write_text(text)
  out = tmp_path / "clp"
  out.mkdir()
  arguments = ["--judge-only", "--workdirs", str(tmp_path / "runs"), "--hardware", "some CPU"]
  keywords = {"directory": out, "make_config": lambda _: {"recipe": "clp"}, "claims": clp.CLAIMS}
  assert studies.main(arguments, draw=lambda *_: None, **keywords) == 0
  entries = ledgers.read(out)
  assert [e.verdict for e in entries] == ["reproduced"] * 4
  assert {e.seeds for e in entries} == {(0, 1, 2)}
  assert entries[0].command == "python -m experiments.clp"
  rows = (out / "results" / "points.csv").read_text().splitlines()
  assert len(rows) == 1 + 3 * 4 * 2


def test_several_runs_of_a_seed_are_one_study():
  run = studies.joined({"few": warm_study(1), "many": warm_study(1, sign=-1)}, seed=1)
  assert run.seed == 1 and run.judge == "gold"
  # The single model is better in the opposite world, and peaks later there.
  assert reward_data.peak_kl(run, "few") == pytest.approx(2.0, rel=1e-2)
  assert reward_data.peak_kl(run, "many") == pytest.approx(4.0, rel=1e-2)


def test_points_of_resets_and_penalties_are_read_from_a_run(tmp_path):
  rows = []
  for seed in range(2):
    for family, label, kl in (
      ("init", "before RLHF", 0.0),
      ("model averaging", "α = 1", 4.0),
      ("early stopping", "iteration 1", 1.0),
      (elastic.PENALTY, "0.2", 2.0),
      (elastic.RESET, "every 48, β = 0", 3.0),
    ):
      about = {"kind": "point", "stage": "evaluation", "step": 0, "split": "test", "seed": seed}
      values = {"kl": kl + 0.2 * seed, "reward_gold": 0.1 * kl, "reward_proxy": kl}
      rows.append(about | {"family": family, "label": label} | values)
  (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  run = elastic_run.read(tmp_path, seed=7)
  kl, reward = elastic.penalised(run, "gold")
  np.testing.assert_allclose(kl, [0.1, 2.1, 4.1])
  np.testing.assert_allclose(reward, [0.0, 0.2, 0.4])
  # At 3.1 nats the path has 0.3.
  assert elastic.above(run, "every 48, β = 0", "gold") == pytest.approx(0.0)
  elastic_run.draw([run], tmp_path)
  assert (tmp_path / "fronts.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_named(tmp_path):
  study = clp_study(0)
  with pytest.raises(BadData, match=r"no points of comparison, CLP soft.*CLP full"):
    study.of("comparison", "CLP soft")
  with pytest.raises(BadData, match=r"has no M = 3; found \['all'\]"):
    study.at("comparison", "CLP full", "M = 3", "hypervolume_ratio")
  (tmp_path / "records.jsonl").write_text('{"kind": "metric", "stage": "a", "step": 1}\n')
  with pytest.raises(BadData, match="nothing was measured"):
    studies.read(tmp_path, seed=0)
