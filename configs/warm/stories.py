r"""Weight averaged reward models of a real pre-trained model (Ramé et al. 2024, WARM, arXiv 2401.12187), on files.

wam run --config configs/warm/stories.py --workdir runs/warm-stories

The model is a Llama of 260 K parameters that tells children's stories; the reward models learn the polarity of
sentences that people labelled, 25 % of the labels swapped, and are asked about stories. A control reward model, trained
on other sentences with right labels, judges, and labels the pairs of another distribution: stories of the model, and of
what RL with the control reward makes of it.

2-core x86 CPU: 18 min of processor time, 37 min on one core beside other work. One run (seed 0, 95 % intervals over
pairs or prompts): the members memorise, and their average forgets: of the swapped training pairs WARM gets 62.6 % ±
4.2 "right", the ensemble of the same six 89.9 % ± 2.7, the best single one 81.0 % ± 3.5; of clean ones 79.4, 96.6 and
89.0 %. Held-out pairs 63.1, 64.1 and 65.4 % (± 4.3; the best one was chosen by these), shifted ones 56.2, 55.8 and
59.4 % (± 5.8). RL takes the control reward to at most 2.55 ± 0.07 against WARM, 2.12 ± 0.10 against the best single
one and 2.62 ± 0.06 against the ensemble; best-of-n does not tell them apart. Over three seeds RL does not either
(experiments/warm_stories).
"""

from ml_collections import ConfigDict

from wam import base_configs


def get_config():
  config = base_configs.stories()
  config.recipe = "warm"
  # Positive sentences are preferred to negative ones. The judge learns from sentences that the members never saw.
  config.problem.pairs = base_configs.polarity_pairs("[:40%]", "[40%:50%]")
  config.problem.control_pairs = base_configs.polarity_pairs("[50%:95%]", "[95%:]")
  config.problem.prompts.test.split = "[72%:74%]"
  config.problem.tasks = {}
  del config.evaluation  # of policies

  # Fine-tuning on the stories whose openings are the prompts gives the trajectory that Baklava needs.
  config.problem.demonstrations = base_configs.STORIES | {"split": "[:70%]", "first_words": 12}
  config.sft = ConfigDict()
  config.sft.num_steps = 120
  config.sft.batch_size = 16
  config.sft.length = 128
  config.sft.keep_percents = (67, 83)
  config.sft.optimizer = {"learning_rate": 3e-4, "schedule": "cosine", "warmup_steps": 10}

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
  config.warm.num_epochs = 4.0
  config.warm.batch_size = 32
  config.warm.length = 128
  config.warm.keep_percents = (60, 70, 80, 90)
  config.warm.probe_steps = 60
  config.warm.probe_optimizer = {"learning_rate": 1e-2, "schedule": "constant"}
  config.warm.optimizer = base_configs.POLARITY_OPTIMIZER

  config.control = base_configs.polarity_reward_model()

  # Without a penalty: how far a proxy can be trusted is the question.
  config.reinforce = ConfigDict()
  config.reinforce.num_iterations = 12
  config.reinforce.prompts_per_iteration = 128
  config.reinforce.samples_per_prompt = 4
  config.reinforce.batch_size = 64
  config.reinforce.kl_coef = 0.0
  config.reinforce.optimizer = {"learning_rate": 3e-4, "schedule": "constant"}

  config.ood = {"iterations": (0, 3, 6), "samples_per_prompt": 4, "shift": {"num_iterations": 6}}

  config.accuracy = {"orders": ("best_first", "worst_first"), "max_pairs": 500}
  config.interpolation = {"num_points": 5, "max_pairs": 500}
  config.best_of_n = {"num_candidates": 256, "num_prompts": 32, "prompts_per_call": 4}
  config.over_optimisation = {
    "proxies": ("best single", "ensemble mean", "warm"),
    "measure_every": 2,
    "samples_per_prompt": 2,
  }
  return config
