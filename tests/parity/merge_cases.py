"""Recipes that mergekit and wam both read, and tiny Llamas to run them on."""

import jax
import numpy as np

from wam import pretrained
from wam.core import trees
from wam.models.config import DecoderConfig
from wam.models.decoder import LanguageModel

CONFIG = DecoderConfig(
  vocab_size=96,
  hidden_size=32,
  intermediate_size=64,
  num_layers=4,
  num_heads=4,
  num_kv_heads=2,
  max_position_embeddings=64,
  bos_token_id=1,
  eos_token_id=(2,),
)


def _many(method, names="abc", *, base=True, per_model="", shared=""):
  """A recipe with one entry a model; `per_model` is formatted with the index of the model."""
  lines = [f"merge_method: {method}"]
  if base:
    lines.append("base_model: {base}")
  lines.append("models:")
  for i, name in enumerate(names):
    lines.append(f"  - model: {{{name}}}")
    inner = [x.replace("#", str(i)) for x in per_model.split(";") if x]
    if inner:
      lines.append("    parameters:")
      lines += [f"      {x.strip()}" for x in inner]
  if shared:
    lines.append("parameters:")
    lines += [f"  {x.strip()}" for x in shared.split(";")]
  return "\n".join(lines) + "\n"


# name -> (recipe, kind). "exact": every bit in float32. "rounding": the order of additions, fused multiply-adds
# (addcmul of torch) or sums over tensors differ in last bits. "edge": so they do, and an entry next to a threshold may
# be kept by one and dropped by the other.
DETERMINISTIC = {
  "linear": (_many("linear", base=False, per_model="weight: 0.#3"), "rounding"),
  "linear_sum": (
    _many("linear", base=False, per_model="weight: 0.#3", shared="normalize: false"),
    "rounding",
  ),
  "linear_gradient": (
    _many("linear", "ab", base=False, per_model="weight: [0.2, 0.#, 0.7]"),
    "rounding",
  ),
  "linear_filters": (
    """
merge_method: linear
models:
  - model: {a}
    parameters:
      weight:
        - {{filter: mlp, value: [0.1, 0.9]}}
        - {{filter: self_attn.q_proj, value: 0.25}}
        - value: 0.5
  - model: {b}
    parameters:
      weight: 0.6
""",
    "rounding",
  ),
  "slerp": (
    "merge_method: slerp\nbase_model: {a}\nmodels:\n  - model: {a}\n  - model: {c}\nparameters:\n  t: 0.3\n",
    "rounding",
  ),
  "slerp_gradient": (
    """
merge_method: slerp
base_model: {a}
slices:
  - sources:
      - {{model: {a}, layer_range: [0, 4]}}
      - {{model: {far}, layer_range: [0, 4]}}
parameters:
  t:
    - {{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}}
    - {{filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}}
    - value: 0.5
""",
    "rounding",
  ),
  "slerp_far": (
    "merge_method: slerp\nbase_model: {a}\nmodels:\n  - model: {a}\n  - model: {far}\nparameters:\n  t: 0.3\n",
    "rounding",
  ),
  "nuslerp": (_many("nuslerp", "ab", per_model="weight: 0.#4"), "rounding"),
  "nuslerp_no_base": (_many("nuslerp", "ab", base=False, per_model="weight: 0.#4"), "rounding"),
  "nuslerp_rows": (
    _many("nuslerp", "ab", per_model="weight: 0.#4", shared="nuslerp_flatten: false"),
    "rounding",
  ),
  "nuslerp_columns": (
    _many(
      "nuslerp",
      "ab",
      per_model="weight: 0.#4",
      shared="nuslerp_flatten: false; nuslerp_row_wise: true",
    ),
    "rounding",
  ),
  "multislerp": (_many("multislerp", per_model="weight: 0.#3"), "rounding"),
  "multislerp_no_base": (_many("multislerp", base=False, per_model="weight: 0.#3"), "rounding"),
  "karcher": (_many("karcher", base=False), "rounding"),
  "task_arithmetic": (_many("task_arithmetic", per_model="weight: 0.#3"), "exact"),
  "task_arithmetic_lambda": (
    _many("task_arithmetic", per_model="weight: 0.#3", shared="lambda: 0.7; normalize: true"),
    "rounding",
  ),
  "ties": (_many("ties", per_model="weight: 0.#3; density: 0.5"), "exact"),
  "ties_sum": (
    _many("ties", per_model="weight: 0.#3; density: 0.#4", shared="normalize: false; lambda: 1.5"),
    "exact",
  ),
  "ties_gradient": (
    _many("ties", per_model="weight: [0.1, 0.#9]; density: [0.3, 0.7, 0.5]"),
    "exact",
  ),
  "breadcrumbs": (
    _many("breadcrumbs", per_model="weight: 0.#3; density: 0.5; gamma: 0.05"),
    "exact",
  ),
  "breadcrumbs_ties": (
    _many("breadcrumbs_ties", per_model="weight: 0.#3; density: 0.7; gamma: 0.02"),
    "exact",
  ),
  "model_stock": (_many("model_stock"), "rounding"),
  "model_stock_rows": (_many("model_stock", shared="filter_wise: true"), "rounding"),
  "sce": (_many("sce"), "rounding"),
  "sce_half": (_many("sce", shared="select_topk: 0.5"), "edge"),
  "nearswap": (
    "merge_method: nearswap\nbase_model: {base}\nmodels:\n  - model: {base}\n  - model: {a}\nparameters:\n  t: 0.01\n",
    "rounding",
  ),
  "arcee_fusion": (
    "merge_method: arcee_fusion\nbase_model: {base}\nmodels:\n  - model: {base}\n  - model: {a}\n",
    "edge",
  ),
  "passthrough": (
    "merge_method: passthrough\nmodels:\n  - model: {a}\n    parameters:\n      scale: 0.5\n",
    "exact",
  ),
  "stacked_layers": (
    """
merge_method: passthrough
slices:
  - sources:
      - {{model: {a}, layer_range: [0, 3]}}
  - sources:
      - {{model: {b}, layer_range: [1, 4]}}
""",
    "exact",
  ),
  "slices_with_parameters": (
    """
merge_method: ties
base_model: {base}
slices:
  - sources:
      - {{model: {base}, layer_range: [0, 2]}}
      - {{model: {a}, layer_range: [0, 2], parameters: {{weight: 0.7}}}}
      - {{model: {b}, layer_range: [0, 2]}}
    parameters: {{weight: 0.2, density: 0.4}}
  - sources:
      - {{model: {base}, layer_range: [2, 4]}}
      - {{model: {a}, layer_range: [2, 4]}}
      - {{model: {b}, layer_range: [2, 4]}}
parameters: {{weight: 0.5, density: 0.8}}
""",
    "exact",
  ),
}

RANDOM = {
  "dare_linear": _many("dare_linear", per_model="weight: 0.#3; density: 0.3"),
  "dare_ties": _many("dare_ties", per_model="weight: 0.#3; density: 0.3"),
  "della_linear": _many("della_linear", per_model="weight: 0.#3; density: 0.5; epsilon: 0.2"),
  "della": _many("della", per_model="weight: 0.#3; density: 0.5; epsilon: 0.2"),
}


def make_models(folder, dtype):
  """Writes base, three fine-tunes of it, and "far", which shares nothing with them."""
  model = LanguageModel(CONFIG)

  def draw(seed, scale):
    random = np.random.default_rng(seed)
    like = model.init(jax.random.key(0))
    return {
      n: scale * random.normal(size=x.shape).astype(np.float32)
      for n, x in trees.flatten(like).items()
    }

  base = {n: x + ("norm" in n) for n, x in draw(0, 0.1).items()}
  found = {"base": base, "far": draw(9, 0.1)}
  for i, name in enumerate("abc", 1):
    found[name] = {n: base[n] + x for n, x in draw(i, 0.01).items()}
  for name, flat in found.items():
    pretrained.save(folder / name, model, trees.unflatten(flat), dtype=dtype)
  return {name: str(folder / name) for name in found}
