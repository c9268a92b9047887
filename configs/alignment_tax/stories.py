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
stopping 0.42 (0.34 to 0.51). REINFORCE has not been run whole.
"""

import os

import ml_collections

HINT = (
  "TinyStories, WikiText-2, LAMBADA and the sentence polarity data set (Rotten Tomatoes) are public; any texts and"
  " labelled sentences of yours will do: change problem.* in the config"
)

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
  config = ml_collections.ConfigDict()
  config.recipe = "alignment_tax"
  config.seed = 0

  config.model = ml_collections.ConfigDict()
  # A Hugging Face directory: config.json, model.safetensors, tokenizer.json.
  config.model.path = os.path.join(os.environ.get("WAM_DATA", ""), "stories260k", "hf")

  config.problem = ml_collections.ConfigDict()
  config.problem.kind = "files"
  # Where the relative paths below start; None: the environment variable WAM_DATA.
  config.problem.data_dir = ml_collections.config_dict.placeholder(str)

  # Positive sentences are preferred to negative ones. The control judge learns from sentences that the proxy never saw.
  polarity = {
    "path": "sentence-polarity/sentence_polarity.jsonl.gz",
    "format": "labelled",
    "shuffle_seed": 0,
    "hint": HINT,
  }
  config.problem.pairs = {
    "train": polarity | {"split": "[:45%]"},
    "validation": polarity | {"split": "[45%:50%]"},
  }
  config.problem.control_pairs = {
    "train": polarity | {"split": "[50%:95%]"},
    "validation": polarity | {"split": "[95%:]"},
  }

  stories = {"path": "tinystories/stories.txt.gz", "separator": "<|endoftext|>", "hint": HINT}
  prompts = stories | {"first_words": 12}
  config.problem.prompts = {
    "train": prompts | {"split": "[:70%]"},
    "validation": prompts | {"split": "[70%:72%]"},
    "test": prompts | {"split": "[72%:76%]"},
  }

  wikitext = {"heading": r" = [^=]+ = $", "hint": HINT}
  lambada = {"path": "eval-gauntlet/lambada_openai.jsonl.gz", "hint": HINT}
  config.problem.tasks = {
    "tinystories": {
      "kind": "text",
      "validation": stories | {"split": "[90%:92%]"},
      "test": stories | {"split": "[93%:]"},
    },
    "wikitext": {
      "kind": "text",
      "validation": wikitext | {"path": "wikitext-2/valid.txt.gz", "split": "[:5]"},
      "test": wikitext | {"path": "wikitext-2/test.txt.gz", "split": "[:10]"},
    },
    "lambada": {
      "kind": "last_word",
      "validation": lambada | {"split": "[:100]"},
      "test": lambada | {"split": "[200:600]"},
    },
  }

  config.reward_model = ml_collections.ConfigDict()
  config.reward_model.num_epochs = 3.0
  config.reward_model.batch_size = 32
  config.reward_model.length = 128
  config.reward_model.optimizer = {
    "learning_rate": 1e-3,
    "schedule": "linear",
    "warmup_steps": 20,
    "weight_decay": 0.01,
  }

  config.sampling = {"prompt_length": 40, "max_new_tokens": 48, "temperature": 1.0}

  config[algorithm] = ALGORITHMS[algorithm]

  config.averaging = ml_collections.ConfigDict()
  config.averaging.alphas = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
  config.averaging.num_parts = 3
  config.averaging.part_alphas = (0.0, 0.25, 0.5, 0.75)

  # Not LAMBADA: the model knows 1 word of 400, and shares of that are noise.
  config.evaluation = {
    "num_seeds": 3,
    "max_length": 256,
    "mean_of": ("tinystories", "wikitext"),
  }
  config.checkpoints = {"save_every_seconds": 60.0}
  return config
