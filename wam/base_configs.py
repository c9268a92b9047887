"""What the shipped configs share: a small invented world, and a real model that tells stories with files around it.

A config starts from one of them and adds its recipe, its rewards, and its own settings. Both train on a CPU in minutes.
"""

import os
from typing import Any

import ml_collections
from ml_collections import ConfigDict

HINT = (
  "TinyStories, WikiText-2, LAMBADA and the sentence polarity data set (Rotten Tomatoes) are public; any texts and"
  " labelled sentences of yours will do: change problem.* in the config"
)
STORIES = {"path": "tinystories/stories.txt.gz", "separator": "<|endoftext|>", "hint": HINT}
# How the reward models learn from labelled sentences.
POLARITY_OPTIMIZER = {
  "learning_rate": 1e-3,
  "schedule": "linear",
  "warmup_steps": 20,
  "weight_decay": 0.01,
}


def small_world() -> ConfigDict:
  """The world of `wam.data.world`, and a model of 0.7 M parameters pre-trained and fine-tuned in it.

  Without "problem.num_pairs" and "problem.num_validation_pairs", which depend on where the rewards come from.
  """
  config = ConfigDict()
  config.seed = 0

  config.problem = ConfigDict()
  config.problem.kind = "world"
  config.problem.seed = 0
  config.problem.size = {"num_names": 32, "num_values": 8, "num_pairs": 3}
  config.problem.num_corpus = 40_000
  config.problem.num_demonstrations = 8_000
  config.problem.num_prompts = 1_500
  config.problem.num_items = 100

  config.model = ConfigDict()
  config.model.hidden_size = 96
  config.model.intermediate_size = 256
  config.model.num_layers = 6
  config.model.num_heads = 4
  config.model.tie_embeddings = True
  # About 1 / sqrt(hidden_size): with the usual 0.02 so narrow a model needs three times as many steps.
  config.model.initializer_range = 0.08
  config.model.stacked = False

  config.pretrain = ConfigDict()
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

  config.sft = ConfigDict()
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

  config.sampling = {"prompt_length": 9, "max_new_tokens": 14, "temperature": 1.0}
  config.checkpoints = {"save_every_seconds": 60.0}
  return config


def small_world_reward_model() -> ConfigDict:
  """The section "reward_model" in the small world."""
  section = ConfigDict()
  section.num_epochs = 2.0
  section.batch_size = 64
  section.length = 24
  section.log_every = 25
  section.optimizer = {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 10}
  return section


def stories() -> ConfigDict:
  """A Llama of 260 K parameters that tells children's stories, prompts from stories, and its skills: perplexity, cloze.

  Files are looked for below the directory that the environment variable WAM_DATA names. Without "problem.pairs"; see
  `polarity_pairs`.
  """
  config = ConfigDict()
  config.seed = 0

  config.model = ConfigDict()
  # A Hugging Face directory: config.json, model.safetensors, tokenizer.json.
  config.model.path = os.path.join(os.environ.get("WAM_DATA", ""), "stories260k", "hf")

  config.problem = ConfigDict()
  config.problem.kind = "files"
  # Where the relative paths below start; None: the environment variable WAM_DATA.
  config.problem.data_dir = ml_collections.config_dict.placeholder(str)

  prompts = STORIES | {"first_words": 12}
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
      "validation": STORIES | {"split": "[90%:92%]"},
      "test": STORIES | {"split": "[93%:]"},
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

  config.sampling = {"prompt_length": 40, "max_new_tokens": 48, "temperature": 1.0}
  # Not LAMBADA: the model knows 1 word of 400, and shares of that are noise.
  config.evaluation = {
    "num_seeds": 3,
    "max_length": 256,
    "mean_of": ("tinystories", "wikitext"),
  }
  config.checkpoints = {"save_every_seconds": 60.0}
  return config


def polarity_pairs(train: str, validation: str) -> dict[str, Any]:
  """Pairs of sentences that people labelled: positive ones are preferred. `train` and `validation` are splits."""
  sentences = {
    "path": "sentence-polarity/sentence_polarity.jsonl.gz",
    "format": "labelled",
    "shuffle_seed": 0,
    "hint": HINT,
  }
  return {"train": sentences | {"split": train}, "validation": sentences | {"split": validation}}


def polarity_reward_model() -> ConfigDict:
  """The section of a reward model that learns from `polarity_pairs`."""
  section = ConfigDict()
  section.num_epochs = 3.0
  section.batch_size = 32
  section.length = 128
  section.optimizer = POLARITY_OPTIMIZER
  return section
