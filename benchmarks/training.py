"""Tokens a second of supervised fine-tuning: wam against bare torch, TRL's SFTTrainer and Tunix's PeftTrainer.

python benchmarks/training.py [--repeats 5] [--quick] [--only TRL]
"""

from alternate import System, run

SYSTEMS = (
  System("wam", "wam", "systems_wam:sft"),
  System("bare torch", "torch", "systems_torch:bare_sft"),
  System("TRL SFTTrainer", "torch", "systems_torch:trl_sft"),
  System("Tunix PeftTrainer", "tunix", "systems_tunix:sft"),
)

if __name__ == "__main__":
  run(SYSTEMS, __doc__ or "")
