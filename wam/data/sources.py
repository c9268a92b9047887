"""From a data spec, a small dict in a config, to rows: where the data lies, which part of it, and in what order.

A spec is splatted into keyword-only functions, so that a misspelt key is refused. The keys that all loaders take:

* path: a file, a directory, or "tfds:NAME/CONFIG:SPLIT". A relative one is looked for in data_dir.
* data_dir: where relative paths start; default the environment variable WAM_DATA.
* split: "[:80%]", "[80%:90%]", "[:1000]", "[-50:]", and before it the name of a split where the source has several
  ("train[:80%]"). Percentages are rounded to the nearest row, so neighbouring slices meet and never overlap.
* shuffle_seed: permutes the rows before they are sliced (sorted files need it); the same seed gives disjoint slices.
* hint: said in errors about missing data: where such data can be had.

Leaves out the meaning of the rows (text.py, prompts.py, preferences.py, items.py).
"""

import difflib
import inspect
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from wam.core import rng
from wam.core.errors import BadData, ConfigError, MissingFile, did_you_mean
from wam.data import readers
from wam.data.readers import Record, Table

T = TypeVar("T")
TFDS_PREFIX = "tfds:"


class Source(NamedTuple):
  """The keys of a spec that every loader shares; see the module."""

  path: str
  data_dir: str | None = None
  split: str = ""
  shuffle_seed: int | None = None
  hint: str = ""


def splat(function: Callable[..., T], spec: Mapping[str, Any], kind: str) -> T:
  """Calls `function(**spec)` after checking the keys against its parameters and those of `Source`.

  The function takes a `source: Source` first and its own settings as keywords.

  Args:
    function: the loader.
    spec: plain data.
    kind: what the spec describes, for the message.

  Raises:
    ConfigError: names the misspelt or missing key.
  """
  if not isinstance(spec, Mapping) and not hasattr(spec, "keys"):
    raise ConfigError(f"{kind} spec: expected a dict such as {{'path': ...}}, found {spec!r}")
  spec = {key: spec[key] for key in spec}
  parameters = inspect.signature(function).parameters
  known = [name for name in parameters if name != "source"] + list(Source._fields)
  for key in spec:
    if key not in known:
      raise ConfigError(
        f"{kind} spec: unknown key '{key}'.{did_you_mean(key, known)} Known: {', '.join(sorted(known))}"
      )
  if not spec.get("path"):
    hint = f" {spec['hint']}" if spec.get("hint") else ""
    raise ConfigError(
      f"{kind} spec: 'path' is missing; give a file, a directory or tfds:NAME:SPLIT.{hint}"
    )
  source = Source(**{key: spec[key] for key in spec if key in Source._fields})
  return function(source, **{key: spec[key] for key in spec if key not in Source._fields})


def field_names(fields: Mapping[str, str] | None, default: Mapping[str, str]) -> dict[str, str]:
  """What the source calls our fields: `default` overridden by the spec's `fields`, {ours: theirs}.

  Raises:
    ConfigError: one of ours is misspelt.
  """
  given = {key: fields[key] for key in fields} if fields else {}
  for key in given:
    if key not in default:
      raise ConfigError(
        f"fields: '{key}' is not a field here.{did_you_mean(key, default)} Known: {', '.join(default)}"
      )
  return dict(default) | given


def resolve(path: str, *, data_dir: str | None, hint: str = "") -> pathlib.Path:
  """Where `path` lies on this machine.

  Raises:
    ConfigError: it is relative and nothing says to what.
    MissingFile: nothing lies there; lists what is near.
  """
  hint = f" {hint}" if hint else ""
  found = pathlib.Path(path).expanduser()
  if not found.is_absolute():
    base = data_dir or os.environ.get("WAM_DATA")
    if not base:
      raise ConfigError(
        f"'{path}' is relative and nothing says where the data lies: pass data_dir in the config, or set the"
        f" environment variable WAM_DATA.{hint}"
      )
    found = pathlib.Path(base).expanduser() / found
  if not found.exists():
    raise MissingFile(f"{found} does not exist.{_near(found)}{hint}")
  return found


def _near(path: pathlib.Path) -> str:
  """What lies where `path` was looked for, the most similar names first."""
  folder, missing = path.parent, path.name
  while not folder.is_dir():
    folder, missing = folder.parent, folder.name
  names = sorted(entry.name for entry in folder.iterdir())
  close = difflib.get_close_matches(missing, names, n=3, cutoff=0.5)
  if close:
    return f" Did you mean {' or '.join(repr(name) for name in close)} in {folder}?"
  shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
  return f" There is no '{missing}' in {folder}, which holds: {shown or 'nothing'}."


def parse_split(split: str) -> tuple[str, str]:
  """The name and the slice of "name[slice]"; both may be empty.

  Raises:
    ConfigError: it is neither.

  >>> parse_split("train[:80%]"), parse_split("test"), parse_split("[5:]")
  (('train', ':80%'), ('test', ''), ('', '5:'))
  """
  match = re.fullmatch(r"\s*([^\[\]:]*?)\s*(?:\[([^\[\]:]*:[^\[\]:]*)\])?\s*", split)
  if not match:
    raise ConfigError(
      f"split '{split}' is not understood; expected '[:80%]', '[100:]' or 'name[:80%]'"
    )
  return match[1], match[2] or ""


def slice_bounds(slice_: str, rows: int) -> tuple[int, int]:
  """The first row of a slice such as ":80%" and the one after its last.

  Raises:
    ConfigError: a bound is no number, or beyond the rows there are.

  >>> slice_bounds("50%:", 7), slice_bounds("-2:", 7)
  ((4, 7), (5, 7))
  """
  if not slice_:
    return 0, rows
  low, high = (_bound(bound.strip(), rows, slice_) for bound in slice_.split(":"))
  return (0 if low is None else low), (rows if high is None else high)


def _bound(bound: str, rows: int, slice_: str) -> int | None:
  if not bound:
    return None
  match = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)(%?)", bound)
  if not match or ("." in match[1] and not match[2]):
    raise ConfigError(f"split [{slice_}]: '{bound}' is neither a row number nor a percentage")
  percent = bool(match[2])
  number = float(match[1])
  if abs(number) > (100 if percent else rows):
    there = "" if percent else f"; there are {rows} rows"
    raise ConfigError(f"split [{slice_}]: {bound} is out of range{there}")
  place = int(np.floor(number * rows / 100 + 0.5)) if percent else int(number)
  return place + rows if match[1].startswith("-") else place


def select(rows: Sequence[T] | Table, source: Source, slice_: str, what: str) -> list[Any]:
  """The rows that the spec asks for: shuffled with its seed, then sliced.

  Raises:
    BadData: none are left.
  """
  order = np.arange(len(rows))
  if source.shuffle_seed is not None:
    order = rng.generator(source.shuffle_seed, "data/split").permutation(len(rows))
  low, high = slice_bounds(slice_, len(rows))
  chosen = [rows[int(i)] for i in order[low:high]]
  if not chosen:
    part = f" in [{slice_}]" if slice_ else ""
    raise BadData(f"{source.path}: empty, no {what}{part} (of {len(rows)} in all)")
  return chosen


def read_records(source: Source) -> list[Record]:
  """The rows with fields of any source: JSON lines, JSON, parquet, TFDS, a Hugging Face directory.

  Raises:
    WamError: see `resolve`, `select` and readers.py.
  """
  name, slice_ = parse_split(source.split)
  table: Table
  if source.path.startswith(TFDS_PREFIX):
    builder, _, split = source.path.removeprefix(TFDS_PREFIX).partition(":")
    # Behind the colon stands a split as TFDS writes it; the key `split` may add a slice, not a second one.
    inner, inner_slice = parse_split(split)
    if (inner and name) or (inner_slice and slice_):
      raise ConfigError(f"'{source.path}' names a split already; leave out split='{source.split}'")
    table = readers.read_tfds(
      resolve(builder, data_dir=source.data_dir, hint=source.hint), inner or name
    )
    slice_ = inner_slice or slice_
  else:
    path = resolve(source.path, data_dir=source.data_dir, hint=source.hint)
    if path.is_dir():
      table = readers.read_directory(path, name)
    else:
      if name:
        raise ConfigError(f"{path} is one file without named splits; split='[{slice_}]' is enough")
      table = readers.read_rows(path)
  return select(table, source, slice_, "rows")
