"""Made-up runs of WARM, WARP, Rewarded Soups and CLP with plausible numbers, as their recipes would record them."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Record = dict[str, Any]
PROMPTS = ["Tell me of Mira.", "Where does the fox live?", "Is it warm today?"]
PAIR = ("brevity", "warmth")
TRIPLE = ("brevity", "warmth", "truth")


def header(recipe: str, **sections: Any) -> Record:
  """What config.json holds."""
  return {
    "config": {"recipe": recipe, "name": f"{recipe}, tiny", "seed": 0, **sections},
    "command": f"wam run --config configs/{recipe}/tiny.py --workdir runs/{recipe}",
    "versions": {"wam": "0.1.0", "jax": "0.10.2"},
  }


def measurement(
  study: str, family: str, label: str, values: Record, *, half: float = 0.0, **more: Any
) -> Record:
  """A record; with `half` all values have that half width."""
  record = {"kind": "measurement", "stage": study, "study": study, "family": family, "label": label}
  record |= {"split": "test", "values": values, "seeds": 3, **more}
  return record | ({"halves": dict.fromkeys(values, half)} if half else {})


def samples(family: str, label: str, text: str) -> Record:
  """A record of three completions."""
  completions = [f"{text} ({number})" for number in range(len(PROMPTS))]
  return {
    "kind": "samples", "stage": "front", "family": family, "label": label,
    "prompts": PROMPTS, "completions": completions,
  }  # fmt: skip


def curves(stages: Sequence[str]) -> Iterator[Record]:
  """Training curves of 40 steps and the durations."""
  for stage in stages:
    for step in range(5, 201, 5):
      loss = 0.4 + math.exp(-step / 60)
      yield {"kind": "metric", "stage": stage, "step": step, "loss": loss, "reward": 1 - loss}
    yield {"kind": "stage", "stage": stage, "seconds": 12.5}


def simplex(num_rewards: int, steps: int) -> list[tuple[float, ...]]:
  """All λ in steps of 1/steps."""
  if num_rewards == 1:
    return [(1.0,)]
  found = []
  for first in range(steps + 1):
    share = first / steps
    if num_rewards == 2:
      found.append((1 - share, share))
    else:
      rest = steps - first
      found += [(share, i / steps, (rest - i) / steps) for i in range(rest + 1)]
  return found


def soups(names: Sequence[str] = PAIR, *, steps: int = 10) -> list[Record]:
  """Soups that bulge above the chord, MORL a little further out, the start, completions at every λ."""
  records = [*curves(["pretrain", "rl/brevity", "rl/warmth"])]
  records.append(measurement("front", "init", "θ_0", _scores(names, (0.0,) * len(names), 0, 0)))
  for family, bulge, grid in (("rewarded soups", 0.35, steps), ("MORL", 0.45, 4)):
    for weights in simplex(len(names), grid):
      label = "λ = " + "|".join(f"{w:.2g}" for w in weights)
      x = {f"lambda_{n}": w for n, w in zip(names, weights, strict=True)}
      values = _scores(names, weights, bulge, 6)
      records.append(measurement("front", family, label, values, half=0.04, x=x))
      if family == "rewarded soups":
        records.append(samples(family, label, f"At {label} it says"))
  for a in range(len(names)):
    for b in range(a):
      for family, volume in (("rewarded soups", 1.31), ("MORL", 1.36)):
        records.append(_front(family, f"reward_{names[b]}", f"reward_{names[a]}", volume))
  for family, utility in (("rewarded soups", 0.81), ("MORL", 0.84)):
    values = {"expected_utility": utility, "coverage_of_MORL": 0.4}
    ends = {"expected_utility": [utility - 0.03, utility + 0.02]}
    records.append(measurement("fronts", family, "all λ", values, intervals=ends))
  for label, gap in (("λ = 0.5|0.5", 0.1), ("λ = 0.6|0.4", -0.2)):
    values = {names[0]: gap, names[1]: -0.01}
    records.append(measurement("connectivity", "rewarded soups", label, values, half=0.05))
  chosen = {"utility": 0.7, f"lambda_{names[0]}": 0.3}
  x = {f"mu_{names[0]}": 0.3}
  records.append(measurement("preferences", "λ = μ", "the curt", chosen, x=x))
  return records


def clp(names: Sequence[str] = PAIR) -> list[Record]:
  """Two ways of conditioning and the soups they are compared with."""
  records = [*curves(["clp"])]
  ways = (("CLP full", 0.5), ("CLP logit", 0.3), ("rewarded soups", 0.35))
  for family, bulge in ways:
    for weights in simplex(len(names), 4):
      label = "λ = " + "|".join(f"{w:.2g}" for w in weights)
      x = {f"lambda_{n}": w for n, w in zip(names, weights, strict=True)}
      values = _scores(names, weights, bulge, 6)
      records.append(measurement("front", family, label, values, half=0.03, x=x))
      records.append(samples(family, label, f"{family} at {label}"))
    records.append(_front(family, f"reward_{names[0]}", f"reward_{names[1]}", 1 + bulge))
  return records


def warp() -> list[Record]:
  """Two episodes with paths over η, their trajectories, and static anchors."""
  records = [*curves(["warp-episode_1-member_1", "static anchor"])]
  records.append(measurement("front", "init", "SFT", _judged(0.2, 0.0), half=0.02, x={"kl": 0.0}))
  for episode in (1, 2):
    for eta in (0.0, 0.3, 0.5, 0.8, 1.0):
      family, label, kl = f"WARP, episode {episode}", f"η = {eta:g}", 7 * episode * eta**1.5
      reward = 0.2 + (0.5 + 0.05 * episode) * eta**0.8
      x = {"kl": kl, "eta": eta, "episode": episode}
      records.append(measurement("front", family, label, _judged(reward, kl), half=0.02, x=x))
      records.append(samples(family, label, f"Episode {episode} at {label}"))
    for iteration in (10, 20, 30):
      family, kl = f"REINFORCE: episode {episode}, member 1", episode * iteration / 5
      values = _judged(0.2 + 0.45 * (1 - math.exp(-kl / 4)), kl)
      label = f"iteration {iteration}"
      records.append(measurement("front", family, label, values, half=0.02, x={"kl": kl}))
    records.append(
      {"kind": "cosines", "stage": f"warp-episode_{episode}-merged", "family": "WARP", "label": "",
       "values": {"layers": 0.81, "whole": 0.78, "p05": 0.4}}
    )  # fmt: skip
  for beta, top in ((0.1, 0.6), (0.02, 0.7)):
    for iteration in (10, 20, 30):
      kl = iteration / 30 * (4 if beta > 0.05 else 9)
      values = _judged(0.2 + (top - 0.2) * (1 - math.exp(-kl / 3)), kl)
      label, x = f"iteration {iteration}", {"kl": kl}
      family = f"static anchor: β = {beta:g}"
      records.append(measurement("front", family, label, values, half=0.02, x=x))
  # A comparison with a path of its own and other angles, written after WARP's.
  for eta in (0.0, 1.0):
    values, x = _judged(0.2 + 0.3 * eta, 5 * eta), {"kl": 5 * eta, "eta": eta}
    family = "static anchor: β = 0.1, LITI"
    records.append(measurement("front", family, f"η = {eta:g}", values, half=0.02, x=x))
  records.append(
    {"kind": "cosines", "stage": "merge-lerp", "family": "merge: lerp", "label": "",
     "values": {"layers": 0.1, "whole": 0.11, "p05": 0.0}}
  )  # fmt: skip
  for budget, ours, theirs in ((3, 0.45, 0.5), (8, 0.7, 0.62)):
    for family, value in (("WARP", ours), ("static anchor", theirs)):
      values, x = {"reward_gold": value}, {"kl": budget}
      label = f"KL = {budget:g}"
      records.append(measurement("reward within a KL", family, label, values, half=0.02, x=x))
  for family, volume in (("WARP", 3.1), ("static anchor", 2.8)):
    records.append(_front(family, "reward_gold", "kl", volume))
  records.append(
    {"kind": "selection", "family": "WARP, episode 2", "label": "η = 0.5", "rule": "largest proxy",
     "split": "validation"}
  )  # fmt: skip
  return records


def warm() -> list[Record]:
  """Accuracies on four splits, best-of-n and RL with fits, the line between two members."""
  records = [*curves(["sft", "warm"])]
  records.append(
    {"kind": "corruption", "stage": "labels", "pairs": 20, "swapped": [1, 4, 8, 9, 12]}
  )
  accuracies = {
    "clean_train": (0.97, 0.99, 0.96), "corrupt_train": (0.6, 0.72, 0.55),
    "validation": (0.73, 0.76, 0.765), "out_of_distribution": (0.7, 0.72, 0.735),
  }  # fmt: skip
  families = (
    ("best single", "best of 6 on validation"),
    ("ensemble mean", "M = 6"),
    ("WARM", "M = 6"),
  )
  for split, values in accuracies.items():
    for (family, label), value in zip(families, values, strict=True):
      records.append(
        measurement("accuracy", family, label, {"accuracy": value}, half=0.012, split=split)
      )
    gain = {"difference": values[2] - values[1]}
    records.append(
      measurement(
        "averaging_gain", "WARM less ensemble mean", "M = 6", gain, half=0.006, split=split
      )
    )
  for (family, label), fall in zip(families, (0.06, 0.035, 0.03), strict=True):
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256):
      kl = math.log(n) - (n - 1) / n
      d = math.sqrt(kl)
      values = {"gold": 0.4 + d * (0.3 - fall * 2 * d), "proxy": 1.2 * d}
      x = {"n": n, "kl": kl}
      records.append(measurement("best_of_n", family, f"n = {n}", values, half=0.01, x=x))
    fit = {"alpha": 0.3, "beta": 2 * fall, "r2": 0.99, "peak": 0.3 / (4 * fall)}
    records.append(
      {"kind": "fit", "stage": "best_of_n", "family": family, "curve": "best_of_n", "values": fit}
    )
    for iteration in range(0, 41, 5):
      kl = iteration / 3
      d = math.sqrt(kl)
      gold = 0.4 + d * (0.25 - (0.05 + fall) * math.log(max(d, 1e-9))) if d else 0.4
      values, x = {"gold": gold, "proxy": 0.5 * d}, {"kl": kl, "iteration": iteration}
      label = f"iteration {iteration}"
      records.append(measurement("over_optimisation", family, label, values, half=0.02, x=x))
    records.append(samples(family, "n = 256", f"The choice of {family}"))
  for lam in (0.0, 0.25, 0.5, 0.75, 1.0):
    values = {"accuracy": 0.73 + 0.03 * math.sin(math.pi * lam)}
    label, x = f"λ = {lam:g}", {"lambda": lam}
    records.append(
      measurement("interpolation", "members 0 and 3", label, values, half=0.01, x=x)
    )  # fmt: skip
  return records


RUNS: dict[str, Callable[[], list[Record]]] = {
  "warm": warm,
  "warp": warp,
  "rewarded_soups": soups,
  "clp": clp,
}


def _scores(names: Sequence[str], weights: Sequence[float], bulge: float, kl: float) -> Record:
  evenness = 1 - max(weights) if sum(weights) else 0.0
  found = {
    f"reward_{name}": round(2 * weight - 0.6 * sum(weights) + bulge * evenness + 0.01 * i, 6)
    for i, (name, weight) in enumerate(zip(names, weights, strict=True))
  }
  return found | {
    "kl": kl * (1 - 0.4 * evenness),
    "length": 12.0 - 4 * (weights[0] if weights else 0),
  }


def _judged(reward: float, kl: float) -> Record:
  return {"reward_gold": reward, "reward_proxy": 2 * reward - 0.4, "kl": kl, "length": 11.0}


def _front(family: str, x: str, y: str, volume: float) -> Record:
  return {
    "kind": "front", "stage": "fronts", "family": family, "x": x, "y": y, "reference": [-1.0, -1.0],
    "hypervolume": volume, "low": volume - 0.1, "high": volume + 0.1, "level": 0.95,
  }  # fmt: skip
