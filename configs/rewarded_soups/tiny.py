r"""Rewarded soups of a small invented world (Ramé et al. 2023, arXiv 2306.04488, in miniature): conflicting rewards.

wam run --config configs/rewarded_soups/tiny.py --workdir runs/soups

Variants: tiny.py:compatible (rewards that can both be had), :ppo and :rsf (another algorithm; reinforce is the
default), :three (three rewards), :personalised (runs with LoRA as well). The world's true reward judges in all of them.

The two rewards are shares of a reply's words, so that their sum is bounded: what one wins the other loses, and no
average can lie above the line between both ends in both of them.

2-core x86 CPU: 8 min of processor time; 33 min beside other work. One run (seed 0, bars over prompts and 3 sampling
seeds), rewards in standard deviations: the runs reach 5.07 ± 0.11 (topic_words) and 5.20 ± 0.13 (warm_words), from 0.13
and -0.05, at 14.6 and 17.0 nats; λ = 0.5 has 2.83 ± 0.15 and 1.07 ± 0.14 as a soup, 2.08 and 2.69 by MORL, 2.07 and
2.11 decoded together (MOD). Hypervolume above (-2, -2): soups 25.4 (24.5 to 26.4), MORL 23.5 (22.5 to 24.5) with 5
points, MOD 27.8 (26.9 to 28.8); with the 5 λ of MORL alone the soups have 0.85 of its volume (0.80 to 0.90), MOD 0.97.
Expected utility: 0.05 (0.00 to 0.09) below MORL. tiny.py:compatible, 5 min: MORL has both rewards and soups have 0.85
of its volume (three seeds: experiments/compatible_rewards). The other variants were run at toy size only.
"""

from wam import base_configs

ALGORITHMS = {
  "reinforce": {
    "num_iterations": 12,
    "prompts_per_iteration": 256,
    "samples_per_prompt": 4,
    "batch_size": 128,
    "kl_coef": 0.05,
    "optimizer": {"learning_rate": 5e-4, "schedule": "constant"},
  },
  "ppo": {
    "num_iterations": 12,
    "prompts_per_iteration": 256,
    "samples_per_prompt": 4,
    "batch_size": 128,
    "epochs": 2,
    "kl_coef": 0.05,
    "optimizer": {"learning_rate": 5e-4, "schedule": "constant"},
    "critic_optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
  },
  "rsf": {
    "num_iterations": 12,
    "prompts_per_iteration": 128,
    "samples_per_prompt": 8,
    "batch_size": 32,
    "epochs": 2,
    "optimizer": {"learning_rate": 1.5e-3, "schedule": "constant"},
  },
}

# What --config FILE:NAME can name, and the algorithm of it.
VARIANTS = {name: name for name in ALGORITHMS} | {
  "compatible": "reinforce",
  "three": "reinforce",
  "personalised": "reinforce",
}

# A reply has room for some eight words; those that please one of these do not please the others.
SHARES = ("warm_words", "topic_words", "plain_words")
# Two words and three words that a reply can have both.
PARTS = ("warmth", "topics")


def get_config(variant="reinforce"):
  algorithm = VARIANTS[variant]
  three = variant == "three"
  config = base_configs.small_world()
  config.recipe = "rewarded_soups"
  config.problem.num_pairs = 0
  config.problem.num_validation_pairs = 0

  names = PARTS if variant == "compatible" else SHARES[: 3 if three else 2]
  config.rewards = {name: {"kind": "world", "component": name} for name in names}
  config.judges = {"gold": {"kind": "world", "component": "gold", "normalise": "none"}}

  config[algorithm] = ALGORITHMS[algorithm]

  config.soups = {"intervals": 4 if three else 10}
  config.morl = {"intervals": 2 if three else 4}
  config.decoding = {"intervals": 4 if three else 10}
  if not three:
    # So that each mixture of MORL meets a soup with its λ.
    first, second = names
    quarters = [{first: x, second: 1 - x} for x in (0.25, 0.75)]
    config.soups.also = config.decoding.also = quarters
    config.preferences = {
      "balanced": {first: 0.5, second: 0.5},
      "warm": {first: 0.8, second: 0.2},
      "informed": {first: 0.3, second: 0.7},
    }
  if variant == "personalised":
    config.personalised = {"rank": 4, "alpha": 32.0, "targets": "mlp+attention"}

  config.evaluation = {"num_seeds": 3}
  # In standard deviations of the rewards before RL; fixed, so that volumes compare between runs.
  config.fronts = {"reference": dict.fromkeys(names, -2.0)}
  return config
