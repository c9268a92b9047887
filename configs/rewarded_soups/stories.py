r"""Rewarded soups of a real pre-trained model (Ramé et al. 2023, arXiv 2306.04488), on files: polarity, readability.

wam run --config configs/rewarded_soups/stories.py --workdir runs/soups_stories

With another algorithm: --config configs/rewarded_soups/stories.py:ppo or :rsf (reinforce is the default).

The model is a Llama of 260 K parameters that tells children's stories. One reward is the polarity of its continuations,
by a reward model trained on sentences that people labelled; the other is Flesch's reading ease, which pays for short
sentences of short words. Both are z-scores on samples of the model.

2-core x86 CPU: 10 min of processor time, 25 min on one core beside other work. One run (REINFORCE, seed 0, bars over
prompts and 3 sampling seeds), rewards in standard deviations: λ moves polarity from -0.12 ± 0.14 to 2.75 ± 0.12 and
readability from 1.57 ± 0.05 to 0.33 ± 0.09. Hypervolume as a ratio to that of MORL with 5 mixtures: 13 soups 1.03
(1.01 to 1.08), soups of MORL's own λ 0.99 (± 0.04); expected utility the same (-0.003). Between the ends polarity
lies below the straight line at 7 of 11 λ.
"""

from wam import base_configs

# The model seldom ends a story within max_new_tokens: what is cut off is kept by every algorithm.
ALGORITHMS = {
  "reinforce": {
    "num_iterations": 12,
    "prompts_per_iteration": 128,
    "samples_per_prompt": 4,
    "batch_size": 64,
    "kl_coef": 0.1,
    "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
  },
  "ppo": {
    "num_iterations": 12,
    "prompts_per_iteration": 256,
    "samples_per_prompt": 2,
    "batch_size": 64,
    "epochs": 2,
    "kl_coef": 0.1,
    "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
    "critic_optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
  },
  "rsf": {
    "num_iterations": 12,
    "prompts_per_iteration": 128,
    "samples_per_prompt": 4,
    "batch_size": 32,
    "epochs": 2,
    "require_eos": False,
    "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
  },
}


def get_config(algorithm="reinforce"):
  config = base_configs.stories()
  config.recipe = "rewarded_soups"
  # Positive sentences are preferred to negative ones.
  config.problem.pairs = base_configs.polarity_pairs("[:90%]", "[90%:]")

  reward_model = base_configs.polarity_reward_model()
  config.rewards = {
    "polarity": {"kind": "pairs", "pairs": "problem", "reward_model": reward_model},
    "readability": {"kind": "rule", "rule": "readability"},
  }

  config[algorithm] = ALGORITHMS[algorithm]

  # Each mixture of MORL meets a soup with its λ.
  quarters = [{"polarity": x, "readability": 1 - x} for x in (0.25, 0.75)]
  config.soups = {"intervals": 10, "also": quarters}
  config.morl = {"intervals": 4}
  config.decoding = {"intervals": 4}
  config.preferences = {
    "balanced": {"polarity": 0.5, "readability": 0.5},
    "cheerful": {"polarity": 0.8, "readability": 0.2},
    "plain": {"polarity": 0.2, "readability": 0.8},
  }

  # Standard deviations of the rewards of the model before RL; fixed, so that volumes compare between runs.
  config.fronts = {"reference": {"polarity": -1.0, "readability": -1.0}}
  return config
