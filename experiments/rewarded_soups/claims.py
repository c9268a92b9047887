"""The claims of Rewarded Soups (Ramé et al. 2023, arXiv 2306.04488) and of multi-objective decoding, fixed beforehand.

Each is a quantity that the claim says is positive, one value a seed; `verdicts.verdict` of their 95 % intervals says
what became of it. Rewards are z-scores on samples of the model that all runs start from.
"""

import functools
from collections.abc import Callable, Sequence

from experiments.studies import Claim, Study, compare
from experiments.verdicts import Finding, finding
from wam.recipes.soup_fronts import EQUAL, ORACLE, VALIDATED
from wam.recipes.soup_models import MOD, MORL, SOUPS

RATIO, UTILITY = f"hypervolume_ratio_to_{MORL}", f"expected_utility_gain_over_{MORL}"
# How much of what is there must be left to call it as good.
SHARE = 0.95

Find = Callable[[Sequence[Study]], Finding]


def of_front(run: Study, family: str, name: str) -> float:
  """One number of a family's front."""
  return float(run.values("fronts", family, name)[0])


def rewards(run: Study) -> list[str]:
  """Their names."""
  return list(run.of("connectivity", SOUPS)[0].values)


def connected(runs: Sequence[Study]) -> Finding:
  """RS-1."""
  parts = {
    reward: compare(runs, lambda run, r=reward: float(run.values("connectivity", SOUPS, r).mean()))
    for reward in rewards(runs[0])
  }
  return finding(parts, "R(θ_λ) less the mean of the ends' R with λ, mean over the interior")


def volume(family: str, least: float) -> Find:
  """The hypervolume of a family is at least a share of MORL's."""

  def find(runs: Sequence[Study]) -> Finding:
    part = compare(runs, lambda run: of_front(run, family, RATIO) - least)
    return finding({"difference": part}, f"hypervolume by that of {MORL}, less {least:g}")

  return find


def utility(family: str) -> Find:
  """The expected utility of users spread over the simplex."""

  def find(runs: Sequence[Study]) -> Finding:
    part = compare(runs, lambda run: of_front(run, family, UTILITY))
    return finding({"gain": part}, f"expected utility of {family} less that of {MORL}")

  return find


def as_decoding(runs: Sequence[Study]) -> Finding:
  """Soups against the policies decoded together."""
  part = compare(
    runs,
    lambda run: of_front(run, SOUPS, "hypervolume") / of_front(run, MOD, "hypervolume") - SHARE,
  )
  return finding({"difference": part}, f"hypervolume by that of {MOD}, less {SHARE:g}")


def chosen(rule: str, runs: Sequence[Study]) -> Finding:
  """RS-5: the share of the gain in utility that the best λ would have, mean over users."""

  def share(run: Study) -> float:
    own, best = (run.values("preferences", name, "utility") for name in (rule, ORACLE))
    start = run.values("preferences", ORACLE, "utility_of_init")
    return float(((own - start) / (best - start)).mean()) - SHARE

  part = compare(runs, share)
  return finding({"difference": part}, f"share of the oracle's gain in utility less {SHARE:g}")


def beats_ends(runs: Sequence[Study]) -> Finding:
  """RS-3: the best inner λ by validation against the better end by the test split itself."""
  parts = {
    judge: compare(runs, lambda run, j=judge: run.at("judges", SOUPS, j, "gain_over_better_end"))
    for judge in [point.label for point in runs[0].of("judges", SOUPS)]
  }
  return finding(parts, "a reward that nothing was trained on, soup less the better end")


CLAIMS = (
  Claim(
    "RS-1",
    "Rewards along the interpolation are at least those of the ends, interpolated, for every reward (hypothesis 1).",
    connected,
  ),
  Claim(
    "RS-2 hypervolume",
    f"The front of the soups is about that of MORL, which trains every mixture; here at least {SHARE:g} of it.",
    volume(SOUPS, SHARE),
  ),
  Claim(
    "RS-2 same λ",
    "The same with the soups of the mixtures that MORL was trained on only.",
    volume(f"{SOUPS}, λ of {MORL}", SHARE),
  ),
  Claim("RS-2 above", "Or even above MORL's.", volume(SOUPS, 1.0)),
  Claim("RS-2 utility", "In expected utility over users.", utility(SOUPS)),
  Claim(
    "RS-5 λ = μ",
    "Taking the user's preference as λ is near optimal.",
    functools.partial(chosen, EQUAL),
  ),
  Claim(
    "RS-5 validation",
    "Choosing λ by validation is near optimal.",
    functools.partial(chosen, VALIDATED),
  ),
  Claim(
    "MOD-1",
    "Decoding all policies together is the oracle of the soups, at N times the cost (Shi et al. 2024); here the soups"
    f" have {SHARE:g} of its hypervolume.",
    as_decoding,
  ),
  Claim(
    "MOD above MORL",
    "Decoding together has at least the front of MORL (Shi et al. 2024).",
    volume(MOD, 1.0),
  ),
)

# Of runs that have judges.
JUDGED = (
  Claim(
    "RS-3",
    "A soup can beat both of its ends on a metric that neither was trained on (captioning: CIDEr, BLEU-4).",
    beats_ends,
  ),
)
