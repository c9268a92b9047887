r"""WARP on a real pre-trained model (Ramé et al. 2024, arXiv 2406.16768, algorithm 1), on files.

wam run --config configs/warp/stories.py --workdir runs/warp_stories

The model is a Llama of 260 K parameters that tells children's stories; the proxy reward is the polarity of its
continuations, by a reward model trained on labelled sentences; another one, trained on other sentences, judges; the
skill is telling stories (TinyStories).

2-core x86 CPU: not run whole yet.
"""

from ml_collections import ConfigDict

from wam import base_configs


def get_config():
  config = base_configs.stories()
  config.recipe = "warp"
  # Positive sentences are preferred to negative ones. The control judge learns from sentences that the proxy never saw.
  config.problem.pairs = base_configs.polarity_pairs("[:45%]", "[45%:50%]")
  config.problem.control_pairs = base_configs.polarity_pairs("[50%:95%]", "[95%:]")
  config.reward_model = base_configs.polarity_reward_model()

  # A hundred policies are measured.
  config.problem.tasks = {
    "tinystories": {
      "kind": "text",
      "validation": base_configs.STORIES | {"split": "[90%:91%]"},
      "test": base_configs.STORIES | {"split": "[97%:]"},
    }
  }
  config.evaluation.mean_of = ("tinystories",)

  # The model seldom ends a story within max_new_tokens: what is cut off is kept.
  config.reinforce = ConfigDict()
  config.reinforce.num_iterations = 40
  config.reinforce.keep_every = 10
  config.reinforce.prompts_per_iteration = 16
  config.reinforce.samples_per_prompt = 4
  config.reinforce.anchor = "ema"
  # The paper's 0.01 is for 5 000 to 9 000 iterations.
  config.reinforce.ema_rate = 0.05
  config.reinforce.kl_coef = 0.1
  config.reinforce.optimizer = {"learning_rate": 2e-4, "schedule": "constant", "warmup_steps": 5}

  config.warp = ConfigDict()
  config.warp.num_episodes = 3
  config.warp.num_members = 2
  config.warp.merge = "slerp"
  config.warp.group = "layer"
  config.warp.eta = 0.3
  config.warp.etas = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)

  # Plain runs as long as all members of all episodes together, and two other merges of the first members.
  one = {"num_episodes": 1}
  static = {"anchor": "init", "ema_rate": None}
  config.comparisons = {
    "static_anchor": {
      f"beta_{i}": {
        "label": f"β = {beta:g}",
        "settings": static | {"kl_coef": beta},
        "budget": "long",
      }
      for i, beta in enumerate((0.03, 0.1))
    },
    "moving_anchor": {"long": {"budget": "long"}, "wide": {"budget": "wide"}},
    "merge": {"lerp": {"warp": one | {"merge": "lerp"}}},
    "members": {
      "one": {"label": "M = 1", "warp": one | {"num_members": 1}},
      "two": {"label": "M = 2", "warp": one},
      "four": {"label": "M = 4", "warp": one | {"num_members": 4}},
    },
    "same_run": {
      "last": {
        "label": "iterations 20 to 40",
        "warp": one | {"num_members": 1, "average_of": (20, 30, 40)},
      }
    },
  }

  # 48 tokens at 0.3 nats.
  config.front = {"measure_every": 20, "kl_limit": 15.0, "budgets": (2.0, 5.0, 10.0, 15.0)}

  return config
