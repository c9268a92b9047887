r"""Conditional language policies of a real pre-trained model (Wang et al. 2024, arXiv 2407.15762), on files.

wam run --config configs/clp/stories.py --workdir runs/clp-stories

The model is a Llama of 260 K parameters that tells children's stories; the rewards are the polarity of its
continuations, by a reward model trained on labelled sentences, and their reading ease. Each kind of conditioning is
trained with as many completions as the two runs of REINFORCE whose weights are averaged (rewarded soups).

2-core x86 CPU: 17 min of processor time, 33 min on one core beside other work. One run (seed 0, bars over prompts and
3 sampling seeds), rewards in standard deviations: with all weights conditioned λ moves polarity from 1.83 ± 0.13 to
2.98 ± 0.11 and reading ease from 2.04 ± 0.03 to 0.59 ± 0.08. Hypervolume as a ratio to that of the soups: full 1.52
(1.44 to 1.61), logit 1.46 (1.39 to 1.55), attention 1.38 (1.31 to 1.47), prompt 0.95 (0.89 to 1.08); expected utility
0.11 (0.04 to 0.18), 0.13, 0.05 (-0.02 to 0.13) and -0.20 above theirs. Less the KL that training pays for, full is as
good as the soups (+0.01) and the others are worse: what is gained is paid for with distance from the start.
"""

from wam import base_configs


def get_config():
  config = base_configs.stories()
  config.recipe = "clp"
  config.problem.pairs = base_configs.polarity_pairs("[:90%]", "[90%:]")
  # The other skills are not measured.
  config.problem.tasks = {"tinystories": config.problem.tasks.tinystories}

  reward_model = base_configs.polarity_reward_model()
  config.rewards = {
    "polarity": {"kind": "pairs", "reward_model": reward_model},
    "reading_ease": {"kind": "rule", "rule": "readability"},
  }

  # The model seldom ends a story within max_new_tokens: what is cut off is kept.
  config.reinforce = {
    "num_iterations": 12,
    "prompts_per_iteration": 128,
    "samples_per_prompt": 4,
    "batch_size": 64,
    "kl_coef": 0.05,
    "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
  }
  config.clp = {
    "kinds": ("full", "attention", "logit", "prompt"),
    "preferences_per_iteration": 8,
    "prompts_per_preference": 16,
    "samples_per_prompt": 4,
    "updates_per_iteration": 8,
    "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
  }

  config.grid = {"intervals": 10}
  config.preferences = {"balanced": {"polarity": 0.5, "reading_ease": 0.5}}
  config.evaluation = {"num_seeds": 3, "max_length": 256}
  return config
