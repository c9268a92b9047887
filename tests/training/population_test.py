"""Populations: one program against runs of their own, kills, meshes, and what is refused."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import toy
from wam.checkpoints import orbax, records
from wam.core import rng, trees
from wam.core.errors import ConfigError, MismatchedTrees, MissingFile, NonFinite
from wam.merging import averages, spherical
from wam.training import kept, loop, member_axis, member_runs, optimizers, population, sharding
from wam.training.interrupts import Interrupted
from wam.training.members import SETTINGS, Member, Population
from wam.training.workdir import Run

STEPS = 12
RATES = (0.05, 0.02, 0.1, 0.05)
DECAYS = (0.0, 0.3, 0.1, 0.0)
RULES = ((r"a/kernel", sharding.P("fsdp", None)), (".*", sharding.P()))


class Batches:
  """Batch n of a member is drawn from the generator (member, n)."""

  def __init__(self, member, poisoned=None, rows=8):
    self.member, self.number, self.poisoned, self.rows = member, 0, poisoned, rows

  def __next__(self):
    draw = np.random.default_rng([self.member, self.number])
    self.number += 1
    x = draw.normal(size=(self.rows, 4)).astype(np.float32)
    y = x @ np.arange(12, dtype=np.float32).reshape(4, 3)
    if self.number == self.poisoned:
      y[0, 0] = np.nan
    return {"x": x, "y": y}

  def get_state(self):
    return {"number": self.number, "member": self.member}

  def set_state(self, state):
    assert state["member"] == self.member
    self.number = state["number"]


def loss_fn(params, batch, key, frozen):
  """The toy's squared error, with noise as strong as the member's setting and a pull to what is frozen."""
  noise = frozen[SETTINGS]["noise"] * jax.random.normal(key, batch["x"].shape)
  bias = jnp.broadcast_to(params["a"]["bias"], batch["y"].shape)
  error = (batch["x"] + noise) @ params["a"]["kernel"] + bias - batch["y"]
  pull = jnp.sum((params["a"]["bias"] - frozen["anchor"]["bias"]) ** 2)
  count = jnp.float32(batch["x"].shape[0])
  return jnp.sum(error**2) + pull, count, {"absolute": (jnp.sum(jnp.abs(error)), count)}


def four(**keywords) -> Population:
  optimizer = {"schedule": "cosine", "warmup_steps": 3, "final_fraction": 0.1}
  members = [
    Member(optimizer | {"learning_rate": rate, "weight_decay": decay}, seed=m, settings={"noise": 0.1 * m})
    for m, (rate, decay) in enumerate(zip(RATES, DECAYS, strict=True))
  ]  # fmt: skip
  return Population("toy", members, loss_fn, STEPS, **{"log_every": 5} | keywords)


def inputs(size=4, **keywords):
  return [Batches(m, **keywords) for m in range(size)]


def open_run(directory, mesh=None, rules=sharding.REPLICATED, **keywords) -> Run:
  mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
  return Run(directory, seed=99, mesh=mesh, rules=rules, tensorboard=False, show=False, **keywords)


def train(directory, how=population.fit, *, of=None, starts=None, batches=None, mesh=None, rules=sharding.REPLICATED,
          save=None, **keywords):  # fmt: skip
  with open_run(directory, mesh, rules, save_every_seconds=None, save_every_steps=save) as run:
    return jax.device_get(
      how(
        of or four(),
        toy.init() if starts is None else starts,
        batches or inputs(),
        run=run,
        frozen={"anchor": {"bias": jnp.ones(3)}},
        **keywords,
      )
    )


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for name, x in trees.flatten(a).items():
    np.testing.assert_array_equal(x, trees.flatten(b)[name], err_msg=name)


def timeless(directory):
  return [records.without_times(r) for r in records.read(directory)]


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
  """The members by the single-run loop, and their records."""
  directory = tmp_path_factory.mktemp("sequential")
  return train(directory, member_runs.fit), timeless(directory)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
  directory = tmp_path_factory.mktemp("mapped")
  return train(directory, vectorize=False), timeless(directory), directory


def test_one_program_gives_the_bits_of_the_members_own_runs(sequential, mapped):
  assert_same_bits(mapped[0], sequential[0])
  assert mapped[1] == sequential[1]
  kernel = mapped[0]["a"]["kernel"]
  assert kernel.shape == (4, 4, 3)
  assert len({kernel[m].tobytes() for m in range(4)}) == 4


def test_vmap_rounds_in_another_order(sequential, tmp_path):
  found = train(tmp_path, vectorize=True)
  for name, x in trees.flatten(found).items():
    # Sums of 8 products in another order, twelve updates of at most 0.1.
    np.testing.assert_allclose(x, trees.flatten(sequential[0])[name], rtol=2e-5, atol=2e-6)


def test_a_member_is_what_optax_and_numpy_say(tmp_path):
  """SGD with decay for two members by hand; the keys are those of the member's seed and stage."""
  sgd = {"name": "sgd", "clip_norm": None}
  sections = [
    sgd | {"learning_rate": 0.01, "weight_decay": 0.5},
    sgd | {"learning_rate": 0.03, "weight_decay": 0.0},
  ]
  members = [
    Member(section, seed=7 + m, settings={"noise": 0.3}) for m, section in enumerate(sections)
  ]
  found = train(
    tmp_path, of=Population("toy", members, loss_fn, 3), batches=inputs(2), vectorize=False
  )
  for m, (rate, decay) in enumerate(((0.01, 0.5), (0.03, 0.0))):
    kernel, bias = (np.asarray(toy.init()["a"][n], np.float64) for n in ("kernel", "bias"))
    batches = Batches(m)
    for step in range(3):
      batch = next(batches)
      noise = np.asarray(jax.random.normal(rng.key(7 + m, "toy/loss", step), (8, 4)))
      x = batch["x"] + 0.3 * noise
      error = x @ kernel + bias - batch["y"]
      kernel = kernel - rate * (2 * x.T @ error / 8 + decay * kernel)
      bias = bias - rate * (2 * error.sum(0) + 2 * (bias - 1)) / 8
    np.testing.assert_allclose(found["a"]["kernel"][m], kernel, rtol=1e-5)
    np.testing.assert_allclose(found["a"]["bias"][m], bias, rtol=1e-5)


@pytest.mark.slow
def test_learning_rates_are_those_of_a_plain_run(tmp_path):
  """The single-run loop with `optimizers.make` itself: the same up to the last bits of the learning rate."""
  of = four()
  found = train(tmp_path / "population", vectorize=False)
  with open_run(tmp_path / "plain") as run:
    run.seed = 2
    frozen = {"anchor": {"bias": jnp.ones(3)}}
    plain = loop.fit(
      toy.init(),
      Batches(2),
      run=run,
      stage="toy",
      loss_fn=lambda *xs: loss_fn(*xs[:3], {**frozen, SETTINGS: of.settings(2)}),
      tx=optimizers.make(total_steps=STEPS, **of.members[2].optimizer),
      num_steps=STEPS,
    )
  for name, x in trees.flatten(plain).items():
    np.testing.assert_allclose(trees.flatten(found)[name][2], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("axes", "devices"),
  [
    pytest.param({"member": 4}, 4, marks=pytest.mark.slow),
    ({"member": 2, "data": 1}, 2),
    pytest.param({"member": 2, "data": 2, "fsdp": 2}, 8, marks=pytest.mark.slow),
  ],
)
def test_members_over_devices(axes, devices, sequential, tmp_path):
  mesh = member_axis.make_mesh(axes, devices=jax.devices()[:devices])
  with open_run(tmp_path, mesh, RULES) as run:
    found = population.fit(
      four(), toy.init(), inputs(), run=run, frozen={"anchor": {"bias": jnp.ones(3)}},
      vectorize=False,
    )  # fmt: skip
  kernel = found["a"]["kernel"]
  assert kernel.sharding.spec[0] == "member"
  assert len(kernel.sharding.device_set) == devices
  assert kernel.sharding.shard_shape(kernel.shape)[0] == 4 // axes["member"]
  if devices == axes["member"]:
    assert_same_bits(jax.device_get(found), sequential[0])
  for name, x in trees.flatten(found).items():
    # Split batches are added up in another order.
    np.testing.assert_allclose(x, trees.flatten(sequential[0])[name], rtol=2e-5, atol=2e-6)


def test_members_on_devices_of_their_own_do_not_communicate():
  mesh = member_axis.make_mesh({"member": 4}, devices=jax.devices()[:4])
  of = four()
  along = jax.NamedSharding(mesh, sharding.P("member"))
  state = jax.vmap(lambda p, own: population.init(p, of.optimizer(0, own)))(
    member_axis.repeated(toy.init(), 4), of.own().optimizer
  )
  batch = jax.tree.map(lambda *xs: np.stack(xs, 1), *(next(b) for b in inputs()))
  update = jax.jit(population.make_update(of, mesh=mesh))
  with jax.set_mesh(mesh):
    whole = jax.NamedSharding(mesh, sharding.P())
    arguments = jax.device_put((state, batch, of.own()), (along, whole, along))
    text = update.lower(*arguments, {"anchor": {"bias": jnp.ones(3)}}).compile().as_text()
  assert not any(word in text for word in ("all-reduce", "all-gather", "collective", "all-to-all"))
  assert "dot(" in text or "fusion" in text


@pytest.mark.parametrize(
  "how", [population.fit, pytest.param(member_runs.fit, marks=pytest.mark.slow)]
)
def test_interrupted_runs_end_with_the_same_bits(how, sequential, tmp_path, monkeypatch):
  count, following = 0, Batches.__next__

  def interrupting(self):
    nonlocal count
    count += 1
    if count == 27:
      os.kill(os.getpid(), signal.SIGTERM)
    return following(self)

  keywords = {"vectorize": False} if how is population.fit else {}
  with monkeypatch.context() as patched:
    patched.setattr(Batches, "__next__", interrupting)
    with pytest.raises(Interrupted, match="toy: stopped by SIGTERM"):
      train(tmp_path, how, **keywords)
  assert_same_bits(train(tmp_path, how, **keywords), sequential[0])
  assert timeless(tmp_path) == sequential[1]


@pytest.mark.slow
def test_after_a_kill_the_last_checkpoint_counts(sequential, tmp_path, monkeypatch):
  with monkeypatch.context() as patched:
    patched.setattr(loop, "save_result", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      train(tmp_path, vectorize=False, save=5)
  saved = tmp_path / "checkpoints/toy/steps"
  assert sorted(p.name for p in saved.iterdir()) == ["10", "5"]
  assert_same_bits(train(tmp_path, vectorize=False), sequential[0])
  assert timeless(tmp_path) == sequential[1]


def test_separate_jobs_meet_through_checkpoints(sequential, tmp_path):
  frozen = {"anchor": {"bias": jnp.ones(3)}}
  for m in (2, 0, 3):
    with open_run(tmp_path) as run:
      member_runs.fit_member(four(), m, toy.init(), Batches(m), run=run, frozen=frozen)
  with open_run(tmp_path) as run:
    with pytest.raises(MissingFile, match=r"toy: no result of member 1 of 4"):
      member_runs.gather(four(), toy.init(), run=run)
    member_runs.fit_member(four(), 1, toy.init(), Batches(1), run=run, frozen=frozen)
    found = member_runs.gather(four(), toy.init(), run=run)
  assert_same_bits(jax.device_get(found), sequential[0])
  assert timeless(tmp_path) == sequential[1]
  # And what has met is a stage that is done for one program, too; its inputs stand where it left them.
  batches = inputs()
  assert_same_bits(train(tmp_path, batches=batches), sequential[0])
  assert [b.number for b in batches] == [STEPS] * 4
  assert timeless(tmp_path) == sequential[1]


def test_records_name_the_member_and_hold_the_means(mapped):
  every = mapped[1]
  assert [(r["step"], r["member"]) for r in every if r["kind"] == "member"] == [
    (step, m) for step in (5, 10, 12) for m in range(4)
  ]
  for mean in (r for r in every if r["kind"] == "metric"):
    own = [r for r in every if r["kind"] == "member" and r["step"] == mean["step"]]
    for name in ("loss", "absolute", "grad_norm"):
      assert mean[name] == pytest.approx(np.mean([r[name] for r in own]), rel=1e-12)
    assert "member" not in mean


@pytest.mark.parametrize(
  "how", [population.fit, pytest.param(member_runs.fit, marks=pytest.mark.slow)]
)
def test_nan_names_the_member(how, tmp_path):
  batches = [Batches(m, poisoned=7 if m == 2 else None) for m in range(4)]
  message = {
    population.fit: r"toy: the loss of member 2 at step 7 is not finite\. The last saved step is 5",
    member_runs.fit: r"member 2: toy: the loss of step 7 is not finite",
  }[how]
  with pytest.raises(NonFinite, match=message):
    train(tmp_path, how, batches=batches, save=5)


def test_diverged_members_are_named():
  stacked = {"a": np.array([[1.0, 2.0], [np.inf, 0.0], [0.0, np.nan]]), "b": np.zeros((3, 2))}
  with pytest.raises(
    NonFinite, match=r"s: parameters are not finite after step 4 \(member 1: a; member 2: a\)"
  ):
    member_axis.check_finite(stacked, stage="s", step=4)


def test_merges_are_reductions_over_the_member_axis(mapped):
  stacked = mapped[0]
  mean = averages.weighted_mean(stacked)
  best = averages.weighted_mean(stacked, [0.0, 0.0, 1.0, 0.0])
  for name, x in trees.flatten(stacked).items():
    np.testing.assert_allclose(trees.flatten(mean)[name], x.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_array_equal(trees.flatten(best)[name], x[2])
  apart = spherical.slerp_iterative(toy.init(), trees.unstack(stacked))
  assert_same_bits(spherical.slerp_iterative(toy.init(), stacked), apart)


def test_members_can_be_loaded_and_saved_alone(sequential, mapped, tmp_path):
  with open_run(mapped[2]) as run:
    third = member_runs.load_member(four(), 3, run=run)
    stacked = member_axis.load_stacked(four(), toy.init(), run=run)
    with pytest.raises(ConfigError, match="no member 4 of 4"):
      member_runs.load_member(four(), 4, run=run)
  assert_same_bits(third, jax.tree.map(lambda x: x[3], sequential[0]))
  paths = member_runs.save_each(stacked, tmp_path / "each")
  assert [p.name for p in paths] == ["0", "1", "2", "3"]
  assert_same_bits(jax.device_get(orbax.load(paths[3])), third)


def test_starts_of_their_own(tmp_path):
  """Baklava: with a learning rate of 0 the result is what every member started from."""
  starts = [jax.tree.map(lambda x, m=m: x * (1 + 0.1 * m), toy.init()) for m in range(4)]
  members = [Member({"learning_rate": 0.0}, settings={"noise": 0.0}) for _ in range(4)]
  of = Population("toy", members, loss_fn, 1)
  assert_same_bits(train(tmp_path, of=of, starts=starts), jax.device_get(trees.stack(starts)))


def test_what_cannot_be_traced_is_refused(tmp_path):
  optimizer = {"learning_rate": 0.05}
  others = ({"schedule": "cosine"}, {"name": "sgd", "b1": 0.8})
  members = [Member(optimizer | other, settings={"noise": 0.0}) for other in ({}, *others)]
  of = Population("toy", members, loss_fn, 2)
  with pytest.raises(
    ConfigError,
    match=r"schedule is 'absent' in member 0 and 'cosine' in member 1; b1 is 'absent' in member 0 and 0\.8 in member 2;"
    r" name is 'absent' in member 0 and 'sgd' in member 2\..*mode 'sequential'",
  ):
    train(tmp_path, of=of, batches=inputs(3))


@pytest.mark.slow
def test_one_after_the_other_optimizers_may_differ(tmp_path):
  sections = ({"learning_rate": 0.01}, {"learning_rate": 0.1, "name": "sgd", "clip_norm": None})
  members = [Member(section, settings={"noise": 0.0}) for section in sections]
  of = Population("toy", members, loss_fn, 1)
  found = train(tmp_path, member_runs.fit, of=of, batches=inputs(2))
  moved = np.abs(found["a"]["bias"] - 0.0)
  # Adam's first step is its learning rate, whatever the gradient.
  np.testing.assert_allclose(moved[0], 0.01, rtol=1e-4)
  assert moved[1].max() > 0.02


def stranger():
  draw = np.random.default_rng(0)
  return {"a": {"kernel": jnp.asarray(draw.normal(size=(4, 3)), jnp.float32), "bias": jnp.zeros(3)}}


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    ({"of": lambda: Population("toy", [], loss_fn, 1)}, ConfigError, r"at least one member, found none \(M = 0\)"),
    ({"starts": lambda: [toy.init()] * 3}, ConfigError, "one for each of 4 members, found 3"),
    (
      {"starts": lambda: [toy.init()] * 3 + [{"a": {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}}]},
      MismatchedTrees, r"'a/kernel' has shape \(4, 2\) in member 3",
    ),
    ({"starts": lambda: [toy.init()] * 3 + [stranger()]}, ConfigError, r"do not share the init: 3 .*member 3: cosine"),
    ({"batches": lambda: inputs(3)}, ConfigError, "batches of their own for each of 4 members, found 3"),
    ({"batches": lambda: [Batches(0)] * 4}, ConfigError, "found 1"),
    ({"batches": lambda: [*inputs(3), Batches(3, rows=16)]}, MismatchedTrees, "pad all members' rows"),
    ({"mesh": lambda: member_axis.make_mesh({"member": 8})}, ConfigError, "4 members cannot be split over .* size 8"),
  ],
)  # fmt: skip
def test_what_is_refused(change, error, message, tmp_path):
  with pytest.raises(error, match=message):
    train(tmp_path, **{name: make() for name, make in change.items()})
  assert not (tmp_path / "checkpoints/toy/result").exists()


@pytest.mark.slow
def test_strangers_can_be_allowed(tmp_path):
  starts = [toy.init()] * 3 + [stranger()]
  found = train(tmp_path, starts=starts, allow_unrelated=True)
  assert np.isfinite(found["a"]["kernel"]).all()


@pytest.mark.parametrize(
  ("member", "message"),
  [
    (Member({}), "missing key 'learning_rate'"),
    (Member({"learning_rate": -1.0}), "learning_rate is -1.0"),
    (Member({"learning_rate": float("nan")}), "learning_rate is nan"),
    (Member({"lerning_rate": 0.1}), "Did you mean 'learning_rate'"),
    (Member({"learning_rate": 0.1}, seed=-1), "seed -1"),
    (Member({"learning_rate": 0.1}, settings={"dropout": 0.1}), r"settings \['dropout'\] and member 0 \[\]"),
    (Member({"learning_rate": 0.1, "weight_decay": 0.1, "name": "adam"}), "adam has no weight decay"),
  ],
)  # fmt: skip
def test_members_that_make_no_sense(member, message):
  with pytest.raises(ConfigError, match=message):
    Population("toy", [Member({"learning_rate": 0.1}), member], loss_fn, 1)


def test_what_is_kept_on_the_way_is_the_same_together_and_alone(sequential, tmp_path):
  found = {}
  for how in (population.fit, member_runs.fit):
    train(tmp_path / how.__module__, how, of=four(keep_steps=(5,)))
    with open_run(tmp_path / how.__module__) as run:
      assert kept.steps(run, "toy") == [5]
      found[how] = kept.load(run, 5, sequential[0], stage="toy")
  assert_same_bits(found[population.fit], found[member_runs.fit])
  # Half-way is not where they end.
  assert not np.array_equal(found[population.fit]["a"]["kernel"], sequential[0]["a"]["kernel"])


def test_members_are_vectorized_where_there_are_accelerators():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  assert not population.vectorized(None, mesh)
  assert population.vectorized(True, mesh)
