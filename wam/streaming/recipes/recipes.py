r"""Recipes: what is merged, how, and into what, as a file or as arguments of the command line.

A recipe is YAML (or JSON) with mergekit's keys and their meaning there (mergekit 0.1.5):

    merge_method: ties              # a key of wam.merging.methods.METHODS; mergekit's names are among them
    base_model: models/sft          # where task vectors start; config, generation config and tokenizer are its
    models:
      - model: models/helpful       # a directory, a file, an Orbax checkpoint, or BASE+ADAPTER
        parameters:
          weight: [0.2, 0.8]        # a gradient: from the first layer to the last
          density: 0.5
      - model: models/harmless
        parameters:
          weight:                   # the first filter that is a part of the tensor's name
            - filter: self_attn
              value: [0.8, 0.2]
            - value: 0.5            # all others
    parameters:                     # for all models, where they do not say otherwise
      density: 0.3
      lambda: 1.0
      normalize: true
    tokenizer_source: union         # or base, or one of the models
    dtype: float32
    out_dtype: bfloat16
    # Ours:
    seed: 0
    group: leaf

**Models.** Exactly one of `models`, `slices`, and `modules` with one module in it (its `models` or `slices` and its
`parameters`). `slices: [{sources: [{model, layer_range: [a, b), parameters}], parameters, base_model}]` stacks layers:
every slice merges as many layers of each of its sources; what comes before the layers is made of the sources of the
first slice, what comes after them of those of the last; layers are numbered anew and config.json follows. With
`merge_method: passthrough` this copies layers. No model may be listed twice in a slice.

**Values.** A number, flag or name; a list of them, a gradient, piecewise linear in t = layer / (n - 1) of the slice
(t = 1 if it has one layer; outside the layers t = 0, also for final norm and head, which the plan notes); or a list of
{filter, value}, whose first filter that is a substring of the tensor's name counts (`*` or none fits all), and whose
values may be gradients. From first to last count the settings of the model, of the slice, of the module, of the recipe;
one whose filters do not fit is passed over.

**Names of parameters.** mergekit's (weight, t, lambda, density, gamma, epsilon, normalize, rescale, select_topk,
filter_wise, nuslerp_flatten, scale, ...), and those of the row in METHODS, which has more: `elect: unweighted`,
`normalize: count`, `zero_sign: majority`, `rescale: probability` and `group: global` are the papers' where mergekit
departs from them. A weight is required for every member of mergekit's methods that take one. What a method does not use
is refused by name; mergekit ignores it.

**The base.** The start of task vectors, and not a member, for task_arithmetic, ties, dare_*, breadcrumbs*, della*,
model_stock, sce, nearswap, arcee_fusion, and where given for nuslerp and multislerp. One of the two models for slerp
(t = 0). For linear and karcher a member like the others, as in mergekit, which appends it to `models` where it is not
listed; for linear only if a weight for all models is given, otherwise (as for passthrough) it gives config and
tokenizer only. Without a base the donor of config and tokenizer is the first model listed; mergekit takes one by hash.

**Types.** `dtype` and `out_dtype` say what is stored; without them that is the dtype of the donor. Arithmetic is always
float32, float64 for float64 inputs, and one rounding at the end: mergekit casts to `dtype` before it computes.

**Tied heads.** Where all models are tied (tie_word_embeddings), so is the output, without a copy of the head. Where
only some are, they contribute their embedding to the output's head. Buffers such as inv_freq are left out. Tensors that
are not floating point are copied from the donor.

**Disagreement.** Tensors that are missing, extra or of another shape, tokenizers that mean different tokens by the same
row, and keys of config.json that change what weights mean are refused, all in one message, before anything is written.

Extensions, which mergekit does not have:

- `merge_method` may be any key of METHODS: liti, expo, lerp, geometric_median, fisher, ...
- `origin: MODEL`, the start of task vectors for methods that may or may not use one: karcher, slerp, multislerp.
- slerp with a `base_model` that is not one of two models is WARP's, of task vectors, layer by layer; `weight`s may take
  the place of `t`, and there may be more than two models.
- `group: leaf | layer | global`: which tensors make one vector for angles and thresholds.
- `seed`: of masks and stochastic rounding. Masks depend on it and on names alone.
- `importances: CHECKPOINT` beside a model, for fisher.
- A value per part, with the partitions of wam/core/parts.py (by_depth, by_kind, by_regex, by_layer, by_leaf,
  layer_ranges, linear_only, whole), `within` and `times` another one; `default` for parts that are not named and
  `untouched` (0) for tensors in none. This is adaptive model averaging (AMA) with given ratios, eta multiplying the
  model after RLHF (the authors' code has it the other way round):

      merge_method: liti
      base_model: models/sft
      models: [{model: models/rlhf}]
      parameters:
        eta:
          parts: {by_depth: 3, within: linear_only}
          values: {input: 0.2, middle: 0.5, output: 1.0}

- `accept_config_differences: [rope_theta]`: keys of config.json in which the models may differ (the donor's count);
  `tokenizer` accepts tokenizers that differ, and merges row by row.

Refused by name: residual_weight, several modules, revisions of models, chat templates by name, keys of other programs.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from wam.core.errors import ConfigError, MissingFile
from wam.merging.table import METHODS
from wam.streaming.recipes.planning import build
from wam.streaming.recipes.recipe_data import NOTHING, Entry, Recipe, as_data, from_data
from wam.streaming.recipes.recipe_methods import dialect, method_name
from wam.streaming.recipes.recipe_settings import plain_coefficients

__all__ = ["Recipe", "as_data", "build", "from_arguments", "from_data", "read_recipe"]


def read_recipe(path: str | pathlib.Path) -> Recipe:
  """Reads a recipe file; see the module for its keys.

  Raises:
    MissingFile: if it does not exist.
    ConfigError: if it is not YAML (or JSON, for names that end so), has a key twice, or does not make sense.
    UnknownName: names a key that does not exist.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise MissingFile(f"{path}: no such recipe; expected a YAML file")
  try:
    text = path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise ConfigError(f"{path}: is not a text file ({error.reason}); expected YAML") from None
  return from_data(parse(text, str(path)), where=str(path))


def parse(text: str, where: str) -> Any:
  """The content of YAML, of which JSON is a part; keys may not occur twice.

  Raises:
    ConfigError: if it cannot be read.
  """
  if where.endswith(".json"):
    try:
      return json.loads(text, object_pairs_hook=lambda pairs: _distinct(pairs, where))
    except ValueError as error:
      if isinstance(error, ConfigError):
        raise
      raise ConfigError(f"{where}: is not JSON: {error}") from None
  import yaml

  class Loader(yaml.SafeLoader):
    """Refuses keys that occur twice, of which YAML keeps the last."""

  def mapping(loader: Any, node: Any) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    pairs = [(loader.construct_object(k, deep=True), v) for k, v in node.value]
    return _distinct([(k, loader.construct_object(v, deep=True)) for k, v in pairs], where)

  Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
  try:
    documents = list(yaml.load_all(text, Loader))
  except (yaml.YAMLError, RecursionError, TypeError) as error:
    raise ConfigError(f"{where}: is not YAML: {error}") from None
  if len(documents) > 1:
    raise ConfigError(
      f"{where}: expected one recipe, found {len(documents)}; merges that build on each other are run"
      " one after the other"
    )
  return documents[0] if documents else None


def _distinct(pairs: Sequence[tuple[Any, Any]], where: str) -> dict[Any, Any]:
  keys = [str(key) for key, _ in pairs]
  twice = sorted({key for key in keys if keys.count(key) > 1})
  if twice:
    raise ConfigError(f"{where}: the key '{twice[0]}' occurs twice")
  return dict(pairs)


def from_arguments(
  *,
  method: str,
  models: Sequence[str],
  base: str | None = None,
  weights: Sequence[float] | None = None,
  parameters: Mapping[str, Any] = NOTHING,
  importances: Sequence[str] | None = None,
  dtype: str | None = None,
  out_dtype: str | None = None,
  tokenizer: str | None = None,
  chat_template: str | None = None,
  group: str | None = None,
  seed: int = 0,
) -> Recipe:
  """A recipe from arguments: `wam merge --method slerp --base SFT A B --out OUT`.

  Other than in a file, weights that are not given are those of the method (equal ones, or 1 each), slerp of two models
  goes half the way, and the base of karcher is where its task vectors start.

  Args:
    method: a key of METHODS.
    models: the members.
    base: the common start, one of two models for slerp, or the donor of config and tokenizer.
    weights: one for each of the models.
    parameters: by name; texts are read as YAML, so that lists are gradients.
    importances: a checkpoint for each of the models.
    dtype: as in a file, as are the others.
    out_dtype: stored dtype.
    tokenizer: base, union, or one of the models.
    chat_template: auto, or its text.
    group: leaf, layer or global.
    seed: of random methods.

  Raises:
    UnknownName: if there is no such method.
    ConfigError: if there are not as many weights or importances as models, or a model occurs twice.
  """
  words = dialect(method_name(method))
  for name, values in (("weights", weights), ("importances", importances)):
    if values is not None and len(values) != len(models):
      raise ConfigError(f"{name}: found {len(values)} for {len(models)} models")
  settings = {k: parse(v, k) if isinstance(v, str) else v for k, v in parameters.items()}
  start = base if words.base == "member" and METHODS[method].init != "unused" else None
  members = [m for m in models if m != base] if words.base in ("start", "given") else list(models)
  if weights is None and words.weight and "weight" not in settings:
    # A base that is listed but not a member takes no weight.
    weights = [plain_coefficients(method, max(1, len(members)))[0]] * len(models)
  two = len(models) == 2 and (base is None or base in models)
  if method == "slerp" and two and weights is None and not {"t", "weight"} & settings.keys():
    settings["t"] = 0.5
  entries = tuple(
    Entry(
      model,
      None,
      NOTHING if weights is None or model not in members else {"weight": weights[i]},
      None if importances is None else importances[i],
    )
    for i, model in enumerate(models)
  )
  return Recipe(
    method,
    models=entries,
    base=None if start is not None else base,
    origin=start,
    parameters=settings,
    dtype=dtype,
    out_dtype=out_dtype,
    tokenizer=None if tokenizer is None else {"source": tokenizer},
    chat_template=chat_template,
    group=group,
    seed=seed,
  )
