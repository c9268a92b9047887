r"""WARP in a small invented world (Ramé et al. 2024, arXiv 2406.16768, algorithm 1), with what it is compared with.

wam run --config configs/warp/tiny.py --workdir runs/warp

2-core x86 CPU: 40 min beside half a dozen other programs. One run (seed 0, bars over prompts): the proxy ranks 75 % of
held-out pairs as people do; gold reward 0.37 ± 0.02 -> 0.50, 0.52, 0.54 at
the merges of episodes 1, 2, 3, KL to SFT 0.8, 1.5, 2.0 nats (0.15 a token), skills whole throughout. Cosines of the
task vectors 0.70, 0.69, 0.64: SLERP has 0.495 at 0.84 nats, LERP 0.484 at 0.73, Karcher as SLERP. Hypervolume above
SFT up to 3 nats: WARP 0.39 (0.34 to 0.46); its members' trajectories 0.37 (0.32 to 0.44); one episode with M = 1, 2, 4:
0.28, 0.32, 0.30 (± 0.08); the average along one run 0.22 (0.15 to 0.31). One run as long as all members together has
more: with a static anchor, β = 0.2, gold reward 0.61 within 2 nats and 0.69 within 3, against 0.54 for WARP.
"""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.recipe = "warp"
  config.seed = 0

  config.problem = ml_collections.ConfigDict()
  config.problem.kind = "world"
  config.problem.seed = 0
  config.problem.size = {"num_names": 32, "num_values": 8, "num_pairs": 3}
  config.problem.num_corpus = 40_000
  config.problem.num_demonstrations = 8_000
  config.problem.num_pairs = 10_000
  config.problem.num_validation_pairs = 500
  config.problem.sharpness = 16.0
  # With the few steps of the reward model: a proxy that can be exploited.
  config.problem.label_noise = 0.1
  config.problem.num_prompts = 1_500
  config.problem.num_items = 100

  config.model = ml_collections.ConfigDict()
  config.model.hidden_size = 96
  config.model.intermediate_size = 256
  config.model.num_layers = 6
  config.model.num_heads = 4
  config.model.tie_embeddings = True
  # About 1 / sqrt(hidden_size): with the usual 0.02 so narrow a model needs three times as many steps.
  config.model.initializer_range = 0.08
  config.model.stacked = False

  config.pretrain = ml_collections.ConfigDict()
  config.pretrain.num_steps = 500
  config.pretrain.batch_size = 80
  config.pretrain.length = 24
  config.pretrain.optimizer = {
    "learning_rate": 4e-3,
    "schedule": "cosine",
    "warmup_steps": 50,
    "b2": 0.98,
    "weight_decay": 0.01,
  }

  config.sft = ml_collections.ConfigDict()
  config.sft.num_steps = 60
  config.sft.batch_size = 80
  config.sft.length = 24
  config.sft.log_every = 10
  config.sft.optimizer = {
    "learning_rate": 5e-4,
    "schedule": "cosine",
    "warmup_steps": 10,
    "b2": 0.98,
  }

  config.reward_model = ml_collections.ConfigDict()
  config.reward_model.num_epochs = 2.0
  config.reward_model.batch_size = 64
  config.reward_model.length = 24
  config.reward_model.log_every = 25
  config.reward_model.optimizer = {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 10}

  config.sampling = {"prompt_length": 9, "max_new_tokens": 14, "temperature": 1.0}

  # Small steps on few completions, so that noise has a say in where a member goes, up to 0.3 nats a token.
  config.reinforce = ml_collections.ConfigDict()
  config.reinforce.num_iterations = 60
  config.reinforce.keep_every = 10
  config.reinforce.prompts_per_iteration = 4
  config.reinforce.samples_per_prompt = 4
  config.reinforce.anchor = "ema"
  # The paper's 0.01 is for 5 000 to 9 000 iterations.
  config.reinforce.ema_rate = 0.05
  config.reinforce.kl_coef = 0.1
  config.reinforce.optimizer = {"learning_rate": 7e-5, "schedule": "constant", "warmup_steps": 5}

  config.warp = ml_collections.ConfigDict()
  config.warp.num_episodes = 3
  config.warp.num_members = 2
  config.warp.merge = "slerp"
  config.warp.group = "layer"
  config.warp.eta = 0.3
  config.warp.etas = (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)

  # Against plain runs as long as all members of all episodes together, or with as many completions an update; and with
  # one thing changed. Those of one episode share its members.
  one = {"num_episodes": 1}
  static = {"anchor": "init", "ema_rate": None}
  config.comparisons = {
    "static_anchor": {
      f"beta_{i}": {
        "label": f"β = {beta:g}",
        "settings": static | {"kl_coef": beta},
        "budget": "long",
      }
      for i, beta in enumerate((0.05, 0.2))
    },
    "moving_anchor": {
      "long": {"budget": "long"},
      "wide": {"budget": "wide"},
    },
    "merge": {
      "lerp": {"warp": one | {"merge": "lerp"}},
      "karcher": {"warp": one | {"merge": "karcher"}},
      "whole": {"label": "slerp of whole vectors", "warp": one | {"group": "global"}},
    },
    "members": {
      "one": {"label": "M = 1", "warp": one | {"num_members": 1}},
      "two": {"label": "M = 2", "warp": one},
      "four": {"label": "M = 4", "warp": one | {"num_members": 4}},
      "static": {"label": "M = 2, anchor SFT", "warp": one, "settings": static},
    },
    "same_run": {
      "last": {
        "label": "iterations 30 to 60",
        "warp": one | {"num_members": 1, "average_of": (30, 40, 50, 60)},
      }
    },
    "update_rate": {"fast": {"label": "μ = 0.2", "warp": one, "settings": {"ema_rate": 0.2}}},
    "step_back": {"half": {"label": "η = 0.5", "warp": {"eta": 0.5}}},
    "length": {
      "one": {
        "label": "penalty on one",
        "warp": one | {"members": ({}, {"length_penalty": 0.05})},
      },
    },
  }

  config.front = {"measure_every": 20, "kl_limit": 3.0, "budgets": (0.5, 1.0, 2.0, 3.0)}
  config.evaluation = {"num_seeds": 3}
  config.checkpoints = {"save_every_seconds": 60.0}
  return config
