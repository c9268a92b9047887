"""Algorithm 1 on the table whose completions can be listed: its degenerate cases, bit for bit, and what it records."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithms import enumerable
from tests.algorithms.small_test_models import open_run
from wam.algorithms import reinforce
from wam.checkpoints import records
from wam.core.errors import ConfigError, UnknownName
from wam.merging import averages
from wam.recipes import warp_episodes as episodes
from wam.recipes import warp_plans
from wam.recipes.task_vector_angles import angles

VALUES = enumerable.rewards(0)
SECTION = {
  "num_iterations": 2,
  "prompts_per_iteration": 8,
  "samples_per_prompt": 4,
  "optimizer": {"learning_rate": 0.1, "name": "adam"},
  "anchor": "ema",
  "ema_rate": 0.3,
  "kl_coef": 0.2,
}
START = enumerable.TABLE.init(1)


def listed(prompt_tokens, prompt_mask, completions, completion_mask):
  """The reward of each of the 40 completions, from a list."""
  return VALUES[enumerable.index_of(completions, completion_mask)]


def plans(warp=None, comparisons=None, **changes):
  return warp_plans.plans(warp=warp or {}, reinforce=SECTION | changes, comparisons=comparisons)


def carry_out(directory, every, scorer=listed):
  """Trains all plans; a namespace of the setting (closed) and of what each plan left, by name."""
  with open_run(directory) as run:
    setting = episodes.Setting(
      types.SimpleNamespace(model=enumerable.TABLE),
      START,
      enumerable.prompts(4),
      {"proxy": scorer, "gold": listed},
      run,
      enumerable.SAMPLING,
      every,
    )
    for plan in every:
      episodes.train(plan, setting)
  return setting


def equal(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def lines(setting, kind="metric"):
  return [r for r in records.read(setting.run.directory) if r["kind"] == kind]


TWO = {"num_episodes": 2, "num_members": 2, "eta": 0.5}


@pytest.fixture(scope="module")
def two_episodes(tmp_path_factory):
  return carry_out(tmp_path_factory.mktemp("two"), plans(TWO))


def test_a_single_static_episode_is_plain_reinforce(tmp_path):
  """μ = 0, I = 1, M = 1, η = 1: the anchor stays θ_SFT, the merge is the member, the output is the merge."""
  every = plans({"num_members": 1, "eta": 1.0}, ema_rate=0.0)
  setting = carry_out(tmp_path / "warp", every)
  stage = episodes.member_stage(every[0], every, 1, 0)
  static = {k: v for k, v in SECTION.items() if k not in ("anchor", "ema_rate")}
  with open_run(tmp_path / "plain") as run:
    plain = reinforce.run(
      enumerable.TABLE, START, enumerable.prompts(4), listed, run=run, stage=stage,
      other_scorers={"gold": listed}, sampling=enumerable.SAMPLING, **static,
    )  # fmt: skip
  for found in (
    episodes.merged(every[0], setting, 1),
    episodes.output(every[0], setting, 1, 1.0),
    averages.liti(START, episodes.merged(every[0], setting, 1), every[0].settings.eta),
  ):
    assert equal(found, plain)
  assert not equal(plain, START)


def test_an_anchor_that_is_the_policy_has_no_effect(tmp_path, two_episodes):
  """μ = 1 is β = 0 in all members of all episodes, and both differ from a slow anchor."""
  own = plans(TWO, ema_rate=1.0)
  free = plans(TWO, kl_coef=0.0, anchor="init", ema_rate=None)
  a, b = carry_out(tmp_path / "own", own), carry_out(tmp_path / "free", free)
  for episode in (1, 2):
    first = episodes.merged(own[0], a, episode)
    assert equal(first, episodes.merged(free[0], b, episode))
    assert not equal(first, episodes.merged(two_episodes.plans[0], two_episodes, episode))


def test_outputs_end_at_the_sft_policy_and_at_the_merge(two_episodes):
  (plan,) = two_episodes.plans
  for episode in (1, 2):
    assert equal(episodes.output(plan, two_episodes, episode, 0.0), START)
    merged = episodes.merged(plan, two_episodes, episode)
    assert equal(episodes.output(plan, two_episodes, episode, 1.0), merged)
  # The second episode starts half-way: in the middle of θ_SFT and the first merge.
  kernel = lambda tree: np.asarray(tree["layers"]["0"]["head"]["kernel"], np.float64)  # noqa: E731
  middle = (kernel(START) + kernel(episodes.merged(plan, two_episodes, 1))) / 2
  found = episodes.start(plan, two_episodes, 2)
  np.testing.assert_allclose(kernel(found), middle, atol=1e-6)


def test_eta_0_never_leaves(tmp_path):
  """Every episode starts from θ_SFT again; its members differ from those of the first by their streams only."""
  every = plans(TWO | {"eta": 0.0})
  setting = carry_out(tmp_path, every)
  assert equal(episodes.start(every[0], setting, 2), START)
  first = [r for r in lines(setting) if r["step"] == 1]
  assert len(first) == 4 and all(r["kl"] == 0 == r["kl_ema"] for r in first)


def test_members_differ_in_the_order_of_prompts_only(two_episodes):
  (plan,) = two_episodes.plans
  assert plan.member(1, 0) == plan.member(1, 1)
  members = [episodes.trained(plan, two_episodes, 1, m) for m in (0, 1)]
  assert not equal(*members)
  # Both were at θ_SFT in their first iteration, and saw other completions there.
  first = {r["stage"]: r for r in lines(two_episodes) if r["step"] == 1}
  one, other = (first[f"warp-episode_1-member_{m}"] for m in (0, 1))
  assert one["kl"] == other["kl"] == 0 and one["reward"] != other["reward"]


@pytest.mark.slow
def test_the_kl_is_that_to_the_sft_policy_in_every_episode(tmp_path):
  """The anchor of the second episode starts at its init; the KL that is recorded is exact up to sampling."""
  every = plans(TWO, prompts_per_iteration=512, num_iterations=1)
  setting = carry_out(tmp_path, every)
  record = next(r for r in lines(setting) if r["stage"] == "warp-episode_2-member_0")
  logs = [
    np.asarray(enumerable.logprobs(w, model=enumerable.TABLE), np.float64)
    for w in (episodes.start(every[0], setting, 2), START)
  ]
  exact = float(np.exp(logs[0]) @ (logs[0] - logs[1]))
  assert exact > 1e-3
  assert record["kl_ema"] == 0 and record["kl"] == pytest.approx(exact, rel=0.1)
  assert "kl_init" not in record and "kl_reference" not in record


def test_a_static_anchor_is_the_init_of_the_episode(tmp_path):
  every = plans(TWO, num_iterations=1, anchor="init", ema_rate=None)
  setting = carry_out(tmp_path, every)
  record = next(r for r in lines(setting) if r["stage"] == "warp-episode_2-member_0")
  assert record["kl_init"] == 0 < record["kl"]


@pytest.mark.parametrize("rule", episodes.MERGES)
def test_merges_of_equal_members_and_of_one(rule):
  init = {"layers": {"0": {"w": jnp.ones((3, 2))}}}
  member = jax.tree.map(lambda x: x * jnp.linspace(0.3, 1.7, 6).reshape(3, 2), init)
  for members in ([member], [member] * 2, [member] * 3):
    found, _ = episodes.merge(init, members, rule=rule, group="layer")
    assert equal(found, member)


def test_merges_of_orthogonal_members():
  """Equal norms at a right angle: (δ_1 + δ_2)/√2 on the sphere, half of their sum on the line."""
  init = {"layers": {"0": {"w": jnp.ones((2, 2))}}}
  deltas = np.asarray([[[3.0, 0], [0, 0]], [[0, 3.0], [0, 0]]])
  members = [{"layers": {"0": {"w": jnp.asarray(1 + d, jnp.float32)}}} for d in deltas]
  for rule, factor in {"slerp": 2**-0.5, "karcher": 2**-0.5, "lerp": 0.5}.items():
    found, about = episodes.merge(init, members, rule=rule, group="layer")
    np.testing.assert_allclose(found["layers"]["0"]["w"], 1 + factor * deltas.sum(0), rtol=1e-6)
    assert about["merge"] == rule
    if rule != "lerp":
      np.testing.assert_allclose(about["coefficients"], [factor] * 2, rtol=1e-6)
  measured = angles(init, members)
  assert measured["whole"] == measured["layers"] == 0
  assert measured["lerp_shrinkage"] == pytest.approx(2**-0.5)
  assert measured["norm"] == pytest.approx(3 / 2) and measured["norm_ratio"] == 1
  # (4, 1, 1, 1) and (1, 4, 1, 1)
  assert measured["weights"] == pytest.approx(10 / 19)


def test_angles_against_numpy():
  draw = np.random.default_rng(0)
  shapes = {"a": (4, 3), "b": (5,)}

  def tree(scale=1.0, still=()):
    return {
      f"layers/{i}/{n}": (0 if (i, n) in still else scale) * draw.standard_normal(s)
      for i in range(2) for n, s in shapes.items()
    }  # fmt: skip

  init, deltas = tree(), [tree(0.1), tree(0.2, still={(1, "b")}), tree(0.1)]

  def nested(flat):
    found = {"layers": {"0": {}, "1": {}}}
    for name, x in flat.items():
      _, layer, leaf = name.split("/")
      found["layers"][layer][leaf] = jnp.asarray(x, jnp.float32)
    return found

  members = [nested({n: init[n] + d[n] for n in init}) for d in deltas]
  found = angles(nested(init), members)

  def cosines(groups):
    every = []
    for group in groups:
      vectors = [np.concatenate([d[n].ravel() for n in group]) for d in deltas]
      for i in range(3):
        for j in range(i + 1, 3):
          size = np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j])
          if size > 0:
            every.append(vectors[i] @ vectors[j] / size)
    return np.asarray(every)

  layers = [[n for n in init if n.startswith(f"layers/{i}/")] for i in range(2)]
  assert found["layers"] == pytest.approx(cosines(layers).mean(), abs=1e-5)
  assert found["whole"] == pytest.approx(cosines([list(init)]).mean(), abs=1e-5)
  alone = cosines([[n] for n in init])
  assert len(alone) == 4 * 3 - 2  # the tensor that one member did not move
  for name, q in {"p05": 0.05, "p50": 0.5, "p95": 0.95}.items():
    assert found[name] == pytest.approx(np.quantile(alone, q), abs=1e-5)
  sizes = [np.sqrt(sum((d[n] ** 2).sum() for n in d)) for d in deltas]
  start = np.sqrt(sum((x**2).sum() for x in init.values()))
  assert found["norm"] == pytest.approx(np.mean(sizes) / start, rel=1e-5)
  assert found["norm_ratio"] == pytest.approx(min(sizes) / max(sizes), rel=1e-5)


def test_angles_of_members_that_did_not_move():
  init = {"layers": {"0": {"w": jnp.ones((2, 2))}}}
  found = angles(init, [init, init])
  assert set(found) == {"weights", "norm", "norm_ratio"} and found["norm"] == 0


def test_killed_in_the_second_episode_it_ends_with_the_same_bits(two_episodes, tmp_path):
  calls = 0

  def failing(*rollout):
    nonlocal calls
    calls += 1
    if calls == 7:  # of 2 episodes of 2 members of 2 iterations
      raise KeyboardInterrupt
    return listed(*rollout)

  with pytest.raises(KeyboardInterrupt):
    carry_out(tmp_path, plans(TWO), failing)
  again = carry_out(tmp_path, plans(TWO), failing)
  assert calls == 9
  (plan,) = again.plans
  for episode in (1, 2):
    expected = episodes.merged(two_episodes.plans[0], two_episodes, episode)
    assert equal(episodes.merged(plan, again, episode), expected)
  for kind in ("metric", "cosines"):
    before, after = (
      [records.without_times(r) for r in lines(s, kind)] for s in (two_episodes, again)
    )
    assert before == after and before
  # What is done is not done again.
  carry_out(tmp_path, plans(TWO), failing)
  assert calls == 9


def test_cosines_are_recorded_for_every_episode(two_episodes):
  found = lines(two_episodes, "cosines")
  assert [r["x"] for r in found] == [{"episode": 1}, {"episode": 2}]
  (plan,) = two_episodes.plans
  for episode, record in enumerate(found, start=1):
    members = [episodes.trained(plan, two_episodes, episode, m) for m in (0, 1)]
    init = episodes.start(plan, two_episodes, episode)
    kernels = [np.asarray(t["layers"]["0"]["head"]["kernel"], np.float64) for t in (init, *members)]
    a, b = (k.ravel() - kernels[0].ravel() for k in kernels[1:])
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert record["values"]["whole"] == pytest.approx(expected, abs=1e-5)
    assert record["merge"] == "slerp" and len(record["coefficients"]) == 2


def test_plans_share_what_they_have_in_common(tmp_path):
  """The first episode of another rule has the same members; an average of a member's own run needs no training."""
  every = plans(
    {"num_episodes": 1, "num_members": 2},
    {
      "merge": {"lerp": {"warp": {"merge": "lerp"}}},
      "M": {"3": {"warp": {"num_members": 3}}},
      "same run": {"1, 2": {"warp": {"num_members": 1, "average_of": (1, 2)}}},
    },
  )
  setting = carry_out(tmp_path, every)
  trained = {r["stage"] for r in lines(setting)}
  assert trained == {f"warp-episode_1-member_{m}" for m in (0, 1)} | {"warp-M-3-episode_1-member_2"}
  _, lerped, _, averaged = every
  members = [episodes.trained(every[0], setting, 1, m) for m in (0, 1)]
  assert equal(episodes.merged(lerped, setting, 1), averages.uniform_mean(members))
  own = [episodes.trained(every[0], setting, 1, 0, i) for i in (1, 2)]
  assert equal(episodes.merged(averaged, setting, 1), averages.uniform_mean(own))


def test_a_length_penalty_of_one_member(tmp_path):
  sections = ({}, {"length_penalty": 0.5})
  setting = carry_out(tmp_path, plans({"num_members": 2, "members": sections}))
  for record in lines(setting):
    if record["stage"].endswith("member_1"):
      expected = record["reward_proxy"] - 0.5 * record["length"]
      assert record["reward"] == pytest.approx(expected, abs=1e-5)
    else:
      assert "reward_proxy" not in record


def test_budgets():
  every = plans(
    {"num_episodes": 2, "num_members": 3, "episode_iterations": (4, 2)},
    {
      "one run": {
        "long": {"budget": "long"},
        "wide": {"budget": "wide"},
        "short": {"settings": {"kl_coef": 0.5}},
        "given": {"settings": {"num_iterations": 7}},
      }
    },
    batch_size=16,
  )
  main, long, wide, short, given = every
  assert main.total_iterations == 3 * (4 + 2) == long.num_iterations(1)
  assert long.total_iterations == 18 and long.settings.num_members == 1
  assert wide.num_iterations(1) == 6 and wide.reinforce["prompts_per_iteration"] == 24
  assert wide.reinforce["batch_size"] == 48
  assert short.num_iterations(1) == 4 and short.reinforce["kl_coef"] == 0.5
  assert given.num_iterations(1) == 7
  assert [main.num_iterations(i) for i in (1, 2)] == [4, 2]


def test_candidates_in_order():
  every = plans(
    {"num_episodes": 2, "num_members": 2, "etas": (0.5,)},
    {
      "static": {"β": {"settings": {"anchor": "init", "ema_rate": None}}},
      "merge": {"lerp": {"warp": {"merge": "lerp", "num_episodes": 1}}},
      "M": {"1": {"warp": {"num_members": 1, "num_episodes": 1}}},
    },
    num_iterations=3,
  )
  found = warp_plans.candidates(every, measure_every=2)
  assert [(c.family, c.label) for c in found] == [
    ("init", "SFT"),
    *(
      (f"REINFORCE: episode 1, member {m}", f"iteration {i}") for m in (1, 2) for i in (2, 3)
    ),
    *(("WARP, episode 1", f"η = {eta}") for eta in ("0", "0.5", "1")),
    ("episode starts", "episode 2"),
    *(
      (f"REINFORCE: episode 2, member {m}", f"iteration {i}") for m in (1, 2) for i in (2, 3)
    ),
    *(("WARP, episode 2", f"η = {eta}") for eta in ("0", "0.5", "1")),
    ("static: β", "iteration 2"),
    ("static: β", "iteration 3"),
    *(("static: β, LITI", f"η = {eta}") for eta in ("0", "0.5", "1")),
    *(("merge: lerp", f"η = {eta}") for eta in ("0", "0.5", "1")),
    ("M: 1", "iteration 2"),
    ("M: 1", "iteration 3"),
    *(("M: 1, LITI", f"η = {eta}") for eta in ("0", "0.5", "1")),
  ]  # fmt: skip
  by_name = {(c.family, c.label): c for c in found}
  # One policy by two names: the member that is its own merge, and a member of the first episode.
  last = by_name["REINFORCE: episode 1, member 1", "iteration 3"].identity
  assert by_name["M: 1", "iteration 3"].identity == by_name["M: 1, LITI", "η = 1"].identity == last
  assert by_name["merge: lerp", "η = 1"].identity != by_name["WARP, episode 1", "η = 1"].identity
  assert {c.family for c in found if c.selectable} == {"init", "WARP, episode 2"}
  zeros = {c.identity for c in found if c.label in ("SFT", "η = 0")}
  assert zeros == {"init"}


@pytest.mark.parametrize(
  ("warp", "error", "message"),
  [
    ({"merge": "slurp"}, UnknownName, "warp.merge.*slerp"),
    ({"num_members": 0}, ConfigError, "warp.num_members: expected 1 at least, found 0"),
    ({"eta": 1.5}, ConfigError, r"ratios from 0 to 1, found \[1.5\]"),
    ({"members": ({},)}, ConfigError, "warp.members: expected 2 entries or none, found 1"),
    ({"members": ({}, {"lenght_penalty": 1})}, ConfigError, r"members\[1\].*length_penalty"),
    ({"num_episode": 2}, ConfigError, "num_episodes"),
    ({"average_of": (3,)}, ConfigError, r"iterations from 1 to 2 .*found \[3\]"),
  ],
)
def test_refused_settings(warp, error, message):
  with pytest.raises(error, match=message):
    for plan in plans(warp):
      plan.check(enumerable.SAMPLING)


@pytest.mark.parametrize(
  ("spec", "error", "message"),
  [
    ({"setings": {}}, ConfigError, "comparisons.a.b: unknown key 'setings'"),
    ({"budget": "infinite"}, UnknownName, "comparisons.a.b.budget"),
    ({"budget": "long", "warp": {}}, ConfigError, "a budget is for plain runs"),
    ({"settings": {"kl_coeff": 1}}, ConfigError, "kl_coef"),
    ({"settings": {"anchor": "init"}}, ConfigError, "ema_rate"),
  ],
)
def test_refused_comparisons(spec, error, message):
  with pytest.raises(error, match=message):
    for plan in plans({}, {"a": {"b": spec}}):
      plan.check(enumerable.SAMPLING)


def test_two_comparisons_of_one_name():
  with pytest.raises(ConfigError, match="both called warp-a-b_"):
    plans({}, {"a": {"b ": {}, "b!": {}}})
  with pytest.raises(ConfigError, match="both called a: c"):
    plans({}, {"a": {"b": {"label": "c"}, "c": {}}})
  compared = plans({}, {"a_run": {"b": {"label": "β = 0.1"}, "c_d": {}}})[1:]
  assert [plan.family for plan in compared] == ["a run: β = 0.1", "a run: c d"]
  assert [plan.name for plan in compared] == ["warp-a_run-b", "warp-a_run-c_d"]
