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

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.recipe = "clp"
  config.seed = 0

  config.problem = ml_collections.ConfigDict()
  config.problem.kind = "world"
  config.problem.seed = 0
  config.problem.size = {"num_names": 32, "num_values": 8, "num_pairs": 3}
  config.problem.num_corpus = 40_000
  config.problem.num_demonstrations = 8_000
  config.problem.num_pairs = 0
  config.problem.num_validation_pairs = 0
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

  # A reply has room for some eight words; those that please the one reward do not please the other.
  names = ("warm_words", "topic_words")
  config.rewards = {name: {"kind": "world", "component": name} for name in names}

  config.sampling = {"prompt_length": 9, "max_new_tokens": 14, "temperature": 1.0}

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
  config.evaluation = {"num_seeds": 3}
  config.checkpoints = {"save_every_seconds": 60.0}
  return config
