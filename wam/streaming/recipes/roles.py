"""Who is what in a slice: the members that are merged, the start of their task vectors, the donor of the config."""

import dataclasses

from wam.core.errors import ConfigError
from wam.merging.methods import METHODS, check_members
from wam.streaming.recipes.recipe_data import Entry, Recipe
from wam.streaming.recipes.recipe_methods import dialect, method_name
from wam.streaming.recipes.recipe_settings import Settings


@dataclasses.dataclass(frozen=True)
class Roles:
  """The models of a slice.

  Attributes:
    sources: those of the slice; the base is appended where it is not listed and has a part.
    members: numbers of the sources that are merged, in order.
    start: number of the source that task vectors are taken from; None where there is none.
    reference: number of the source that says which tensors there are, and that counters are copied from.
  """

  sources: tuple[Entry, ...]
  members: tuple[int, ...]
  start: int | None
  reference: int


def donor_of(recipe: Recipe) -> str:
  """The model whose config and tokenizer the output gets: the base, the origin, or the first model of the recipe."""
  return recipe.base or recipe.origin or recipe.every_slice()[0].sources[0].model


class _Cast:
  """Roles while they are given."""

  def __init__(self, recipe: Recipe, number: int):
    self.part = recipe.every_slice()[number]
    self.where = f"slices[{number}]" if recipe.slices else "models"
    self.whole = not recipe.slices
    self.sources = list(self.part.sources)

  def number(self, model: str, what: str) -> int:
    """The number of a model, which is appended if whole models are merged."""
    names = [entry.model for entry in self.sources]
    if model in names:
      return names.index(model)
    if not self.whole:
      raise ConfigError(
        f"{self.where}: {what} {model} is not among the sources; list it with the layer_range that"
        " its part is taken from"
      )
    self.sources.append(Entry(model))
    return len(self.sources) - 1

  def lists(self, model: str) -> bool:
    return any(entry.model == model for entry in self.sources)


def roles_of(recipe: Recipe, number: int, settings: Settings) -> tuple[Roles, list[str]]:
  """The roles of the models of a slice, and notes.

  Raises:
    ConfigError: if the method needs a base that is not given, does not take the number of models, or `origin` has no
      meaning for it.
  """
  method = method_name(recipe.method)
  cast = _Cast(recipe, number)
  base = cast.part.base or recipe.base
  notes: list[str] = []
  kind = dialect(method).base
  if recipe.origin is not None:
    if METHODS[method].init == "unused":
      raise ConfigError(f"{recipe.method} takes no task vectors: leave 'origin' out")
    if kind in ("start", "given") and base not in (None, recipe.origin):
      raise ConfigError(f"{recipe.method}: base_model and origin are the same thing; give one")
    start: int | None = cast.number(recipe.origin, "the origin")
    members = [i for i in range(len(cast.sources)) if i != start]
  elif base is None:
    start, members = None, list(range(len(cast.sources)))
  else:
    start, members = _with_base(kind, base, method, cast, settings, notes)
  roles = Roles(tuple(cast.sources), tuple(members), start, _reference(recipe, cast, start))
  _check(recipe, method, cast, roles)
  if start is not None and cast.sources[start].parameters:
    notes.append(f"{cast.sources[start].model} is not a member; its parameters have no effect")
  return roles, notes


def _with_base(
  kind: str, base: str, method: str, cast: _Cast, settings: Settings, notes: list[str]
) -> tuple[int | None, list[int]]:
  """Start and members where a base is given, by what mergekit makes of it."""
  everyone = list(range(len(cast.sources)))
  if kind == "first" and cast.lists(base) and len(everyone) == 2:
    first = cast.number(base, "base_model")
    return None, [first, 1 - first]
  if kind in ("start", "given") or (kind == "first" and METHODS[method].init != "unused"):
    start = cast.number(base, "base_model")
    return start, [i for i in range(len(cast.sources)) if i != start]
  # mergekit appends a base that is not listed; one without a weight it would refuse.
  weighted = METHODS[method].coefficients == "none" or method == "karcher"
  weighted = weighted or settings.mentions("coefficients", cast.part)
  if kind == "member" and not cast.lists(base) and cast.whole and weighted:
    everyone.append(cast.number(base, "base_model"))
    notes.append(
      f"{method}: base_model {base} is a member like the others, as in mergekit"
      + ("; 'origin' takes task vectors from it" if METHODS[method].init != "unused" else "")
    )
    return None, everyone
  if not cast.lists(base):
    notes.append(f"{method}: {base} gives config and tokenizer only; its weights have no part")
  return None, everyone


def _reference(recipe: Recipe, cast: _Cast, start: int | None) -> int:
  donor = donor_of(recipe)
  if cast.lists(donor):
    return cast.number(donor, "the donor")
  return start or 0


def _check(recipe: Recipe, method: str, cast: _Cast, roles: Roles) -> None:
  row = METHODS[method]
  if row.init == "needed" and roles.start is None:
    raise ConfigError(
      f"{recipe.method} needs the weights that the models started from: give base_model"
    )
  try:
    check_members(method, len(roles.members), has_init=roles.start is not None)
  except ConfigError as error:
    names = ", ".join(cast.sources[i].model for i in roles.members)
    raise ConfigError(f"{cast.where}: {error} beside the base: {names or 'none'}") from None
  for i in roles.members:
    entry = cast.sources[i]
    if row.importances and entry.importances is None:
      raise ConfigError(
        f"{recipe.method} needs 'importances' for every model; {entry.model} has none"
      )
  for entry in cast.sources:
    if entry.importances is not None and not row.importances:
      raise ConfigError(f"{recipe.method} takes no importances; {entry.model} has some")
