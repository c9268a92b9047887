"""Steps a second of DPO and of reward models, 8 pairs a step: wam against bare torch, TRL and Tunix.

python benchmarks/preferences.py dpo|reward_model [--repeats 5] [--quick] [--only TRL]
"""

import sys

from alternate import System, run

# The reference of DPO is looked at in every step, or was once, before the training ("cached"), as wam does it.
SYSTEMS = {
  "dpo": (
    System("wam, reference cached", "wam", "systems_wam:dpo"),
    System("bare torch, reference cached", "torch", "systems_torch:bare_dpo_cached"),
    System("bare torch", "torch", "systems_torch:bare_dpo"),
    System("TRL DPOTrainer, reference cached", "torch", "systems_torch:trl_dpo_cached"),
    System("TRL DPOTrainer", "torch", "systems_torch:trl_dpo"),
    System("Tunix DPOTrainer", "tunix", "systems_tunix:dpo"),
  ),
  "reward_model": (
    System("wam", "wam", "systems_wam:reward_model"),
    System("bare torch", "torch", "systems_torch:bare_reward_model"),
    System("TRL RewardTrainer", "torch", "systems_torch:trl_reward_model"),
  ),
}

if __name__ == "__main__":
  if len(sys.argv) < 2 or sys.argv[1] not in SYSTEMS:
    sys.exit(__doc__)
  run(SYSTEMS[sys.argv.pop(1)], __doc__ or "", unit="steps")
