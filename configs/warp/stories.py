r"""WARP on a real pre-trained model (Ramé et al. 2024, arXiv 2406.16768, algorithm 1), on files.

wam run --config configs/warp/stories.py --workdir runs/warp_stories

The model is a Llama of 260 K parameters that tells children's stories; the proxy reward is the polarity of its
continuations, by a reward model trained on labelled sentences; another one, trained on other sentences, judges; skills
are TinyStories, WikiText-2 and LAMBADA.

2-core x86 CPU: not run whole yet.
"""

import os

import ml_collections

HINT = (
  "TinyStories, WikiText-2, LAMBADA and the sentence polarity data set (Rotten Tomatoes) are public; any texts and"
  " labelled sentences of yours will do: change problem.* in the config"
)


def get_config():
  config = ml_collections.ConfigDict()
  config.recipe = "warp"
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

  # The model seldom ends a story within max_new_tokens: what is cut off is kept.
  config.reinforce = ml_collections.ConfigDict()
  config.reinforce.num_iterations = 40
  config.reinforce.keep_every = 10
  config.reinforce.prompts_per_iteration = 16
  config.reinforce.samples_per_prompt = 4
  config.reinforce.anchor = "ema"
  # The paper's 0.01 is for 5 000 to 9 000 iterations.
  config.reinforce.ema_rate = 0.05
  config.reinforce.kl_coef = 0.1
  config.reinforce.optimizer = {"learning_rate": 2e-4, "schedule": "constant", "warmup_steps": 5}

  config.warp = ml_collections.ConfigDict()
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
  }

  # 48 tokens at 0.3 nats.
  config.front = {"measure_every": 20, "kl_limit": 15.0, "budgets": (2.0, 5.0, 10.0, 15.0)}

  # Not LAMBADA: the model knows 1 word of 400, and shares of that are noise.
  config.evaluation = {
    "num_seeds": 3,
    "max_length": 256,
    "mean_of": ("tinystories", "wikitext"),
  }
  config.checkpoints = {"save_every_seconds": 60.0}
  return config
