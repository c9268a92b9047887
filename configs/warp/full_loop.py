r"""The full loop in a small invented world: SFT -> WARM reward model -> WARP policies against it -> report.

Ramé et al. 2024: WARM (arXiv 2401.12187) and WARP (arXiv 2406.16768).

wam run --config configs/warp/full_loop.py --workdir runs/full_loop

2-core x86 CPU: 10 min of processor time, 14 min on one core beside other work. One run (seed 0): WARM of six is right
on 73.0 % of the validation pairs, its members on 74.2 to 75.8 %; WARP takes gold from 0.375 ± 0.021 to 0.516 ± 0.025
at 5.9 nats in its third episode (by η = 0.5, chosen on validation, 0.462 ± 0.024 at 1.0). Plain runs of as many
iterations have the larger front once they are interpolated towards the start: hypervolume 0.46 (0.38 to 0.53) against
0.29 (0.22 to 0.37).
"""

import importlib.util
import pathlib

_SPEC = importlib.util.spec_from_file_location(
  "warp_tiny", pathlib.Path(__file__).with_name("tiny.py")
)
_TINY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TINY)


def get_config():
  config = _TINY.get_config()
  del config.reward_model
  # Baklava: the members' trunks come from three points of supervised fine-tuning.
  config.sft.keep_percents = (67.0, 83.0)
  config.warm = {
    "members": {
      "num_members": 6,
      "learning_rates": (5e-4, 1e-3, 2e-3),
      "dropouts": (0.0, 0.05),
      "starts": (-3, -2, -1),
    },
    "num_epochs": 2.0,
    "batch_size": 64,
    "length": 24,
    "probe_steps": 30,
    "probe_optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
    "optimizer": {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 10},
  }
  config.comparisons = {
    "one_run": {
      "static": {
        "label": "static anchor",
        "settings": {"anchor": "init", "ema_rate": None},
        "budget": "long",
      },
      "moving": {"label": "moving anchor", "budget": "long"},
    }
  }
  return config
