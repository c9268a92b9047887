r"""Weight averaged reward models in a small invented world (Ramé et al. 2024, WARM, arXiv 2401.12187).

wam run --config configs/warm/tiny.py --workdir runs/warm

Six reward models of the same 6 000 pairs, 25 % of them swapped; their average, ensembles and single models are compared
on pairs (clean, swapped, held out, from policies that were tuned), along lines, in best-of-n and as the reward of RL.

2-core x86 CPU: 38 min while much other work ran on the machine. One run (seed 0), WARM against the mean
of the six predictions, accuracy: swapped pairs 31 % and 33 %, clean 76 % and 81 %, validation 70 % and 73 %, tuned
policies 71 % and 77 % (differences -2, -5, -3, -6 points, each ± 3); the best single model has 72 % on the last two.
At these learning rates averaging costs accuracy: half-way between two members up to 2 points are lost. Best of 1024:
gold reward 0.67 ± 0.07 by WARM, 0.79 by the best two averaged, 0.80 by the ensemble, 0.75 by the best single model,
0.38 at random. RL without a penalty fools all of them: gold 0.38 -> 0.06 (WARM), 0.05 (ensemble), 0.32 (best single).

tiny.py:near has a quarter of the learning rates, so that members stay linearly connected, which WARM presupposes (one
run: half-way points gain 0 to 0.6 points on validation; WARM less ensemble: swapped -1.4, clean -1.3, validation -2.1,
tuned policies -0.2 points), and smaller steps of RL.
"""

from ml_collections import ConfigDict

from wam import base_configs


def get_config(members="far"):
  config = base_configs.small_world()
  config.recipe = "warm"
  config.problem.num_pairs = 6_000
  config.problem.num_validation_pairs = 1_000
  config.problem.sharpness = 16.0
  # 8 k, 10 k of the paper's 12 k steps: where the trunks of Baklava come from.
  config.sft.keep_percents = (67, 83)

  # Learning rates for Adam; the paper's {1e-5, 4e-5, 1e-4} are for Adafactor and larger models. "start" counts the
  # checkpoints of supervised fine-tuning, -1 is the last. The first two differ in seed and order only.
  config.warm = ConfigDict()
  config.warm.members = (
    {"learning_rate": 1e-3, "dropout": 0.05, "start": -1},
    {"learning_rate": 1e-3, "dropout": 0.05, "start": -1},
    {"learning_rate": 5e-4, "dropout": 0.1, "start": -1},
    {"learning_rate": 1e-3, "dropout": 0.05, "start": -3},
    {"learning_rate": 2e-3, "dropout": 0.1, "start": -2},
    {"learning_rate": 5e-4, "dropout": 0.1, "start": -2},
  )
  config.warm.label_noise = 0.25
  config.warm.num_epochs = 3.0
  config.warm.batch_size = 64
  config.warm.length = 24
  config.warm.log_every = 25
  config.warm.keep_percents = (60, 70, 80, 90)
  config.warm.probe_steps = 50
  config.warm.probe_optimizer = {"learning_rate": 1e-2, "schedule": "constant"}
  config.warm.optimizer = {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 10}

  # Without a penalty: how far a proxy can be trusted is the question.
  config.reinforce = ConfigDict()
  config.reinforce.num_iterations = 12
  config.reinforce.prompts_per_iteration = 128
  config.reinforce.samples_per_prompt = 4
  config.reinforce.batch_size = 128
  config.reinforce.kl_coef = 0.0
  config.reinforce.optimizer = {"learning_rate": 1e-3, "schedule": "constant"}

  # Other pairs than people's: samples of θ_0, and of what RL with the gold reward makes of it.
  config.ood = {"iterations": (0, 1, 2), "samples_per_prompt": 4, "shift": {"num_iterations": 2}}

  config.accuracy = {"orders": ("best_first", "worst_first"), "max_pairs": 700}
  config.interpolation = {"num_points": 5, "max_pairs": 500}
  config.best_of_n = {"num_candidates": 1_024, "num_prompts": 24, "prompts_per_call": 2}
  config.over_optimisation = {
    "proxies": ("best single", "ensemble mean", "warm"),
    "measure_every": 2,
    "samples_per_prompt": 2,
  }
  if members == "near":
    for member in config.warm.members:
      member["learning_rate"] /= 4
    config.warm.num_epochs = 4.0
    config.reinforce.optimizer["learning_rate"] = 3e-4
    config.over_optimisation["measure_every"] = 1
  return config
