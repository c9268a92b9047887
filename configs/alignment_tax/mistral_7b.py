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

The config of OpenLLaMA-3B but for the weights.
"""

import os
import pathlib
import runpy


def get_config(algorithm="rsf"):
  path = pathlib.Path(__file__).with_name("openllama_3b.py")
  config = runpy.run_path(str(path))["get_config"](algorithm)
  config.model.path = os.path.join(os.environ.get("WAM_DATA", ""), "Mistral-7B-v0.1")
  return config
