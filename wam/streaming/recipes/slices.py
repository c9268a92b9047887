"""Which tensors of which models go into which tensor of the output: names, layers, stacking of layers, tied heads.

Names say what a tensor is (core/names.py); no architecture is known here. Looks at names and configs only. Leaves out
shapes, dtypes and configs that disagree (agreement.py) and all numbers (recipe_methods.py).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam.core import names
from wam.core.errors import ConfigError
from wam.streaming.blocks import FLOATS
from wam.streaming.inputs import adapters
from wam.streaming.plan import Reader, Source
from wam.streaming.recipes.recipe_data import Entry, OutputSlice
from wam.streaming.vocabularies import vocabulary_rows

# Recomputed from the config by every program that loads the checkpoint; old checkpoints carry them, new ones do not.
_BUFFER = re.compile(r"(?:^|\.)(?:rotary_emb\.inv_freq|attn\.masked_bias|attention\.masked_bias)$")
# The names that heads of language models have; a classifier's "score" is never tied.
_TIED_HEADS = re.compile(r"(?:^|[/.])(?:lm_head|embed_out|output|head)[/.](?:weight|kernel)$")


@dataclasses.dataclass
class Model:
  """A source, as the plan sees it.

  Attributes:
    name: as the recipe calls it.
    source: where it is read from.
    tensors: its readers by name: without buffers; with a head of its own, or none, as the output has it.
    embedding: name of the token embedding; None where no name says so.
    head: name of the language model's head in the file; None where it has none.
    tied: whether its head is its embedding.
  """

  name: str
  source: Source
  tensors: dict[str, Reader]
  embedding: str | None
  head: str | None
  tied: bool


@dataclasses.dataclass(frozen=True)
class Row:
  """A tensor of the output and what it is made of.

  Attributes:
    name: in the output.
    inputs: name and reader in each model of the slice, in their order.
    slice: number of the output slice whose models and settings count.
    t: place in the slice for gradients; 0 outside the layers.
    where: "layer", or "before" or "after" the layers.
  """

  name: str
  inputs: tuple[tuple[str, Reader], ...]
  slice: int
  t: float
  where: str


def config_value(config: Mapping[str, Any] | None, key: str) -> Any:
  """A value of config.json; of its text_config where there are several modules. None where it is not given."""
  if config is None:
    return None
  if key not in config and isinstance(config.get("text_config"), Mapping):
    config = config["text_config"]
  return config.get(key)


def stored_dtype(model: Model, reader: Reader) -> np.dtype:
  """The dtype that a tensor has in its file; rows of another vocabulary and sums with adapters are read in float32."""
  return adapters.stored_dtype(model.source.tensors.get(reader.name, reader))


def place_of(name: str) -> str:
  """Whether a tensor outside the layers comes "before" (embeddings and their norms) or "after" them.

  >>> (
  ...   place_of("model.embed_tokens.weight"),
  ...   place_of("model.norm.weight"),
  ...   place_of("lm_head.weight"),
  ... )
  ('before', 'after', 'after')
  """
  kind = names.kind_of(name)
  if kind == "head":
    return "after"
  return "before" if kind == "embeddings" or re.search(r"embed|wte|wpe", name, re.I) else "after"


def view(name: str, source: Source) -> tuple[Model, list[str]]:
  """A source as the plan sees it, and notes on what of it is left out."""
  buffers = [n for n in source.tensors if _BUFFER.search(n)]
  tensors = {n: r for n, r in source.tensors.items() if n not in set(buffers)}
  outside = {n: r for n, r in tensors.items() if names.layer_of(n) is None}
  table = vocabulary_rows.embedding(source)
  embedding = table.name if table is not None else None
  head = None
  if table is not None:
    heads = [n for n, r in outside.items() if _TIED_HEADS.search(n) and r.shape == table.shape]
    head = heads[0] if len(heads) == 1 else None
  said = config_value(source.config, "tie_word_embeddings")
  tied = embedding is not None and (head is None if said is None else bool(said))
  notes = []
  if buffers:
    notes.append(
      f"{name}: {len(buffers)} buffers that every program recomputes are left out"
      f" ({buffers[0]}{', ...' if len(buffers) > 1 else ''})"
    )
  return Model(name, source, tensors, embedding, head, tied), notes


def settle_heads(first: Sequence[Model], last: Sequence[Model]) -> tuple[bool | None, list[str]]:
  """Decides whether the head of the output is tied, and gives every model the head that this asks for.

  All models tied: so is the output, and copies of the head in the files are left out. Some tied and some not: the
  output has a head of its own, to which the tied ones contribute their embedding.

  Args:
    first: the models that make the embedding.
    last: the models that make the head.

  Returns:
    Whether the output is tied, None where there is no head to tie; notes.
  """
  together = list({id(m): m for m in [*first, *last]}.values())
  if all(m.tied for m in together):
    notes = []
    for model in together:
      if model.head is not None:
        del model.tensors[model.head]
        notes.append(
          f"{model.name}: '{model.head}' is left out: config.json says that the head is the"
          " embedding (tie_word_embeddings), and so it stays in the output"
        )
    if {m.name for m in first} != {m.name for m in last}:
      names_of = ", ".join(m.name for m in first)
      notes.append(f"the head of the output is its embedding, which is made of {names_of}")
    return True, notes
  own = [m.head for m in together if not m.tied and m.head is not None]
  tied = [m for m in together if m.tied]
  if not own:
    return None, []
  for model in tied:
    assert model.embedding is not None
    if model.head is not None:
      del model.tensors[model.head]
    model.tensors[own[0]] = model.tensors[model.embedding]
  if not tied:
    return False, []
  return False, [
    f"some models have a head of their own and others ({', '.join(m.name for m in tied)}) use their"
    f" embedding as head: the output has a head of its own ('{own[0]}'), to which these contribute"
    " their embedding"
  ]


def num_layers(model: Model) -> dict[str, int]:
  """By stem of the layers how many there are."""
  found: dict[str, int] = {}
  for name in model.tensors:
    place = names.layer_of(name)
    if place is not None:
      found[place[0]] = max(found.get(place[0], 0), place[1] + 1)
  return found


def _align(
  models: Sequence[Model], wanted: Sequence[Mapping[str, str]], reference: int, problems: list[str]
) -> list[tuple[str, list[tuple[str, Reader]]]]:
  """Output names with what each model has for them; only one reader where the tensor is not floating point.

  Args:
    models: of the slice.
    wanted: for every model its tensors by name in the output.
    reference: number of the model that says which tensors there are.
    problems: where missing and extra tensors are named.
  """
  main = models[reference]
  rows = []
  for name, own in wanted[reference].items():
    floating = main.tensors[own].dtype in FLOATS
    readers: list[tuple[str, Reader]] = []
    for model, theirs in zip(models, wanted, strict=True):
      if name in theirs:
        reader = model.tensors[theirs[name]]
        readers.append((theirs[name], reader))
        if (reader.dtype in FLOATS) != floating:
          problems.append(
            f"'{own}' is {main.tensors[own].dtype} in {main.name} and {reader.dtype} in {model.name}"
          )
      elif floating:
        problems.append(f"{model.name} has no '{own}', which {main.name} has")
    if not floating:
      # Counters and masks come from this model, whoever else has them.
      rows.append((name, [(own, main.tensors[own])]))
    elif len(readers) == len(models):
      rows.append((name, readers))
  for model, theirs in zip(models, wanted, strict=True):
    for name, own in theirs.items():
      if name not in wanted[reference] and model.tensors[own].dtype in FLOATS:
        problems.append(f"{model.name} has '{own}', which {main.name} has not")
  return rows


def whole_rows(models: Sequence[Model], reference: int, problems: list[str]) -> list[Row]:
  """The rows of a merge of whole models.

  Args:
    models: in the order of the recipe.
    reference: number of the model that says which tensors there are, and in which order.
    problems: where missing and extra tensors are named.
  """
  rows = []
  lengths = num_layers(models[reference])
  aligned = _align(models, [{n: n for n in m.tensors} for m in models], reference, problems)
  for name, inputs in aligned:
    place = names.layer_of(name)
    if place is None:
      rows.append(Row(name, tuple(inputs), 0, 0.0, place_of(name)))
    else:
      stem, layer = place
      rows.append(Row(name, tuple(inputs), 0, _depth(layer, lengths[stem]), "layer"))
  return rows


def _depth(layer: int, length: int) -> float:
  """t of a layer, as mergekit counts: the only layer of a slice is its last."""
  return layer / (length - 1) if length > 1 else 1.0


def stacked_rows(
  slices: Sequence[OutputSlice],
  models: Mapping[str, Model],
  references: Sequence[int],
  problems: list[str],
) -> list[Row]:
  """The rows of an output whose layers are put together from slices.

  What comes before the layers is made of the sources of the first slice, what comes after them of those of the last.

  Args:
    slices: of the output.
    models: by name.
    references: for every slice the number of the source that says which tensors there are.
    problems: where missing and extra tensors are named.

  Raises:
    ConfigError: if a model does not have exactly one stack of layers, or too few of them.
  """
  for part in slices:
    for entry in part.sources:
      _check_range(entry, models[entry.model])
  first = [models[e.model] for e in slices[0].sources]
  rows = _outside("before", 0, first, references[0], problems)
  output = 0
  for number, part in enumerate(slices):
    sources = [models[e.model] for e in part.sources]
    starts = [e.layer_range[0] for e in part.sources if e.layer_range]
    length = _length(part)
    for offset in range(length):
      wanted = [
        {names.with_layer(n, output): n for n in m.tensors if _in_layer(n, start + offset)}
        for m, start in zip(sources, starts, strict=True)
      ]
      t = _depth(offset, length)
      for name, inputs in _align(sources, wanted, references[number], problems):
        rows.append(Row(name, tuple(inputs), number, t, "layer"))
      output += 1
  last = [models[e.model] for e in slices[-1].sources]
  return rows + _outside("after", len(slices) - 1, last, references[-1], problems)


def _outside(
  where: str, number: int, sources: Sequence[Model], reference: int, problems: list[str]
) -> list[Row]:
  wanted = [
    {n: n for n in m.tensors if names.layer_of(n) is None and place_of(n) == where} for m in sources
  ]
  aligned = _align(sources, wanted, reference, problems)
  return [Row(name, tuple(inputs), number, 0.0, where) for name, inputs in aligned]


def _in_layer(name: str, layer: int) -> bool:
  place = names.layer_of(name)
  return place is not None and place[1] == layer


def _length(part: OutputSlice) -> int:
  start, stop = part.sources[0].layer_range or (0, 0)
  return stop - start


def _check_range(entry: Entry, model: Model) -> None:
  stacks = num_layers(model)
  if len(stacks) != 1:
    raise ConfigError(
      f"slices need models with one stack of layers; {entry.model} has {len(stacks)}:"
      f" {', '.join(sorted(stacks)) or 'no name says which layer a tensor is of'}"
    )
  (total,) = stacks.values()
  assert entry.layer_range is not None
  if entry.layer_range[1] > total:
    raise ConfigError(
      f"layer_range {list(entry.layer_range)} of {entry.model}: it has the layers [0, {total})"
    )


def origins(slices: Sequence[OutputSlice]) -> list[int]:
  """For every layer of the output the layer of the first source that it is made of."""
  layers: list[int] = []
  for part in slices:
    start, stop = part.sources[0].layer_range or (0, 0)
    layers += range(start, stop)
  return layers
