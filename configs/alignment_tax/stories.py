r"""The reward-tax front of a real pre-trained model (Lin et al. 2024, arXiv 2309.06256), on files.

wam run --config configs/alignment_tax/stories.py --workdir runs/stories

With another algorithm: --config configs/alignment_tax/stories.py:ppo, :dpo or :reinforce (rsf is the default).

The model is a Llama of 260 K parameters that tells children's stories; the reward is the polarity of its
continuations, by a reward model trained on labelled sentences; the tax is measured on TinyStories, WikiText-2 and
LAMBADA. The control reward comes from a second reward model, trained on other sentences.

RSF, 2-core x86 CPU: 21 min while other work ran on the machine. One run (seed 0, bars over 3 sampling seeds): held-out
accuracy 78 % (proxy) and 74 % (control); RLHF takes the control reward from -0.05 to 2.17 and TinyStories from 1.44
to 3.22, WikiText-2 from 5.02 to 7.30 nats per token; α = 0.5 has 1.62, 1.82 and 5.88. LAMBADA is at the floor (1 word
of 400). Hypervolume against TinyStories: averaging 3.11 (2.95 to 3.31), early stopping 2.50 (2.34 to 2.70).

PPO, the same way: 1.76, 1.73 and 5.51 at the end, 0.99, 1.51 and 5.20 at α = 0.5; averaging 0.35 (0.28 to 0.43), early
stopping 0.25 (0.18 to 0.33). DPO: 1.70, 1.90 and 5.62, 1.01, 1.54 and 5.21; averaging 0.57 (0.49 to 0.66), early
stopping 0.42 (0.34 to 0.51). REINFORCE: 1.70, 1.84 and 5.51, 0.80, 1.51 and 5.15 at α = 0.4; averaging 0.50 (0.42 to
0.58), early stopping 0.45 (0.36 to 0.55).
"""

from ml_collections import ConfigDict

from wam import base_configs

# The model seldom ends a story within max_new_tokens: what is cut off is kept by every algorithm.
ALGORITHMS = {
  "rsf": {
    "num_iterations": 12,
    "prompts_per_iteration": 128,
    "samples_per_prompt": 8,
    "batch_size": 32,
    "epochs": 2,
    "require_eos": False,
    "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
  },
  "ppo": {
    "num_iterations": 12,
    "prompts_per_iteration": 256,
    "samples_per_prompt": 2,
    "batch_size": 64,
    "epochs": 2,
    "kl_coef": 0.05,
    "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
    "critic_optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
  },
  "reinforce": {
    "num_iterations": 12,
    "prompts_per_iteration": 128,
    "samples_per_prompt": 4,
    "batch_size": 64,
    "kl_coef": 0.05,
    "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
  },
  # The labelled sentences are no stories: pairs are drawn from the model, and the proxy reward says which is preferred.
  "dpo": {
    "pairs": {"num_prompts": 1024, "samples_per_prompt": 4, "require_eos": False},
    "num_epochs": 3.0,
    "batch_size": 32,
    "beta": 0.1,
    "optimizer": {"learning_rate": 3e-4, "schedule": "linear", "warmup_percent": 5},
  },
}


def get_config(algorithm="rsf"):
  config = base_configs.stories()
  config.recipe = "alignment_tax"
  # Positive sentences are preferred to negative ones. The control judge learns from sentences that the proxy never saw.
  config.problem.pairs = base_configs.polarity_pairs("[:45%]", "[45%:50%]")
  config.problem.control_pairs = base_configs.polarity_pairs("[50%:95%]", "[95%:]")
  config.reward_model = base_configs.polarity_reward_model()

  config[algorithm] = ALGORITHMS[algorithm]

  config.averaging = ConfigDict()
  config.averaging.alphas = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
  config.averaging.num_parts = 3
  config.averaging.part_alphas = (0.0, 0.25, 0.5, 0.75)

  return config
