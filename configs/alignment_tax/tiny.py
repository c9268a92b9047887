r"""The reward-tax front of a small invented world (Lin et al. 2024, arXiv 2309.06256, figures 3 and 7, in miniature).

wam run --config configs/alignment_tax/tiny.py --workdir runs/demo

With another algorithm: --config configs/alignment_tax/tiny.py:ppo, :dpo or :reinforce (rsf is the default).

2-core x86 CPU: 3 min. One run (seed 0, bars over 3 sampling seeds): gold reward 0.37 -> 0.62, with 0.73 at iteration
2; facts 1.00 -> 0.66, passages 1.00 -> 0.40, translation 100 -> 4.3 BLEU; α = 0.5: reward 0.71 ± 0.06, 98 % of the
skills. Hypervolume against the mean skill: averaging 0.213 (0.197 to 0.232), early stopping 0.224 (0.214 to 0.241).
"""

from ml_collections import ConfigDict

from wam import base_configs

# Of one algorithm; each sees about 12 x 1024 completions, but DPO, whose pairs are given.
ALGORITHMS = {
  "rsf": {
    "num_iterations": 12,
    "prompts_per_iteration": 128,
    "samples_per_prompt": 8,
    "batch_size": 32,
    "epochs": 2,
    "optimizer": {"learning_rate": 1.5e-3, "schedule": "constant"},
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
  "reinforce": {
    "num_iterations": 12,
    "prompts_per_iteration": 256,
    "samples_per_prompt": 4,
    "batch_size": 128,
    "kl_coef": 0.05,
    "optimizer": {"learning_rate": 5e-4, "schedule": "constant"},
  },
  "dpo": {
    "length": 24,
    "num_epochs": 3.0,
    "batch_size": 64,
    "beta": 0.1,
    "optimizer": {"learning_rate": 1e-3, "schedule": "linear", "warmup_percent": 5},
  },
}


def get_config(algorithm="rsf"):
  config = base_configs.small_world()
  config.recipe = "alignment_tax"
  config.problem.num_pairs = 10_000
  config.problem.num_validation_pairs = 500
  config.problem.sharpness = 16.0
  config.problem.label_noise = 0.0
  config.reward_model = base_configs.small_world_reward_model()

  config[algorithm] = ALGORITHMS[algorithm]

  config.averaging = ConfigDict()
  config.averaging.alphas = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
  config.averaging.num_parts = 3
  config.averaging.part_alphas = (0.0, 0.25, 0.5, 0.75)

  config.evaluation = {"num_seeds": 3}
  return config
