r"""Conditional language policies of a small invented world (Wang et al. 2024, arXiv 2407.15762, in miniature).

wam run --config configs/clp/tiny.py --workdir runs/clp

Two rewards that conflict; each kind of conditioning is trained with as many completions as the two runs of REINFORCE
whose weights are averaged (rewarded soups), and with the same ratio of KL to reward.

2-core x86 CPU: 32 min while a dozen other programs ran on the machine. One run (seed 0, bars over prompts and 3
sampling seeds): hypervolume of 11 preferences against the worst of all points, in rewards of unit variance at θ_0:
rewarded soups 16.7 (15.7 to 17.7), logit 21.8 (20.6 to 22.8), attention 21.5 (20.4 to 22.6), full 21.4 (20.2 to 22.4),
prompt 15.0 (14.0 to 15.8). Expected utility above the soups': full +0.15 (0.07 to 0.23), attention +0.11 (0.03 to
0.19), logit +0.04 (-0.07 to 0.15), prompt -0.11 (-0.20 to -0.01). At equal preference the KL is up to 3 nats higher
with CLP; less 0.05 a nat, as both are trained: full +0.18, attention +0.07, logit +0.06, prompt -0.10.
"""

from wam import base_configs


def get_config():
  config = base_configs.small_world()
  config.recipe = "clp"
  config.problem.num_pairs = 0
  config.problem.num_validation_pairs = 0

  # A reply has room for some eight words; those that please the one reward do not please the other.
  names = ("warm_words", "topic_words")
  config.rewards = {name: {"kind": "world", "component": name} for name in names}

  config.reinforce = {
    "num_iterations": 12,
    "prompts_per_iteration": 256,
    "samples_per_prompt": 4,
    "batch_size": 128,
    "kl_coef": 0.05,
    "optimizer": {"learning_rate": 5e-4, "schedule": "constant"},
  }
  # 24 iterations follow: as many completions as two runs of REINFORCE, and as many updates, of 16 of each preference.
  config.clp = {
    "kinds": ("full", "attention", "logit", "prompt"),
    "preferences_per_iteration": 8,
    "prompts_per_preference": 32,
    "samples_per_prompt": 4,
    "updates_per_iteration": 8,
    "optimizer": {"learning_rate": 5e-4, "schedule": "constant"},
  }

  config.grid = {"intervals": 10}
  config.preferences = {"balanced": dict.fromkeys(names, 0.5)}
  config.evaluation = {"num_seeds": 3}
  return config
