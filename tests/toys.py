"""Overrides that shrink the shipped configs to seconds. Every shipped config must have an entry."""

TINY = [
  "--config.problem.num_corpus=400",
  "--config.problem.num_demonstrations=80",
  "--config.problem.num_pairs=64",
  "--config.problem.num_validation_pairs=16",
  "--config.problem.num_prompts=16",
  "--config.problem.num_items=6",
  "--config.model.hidden_size=16",
  "--config.model.intermediate_size=16",
  "--config.model.num_layers=3",
  "--config.model.num_heads=2",
  "--config.pretrain.num_steps=4",
  "--config.pretrain.batch_size=8",
  "--config.pretrain.optimizer.warmup_steps=1",
  "--config.sft.num_steps=2",
  "--config.sft.batch_size=8",
  "--config.sft.optimizer.warmup_steps=1",
  "--config.reward_model.num_epochs=0.5",
  "--config.reward_model.batch_size=8",
  "--config.reward_model.optimizer.warmup_steps=1",
  "--config.rsf.num_iterations=2",
  "--config.rsf.prompts_per_iteration=8",
  "--config.rsf.samples_per_prompt=2",
  "--config.rsf.batch_size=8",
  "--config.rsf.epochs=1",
  "--config.averaging.alphas=(0.5,)",
  "--config.averaging.part_alphas=(0.5,)",
]

STORIES = [
  "--config.problem.pairs.train.split=[:2%]",
  "--config.problem.pairs.validation.split=[2%:3%]",
  "--config.problem.control_pairs.train.split=[3%:5%]",
  "--config.problem.control_pairs.validation.split=[5%:6%]",
  "--config.problem.prompts.train.split=[:16]",
  "--config.problem.prompts.validation.split=[16:20]",
  "--config.problem.prompts.test.split=[20:24]",
  "--config.problem.tasks.tinystories.validation.split=[24:26]",
  "--config.problem.tasks.tinystories.test.split=[26:28]",
  "--config.problem.tasks.wikitext.validation.split=[:1]",
  "--config.problem.tasks.wikitext.test.split=[:1]",
  "--config.problem.tasks.lambada.validation.split=[:4]",
  "--config.problem.tasks.lambada.test.split=[4:8]",
  "--config.reward_model.num_epochs=0.5",
  "--config.reward_model.batch_size=8",
  "--config.reward_model.optimizer.warmup_steps=1",
  "--config.sampling.max_new_tokens=6",
  "--config.rsf.num_iterations=1",
  "--config.rsf.prompts_per_iteration=8",
  "--config.rsf.samples_per_prompt=2",
  "--config.rsf.batch_size=8",
  "--config.rsf.epochs=1",
  "--config.averaging.alphas=(0.5,)",
  "--config.averaging.part_alphas=(0.5,)",
  "--config.evaluation.max_length=64",
]

# With the files of tests/real_scale_files.py; 8 devices in the tests, hence the eights. Along `data`: the many small
# reductions of sharded leaves at the end of a run can lock up the collectives of virtual CPU devices.
REAL_SCALE = [
  "--config.mesh.data=8",
  "--config.mesh.fsdp=1",
  "--config.problem.pairs.train.split=train[:16]",
  "--config.problem.pairs.validation.split=test[:8]",
  "--config.problem.prompts.train.split=train[:16]",
  "--config.problem.prompts.validation.split=test[:4]",
  "--config.problem.prompts.test.split=test[4:8]",
  "--config.sft.batch_size=16",
  "--config.sft.length=32",
  "--config.sft.logits_chunk=8",
  "--config.sft.accumulate_steps=2",
  "--config.reward_model.batch_size=8",
  "--config.reward_model.length=32",
  "--config.sampling.prompt_length=16",
  "--config.sampling.max_new_tokens=4",
  "--config.rsf.num_iterations=1",
  "--config.rsf.prompts_per_iteration=16",
  "--config.rsf.samples_per_prompt=2",
  "--config.rsf.prompts_per_call=8",
  "--config.rsf.batch_size=8",
  "--config.rsf.epochs=1",
  # A random model seldom ends its texts.
  "--config.rsf.require_eos=False",
  # A few steps of 1e-5 leave a KL below the rounding of float32, of either sign.
  "--config.rsf.optimizer.learning_rate=0.01",
  "--config.averaging.alphas=(0.5,)",
  "--config.averaging.part_alphas=(0.5,)",
  "--config.evaluation.batch_size=8",
  "--config.evaluation.max_length=32",
]

# Of both configs of WARM.
WARM = [
  "--config.warm.num_epochs=0.5",
  "--config.warm.batch_size=8",
  "--config.warm.probe_steps=2",
  "--config.warm.optimizer.warmup_steps=1",
  "--config.warm.keep_percents=(50,)",
  "--config.sft.num_steps=6",
  "--config.sft.batch_size=8",
  "--config.sft.optimizer.warmup_steps=1",
  "--config.sampling.max_new_tokens=6",
  "--config.reinforce.num_iterations=4",
  "--config.reinforce.prompts_per_iteration=8",
  "--config.reinforce.samples_per_prompt=2",
  "--config.reinforce.batch_size=8",
  "--config.ood.iterations=(0,1)",
  "--config.ood.shift.num_iterations=1",
  "--config.accuracy.orders=('best_first',)",
  "--config.interpolation.num_points=3",
  "--config.best_of_n.num_candidates=8",
  "--config.best_of_n.num_prompts=4",
  "--config.best_of_n.prompts_per_call=2",
  "--config.over_optimisation.proxies=('best single','warm')",
  "--config.over_optimisation.measure_every=1",
]
WARM_TINY = [
  *(o for o in TINY if o.split(".")[1] in ("problem", "model", "pretrain")),
  "--config.model.num_layers=1",
  *WARM,
]
WARM_STORIES = [
  *(o for o in STORIES if ".pairs." in o or ".control_pairs." in o or ".prompts." in o),
  "--config.problem.demonstrations.split=[:16]",
  "--config.sft.length=32",
  "--config.control.num_epochs=0.5",
  "--config.control.batch_size=8",
  "--config.control.optimizer.warmup_steps=1",
  *WARM,
]

# Of all configs that tune by REINFORCE against rewards of their own.
REINFORCE = [
  "--config.sampling.max_new_tokens=6",
  "--config.reinforce.num_iterations=2",
  "--config.reinforce.prompts_per_iteration=8",
  "--config.reinforce.samples_per_prompt=2",
  "--config.evaluation.num_seeds=2",
]
WORLD = [
  *(o for o in TINY if o.split(".")[1] in ("problem", "model", "pretrain", "sft")),
  "--config.model.num_layers=1",
  *(o for o in REINFORCE if ".max_new_tokens" not in o),
]
FILES = [
  *(o for o in STORIES if ".pairs." in o or ".prompts." in o or ".tinystories." in o),
  *REINFORCE,
  "--config.evaluation.max_length=64",
]
OWN_REWARD = [
  "--config.reward_model.num_epochs=0.5",
  "--config.reward_model.batch_size=8",
  "--config.reward_model.optimizer.warmup_steps=1",
]
POLARITY = [
  "--config.rewards.polarity.reward_model.num_epochs=0.5",
  "--config.rewards.polarity.reward_model.batch_size=8",
  "--config.rewards.polarity.reward_model.optimizer.warmup_steps=1",
]
POPULATION = [
  "--config.warm.num_epochs=0.5",
  "--config.warm.batch_size=8",
  "--config.warm.probe_steps=2",
  "--config.warm.optimizer.warmup_steps=1",
]
WARP = [
  "--config.reinforce.optimizer.warmup_steps=1",
  "--config.warp.num_episodes=2",
  "--config.warp.etas=(0.3,)",
  "--config.reinforce.keep_every=1",
  "--config.front.measure_every=2",
  "--config.evaluation.num_seeds=2",
]
SAME_RUN = ["--config.comparisons.same_run.last.warp.average_of=(1,2)"]
CLP = [
  "--config.clp.preferences_per_iteration=2",
  "--config.clp.prompts_per_preference=8",
  "--config.clp.samples_per_prompt=2",
  "--config.clp.updates_per_iteration=2",
  "--config.grid.intervals=2",
  "--config.reinforce.batch_size=8",
]
GRIDS = [
  "--config.soups.intervals=2",
  "--config.morl.intervals=2",
  "--config.decoding.intervals=2",
]
SOUPS = [*GRIDS, "--config.reinforce.batch_size=8"]
WORLD_SOUPS = [*WORLD, *SOUPS]


def _soups_by(algorithm: str) -> list[str]:
  """The overrides of Rewarded Soups in the world, for another algorithm than REINFORCE."""
  return [o.replace(".reinforce.", f".{algorithm}.") for o in WORLD_SOUPS]


OVERRIDES = {
  "alignment_tax/tiny.py": TINY,
  "alignment_tax/stories.py": STORIES,
  "alignment_tax/openllama_3b.py": REAL_SCALE,
  "alignment_tax/mistral_7b.py": REAL_SCALE,
  "warm/tiny.py": WARM_TINY,
  "warm/tiny.py:near": WARM_TINY,
  "warm/stories.py": WARM_STORIES,
  "warp/tiny.py": [*WORLD, *OWN_REWARD, *WARP, *SAME_RUN],
  "warp/stories.py": [*FILES, *OWN_REWARD, *WARP, *SAME_RUN],
  "warp/full_loop.py": [*WORLD, "--config.sft.num_steps=6", *POPULATION, *WARP],
  "warp/full_loop_stories.py": [*FILES, *OWN_REWARD, *POPULATION, *WARP],
  "rewarded_soups/tiny.py": WORLD_SOUPS,
  "rewarded_soups/tiny.py:compatible": WORLD_SOUPS,
  "rewarded_soups/tiny.py:three": WORLD_SOUPS,
  "rewarded_soups/tiny.py:personalised": WORLD_SOUPS,
  "rewarded_soups/tiny.py:ppo": _soups_by("ppo"),
  # A second iteration would find that the toy has unlearnt how to end a reply, and keep nothing.
  "rewarded_soups/tiny.py:rsf": [*_soups_by("rsf"), "--config.rsf.num_iterations=1"],
  "rewarded_soups/stories.py": [*FILES, *POLARITY, *SOUPS],
  "clp/tiny.py": [*WORLD, *CLP],
  "clp/stories.py": [*FILES, *POLARITY, *CLP],
}
