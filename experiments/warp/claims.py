"""The claims of WARP (Ramé et al. 2024, arXiv 2406.16768), fixed before they are measured.

Each is a quantity that the claim says is positive, one value a seed; `verdicts.verdict` of their 95 % intervals says
what became of it. Claims on rewards are judged twice: by a reward that nothing is optimised against (the true one of
the world, "gold", or a reward model of its own pairs, "control"), and by the reward model that is optimised ("proxy"),
which is how the paper measures. KL is that of whole completions to θ_SFT, in nats. "Front" is the largest reward within
a KL, mean over budgets: on the path through a line's points, so that lines with few points do not lose by it.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from experiments.studies import Claim, Study, compare
from experiments.verdicts import Finding, finding

MAIN = "WARP"
FIRST = "WARP, episode 1"
LAST = "WARP, episode 3"
MEMBERS = tuple(f"REINFORCE: episode 1, member {m}" for m in (1, 2))
LONG, WIDE = "moving anchor: long", "moving anchor: wide"
LERP = "merge: lerp"
PROXY = "proxy"
# Below this the cosine of task vectors is called near 0.
NEAR = 0.3

Find = Callable[[Sequence[Study]], Finding]
Judged = Callable[[str], Find]


def within(run: Study, family: str, judge: str) -> np.ndarray:
  """The largest reward within each budget of KL, by budget: [B]."""
  name = f"reward_{judge}"
  points = [p for p in run.of("reward within a KL", family) if name in p.values]
  return np.asarray([p.values[name] for p in points])


def front(run: Study, family: str, judge: str, *, first: int = 0) -> float:
  """Mean over budgets, from one on."""
  return float(within(run, family, judge)[first:].mean())


def value(run: Study, family: str, label: str, name: str) -> float:
  """Of a policy."""
  return run.at("front", family, label, name)


def end(run: Study, family: str, name: str) -> float:
  """Of the last policy of a trajectory."""
  return float(run.values("front", family, name)[-1])


def lines(run: Study, start: str, *, interpolated: bool = False) -> list[str]:
  """The lines whose names begin so: policies along runs, or those interpolated towards the init."""
  found = [name for name in run.families("front") if name.startswith(start)]
  return [name for name in found if name.endswith(", LITI") == interpolated]


def static(run: Study, *, interpolated: bool = False) -> list[str]:
  """Long runs with a static anchor, one a β."""
  return lines(run, "static anchor: ", interpolated=interpolated)


def fronts(own: str, *others: str) -> Judged:
  """The front of one line is above those of others."""
  return lambda judge: functools.partial(_above, judge, own, lambda _: others)


def _above(
  judge: str, own: str, others: Callable[[Study], Sequence[str]], runs: Sequence[Study]
) -> Finding:
  parts = {
    o: compare(runs, lambda run, o=o: front(run, own, judge) - front(run, o, judge))
    for o in others(runs[0])
  }
  return finding(parts, f"front of {own} less that of")


def moving_anchor(judge: str) -> Find:
  """WARP-1."""
  return functools.partial(_above, judge, LONG, static)


def same_run(judge: str) -> Find:
  """WARP-12."""
  return functools.partial(
    _above, judge, "members: M = 1, LITI", lambda run: lines(run, "same run: ", interpolated=True)
  )


def merged(judge: str) -> Find:
  """WARP-2, reward."""
  name = f"reward_{judge}"

  def find(runs: Sequence[Study]) -> Finding:
    own = functools.partial(value, family=FIRST, label="η = 1", name=name)
    parts = {
      "the better member": compare(
        runs, lambda run: own(run) - max(end(run, m, name) for m in MEMBERS)
      ),
      "LERP": compare(runs, lambda run: own(run) - value(run, LERP, "η = 1", name)),
    }
    return finding(parts, "reward of SLERP less that of")

  return find


def slerp_divergence(runs: Sequence[Study]) -> Finding:
  """WARP-2, KL."""
  part = compare(
    runs,
    lambda run: (
      value(run, FIRST, "η = 1", "kl") - float(np.mean([end(run, m, "kl") for m in MEMBERS]))
    ),
  )
  return finding({"difference": part}, "KL of SLERP less the mean of its members")


def lerp_divergence(runs: Sequence[Study]) -> Finding:
  """WARP-3."""
  part = compare(
    runs,
    lambda run: (
      float(np.mean([end(run, m, "kl") for m in MEMBERS])) - value(run, LERP, "η = 1", "kl")
    ),
  )
  return finding({"difference": part}, "KL of the members, mean, less that of LERP")


def orthogonal(runs: Sequence[Study]) -> Finding:
  """WARP-4, task vectors."""
  part = compare(runs, lambda run: NEAR - abs(run.cosines[MAIN, "episode 1"]["layers"]))
  cosines = compare(runs, lambda run: run.cosines[MAIN, "episode 1"]["layers"])
  return finding({"difference": part}, f"{NEAR:g} less |cos Ω| by layer, which is {cosines}")


def parallel(runs: Sequence[Study]) -> Finding:
  """WARP-4, weights."""
  part = compare(runs, lambda run: run.cosines[MAIN, "episode 1"]["weights"] - 0.999)
  return finding({"difference": part}, "cosine of the members' weights less 0.999")


def compare_long(judge: str, *, interpolated: bool = False, first: int = 0) -> Find:
  """Not a claim of the paper in this form: WARP against the same compute, interpolated too, or at larger budgets."""
  best = "the best static anchor"
  height = functools.partial(front, judge=judge, first=first)

  def find(runs: Sequence[Study]) -> Finding:
    def quantity(run: Study) -> float:
      others = static(run, interpolated=interpolated)
      return height(run, MAIN) - max(height(run, s) for s in others)

    moving = [line + ", LITI" * interpolated for line in (LONG, WIDE)]
    parts = {o: compare(runs, lambda run, o=o: height(run, MAIN) - height(run, o)) for o in moving}
    return finding(parts | {best: compare(runs, quantity)}, "front of WARP less that of")

  return find


def curvature(judge: str) -> Find:
  """WARP-9: reward above its chord in η, KL below."""

  def bend(run: Study, name: str) -> float:
    eta, path = (
      run.places("front", FIRST, "eta"),
      run.values("front", FIRST, name),
    )
    order = np.argsort(eta)
    eta, path = eta[order], path[order]
    return float((path - ((1 - eta) * path[0] + eta * path[-1]))[1:-1].mean())

  def find(runs: Sequence[Study]) -> Finding:
    parts = {
      "reward": compare(runs, lambda run: bend(run, f"reward_{judge}")),
      "KL, negative": compare(runs, lambda run: -bend(run, "kl")),
    }
    return finding(parts, "mean distance from the chord in η")

  return find


def step_back(judge: str) -> Find:
  """WARP-10."""
  half = "step back"

  def find(runs: Sequence[Study]) -> Finding:
    def gap(run: Study, at: int) -> float:
      return float(within(run, half, judge)[at] - within(run, MAIN, judge)[at])

    parts = {
      "largest budget": compare(runs, lambda run: gap(run, -1)),
      "smallest budget, negative": compare(runs, lambda run: -gap(run, 0)),
    }
    return finding(parts, "reward within a KL, η = 0.5 less η = 0.3")

  return find


def lengths(runs: Sequence[Study]) -> Finding:
  """WARP-11, length."""
  penalised, plain = "length: penalty on one", "members: M = 2"
  part = compare(
    runs,
    lambda run: value(run, plain, "η = 1", "length") - value(run, penalised, "η = 1", "length"),
  )
  return finding({"difference": part}, "tokens of a completion, without less with a penalty on one")


# By name: what the paper says, and what is judged by each judge.
ON_REWARDS: dict[str, tuple[str, Judged]] = {
  "WARP-1": (
    "The front of REINFORCE with a moving-average anchor lies above those of all static anchors at equal compute"
    " (section 4.1).",
    moving_anchor,
  ),
  "WARP-2 reward": ("SLERP has more reward than its members and than LERP (figures 3 and 8).", merged),
  "WARP-5": (
    "Interpolating towards the init has a front above those of the runs of RL (figure 4).",
    fronts(FIRST, *MEMBERS),
  ),
  "WARP-6": (
    "More merged policies are better (figure 4).",
    lambda judge: functools.partial(_more_members, judge),
  ),
  "WARP-7": (
    "Iterating improves the front (table 1, figure 5).",
    fronts(LAST, "WARP, episode 2", FIRST),
  ),
  "WARP at equal compute": (
    "Not in the paper: all of WARP against single runs of the same compute.",
    compare_long,
  ),
  "WARP at equal compute, larger budgets": (
    "Not in the paper, and added after the runs: the same at the larger half of the budgets, as single runs may have no"
    " measured point within the smaller ones.",
    functools.partial(compare_long, first=2),
  ),
  "WARP at equal compute, interpolated": (
    "Not in the paper, and added after the first runs: the same where the single runs are interpolated towards the"
    " init as well.",
    functools.partial(compare_long, interpolated=True),
  ),
  "WARP-9": ("In η reward is concave and KL convex or nearly linear (figure 9).", curvature),
  "WARP-10": ("η = 0.5 is better at high KL, 0.3 at low KL (figure 16).", step_back),
  "WARP-11 front": (
    "Merging a run with a length penalty and one without improves the front (figure 18).",
    fronts("length: penalty on one", "members: M = 2"),
  ),
  "WARP-12": (
    "Averaging checkpoints of one run does not help the interpolation (figure 13).",
    same_run,
  ),
}  # fmt: skip


def _more_members(judge: str, runs: Sequence[Study]) -> Finding:
  names = ["members: M = 1, LITI", "members: M = 2", "members: M = 4"]
  parts = {
    f"{more.removeprefix('members: ')} less {less.removeprefix('members: ')}": compare(
      runs, lambda run, a=less, b=more: front(run, b, judge) - front(run, a, judge)
    )
    for less, more in ((names[0], names[1]), (names[1], names[2]))
  }
  return finding(parts, "front")


ON_RUNS = (
  Claim("WARP-2 KL", "And slightly more KL (figure 8).", slerp_divergence),
  Claim("WARP-3", "LERP reduces the KL (figure 8).", lerp_divergence),
  Claim("WARP-4 task vectors", "Task vectors are nearly orthogonal (figures 10 and 11).", orthogonal),
  Claim("WARP-4 weights", "Weights are nearly parallel: their cosine is above 0.999.", parallel),
  Claim("WARP-11 length", "Merging a run with a length penalty shortens (figure 18).", lengths),
)  # fmt: skip


def of(judge: str, *, without: Sequence[str] = ()) -> tuple[Claim, ...]:
  """All claims.

  Args:
    judge: which of `studies.JUDGES` the runs have.
    without: claims, by the start of their names, that the runs cannot judge.
  """
  found = [
    Claim(f"{name} ({by})", paper, make(by))
    for name, (paper, make) in ON_REWARDS.items()
    for by in (judge, PROXY)
  ]
  return tuple(c for c in (*found, *ON_RUNS) if not c.name.startswith(tuple(without)))
