"""From a recipe to a plan: opens the checkpoints, checks from their headers all that can be checked, and says for every
tensor of the output what it is made of. Nothing is computed, nothing is written.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wam.core import names
from wam.core.errors import BadCheckpoint, ConfigError, MismatchedTrees, WamError, unknown_name
from wam.merging.methods import METHODS, group_of, per_member
from wam.streaming.blocks import BFLOAT16, FLOATS
from wam.streaming.plan import Output, Plan, Reader, Source
from wam.streaming.recipes import agreement, output_config, rule_checks, slices
from wam.streaming.recipes.recipe_data import Recipe, as_data
from wam.streaming.recipes.recipe_methods import method_name
from wam.streaming.recipes.recipe_settings import Settings
from wam.streaming.recipes.recipe_values import Partitions
from wam.streaming.recipes.roles import Roles, donor_of, roles_of
from wam.streaming.recipes.slices import Model, Row
from wam.streaming.vocabularies import chat_templates, tokenizer_files

if TYPE_CHECKING:
  from wam.streaming.vocabularies.vocabulary import Vocabulary

OpenSource = Callable[[str], Source]

DTYPES = {
  "bfloat16": BFLOAT16,
  "float16": np.dtype(np.float16),
  "float32": np.dtype(np.float32),
  "float64": np.dtype(np.float64),
}
GROUPS = ("leaf", "layer", "global")


def dtype_of(name: str | None, where: str) -> np.dtype | None:
  """A storage dtype by its name, also as "torch.bfloat16".

  Raises:
    UnknownName: if it is none of `DTYPES`.
  """
  if name is None:
    return None
  plain = name.removeprefix("torch.")
  if plain not in DTYPES:
    raise unknown_name(where, name, DTYPES)
  return DTYPES[plain]


def build(
  recipe: Recipe,
  *,
  open_source: OpenSource,
  out_dtype: str | None = None,
  seed: int | None = None,
) -> Plan:
  """The plan of a recipe, checked.

  Args:
    recipe: from `recipes.read_recipe` or `recipes.from_arguments`.
    open_source: opens a checkpoint that the recipe names; only its headers are read.
    out_dtype: stored dtype; goes before what the recipe says.
    seed: of random methods and stochastic rounding; goes before what the recipe says.

  Returns:
    A plan whose sources are open: close them when done.

  Raises:
    ConfigError: if the recipe does not make sense for its method; nothing is opened then.
    UnknownName: names what does not exist.
    MismatchedTrees: names everything in which the checkpoints do not agree.
    WamError: what opening them raises.
  """
  changed = {"out_dtype": out_dtype, "seed": seed}
  recipe = dataclasses.replace(recipe, **{k: v for k, v in changed.items() if v is not None})  # type: ignore[arg-type]
  builder = _Builder(recipe)
  opened: dict[str, Source] = {}
  try:
    for name in builder.to_open():
      opened[name] = open_source(name)
    return builder.plan(opened)
  except BaseException:
    for source in opened.values():
      source.close()
    raise


class _Builder:
  """A plan in the making."""

  def __init__(self, recipe: Recipe):
    """Checks what can be checked before anything is opened."""
    self.recipe = recipe
    self.method = method_name(recipe.method)
    self.row = METHODS[self.method]
    self.partitions = Partitions()
    self.settings = Settings(recipe, self.partitions)
    self.parts = recipe.every_slice()
    self.notes: list[str] = []
    self.roles: list[Roles] = []
    for number in range(len(self.parts)):
      roles, notes = roles_of(recipe, number, self.settings)
      self.roles.append(roles)
      self.note(*notes)
    self.dtype = dtype_of(recipe.out_dtype, "out_dtype") or dtype_of(recipe.dtype, "dtype")
    if recipe.dtype is not None and recipe.out_dtype is None and self.dtype not in FLOATS[:1]:
      self.note(f"dtype: {recipe.dtype} is what is stored; the arithmetic is float32 or wider")
    if recipe.chat_template is not None:
      chat_templates.check(recipe.chat_template, recipe.referenced())
    self.group_by = self._group_by()
    self.problems: list[str] = []

  def note(self, *texts: str) -> None:
    """Adds notes, each once."""
    self.notes += [x for x in dict.fromkeys(texts) if x not in self.notes]

  def _group_by(self) -> str:
    wanted = self.recipe.group
    if wanted is not None and wanted not in GROUPS:
      raise unknown_name("group", wanted, GROUPS)
    if "group" not in self.row.defaults:
      if wanted not in (None, "leaf"):
        raise ConfigError(
          f"group: {self.recipe.method} works entry by entry; grouping has no meaning for it"
        )
      return "leaf"
    return wanted or group_of(self.row.defaults, has_init=self.roles[0].start is not None)

  def to_open(self) -> list[str]:
    """Every checkpoint that the plan needs, by name."""
    used = [entry for roles in self.roles for entry in roles.sources]
    models = [donor_of(self.recipe), *self.recipe.referenced(), *(e.model for e in used)]
    return list(dict.fromkeys([*models, *(e.importances for e in used if e.importances)]))

  def plan(self, opened: Mapping[str, Source]) -> Plan:
    """The plan, from open sources."""
    importances = {e.importances for r in self.roles for e in r.sources if e.importances}
    self.importances = {name: opened[name] for name in importances}
    sources = {name: s for name, s in opened.items() if name not in importances}
    self.models: dict[str, Model] = {}
    for name, source in sources.items():
      self.models[name], notes = slices.view(name, source)
      self.note(*notes)
    self.donor = self.models[donor_of(self.recipe)]
    self.by_slice = {
      i: [self.models[e.model] for e in roles.sources] for i, roles in enumerate(self.roles)
    }
    vocabulary = self._vocabulary(sources)
    tied, notes = slices.settle_heads(self.by_slice[0], self.by_slice[len(self.roles) - 1])
    self.note(*notes)
    if vocabulary is not None:
      self._move_rows(vocabulary)
    rows = self._rows()
    self._compare(rows, vocabulary)
    self.raise_problems()
    self.partitions.shapes = {row.name: row.inputs[0][1].shape for row in rows}
    outputs = tuple(self._output(row) for row in rows)
    self.problems += self.settings.finish()
    self.problems += self._groups(outputs)
    if self.row.sums and any(names.is_stacked(row.name) for row in rows):
      self.note("arrays that hold all layers are taken as one vector each, not layer by layer")
    self.note(*self.settings.notes)
    self.raise_problems(ConfigError)
    files = self._tokenizer_files(sources, vocabulary)
    return Plan(
      outputs,
      opened,
      self._config(outputs, vocabulary, tied),
      self.donor.source,
      self.recipe.seed,
      as_data(self.recipe),
      tuple(self.notes),
      files,
    )

  def raise_problems(self, kind: type[WamError] = MismatchedTrees) -> None:
    """One error for all problems found so far."""
    if self.problems:
      count = len(self.problems)
      raise kind(
        f"{count} reason{'s' if count > 1 else ''} not to merge: {'; '.join(self.problems)}"
      )

  def _vocabulary(self, sources: Mapping[str, Source]) -> "Vocabulary | None":
    if self.recipe.tokenizer is None:
      return None
    if self.importances:
      raise ConfigError("importances do not follow rows that move: leave tokenizer_source out")
    from wam.streaming.vocabularies.vocabulary import plan_vocabulary

    base = self.recipe.base or self.recipe.origin
    return plan_vocabulary(
      self.recipe.tokenizer,
      sources,
      self.donor.source,
      None if base is None else sources[base],
    )

  def _move_rows(self, vocabulary: "Vocabulary") -> None:
    """Gives every embedding, head and head's bias the rows of the output's vocabulary."""
    from wam.streaming.vocabularies.vocabulary_rows import vocabulary_tensors

    self.note(*vocabulary.notes)
    for model in self.models.values():
      own = set(vocabulary_tensors(model.source))
      for name, reader in model.tensors.items():
        if name in own or reader.name in own:
          model.tensors[name] = vocabulary.reader(model.source, reader, name=name)

  def _rows(self) -> list[Row]:
    references = [roles.reference for roles in self.roles]
    if self.recipe.slices:
      return slices.stacked_rows(self.parts, self.models, references, self.problems)
    return slices.whole_rows(self.by_slice[0], references[0], self.problems)

  def _compare(self, rows: Sequence[Row], vocabulary: "Vocabulary | None") -> None:
    """Looks for disagreement between the models, and within each."""
    accepted = self.recipe.accept_config_differences
    for model in self.models.values():
      stacks = slices.num_layers(model)
      layers = next(iter(stacks.values())) if len(stacks) == 1 else 0
      self.problems += agreement.check_one(model, accepted=accepted, layers=layers)
    used = {m.name: m for models in self.by_slice.values() for m in models}
    for model in used.values():
      if model is not self.donor:
        problems, notes = agreement.compare_configs(self.donor, model, accepted=accepted)
        self.problems += problems
        self.note(*notes)
    self.problems += agreement.check_shapes(rows, self.by_slice)
    self.note(*agreement.mixed_dtypes(rows, self.by_slice))
    if vocabulary is None:
      self._compare_tokenizers({name: m.source for name, m in used.items()})

  def _compare_tokenizers(self, sources: Mapping[str, Source]) -> None:
    try:
      self.note(*tokenizer_files.compare(sources, self.donor.source))
    except BadCheckpoint as error:
      if "tokenizer" in self.recipe.accept_config_differences:
        self.note(str(error))
      else:
        self.problems.append(f"{error}, or accept it with accept_config_differences: [tokenizer]")

  def _output(self, row: Row) -> Output:
    """One tensor of the output."""
    roles = self.roles[row.slice]
    first = row.inputs[0][1]
    if first.dtype not in FLOATS:
      self.note(f"'{row.name}' is {first.dtype}: it is copied from one model, not averaged")
      return Output(
        row.name, first.shape, first.dtype, "passthrough", (first,), coefficients=(1.0,)
      )
    stacked = names.is_stacked(row.name)
    members = [(roles.sources[i], row.inputs[i][0]) for i in roles.members]
    resolved = self.settings.resolve(
      self.parts[row.slice],
      members,
      output=row.name,
      t=row.t,
      after=row.where == "after" or stacked,
      has_start=roles.start is not None,
    )
    if stacked and self.settings.is_uneven(row.name):
      self.problems.append(
        f"'{row.name}' holds all layers in one array, which a gradient would tell apart; give numbers"
      )
    values = {k: v for k, v in self.row.defaults.items() if k != "group"}
    values |= resolved.parameters
    readers = [row.inputs[i][1] for i in roles.members]
    start = None if roles.start is None else row.inputs[roles.start][1]
    model = self.by_slice[row.slice][roles.reference]
    own = slices.stored_dtype(model, row.inputs[roles.reference][1])
    return Output(
      row.name,
      first.shape,
      self.dtype or own,
      self.method,
      tuple(readers),
      start,
      self._weights(row, roles),
      resolved.coefficients,
      per_member(self.method, values, len(readers)),
      self._group(row.name),
      row.inputs[0][0],
    )

  def _weights(self, row: Row, roles: Roles) -> tuple[Reader, ...]:
    """The importances of a tensor."""
    found = []
    for i in roles.members if self.row.importances else ():
      entry, (name, reader) = roles.sources[i], row.inputs[i]
      assert entry.importances is not None
      tensors = self.importances[entry.importances].tensors
      other = tensors.get(name) or tensors.get(reader.name)
      if other is None or other.shape != reader.shape:
        has = "has no" if other is None else f"has shape {list(other.shape)} for"
        self.problems.append(f"{entry.importances} {has} '{name}', a tensor {list(reader.shape)}")
      else:
        found.append(other)
    return tuple(found)

  def _group(self, name: str) -> str:
    place = names.layer_of(name)
    if self.group_by == "global":
      return "all"
    return f"{place[0]} {place[1]}" if self.group_by == "layer" and place else name

  def _groups(self, outputs: Sequence[Output]) -> list[str]:
    """What is wrong with coefficients and parameters: the rules themselves look at them, before they read anything."""
    groups: dict[str, list[Output]] = {}
    for output in outputs:
      if output.dtype in FLOATS and output.method == self.method:
        groups.setdefault(output.group, []).append(output)
    found: dict[str, list[str]] = {}
    for group in groups.values():
      problem = rule_checks.problem_of(group)
      if problem is not None:
        found.setdefault(problem, []).append(group[0].name)
    return [f"{text} ({_few(tensors)})" for text, tensors in found.items()]

  def _tokenizer_files(
    self, sources: Mapping[str, Source], vocabulary: "Vocabulary | None"
  ) -> dict[str, bytes | pathlib.Path]:
    files: dict[str, bytes | pathlib.Path] = (
      dict(tokenizer_files.donor_files(self.donor.source))
      if vocabulary is None
      else dict(vocabulary.files)
    )
    if self.recipe.chat_template is not None:
      template, notes = chat_templates.choose(self.recipe.chat_template, sources)
      self.note(*notes)
      files = files if template is None else chat_templates.put(template, files)
    return files

  def _config(
    self, outputs: Sequence[Output], vocabulary: "Vocabulary | None", tied: bool | None
  ) -> dict[str, Any] | None:
    if self.donor.source.config is None:
      return None
    config: Mapping[str, Any] = self.donor.source.config
    if self.recipe.slices:
      layers = [
        (self.models[part.sources[0].model].source.config, number)
        for part in self.parts
        for number in slices.origins([part])
      ]
      config, notes = output_config.stack_layers(config, layers)
      self.note(*notes)
    if vocabulary is not None:
      config = vocabulary.patched(config)
    said = slices.config_value(config, "tie_word_embeddings")
    changed = tied is not None and (said is not None or self.donor.tied != tied) and said != tied
    dtypes = [x.dtype for x in outputs if x.dtype in FLOATS]
    return output_config.finish(config, tied=tied if changed else None, dtypes=dtypes)


def _few(items: Iterable[str]) -> str:
  listed = list(items)
  return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
