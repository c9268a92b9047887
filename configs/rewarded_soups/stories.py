r"""Rewarded soups of a real pre-trained model (Ramé et al. 2023, arXiv 2306.04488), on files: polarity, readability.

wam run --config configs/rewarded_soups/stories.py --workdir runs/soups_stories

With another algorithm: --config configs/rewarded_soups/stories.py:ppo or :rsf (reinforce is the default).

The model is a Llama of 260 K parameters that tells children's stories. One reward is the polarity of its continuations,
by a reward model trained on sentences that people labelled; the other is Flesch's reading ease, which pays for short
sentences of short words. Both are z-scores on samples of the model.

2-core x86 CPU: not run whole yet; at toy size 10 min on a busy machine.
"""

import os

import ml_collections

HINT = (
  "TinyStories, WikiText-2, LAMBADA and the sentence polarity data set (Rotten Tomatoes) are public; any texts and"
  " labelled sentences of yours will do: change problem.* in the config"
)

# The model seldom ends a story within max_new_tokens: what is cut off is kept by every algorithm.
ALGORITHMS = {
  "reinforce": {
    "num_iterations": 12,
    "prompts_per_iteration": 128,
    "samples_per_prompt": 4,
    "batch_size": 64,
    "kl_coef": 0.1,
    "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
  },
  "ppo": {
    "num_iterations": 12,
    "prompts_per_iteration": 256,
    "samples_per_prompt": 2,
    "batch_size": 64,
    "epochs": 2,
    "kl_coef": 0.1,
    "optimizer": {"learning_rate": 3e-4, "schedule": "constant"},
    "critic_optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
  },
  "rsf": {
    "num_iterations": 12,
    "prompts_per_iteration": 128,
    "samples_per_prompt": 4,
    "batch_size": 32,
    "epochs": 2,
    "require_eos": False,
    "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
  },
}


def get_config(algorithm="reinforce"):
  config = ml_collections.ConfigDict()
  config.recipe = "rewarded_soups"
  config.seed = 0

  config.model = ml_collections.ConfigDict()
  # A Hugging Face directory: config.json, model.safetensors, tokenizer.json.
  config.model.path = os.path.join(os.environ.get("WAM_DATA", ""), "stories260k", "hf")

  config.problem = ml_collections.ConfigDict()
  config.problem.kind = "files"
  # Where the relative paths below start; None: the environment variable WAM_DATA.
  config.problem.data_dir = ml_collections.config_dict.placeholder(str)

  # Positive sentences are preferred to negative ones.
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
    "polarity": {"kind": "pairs", "pairs": "problem", "reward_model": reward_model},
    "readability": {"kind": "rule", "rule": "readability"},
  }

  config.sampling = {"prompt_length": 40, "max_new_tokens": 48, "temperature": 1.0}

  config[algorithm] = ALGORITHMS[algorithm]

  # Each mixture of MORL meets a soup with its λ.
  quarters = [{"polarity": x, "readability": 1 - x} for x in (0.25, 0.75)]
  config.soups = {"intervals": 10, "also": quarters}
  config.morl = {"intervals": 4}
  config.decoding = {"intervals": 4}
  config.preferences = {
    "balanced": {"polarity": 0.5, "readability": 0.5},
    "cheerful": {"polarity": 0.8, "readability": 0.2},
    "plain": {"polarity": 0.2, "readability": 0.8},
  }

  # Not LAMBADA: the model knows 1 word of 400, and shares of that are noise.
  config.evaluation = {
    "num_seeds": 3,
    "max_length": 256,
    "mean_of": ("tinystories", "wikitext"),
  }
  # Standard deviations of the rewards of the model before RL; fixed, so that volumes compare between runs.
  config.fronts = {"reference": {"polarity": -1.0, "readability": -1.0}}
  config.checkpoints = {"save_every_seconds": 60.0}
  return config
