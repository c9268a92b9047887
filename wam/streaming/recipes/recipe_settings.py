"""What the parameters of a recipe come to for one tensor: which setting goes before which, and what is missing.

From first to last: the model's own, those of the output slice, of the module, of the recipe; a setting whose filters do
not fit the tensor is passed over, as in mergekit.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from wam.core.errors import ConfigError, unknown_name
from wam.merging.table import METHODS
from wam.streaming.recipes import recipe_values
from wam.streaming.recipes.recipe_data import Entry, OutputSlice, Recipe
from wam.streaming.recipes.recipe_methods import dialect, method_name
from wam.streaming.recipes.recipe_values import Partitions, Place

_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Resolved:
  """What one tensor is merged with."""

  coefficients: tuple[float, ...]
  parameters: Mapping[str, Any]


class Settings:
  """The parameters of a recipe, checked, and what they come to for a tensor.

  Attributes:
    notes: what a user might not expect, gathered while tensors are resolved.
  """

  def __init__(self, recipe: Recipe, partitions: Partitions):
    """Checks every setting.

    Raises:
      UnknownName: names a parameter that the method does not have.
      ConfigError: says which setting is malformed, or stands where it has no meaning.
    """
    self._recipe = recipe
    self._method = method_name(recipe.method)
    self._row = METHODS[self._method]
    self._dialect = dialect(self._method)
    self._partitions = partitions
    self._shared = (recipe.module_parameters, recipe.parameters)
    self._missing: dict[str, list[str]] = {}
    self._unused_filters: dict[str, str] = {}
    self._uneven: dict[str, list[str]] = {}
    self.notes: list[str] = []
    for where, settings, per_model in self._every():
      self._check(where, settings, per_model=per_model)

  def _every(self) -> list[tuple[str, Mapping[str, Any], bool]]:
    found = [
      ("parameters", self._recipe.parameters, False),
      (f"parameters of module {self._recipe.module}", self._recipe.module_parameters, False),
    ]
    for i, part in enumerate(self._recipe.every_slice()):
      found.append((f"parameters of slices[{i}]", part.parameters, False))
      found += [(f"parameters of {e.model}", e.parameters, True) for e in part.sources]
    return found

  def _check(self, where: str, settings: Mapping[str, Any], *, per_model: bool) -> None:
    known = self._dialect.parameters
    targets: dict[str, str] = {}
    for name, setting in settings.items():
      if name == "group":
        raise ConfigError(f"{where}: 'group' is a key of the recipe itself, not a parameter")
      if name not in known:
        error = unknown_name(f"parameter of {self._recipe.method} in {where}", name, known)
        raise type(error)(
          f"{error}. (mergekit ignores what a method does not use; delete the line.)"
        )
      parameter = known[name]
      if per_model and not parameter.per_model:
        raise ConfigError(
          f"{where}: '{name}' of {self._recipe.method} is one for all models; put it under the"
          " parameters of the recipe"
        )
      recipe_values.check(setting, parameter.kind, f"{where}: {name}")
      if parameter.note:
        self._note(f"{name} of {self._recipe.method} {parameter.note}")
      if targets.setdefault(parameter.target, name) != name and parameter.target:
        raise ConfigError(
          f"{where}: '{targets[parameter.target]}' and '{name}' are the same; give one"
        )
      for text in recipe_values.filters(setting):
        self._unused_filters.setdefault(text, f"{where}: {name}")

  def _note(self, text: str) -> None:
    if text not in self.notes:
      self.notes.append(text)

  def _names(self, target: str) -> list[str]:
    return [name for name, p in self._dialect.parameters.items() if p.target == target]

  def _find(
    self, target: str, scopes: Sequence[Mapping[str, Any]], place: Place, *, after: bool
  ) -> Any:
    """The value of the first scope that has one for this tensor; _MISSING where none has."""
    names = self._names(target)
    for scope in scopes:
      for name in names:
        if name not in scope:
          continue
        value = recipe_values.evaluate(
          scope[name],
          place,
          self._dialect.parameters[name].kind,
          partitions=self._partitions,
          where=f"{name} for '{place.output}'",
        )
        if value is not None:
          if after and (ends := recipe_values.gradient(scope[name], place.name)):
            self._uneven.setdefault(f"{name} {ends}", []).append(place.output)
          return value
    return _MISSING

  def mentions(self, target: str, part: OutputSlice) -> bool:
    """Whether a shared scope of a slice has a setting for a target."""
    scopes = (part.parameters, *self._shared)
    return any(name in scope for scope in scopes for name in self._names(target))

  def resolve(
    self,
    part: OutputSlice,
    members: Sequence[tuple[Entry, str]],
    *,
    output: str,
    t: float,
    after: bool,
    has_start: bool,
  ) -> Resolved:
    """Coefficients and parameters of one tensor; what is missing is named by `finish`.

    Args:
      part: the slice that it is in.
      members: the models that are merged, each with the tensor's name there.
      output: its name in the output.
      t: place in the slice, for gradients.
      after: whether it comes after the layers, where gradients surprise.
      has_start: whether there are weights that task vectors are taken from.
    """
    for text in [x for x in self._unused_filters if x in output or any(x in n for _, n in members)]:
      del self._unused_filters[text]
    scopes = (part.parameters, *self._shared)
    own = [((e.parameters, *scopes), Place(name, t, output)) for e, name in members]
    values: dict[str, Any] = {} if has_start else dict(self._dialect.of_weights)
    for key, default in self._row.defaults.items():
      if key == "group":
        continue
      if key in self._row.per_member:
        found = [self._find(key, every, place, after=after) for every, place in own]
        if any(x is not _MISSING for x in found):
          fill = default if not isinstance(default, list | tuple) else _MISSING
          values[key] = tuple(fill if x is _MISSING else x for x in found)
        continue
      lone = any(self._dialect.parameters[name].per_model for name in self._names(key))
      where = own[0] if lone else (scopes, Place(output, t, output))
      value = self._find(key, *where, after=after)
      if value is not _MISSING:
        values[key] = value
    for key in self._dialect.required:
      if key not in values:
        self._missing.setdefault(key, []).append(output)
    place = Place(output, t, output)
    coefficients = plain_coefficients(self._method, len(members))
    if self._row.coefficients != "none":
      weights = [self._find("coefficients", every, where, after=after) for every, where in own]
      end = self._find("t", scopes, place, after=after)
      if end is not _MISSING:
        coefficients = self._between(end, weights)
      elif not has_start and self._method == "slerp" and all(w is _MISSING for w in weights):
        self._missing.setdefault("t", []).append(output)
      elif self._dialect.weight or any(w is not _MISSING for w in weights):
        models = [entry.model for entry, _ in members]
        coefficients = self._weights(weights, models, scopes, place)
    return Resolved(coefficients, values)

  def _between(self, t: float, weights: Sequence[Any]) -> tuple[float, ...]:
    """The coefficients of a point between two models."""
    if any(w is not _MISSING for w in weights):
      raise ConfigError(f"{self._recipe.method}: give t or weights, not both")
    if len(weights) != 2:
      raise ConfigError(
        f"{self._recipe.method}: t is for two models, found {len(weights)}; give weights"
      )
    return (1 - t, t)

  def _weights(
    self,
    found: list[Any],
    models: Sequence[str],
    scopes: Sequence[Mapping[str, Any]],
    place: Place,
  ) -> tuple[float, ...]:
    """The weights as coefficients; those that are missing are remembered."""
    lacking = [name for name, w in zip(models, found, strict=True) if w is _MISSING]
    for name in lacking:
      self._missing.setdefault(f"weight of {name}", []).append(place.output)
    if lacking:
      return plain_coefficients(self._method, len(found))
    if self._find("share", scopes, place, after=False) is True:
      total = sum(found)
      # mergekit's bound.
      if abs(total) >= 1e-8:
        return tuple(w / total for w in found)
      self._note(f"normalize does nothing where the weights sum to 0, as for '{place.output}'")
    return tuple(found)

  def is_uneven(self, output: str) -> bool:
    """Whether a gradient with different ends was resolved for a tensor outside the layers."""
    return any(output in outputs for outputs in self._uneven.values())

  def finish(self) -> list[str]:
    """Problems found while tensors were resolved; completes the notes."""
    for text, where in self._unused_filters.items():
      self._note(f"{where}: no tensor has '{text}' in its name; this filter does nothing")
    for setting, outputs in self._uneven.items():
      self._note(
        f"{setting}: outside the layers the first value of a gradient counts, as in mergekit, also"
        f" for {', '.join(dict.fromkeys(outputs))}; a filter before it gives them another"
      )
    return [
      f"{self._recipe.method}: {name} is not given for {len(tensors)} tensors ({_few(tensors)})"
      for name, tensors in self._missing.items()
    ]


def plain_coefficients(method: str, num_members: int) -> tuple[float, ...]:
  """What a method takes where no weights are given."""
  default = METHODS[method].default_coefficient
  return (1 / num_members if default is None else default,) * num_members


def _few(names: Sequence[str]) -> str:
  return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
