r"""WARP on a real pre-trained model (Ramé et al. 2024, arXiv 2406.16768, algorithm 1), on files.

wam run --config configs/warp/stories.py --workdir runs/warp_stories

The model is a Llama of 260 K parameters that tells children's stories; the proxy reward is the polarity of its
continuations, by a reward model trained on labelled sentences; another one, trained on other sentences, judges; the
skill is telling stories (TinyStories).

2-core x86 CPU: 46 min on one core beside other work. One run (seed 0, 95 % intervals over prompts): cosines of the task
vectors by layer 0.23, 0.22, 0.17; control reward -0.04 -> 1.99, 2.35, 2.39 ± 0.10 at the merges of episodes 1, 2, 3, KL
to the start 23, 27, 29 nats (0.5 to 0.6 a token), stories 1.44 -> 1.75 to 1.80 nats a token. Hypervolume above the
start up to 15 nats: WARP 15.9 (14.9 to 18.2); its members' trajectories 9.8 (8.0 to 11.8); as much compute in one run
with a static anchor 13.6 (13.0 to 15.6), with a moving one 11.1 (9.9 to 12.9); those interpolated towards the start
17.4 (16.2 to 19.3) and 16.7 (14.7 to 18.5). Three seeds: experiments/warp_stories.
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
