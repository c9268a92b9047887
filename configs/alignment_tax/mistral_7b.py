r"""The alignment-tax experiment on Mistral-7B by the paper's numbers (Lin et al. 2024, arXiv 2309.06256, tables 1-3).

python -m experiments.real_scale.prepare --sharegpt ShareGPT_V3_unfiltered_cleaned_split.json --hh hh-rlhf
wam run --config configs/alignment_tax/mistral_7b.py --workdir runs/mistral_7b

With another algorithm: --config configs/alignment_tax/mistral_7b.py:ppo or :dpo (rsf is the default). WAM_DATA holds
Mistral-7B-v0.1 (a Hugging Face directory), what the first command writes there (sharegpt, hh-rlhf-pairs), and
tasks: arc_easy, arc_challenge, race and piqa as .jsonl rows of query, choices and gold; squad, drop and wmt14_fr_en as
rows of context and answer (and aliases).

The paper trains no Mistral: it averages mistral-7b-sft-beta and zephyr-7b-beta, two published models (wam merge).
Never run: compiled, without weights, for 8 chips of TPU v5p (2x2x2). A chip holds 31.8 of 95 GiB in an update of SFT.
More, with other slices and 8 GPUs, in experiments/real_scale/README.md.
"""

import os

import ml_collections

HINT = (
  "experiments/real_scale/README.md says where the published files are and how they become this one"
)


# Lengths of prompts, pairs and schedules, and how many iterations of PPO, are not in the paper.
ALGORITHMS = {
  # Table 1 and appendix C.1: 10 iterations of the best of 32 for 2048 prompts.
  "rsf": {
    "num_iterations": 10,
    "prompts_per_iteration": 2048,
    "samples_per_prompt": 32,
    "prompts_per_call": 16,
    "batch_size": 32,
    "epochs": 2,
    "optimizer": {"learning_rate": 1e-5, "schedule": "constant"},
    # The authors' code leaves out samples that are cut off, too.
    "require_eos": True,
    "dtype": "bfloat16",
    "remat": True,
  },
  # Table 1 and appendix C.2; kl_coef 0.05, 0.1 and 0.2 in figure 5. The reward baseline of 5.5625 belongs to the
  # authors' reward model; here rewards have the mean 0 on samples of θ_0. Not done: an epoch on chosen answers before.
  "ppo": {
    "num_iterations": 40,
    "prompts_per_iteration": 512,
    "prompts_per_call": 256,
    "batch_size": 32,
    "epochs": 2,
    "kl_coef": 0.05,
    "optimizer": {"learning_rate": 1e-6, "schedule": "constant"},
    "vf_coef": 0.1,
    "restart": {},
    "dtype": "bfloat16",
    "remat": True,
  },
  # Table 1 and appendix C.3: up to 3 epochs, looked at every half, the best by the loss on held-out pairs.
  "dpo": {
    "length": 1024,
    "num_epochs": 3.0,
    "batch_size": 32,
    "beta": 0.1,
    "selection": "best",
    "optimizer": {"learning_rate": 1e-6, "schedule": "constant"},
    "logits_chunk": 256,
    "dtype": "bfloat16",
    "remat": True,
  },
}


def get_config(algorithm="rsf"):
  config = ml_collections.ConfigDict()
  config.recipe = "alignment_tax"
  config.seed = 0
  # Weights and moments lie over all devices: 8 or 16 of them. With 32: sft.accumulate_steps = 4.
  config.mesh = {"data": 1, "fsdp": -1}

  config.model = ml_collections.ConfigDict()
  config.model.path = os.path.join(os.environ.get("WAM_DATA", ""), "Mistral-7B-v0.1")

  config.problem = ml_collections.ConfigDict()
  config.problem.kind = "files"
  # Where the relative paths below start; None: the environment variable WAM_DATA.
  config.problem.data_dir = ml_collections.config_dict.placeholder(str)
  # Rows of prompt and completion.
  config.problem.demonstrations = {"path": "sharegpt/train.jsonl", "hint": HINT}
  # Rows of prompt, chosen and rejected. A directory with train and test files, or one that `datasets` saved.
  pairs = {"path": "hh-rlhf-pairs", "shuffle_seed": 0, "hint": HINT}
  config.problem.pairs = {
    "train": pairs | {"split": "train"},
    "validation": pairs | {"split": "test"},
  }
  # As in the paper the proxy judges. For a judge of its own: control_pairs, and a part of `pairs` for each.
  config.problem.prompts = {
    "train": pairs | {"split": "train"},
    "validation": pairs | {"split": "test[:256]"},
    "test": pairs | {"split": "test[256:1280]"},
  }

  def task(kind, name, **options):
    spec = {"path": f"tasks/{name}.jsonl", "shuffle_seed": 0, "hint": HINT}
    splits = {"validation": spec | {"split": "[:20%]"}, "test": spec | {"split": "[20%:]"}}
    return {"kind": kind, "options": options, **splits}

  config.problem.tasks = {
    "arc_easy": task("choice", "arc_easy"),
    "arc_challenge": task("choice", "arc_challenge"),
    "race": task("choice", "race"),
    "piqa": task("choice", "piqa"),
    "squad": task("answer", "squad", metric="f1", stop="\n"),
    "drop": task("answer", "drop", metric="f1", stop="\n"),
    "wmt14_fr_en": task("answer", "wmt14_fr_en", metric="bleu", stop="\n", max_new_tokens=128),
  }

  # Table 2, ShareGPT SFT: 1e-5, cosine with 0.03 warm-up, 1 epoch, batch 128, block 2048.
  config.sft = ml_collections.ConfigDict()
  config.sft.num_epochs = 1.0
  config.sft.batch_size = 128
  config.sft.length = 2048
  config.sft.optimizer = {"learning_rate": 1e-5, "schedule": "cosine", "warmup_percent": 3.0}
  config.sft.dtype = "bfloat16"
  config.sft.remat = True
  config.sft.logits_chunk = 256
  config.sft.accumulate_steps = 8

  # Table 2, RM training: 5e-6, cosine with 0.03 warm-up, 1 epoch, batch 16. The length is not in the paper; nor is the
  # fine-tuning of the reward model's trunk on HH-RLHF before (2e-5, 2 epochs) in this recipe: it starts from θ_0.
  config.reward_model = ml_collections.ConfigDict()
  config.reward_model.num_epochs = 1.0
  config.reward_model.batch_size = 16
  config.reward_model.length = 1024
  config.reward_model.optimizer = {
    "learning_rate": 5e-6,
    "schedule": "cosine",
    "warmup_percent": 3.0,
  }
  config.reward_model.dtype = "bfloat16"
  config.reward_model.remat = True

  # Table 2, test settings; tables 1 and C.1 have the same temperature. The length of prompts is not in the paper.
  config.sampling = {"prompt_length": 512, "max_new_tokens": 196, "temperature": 1.0}

  config[algorithm] = ALGORITHMS[algorithm]

  # Figures 3 and 7: α from 0 to 1, and the input, middle and output thirds of the layers.
  config.averaging = ml_collections.ConfigDict()
  config.averaging.alphas = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
  config.averaging.num_parts = 3
  config.averaging.part_alphas = (0.0, 0.2, 0.4, 0.6, 0.8)

  config.evaluation = {"num_seeds": 3, "num_prompts": 256, "batch_size": 32, "max_length": 1024}
  config.checkpoints = {"save_every_seconds": 1800.0}
  return config
