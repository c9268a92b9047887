r"""Conditional language policies of a real pre-trained model (Wang et al. 2024, arXiv 2407.15762), on files.

wam run --config configs/clp/stories.py --workdir runs/clp-stories

The model is a Llama of 260 K parameters that tells children's stories; the rewards are the polarity of its
continuations, by a reward model trained on labelled sentences, and their reading ease. Each kind of conditioning is
trained with as many completions as the two runs of REINFORCE whose weights are averaged (rewarded soups).

2-core x86 CPU: not run whole yet, so that no numbers can be given; at toy size 6 min on a busy machine.
"""

import os

import ml_collections

HINT = (
  "TinyStories and the sentence polarity data set (Rotten Tomatoes) are public; any texts and labelled sentences of"
  " yours will do: change problem.* in the config"
)


def get_config():
  config = ml_collections.ConfigDict()
  config.recipe = "clp"
  config.seed = 0

  config.model = ml_collections.ConfigDict()
  # A Hugging Face directory: config.json, model.safetensors, tokenizer.json.
  config.model.path = os.path.join(os.environ.get("WAM_DATA", ""), "stories260k", "hf")

  config.problem = ml_collections.ConfigDict()
  config.problem.kind = "files"
  # Where the relative paths below start; None: the environment variable WAM_DATA.
  config.problem.data_dir = ml_collections.config_dict.placeholder(str)

  polarity = {
    "path": "sentence-polarity/sentence_polarity.jsonl.gz",
    "format": "labelled",
    "shuffle_seed": 0,
    "hint": HINT,
  }
  config.problem.pairs = {
    "train": polarity | {"split": "[:90%]"},
    "validation": polarity | {"split": "[90%:]"},
  }

  stories = {"path": "tinystories/stories.txt.gz", "separator": "<|endoftext|>", "hint": HINT}
  prompts = stories | {"first_words": 12}
  config.problem.prompts = {
    "train": prompts | {"split": "[:70%]"},
    "validation": prompts | {"split": "[70%:72%]"},
    "test": prompts | {"split": "[72%:76%]"},
  }
  config.problem.tasks = {
    "tinystories": {
      "kind": "text",
      "validation": stories | {"split": "[90%:92%]"},
      "test": stories | {"split": "[93%:]"},
    },
  }

  reward_model = {
    "num_epochs": 3.0,
    "batch_size": 32,
    "length": 128,
    "optimizer": {
      "learning_rate": 1e-3,
      "schedule": "linear",
      "warmup_steps": 20,
      "weight_decay": 0.01,
    },
  }
  config.rewards = {
    "polarity": {"kind": "pairs", "reward_model": reward_model},
    "reading_ease": {"kind": "rule", "rule": "readability"},
  }

  config.sampling = {"prompt_length": 40, "max_new_tokens": 48, "temperature": 1.0}

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
  config.evaluation = {"num_seeds": 3, "max_length": 256}
  config.checkpoints = {"save_every_seconds": 60.0}
  return config
