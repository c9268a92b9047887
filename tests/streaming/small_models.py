"""Checkpoints of a few numbers, in memory, that look like small Llamas; shared by the tests of recipes and plans."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.streaming.in_memory_checkpoint import ArrayReader, MemorySink
from wam.streaming.engine import execute
from wam.streaming.recipes import recipes

VOCABULARY, WIDTH = 5, 4
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclasses.dataclass(eq=False)
class MemorySource:
  label: str
  tensors: Mapping[str, ArrayReader]
  config: Mapping[str, Any] | None = None
  directory: pathlib.Path | None = None
  files: Sequence[pathlib.Path] = ()
  closed: bool = False

  def close(self) -> None:
    self.closed = True

  def array(self, name: str) -> np.ndarray:
    return self.tensors[name].array


def names(layers: int, *, head: bool = True) -> list[str]:
  found = [EMBEDDING]
  for i in range(layers):
    found += [
      f"model.layers.{i}.{x}.weight" for x in ("input_layernorm", "self_attn.q_proj", "mlp.up_proj")
    ]
  return [*found, NORM, *([HEAD] if head else [])]


def shape_of(name: str) -> tuple[int, ...]:
  if name in (EMBEDDING, HEAD):
    return (VOCABULARY, WIDTH)
  return (WIDTH,) if "norm" in name else (6, WIDTH) if "mlp" in name else (WIDTH, WIDTH)


def config(layers: int, *, tied: bool = False, **changes: Any) -> dict[str, Any]:
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "num_hidden_layers": layers,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "tie_word_embeddings": tied,
    "dtype": "float32",
    **changes,
  }


def llama(
  label: str,
  *,
  layers: int = 3,
  tied: bool = False,
  dtype: Any = np.float32,
  changes: Mapping[str, Any] | None = None,
  **arrays: np.ndarray,
) -> MemorySource:
  """A source whose numbers follow from its label; `arrays` are more tensors, with __ for dots."""
  rng = np.random.default_rng(sum(label.encode()))
  made = {n: rng.normal(size=shape_of(n)).astype(dtype) for n in names(layers, head=not tied)}
  made |= {n.replace("__", "."): x for n, x in arrays.items()}
  tensors = {n: ArrayReader(n, x) for n, x in made.items()}
  return MemorySource(label, tensors, config(layers, tied=tied, **(changes or {})))


def constant(label: str, value: float, **options: Any) -> MemorySource:
  """A source whose numbers are all the same."""
  source = llama(label, **options)
  source.tensors = {
    n: ArrayReader(n, np.full(r.shape, value, r.dtype)) for n, r in source.tensors.items()
  }
  return source


def without(source: MemorySource, *absent: str) -> MemorySource:
  source.tensors = {n: r for n, r in source.tensors.items() if n not in absent}
  return source


def plan(text: str | dict[str, Any], *sources: MemorySource, **options: Any):
  """The plan of a recipe, YAML or data, with these sources by their labels."""
  data = recipes.parse(text, "recipe.yaml") if isinstance(text, str) else text
  recipe = data if isinstance(data, recipes.Recipe) else recipes.from_data(data)
  table = {source.label: source for source in sources}
  return recipes.build(recipe, open_source=table.__getitem__, **options)


def run(made) -> MemorySink:
  """The merged tensors of a plan, by name."""
  sink = MemorySink(made.outputs)
  execute(made.outputs, sink, seed=made.seed, threads=1)
  return sink


def merge(text: str | dict[str, Any], *sources: MemorySource, **options: Any) -> MemorySink:
  return run(plan(text, *sources, **options))


def output(made, name: str):
  return next(x for x in made.outputs if x.name == name)


def coefficients(made) -> dict[str, tuple[float, ...]]:
  return {x.name: x.coefficients for x in made.outputs}


def tokenizer_directory(
  path: pathlib.Path, *, template: str | None = None, **ids: int
) -> pathlib.Path:
  """A directory with a word-level tokenizer.json of these words."""
  path.mkdir(parents=True, exist_ok=True)
  model = {"type": "WordLevel", "vocab": ids, "unk_token": "unk"}
  (path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
  said = {"tokenizer_class": "PreTrainedTokenizerFast"}
  if template is not None:
    said["chat_template"] = template
  (path / "tokenizer_config.json").write_text(json.dumps(said))
  return path
