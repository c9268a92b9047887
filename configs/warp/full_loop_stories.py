r"""The full loop on a real pre-trained model: WARM reward model -> WARP policies against it -> report.

Ramé et al. 2024: WARM (arXiv 2401.12187) and WARP (arXiv 2406.16768).

wam run --config configs/warp/full_loop_stories.py --workdir runs/full_loop_stories

As stories.py, but the proxy reward is the average of four reward models trained on human-labelled sentences, and the
comparisons are two plain runs at the same compute. There is no fine-tuning: the model tells stories already.

2-core x86 CPU: 25 min of processor time, 51 min on one core beside other work. One run (seed 0, bars over prompts and
3 sampling seeds): WARM of four is right on 71.8 % of 227 held-out pairs, its members on 73.1 to 76.7 %. WARP takes
the control reward from -0.04 to 1.29, 1.86 and 2.12 (± 0.13) in its episodes, at 14.6, 18.5 and 27.5 nats; by η =
0.5, chosen on validation, 1.15 ± 0.14 at 6.6 with 97 % of the skills. Here task vectors are nearly orthogonal
(cosines of 0.09 to 0.10, as in the paper), and WARP is ahead of both runs of as many iterations: control reward
within 2, 5, 10 and 15 nats 0.68, 1.03, 1.46, 1.74, against 0.44, 0.86, 1.20, 1.61 for the better of them,
interpolated or not; hypervolume 15.9 (14.3 to 17.9) against 11.7 (10.7 to 13.7).
"""

import importlib.util
import pathlib

_SPEC = importlib.util.spec_from_file_location(
  "warp_stories", pathlib.Path(__file__).with_name("stories.py")
)
_STORIES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_STORIES)


def get_config():
  config = _STORIES.get_config()
  # The section "reward_model" is that of the control.
  config.warm = {
    "members": {
      "num_members": 4,
      "learning_rates": (5e-4, 1e-3),
      "dropouts": (0.0, 0.05),
    },
    "num_epochs": 3.0,
    "batch_size": 32,
    "length": 128,
    "probe_steps": 50,
    "probe_optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
    "optimizer": {
      "learning_rate": 1e-3,
      "schedule": "linear",
      "warmup_steps": 20,
      "weight_decay": 0.01,
    },
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
