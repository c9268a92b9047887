"""Parts from leaf names: our layouts, Hugging Face's, abstract trees; coverage; coefficients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam.core import coefficients as broadcasting
from wam.core import names, parts, trees
from wam.core.errors import ConfigError, MismatchedTrees, UncoveredLeaves, UnknownName

pytestmark = pytest.mark.usefixtures("strict_dtypes")

SHAPES = {
  "attention_norm/scale": (4,),
  "attention/q/kernel": (4, 6),
  "attention/q/bias": (6,),
  "attention/q_norm/scale": (2,),
  "attention/o/kernel": (6, 4),
  "mlp_norm/scale": (4,),
  "mlp/gate/kernel": (4, 8),
  "mlp/down/kernel": (8, 4),
}
OUTER = {"embed/embedding": (10, 4), "final_norm/scale": (4,), "lm_head/kernel": (4, 10)}


def unrolled(num_layers: int):
  shapes = dict(OUTER)
  for i in range(num_layers):
    shapes |= {f"layers/{i}/{name}": shape for name, shape in SHAPES.items()}
  return trees.unflatten({n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()})


def stacked(num_layers: int):
  shapes = OUTER | {f"layers/{name}": (num_layers, *shape) for name, shape in SHAPES.items()}
  return trees.unflatten({n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()})


def hugging_face(num_layers: int):
  inner = ["input_layernorm", "self_attn.q_proj", "self_attn.q_norm", "self_attn.o_proj"]
  inner += ["mlp.gate_proj", "mlp.down_proj", "post_attention_layernorm"]
  matrix = lambda n: (4,) if "norm" in n else (4, 4)  # noqa: E731
  tree = {
    "model.embed_tokens.weight": (10, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (10, 4),
  }
  for i in range(num_layers):
    tree |= {f"model.layers.{i}.{n}.weight": matrix(n) for n in inner}
  return {n: np.zeros(s, np.float32) for n, s in tree.items()}


def layers_of(partition, part):
  """Which layers a part holds, from the names of its leaves."""
  found = set()
  for name in partition.members(part):
    pieces = name.replace(".", "/").split("/")
    if "layers" in pieces:
      found.add(int(pieces[pieces.index("layers") + 1]))
  return sorted(found)


@pytest.mark.parametrize("make", [unrolled, stacked, hugging_face])
@pytest.mark.parametrize(
  ("split", "sizes"), [("even", (8, 9, 9)), ("floor", (8, 8, 10))]
)  # the paper's text, and its code
def test_the_paper_splits_26_layers(make, split, sizes):
  partition = parts.by_depth(make(26), 3, split=split)
  assert partition.names == ("input", "middle", "output")
  ends = np.cumsum(sizes)
  for name, start, stop in zip(partition.names, ends - sizes, ends, strict=True):
    assert layers_of(partition, name) == list(range(start, stop))
  assert partition.untouched() == []
  outer = {n for n in partition.members("input") if "embed" in n}
  assert len(outer) == 1
  assert {n for n in partition.members("output") if "lm_head" in n or "norm" in n.split("/")[0]}


def test_stacked_and_unrolled_spell_the_same_parts():
  for builder in (parts.by_depth, parts.by_kind, parts.by_leaf, parts.by_layer, parts.whole):
    a, b = builder(unrolled(4)), builder(stacked(4))
    assert sorted(a.names) == sorted(b.names)
    for name in a.names:
      # A part that holds a stacked leaf as a whole lists it under its own name.
      spelled = []
      for leaf in b.members(name):
        whole = leaf.startswith("layers/") and not leaf.split("/")[1].isdigit()
        spelled += (
          [leaf.replace("layers/", f"layers/{i}/", 1) for i in range(4)] if whole else [leaf]
        )
      assert sorted(spelled) == sorted(a.members(name))


def test_boundaries_and_own_parts():
  tree = unrolled(6)
  partition = parts.by_depth(
    tree, boundaries=(1, 5), embeddings="words", final_norm=None, head="head"
  )
  assert partition.names == ("words", "input", "middle", "output", "head")
  assert layers_of(partition, "middle") == [1, 2, 3, 4]
  assert partition.members("words") == ["embed/embedding"]
  assert partition.untouched() == ["final_norm/scale"]
  with pytest.raises(ConfigError, match="must rise"):
    parts.by_depth(tree, boundaries=(5, 1))
  with pytest.raises(ConfigError, match="cannot make 7 parts of 6 layers"):
    parts.by_depth(tree, 7)
  with pytest.raises(UnknownName, match="even"):
    parts.by_depth(tree, split="evn")


def test_layer_ranges_cover_or_name_what_they_leave():
  with pytest.raises(UncoveredLeaves, match="layers/2/attention/q/kernel"):
    parts.layer_ranges(stacked(4), {"low": (0, 2), "high": (3, 4)})
  loose = parts.layer_ranges(stacked(4), {"low": (0, 2), "high": (3, 4)}, cover=False)
  assert "layers/2/mlp/down/kernel" in loose.untouched()
  assert len(loose.untouched()) == len(SHAPES)
  with pytest.raises(ConfigError, match=r"\[0, 4\)"):
    parts.layer_ranges(stacked(4), {"low": (0, 5)})


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("embed/embedding", "embeddings"),
    ("model.embed_tokens.weight", "embeddings"),
    ("transformer.wte.weight", "embeddings"),
    ("embed_out.weight", "head"),
    ("lm_head.weight", "head"),
    ("head/kernel", "head"),
    ("score.weight", "head"),
    ("output.weight", "head"),
    ("model.norm.weight", "norms"),
    ("transformer.h.0.ln_1.weight", "norms"),
    ("transformer.ln_f.bias", "norms"),
    ("model.layers.3.input_layernorm.weight", "norms"),
    ("layers/0/attention/q_norm/scale", "norms"),
    ("layers/attention/q/kernel", "attention"),
    ("model.layers.11.self_attn.k_proj.bias", "attention"),
    ("transformer.h.0.attn.c_proj.weight", "attention"),
    ("layers_0/attn/q_einsum/w", "attention"),
    ("bert.encoder.layer.2.attention.output.dense.weight", "attention"),
    ("model.layers.3.mlp.experts.0.up_proj.weight", "mlp"),
    ("transformer/layer_0/mlp/linear/w", "mlp"),
    ("layers/mlp/down/kernel", "mlp"),
    ("relative_bias/table", None),
  ],
)
def test_kind_of(name, kind):
  assert names.kind_of(name) == kind


def test_by_kind_covers_or_raises():
  assert parts.by_kind(hugging_face(2)).names == names.KINDS
  with pytest.raises(UncoveredLeaves, match="relative_bias"):
    parts.by_kind({**hugging_face(1), "relative_bias": np.zeros(3)})


def test_linear_only_lists_the_rest():
  partition = parts.linear_only(stacked(3))
  assert partition.names == ("linear",)
  assert set(partition.members("linear")) == {f"layers/{n}" for n in SHAPES if n.endswith("kernel")}
  assert set(partition.untouched()) == set(OUTER) | {
    f"layers/{n}" for n in SHAPES if not n.endswith("kernel")
  }
  more = parts.linear_only(unrolled(3), biases=True, head=True)
  assert more.members("head") == ["lm_head/kernel"]
  assert "layers/0/attention/q/bias" in more.members("linear")


def test_by_regex_first_match_wins_on_both_layouts():
  rules = {"first": r"layers/0/.*", "attention": r".*attention.*", "rest": r".*"}
  for tree in (unrolled(3), stacked(3)):
    partition = parts.by_regex(tree, rules)
    assert partition.names == ("first", "attention", "rest")
    assert layers_of(partition, "first") == [0]
    assert "layers/2/attention/q/kernel" in partition.members("attention")
  with pytest.raises(UncoveredLeaves, match="embed/embedding, final_norm/scale"):
    parts.by_regex(stacked(3), {"all": r"layers/.*"})
  with pytest.raises(ConfigError, match="not a regular expression"):
    parts.by_regex(stacked(3), {"all": "("})
  kept = parts.by_regex(stacked(2), [(None, "embed/.*"), ("all", ".*")])
  assert kept.untouched() == ["embed/embedding"]


def test_within_and_times():
  tree = stacked(6)
  scope = parts.by_depth(tree).within(parts.linear_only(tree))
  assert scope.names == ("input", "middle", "output")
  assert "final_norm/scale" in scope.untouched()
  assert layers_of(scope, "middle") == [2, 3]
  both = parts.by_depth(tree).times(parts.by_kind(tree))
  assert both.names[:2] == ("input/embeddings", "input/attention")
  assert "input/head" not in both.names
  with pytest.raises(MismatchedTrees):
    scope.within(parts.by_depth(unrolled(6)))


def test_common_flax_names_and_several_stacks():
  tree = {f"layers_{i}": {"attn": {"w": np.zeros((2, 2))}} for i in range(4)}
  assert parts.by_depth(tree, 2).members("part 2") == ["layers_2/attn/w", "layers_3/attn/w"]
  two = {
    "encoder": {"layers": {"0": {"w": np.zeros(2)}}},
    "decoder": {"layers": {"w": np.ones((3, 2))}},
  }
  with pytest.raises(ConfigError, match="found 2: decoder/layers, encoder/layers"):
    parts.by_depth(two, 1)
  assert len(parts.by_layer(two).names) == 4
  with pytest.raises(ConfigError, match="leading axes differ"):
    parts.by_layer({"layers": {"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}})


def test_coefficients_broadcast_against_leaves():
  tree = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), stacked(4))
  partition = parts.by_depth(tree, 2, final_norm=None)
  values = parts.coefficients(partition, {"part 1": 0.25, "part 2": 0.75})
  assert jax.tree.structure(values) == jax.tree.structure(tree)
  scaled = trees.flatten(jax.tree.map(lambda c, x: broadcasting.broadcast(c, x) * x, values, tree))
  np.testing.assert_array_equal(
    scaled["layers/mlp/gate/kernel"][:, 0, 0], np.float32([0.25, 0.25, 0.75, 0.75])
  )
  np.testing.assert_array_equal(scaled["embed/embedding"], np.full((10, 4), 0.25, np.float32))
  np.testing.assert_array_equal(scaled["final_norm/scale"], np.zeros(4, np.float32))
  defaults = parts.coefficients(partition, {"part 1": 0.5}, default=1.0)
  assert float(defaults["lm_head"]["kernel"]) == 1.0
  with pytest.raises(UnknownName, match="part 1"):
    parts.coefficients(partition, {"part one": 0.5})
  with pytest.raises(ConfigError, match="no value for the parts part 2"):
    parts.coefficients(partition, {"part 1": 0.5})


def test_coefficients_are_differentiable_and_parts_are_static():
  tree = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), stacked(4))

  @jax.jit
  def total(low, high):
    partition = parts.by_depth(tree, 2, names=("low", "high"))
    values = parts.coefficients(partition, {"low": low, "high": high})
    return sum(
      jnp.sum(broadcasting.broadcast(c, x) * x)
      for c, x in zip(jax.tree.leaves(values), jax.tree.leaves(tree), strict=True)
    )

  low, high = jax.grad(total, argnums=(0, 1))(jnp.float32(0.1), jnp.float32(0.2))
  assert float(low + high) == trees.num_params(tree)
  assert hash(parts.by_depth(tree)) == hash(parts.by_depth(tree))


def test_broadcast_and_spread_refuse_what_does_not_fit():
  leaf = jnp.zeros((3, 2, 2))
  assert broadcasting.broadcast(0.5, leaf).shape == ()
  assert broadcasting.broadcast(jnp.ones(3), leaf).shape == (3, 1, 1)
  with pytest.raises(MismatchedTrees, match=r"\(2,\)"):
    broadcasting.broadcast(jnp.ones(2), leaf)
  with pytest.raises(MismatchedTrees, match="'a'"):
    broadcasting.spread({"a": jnp.ones(2)}, {"a": leaf})
  with pytest.raises(MismatchedTrees, match="without a coefficient: a"):
    broadcasting.spread({"b": 1.0}, {"a": leaf})
  assert broadcasting.spread(0.5, {"a": leaf}) == {"a": 0.5}


def test_reward_models_and_the_authors_cut_of_deep_models():
  reward = {
    "decoder": {k: v for k, v in stacked(32).items() if k != "lm_head"},
    "head": {"kernel": jax.ShapeDtypeStruct((4, 1), jnp.float32)},
  }
  # The authors' code cuts models of more than 30 layers at 11 and 21.
  partition = parts.by_depth(reward, boundaries=(11, 21))
  assert "head/kernel" in partition.members("output")
  index = partition.indices()["decoder/layers/mlp/down/kernel"]
  assert np.bincount(index).tolist() == [11, 10, 11]
  assert parts.by_kind(reward).members("head") == ["head/kernel"]
