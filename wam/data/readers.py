"""Reads files into rows with a place: text, JSON lines, parquet, TFDS and Hugging Face directories; .gz throughout.

Every complaint names the file and the line. Leaves out writing, streaming of what does not fit in memory, and networks.
"""

import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from wam.core.errors import BadData, ConfigError, MissingFile, did_you_mean, unknown_name

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_KINDS: dict[str, tuple[type, ...]] = {
  "string": (str,),
  "whole number": (int,),
  "list": (list, tuple),
}


class Record(NamedTuple):
  """One row: its values, and where it stands for error messages."""

  values: Mapping[str, Any]
  where: str

  def get(self, field: str, kind: str) -> Any:
    """The value of a field that must be there and be a "string", a "whole number" or a "list" (of strings).

    Raises:
      BadData: names file and line, what was expected and what is there.
    """
    if field not in self.values:
      have = ", ".join(map(str, self.values)) or "none"
      raise BadData(
        f"{self.where}: no field '{field}' ({kind}); the row has: {have}."
        f"{did_you_mean(field, map(str, self.values))} Other names are given by 'fields'"
      )
    value = self.values[field]
    # bool is an int to Python, not to somebody who counts.
    good = isinstance(value, _KINDS[kind]) and not isinstance(value, bool)
    if good and kind == "list":
      good = all(isinstance(item, str) for item in value)
    if not good:
      wanted = "list of strings" if kind == "list" else kind
      raise BadData(f"{self.where}: field '{field}' should be a {wanted}, found {_describe(value)}")
    return value


class Table(Protocol):
  """Random access to records, so that a slice reads no more than it needs."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Record: ...


def _describe(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False, default=str)
  return f"{type(value).__name__} {text[:60]}"


def read_text(path: pathlib.Path) -> str:
  """The text of a file, unpacked when it is called .gz; a byte order mark is dropped.

  Raises:
    BadData: the file is cut off, is no gzip file, or is not UTF-8 (names the line).
  """
  data = path.read_bytes()
  if path.suffix == ".gz":
    try:
      data = gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise BadData(
        f"{path}: cannot be unpacked ({error}); truncated or no gzip file, fetch it again"
      ) from error
  try:
    return data.decode("utf-8").removeprefix("\ufeff")
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    raise BadData(
      f"{path}, line {line}: not UTF-8 text (byte {data[error.start]:#04x}); convert the file to UTF-8"
    ) from error


def content_suffix(path: pathlib.Path) -> str:
  """The suffix that says what is inside: ".jsonl" for "x.jsonl.gz"."""
  return pathlib.Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def read_rows(path: pathlib.Path) -> Table:
  """The rows of a file: JSON lines, a JSON list of objects, or parquet.

  Raises:
    BadData: the file is damaged, or a line is not a JSON object.
    ConfigError: the kind of file is not known.
  """
  suffix = content_suffix(path)
  if suffix in (".jsonl", ".ndjson"):
    return _json_lines(path)
  if suffix == ".json":
    return _json_list(path)
  if suffix == ".parquet":
    return _parquet(path)
  raise ConfigError(
    f"{path}: rows with fields are read from {', '.join(ROW_SUFFIXES)} (also .gz), TFDS and Hugging Face"
    f" directories; this is '{suffix}'"
  )


def _json_lines(path: pathlib.Path) -> list[Record]:
  # Not splitlines(): JSON strings may hold U+2028 and the like, at which it would split.
  lines = read_text(path).split("\n")
  records = []
  for number, line in enumerate(lines, start=1):
    if line.strip():
      where = f"{path}, line {number}"
      try:
        values = json.loads(line)
      except ValueError as error:
        raise BadData(
          f"{where}: not JSON ({error}); expected one object a line, found {line[:60]!r}"
        ) from error
      if not isinstance(values, dict):
        raise BadData(f"{where}: expected a JSON object, found {_describe(values)}")
      records.append(Record(values, where))
  return records


def _json_list(path: pathlib.Path) -> list[Record]:
  try:
    values = json.loads(read_text(path))
  except ValueError as error:
    if isinstance(error, BadData):
      raise
    raise BadData(
      f"{path}: not JSON ({error}); one object a line belongs in a file called .jsonl"
    ) from error
  if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
    raise BadData(f"{path}: expected a JSON list of objects, found {_describe(values)}")
  return [Record(row, f"{path}, entry {i}") for i, row in enumerate(values, start=1)]


def _parquet(path: pathlib.Path) -> list[Record]:
  import pyarrow  # type: ignore[import-untyped]
  import pyarrow.parquet  # type: ignore[import-untyped]

  try:
    rows = pyarrow.parquet.read_table(path).to_pylist()
  except (pyarrow.ArrowException, OSError) as error:
    raise BadData(f"{path}: cannot be read as parquet: {error}") from error
  return [Record(row, f"{path}, row {i}") for i, row in enumerate(rows, start=1)]


class _Lazy:
  """Rows of a library's own random-access object, turned into records on access; bytes become text."""

  def __init__(self, source: Any, name: str):
    self._source = source
    self._name = name

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Record:
    where = f"{self._name}, row {index + 1}"
    return Record({k: _plain(v, where) for k, v in self._source[index].items()}, where)


def _plain(value: Any, where: str) -> Any:
  """numpy and bytes to Python's own types."""
  if isinstance(value, bytes):
    try:
      return value.decode("utf-8")
    except UnicodeDecodeError:
      return value  # an image, say; an error only for somebody who asks for it as text
  if hasattr(value, "tolist"):
    return _plain(value.tolist(), where)
  if isinstance(value, Mapping):
    return {k: _plain(v, where) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item, where) for item in value]
  return value


def read_tfds(directory: pathlib.Path, split: str) -> Table:
  """A split of a prepared TFDS data set, without TensorFlow: it must have been written as array_record.

  Args:
    directory: .../NAME or .../NAME/CONFIG or .../NAME/CONFIG/VERSION; the newest version is taken.
    split: a split's name; empty where there is only one.

  Raises:
    MissingFile: no data set lies there.
    BadData: it has another file format.
    UnknownName: it has no such split.
  """
  import tensorflow_datasets as tfds

  version = _newest_version(directory)
  builder = tfds.builder_from_directory(version)
  split = one_split(split, list(builder.info.splits), str(directory))
  form = builder.info.file_format
  if form is None or form.value != "array_record":
    raise BadData(
      f"{version}: written as {form.value if form else 'an unknown format'}, which needs TensorFlow to read;"
      " prepare it again with file_format='array_record'"
    )
  return _Lazy(builder.as_data_source(split), f"{version} ({split})")


def _newest_version(directory: pathlib.Path) -> pathlib.Path:
  if (directory / "dataset_info.json").exists():
    return directory
  versions = [d for d in directory.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", d.name)]
  if not versions:
    inside = ", ".join(sorted(d.name for d in directory.iterdir())[:10]) or "nothing"
    raise MissingFile(
      f"{directory} holds no version of a TFDS data set (a folder like 1.0.0), but: {inside}. Name a"
      " configuration as tfds:NAME/CONFIG:SPLIT, or prepare the data set there"
    )
  return max(versions, key=lambda d: tuple(map(int, d.name.split("."))))


def read_directory(directory: pathlib.Path, split: str) -> Table:
  """A Hugging Face directory: what `save_to_disk` wrote, or a folder of data files named by split.

  In a folder the split is the file's name up to the first "-" or ".", as in "train-00000-of-00002.parquet"; a folder
  "data" inside is looked into.

  Raises:
    ConfigError: the package `datasets` is needed and not installed.
    MissingFile: there are no data files.
    UnknownName: there is no such split.
  """
  saved = ("dataset_info.json", "dataset_dict.json", "state.json")
  if any((directory / name).exists() for name in saved):
    return _saved_dataset(directory, split)
  files = _data_files(directory) or _data_files(directory / "data")
  if not files:
    inside = ", ".join(sorted(d.name for d in directory.iterdir())[:10]) or "nothing"
    raise MissingFile(
      f"{directory}: no data files ({', '.join(ROW_SUFFIXES)}) in this folder, but: {inside}"
    )
  by_split: dict[str, list[Record]] = {}
  names = {path: re.split(r"[-.]", path.name)[0] for path in files}
  split = one_split(split, sorted(set(names.values())), str(directory))
  for path in files:
    if names[path] == split:
      table = read_rows(path)
      by_split.setdefault(split, []).extend(table[i] for i in range(len(table)))
  return by_split[split]


def _data_files(directory: pathlib.Path) -> list[pathlib.Path]:
  if not directory.is_dir():
    return []
  return sorted(path for path in directory.iterdir() if content_suffix(path) in ROW_SUFFIXES)


def _saved_dataset(directory: pathlib.Path, split: str) -> Table:
  try:
    import datasets
  except ImportError as error:
    raise ConfigError(
      f"{directory} was written by the package `datasets`, which is not installed: pip install datasets"
    ) from error
  try:
    loaded = datasets.load_from_disk(str(directory))
  except (OSError, ValueError, KeyError) as error:
    raise BadData(f"{directory}: cannot be loaded as a saved data set: {error}") from error
  if isinstance(loaded, datasets.DatasetDict):
    split = one_split(split, list(loaded), str(directory))
    return _Lazy(loaded[split], f"{directory} ({split})")
  if split:
    raise ConfigError(f"{directory} has no splits; leave out '{split}'")
  return _Lazy(loaded, str(directory))


def one_split(split: str, have: Sequence[str], where: str) -> str:
  """The split that is meant: the named one, or the only one.

  Raises:
    UnknownName: there is none of this name.
    ConfigError: none is named and there are several.
  """
  if split and split not in have:
    raise unknown_name(f"split of {where}", split, have)
  if not split and len(have) != 1:
    raise ConfigError(
      f"{where} has the splits {', '.join(have)}: say which, as in split='{have[0]}'"
    )
  return split or have[0]
