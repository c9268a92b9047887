"""RL against every reward model, with the gold reward as a witness: how far a policy can go before it fools the proxy.

REINFORCE from θ_0 against each proxy (Ramé et al. 2024, WARM, section 5.2; KL coefficients as in figure 8c), its
checkpoints measured on the prompts of the test split: the judge's score, the proxy's, the KL to θ_0, and the win rate
against θ_0. Gao et al. 2023 for the fits over √KL. Leaves out best-of-n (warm_selection.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.stats

from wam.core import sections
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params
from wam.evaluation import best_of_n_curves, overoptimization
from wam.evaluation.divergence import kl_to_reference
from wam.generation.rollouts import Rollout
from wam.generation.sampling import Samples
from wam.recipes import measurements, tuning
from wam.recipes.measurements import point
from wam.recipes.reward_populations import ALONG, BEST, RULES, WARM
from wam.recipes.warm_selection import fitted
from wam.recipes.warm_setting import Setting, draw, texts
from wam.rewards.scorers import RolloutScorer

STUDY = "over_optimisation"
PROXIES = (BEST, ALONG, *RULES, WARM)
NUM_SAMPLES = 4


def check(
  section: Mapping[str, Any],
  *,
  reinforce: Mapping[str, Any] | None,
  sampling: Mapping[str, Any],
  name: str = STUDY,
) -> None:
  """Checks the sections "over_optimisation" and "reinforce" together; see `over_optimisation`.

  Raises:
    ConfigError: names the key; UnknownName: for a proxy that does not exist.
  """
  sections.check(over_optimisation, section, name)
  if reinforce is None:
    raise ConfigError(f"reinforce: this section is missing, and {name} needs it")
  for proxy in section.get("proxies", ()):
    if proxy not in PROXIES and not proxy.startswith("member "):
      raise unknown_name(f"proxy in {name}.proxies", proxy, [*PROXIES, "member 0"])
  for kl_coef in section.get("kl_coefs") or (reinforce.get("kl_coef", 0.1),):
    own = dict(reinforce) | {"kl_coef": kl_coef}
    tuning.ALGORITHMS["reinforce"].check(own, "reinforce", sampling)


def over_optimisation(
  setting: Setting,
  *,
  proxies: Sequence[str] = (BEST, "ensemble mean", WARM),
  kl_coefs: Sequence[float] | None = None,
  measure_every: int = 1,
  num_prompts: int | None = None,
  samples_per_prompt: int = 1,
) -> dict[str, Params]:
  """Trains a policy against each proxy, at each KL coefficient, and measures its checkpoints; returns the last ones.

  Args:
    setting: the models; its section "reinforce" has the settings.
    proxies: of PROXIES, or "member 0", ...
    kl_coefs: β; default that of "reinforce".
    measure_every: iterations between two checkpoints that are measured; the last one is measured anyway.
    num_prompts: of the test split; default all.
    samples_per_prompt: completions of each.

  Raises:
    ConfigError: if a proxy is not there ("run average" needs warm.keep_percents).
  """
  found = {}
  for proxy in proxies:
    if proxy not in setting.population.scorers:
      raise ConfigError(
        f"{STUDY}.proxies: there is no '{proxy}'; found {', '.join(setting.population.scorers)}"
      )
    scorer = setting.population.scorers[proxy]
    for kl_coef in kl_coefs or (None,):
      label = "" if kl_coef is None else f"β = {kl_coef:g}"
      plan = setting.plan(proxy, label, {} if kl_coef is None else {"kl_coef": kl_coef})
      run = setting.rl(plan, scorer)
      family = ", ".join(filter(None, ["WARM" if proxy == WARM else proxy, label]))
      found[family] = tuning.train(plan, run)
      chosen = range(measure_every, tuning.num_iterations(plan) + 1, measure_every)
      iterations = sorted({0, *chosen, tuning.num_iterations(plan)})

      def make(
        family: str = family,
        run: tuning.Setting = run,
        iterations: Sequence[int] = iterations,
        scorer: RolloutScorer = scorer,
      ) -> list[dict[str, Any]]:
        drawing = {"num_prompts": num_prompts, "num_samples": samples_per_prompt}
        return _measured(setting, run, scorer, family, iterations, drawing)

      measurements.once(setting.run, f"{STUDY}/{plan.stage}", make)
  return found


def _measured(
  setting: Setting,
  run: tuning.Setting,
  proxy: RolloutScorer,
  family: str,
  iterations: Sequence[int],
  drawing: Mapping[str, Any],
) -> list[dict[str, Any]]:
  """The checkpoints of one run, its fit, and samples of the last."""
  found: list[dict[str, Any]] = []
  baseline: np.ndarray | None = None
  curve = []
  for i in iterations:
    params = setting.reference if i == 0 else tuning.load(run.main, run, i)
    # The same stream for all: policies that are equal draw equal samples.
    rollout = draw(setting, params, stream=STUDY, **drawing)
    judged = setting.judge.scorer(*rollout[:4]).astype(np.float64)
    # One more sample of θ_0 for each prompt, for the win rates.
    if baseline is None:
      other = draw(setting, params, stream=f"{STUDY}/baseline", num_prompts=drawing["num_prompts"])
      baseline = np.repeat(setting.judge.scorer(*other[:4]), drawing["num_samples"])
    kl = kl_to_reference(
      setting.policy.model, params, setting.reference, _samples_of(rollout)
    ).per_sequence
    scores = {
      setting.judge.name: judged,
      "proxy": proxy(*rollout[:4]).astype(np.float64),
      "win_rate": best_of_n_curves.win_credit(judged[:, None], baseline)[:, 0],
      "kl": kl,
      "length": rollout.completion_mask.sum(axis=1).astype(np.float64),
    }
    values = {name: float(x.mean()) for name, x in scores.items()}
    halves = {name: _half(x, drawing["num_samples"]) for name, x in scores.items()}
    x = {"iteration": i, "kl": values["kl"]}
    label = f"iteration {i}"
    found.append(point(STUDY, family, label, values, split="test", x=x, halves=halves))
    curve.append((values["kl"], values[setting.judge.name]))
    setting.run.interrupts.check(f"{STUDY}: {family}")
  distances = overoptimization.distances(np.maximum([kl for kl, _ in curve], 0.0))
  gold = np.asarray([score for _, score in curve])
  found += fitted(family, "rl", distances, gold, float(gold[0]))
  prompts, completions = texts(setting, rollout, range(min(NUM_SAMPLES, len(rollout.completions))))
  about = {"family": family, "label": label, "x": x}
  found.append(
    {"kind": measurements.SAMPLES, **about, "prompts": prompts, "completions": completions}
  )
  return found


def _samples_of(rollout: Rollout) -> Samples:
  """A rollout as the samples that it was drawn as; nobody asks for their log-probabilities."""
  fields = rollout._asdict()
  return Samples(logprobs=jnp.zeros(rollout.completions.shape), **fields)


def _half(values: np.ndarray, num_samples: int) -> float:
  """Half the width of Student's 95 % interval of the mean over prompts."""
  means = values.reshape(-1, num_samples).mean(axis=1)
  if len(means) < 2:
    return 0.0
  quantile = scipy.stats.t.ppf(0.975, len(means) - 1)
  return float(quantile * means.std(ddof=1) / np.sqrt(len(means)))
