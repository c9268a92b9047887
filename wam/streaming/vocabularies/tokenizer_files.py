"""The tokenizer files of checkpoints: which there are, which token has which id, and whether inputs agree.

tokenizer.json is read as what it is, JSON: neither transformers nor tokenizers is loaded to compare inputs, and files
that are byte for byte equal are parsed once. Ids are those that the libraries would give, which are not always those
that the file claims: an added token that the model's own vocabulary holds has its id there, any other the next free
one. What transformers adds on loading (added_tokens_decoder of tokenizer_config.json, special tokens that are nowhere
else) counts as well. Leaves out sentencepiece models without a tokenizer.json: they are only told apart by their bytes.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wam.core.errors import BadCheckpoint, BadData
from wam.streaming.plan import Source
from wam.streaming.vocabularies.vocabulary_rows import num_rows

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATES = "additional_chat_templates"

# Files that hold a vocabulary in some older form; beside a tokenizer.json they are copies of it.
LEGACY_VOCABULARIES = (
  "tokenizer.model",
  "spiece.model",
  "sentencepiece.bpe.model",
  "tiktoken.model",
  "tekken.json",
  "vocab.json",
  "vocab.txt",
  "merges.txt",
  "added_tokens.json",
)
_COPIED = (
  TOKENIZER,
  TOKENIZER_CONFIG,
  "special_tokens_map.json",
  *LEGACY_VOCABULARIES,
  CHAT_TEMPLATE,
  "chat_template.json",
  "processor_config.json",
  "preprocessor_config.json",
  "video_preprocessor_config.json",
  GENERATION_CONFIG,
)
_SPECIAL = (
  "bos_token",
  "eos_token",
  "unk_token",
  "sep_token",
  "pad_token",
  "cls_token",
  "mask_token",
)
# No vocabulary comes near; an id beyond is damage, and would ask for that many rows.
_MAX_ID = 2**26


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
  """What the files of one checkpoint say of its tokenizer.

  Attributes:
    label: of the source, for messages.
    directory: where the files lie.
    fingerprint: equal for tokenizers whose vocabulary files are equal.
    ids: token -> id, added tokens included; None where only a slow tokenizer's files exist.
    added: tokens that are cut out of the text before the model sees it: token -> its flags as in tokenizer.json.
    kind: of the model: BPE, Unigram, WordPiece or WordLevel.
    spelling: how blanks are spelt in tokens: "bytes" (Ġ), "metaspace" (▁) or "plain".
    whole_words: a word that is a token needs no merges (`ignore_merges`).
  """

  label: str
  directory: pathlib.Path
  fingerprint: bytes
  ids: Mapping[str, int] | None
  added: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  kind: str = ""
  spelling: str = ""
  whole_words: bool = False


def donor_files(source: Source) -> dict[str, pathlib.Path]:
  """The tokenizer, chat template, processor and generation files of a source, by name; what is not there is left out.

  Names of further chat templates have a directory before them: additional_chat_templates/tool_use.jinja.
  """
  directory = source.directory
  if directory is None:
    return {}
  names = [*_COPIED]
  if (directory / CHAT_TEMPLATES).is_dir():
    paths = sorted((directory / CHAT_TEMPLATES).glob("*.jinja"))
    names += [f"{CHAT_TEMPLATES}/{path.name}" for path in paths]
  return {name: directory / name for name in names if (directory / name).is_file()}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object from a tokenizer file.

  Raises:
    BadData: it is not JSON, or not an object.
  """
  return _parse(path, path.read_bytes())


def read_tokenizer(source: Source) -> TokenizerFiles | None:
  """The tokenizer of one source; None where it has no files of one. See `read_tokenizers`."""
  return read_tokenizers({source.label: source})[source.label]


def read_tokenizers(sources: Mapping[str, Source]) -> dict[str, TokenizerFiles | None]:
  """The tokenizers of all sources, by label; None where a source has none.

  Raises:
    BadData: a file is not what it should be; names it.
  """
  known: dict[bytes, TokenizerFiles] = {}
  result: dict[str, TokenizerFiles | None] = {}
  for label, source in sources.items():
    directory = source.directory
    if directory is None:
      result[label] = None
    elif (directory / TOKENIZER).is_file():
      result[label] = _read(label, directory, known)
    else:
      fingerprint = _fingerprint(directory)
      slow = TokenizerFiles(label, directory, fingerprint or b"", None)
      result[label] = None if fingerprint is None else slow
  return result


def compare(sources: Mapping[str, Source], donor: Source | None) -> tuple[str, ...]:
  """Checks that inputs whose embeddings are merged row by row mean the same token by the same row.

  For recipes that do not say what becomes of the tokenizer. One input may know tokens that another does not (then its
  rows there are merged with padding, which is noted), but no row may be one token here and another there: such a
  merge has the right shapes and talks nonsense.

  Args:
    sources: all inputs, by label; those without a tokenizer are not compared.
    donor: the one whose tokenizer the output gets; None takes the first with one.

  Returns:
    Notes, one sentence each; empty where all agree.

  Raises:
    BadCheckpoint: rows disagree; names the inputs and some of the tokens.
    BadData: a file is not what it should be.
  """
  if len({_fingerprint(s.directory) for s in sources.values()} - {None}) < 2:
    return ()  # the usual case, in which nothing need be parsed
  found = {label: t for label, t in read_tokenizers(sources).items() if t is not None}
  labels = [label for label, source in sources.items() if source is donor and label in found]
  kept = found.get(labels[0] if labels else next(iter(found), ""))
  if kept is None:
    return ()
  notes, problems = [], []
  for other in found.values():
    if other.fingerprint == kept.fingerprint:
      continue
    if other.ids is None or kept.ids is None:
      notes.append(
        f"the tokenizers of '{kept.label}' and '{other.label}' have different files and could not be compared, since"
        f" not both have a {TOKENIZER}"
      )
      continue
    rows = _shared_rows(sources[kept.label], sources[other.label])
    clashes = _clashes(_below(kept.ids, rows), _below(other.ids, rows))
    if clashes:
      problems.append(f"'{kept.label}' and '{other.label}': {listing(clashes)}")
      continue
    notes += _differences(kept.label, kept.ids, other.label, other.ids)
  if problems:
    raise BadCheckpoint(
      "the tokenizers give different tokens the same row of the embedding, so merging row by row would give nonsense."
      f" {'; '.join(problems)}. Say which vocabulary the output has (tokenizer_source: base, union or one of the"
      " models); rows are then matched by token"
    )
  return tuple(notes)


def listing(items: Iterable[Any], most: int = 5) -> str:
  """The first few of many, and how many more there are.

  >>> listing(["a", "b", "c"], most=2)
  'a, b and 1 more'
  """
  items = [str(item) for item in items]
  more = f" and {len(items) - most} more" if len(items) > most else ""
  return ", ".join(items[:most]) + more


def _shared_rows(first: Source, second: Source) -> int:
  """How many rows both have: an id beyond has no row that could be merged with another's."""
  return min(num_rows(first) or _MAX_ID, num_rows(second) or _MAX_ID)


def _below(ids: Mapping[str, int], rows: int) -> Mapping[str, int]:
  return {token: i for token, i in ids.items() if i < rows}


def _clashes(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[str]:
  """Tokens of both whose ids differ, then ids which are different tokens, in the order of ids."""
  moved = [
    (i, f"{token!r} is {i} and {theirs[token]}")
    for token, i in ours.items()
    if theirs.get(token, i) != i
  ]
  names = {i: token for token, i in theirs.items()}
  replaced = [
    (i, f"{i} is {token!r} and {names[i]!r}")
    for token, i in ours.items()
    if i in names and token not in theirs and names[i] not in ours
  ]
  return [text for _, text in [*sorted(moved), *sorted(replaced)]]


def _differences(
  label: str, ours: Mapping[str, int], other: str, theirs: Mapping[str, int]
) -> list[str]:
  notes = []
  for who, extra in ((other, theirs.keys() - ours.keys()), (label, ours.keys() - theirs.keys())):
    if extra:
      absent = label if who == other else other
      table = theirs if who == other else ours
      names = listing(repr(token) for token in sorted(extra, key=table.__getitem__))
      kept = "the output keeps them" if who == label else "the output does not know them"
      notes.append(f"tokens of '{who}' that '{absent}' does not have, {kept}: {names}")
  return notes


def _parse(path: pathlib.Path, data: bytes) -> dict[str, Any]:
  try:
    value = json.loads(data.decode("utf-8"))
  except (ValueError, RecursionError) as error:
    raise BadData(f"{path}: not JSON ({error}); is the file cut off?") from error
  if not isinstance(value, dict):
    raise BadData(f"{path}: expected a JSON object, found {type(value).__name__}")
  return value


def _fingerprint(directory: pathlib.Path | None) -> bytes | None:
  """Equal for equal tokenizers; None where there is none."""
  if directory is None:
    return None
  if (directory / TOKENIZER).is_file():
    return _fast_fingerprint((directory / TOKENIZER).read_bytes(), _added_on_loading(directory))
  paths = [directory / name for name in LEGACY_VOCABULARIES if (directory / name).is_file()]
  parts = [p.name.encode() + b"\0" + hashlib.blake2b(p.read_bytes()).digest() for p in paths]
  return hashlib.blake2b(b"".join(parts)).digest() if parts else None


def _fast_fingerprint(data: bytes, later: Sequence[Mapping[str, Any]]) -> bytes:
  return hashlib.blake2b(data + repr(later).encode()).digest()


def _read(
  label: str, directory: pathlib.Path, known: dict[bytes, TokenizerFiles]
) -> TokenizerFiles:
  path = directory / TOKENIZER
  data = path.read_bytes()
  later = _added_on_loading(directory)
  fingerprint = _fast_fingerprint(data, later)
  if fingerprint in known:
    return dataclasses.replace(known[fingerprint], label=label, directory=directory)
  content = _parse(path, data)
  model = content.get("model")
  if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
    raise BadData(f"{path}: expected a model with a vocab; is it a tokenizer of Hugging Face?")
  ids = _model_ids(path, model["vocab"])
  entries = content.get("added_tokens") or []
  if not all(isinstance(e, dict) and isinstance(e.get("content"), str) for e in entries):
    raise BadData(f"{path}: added_tokens must be a list of objects with a content")
  added = _assign(ids, entries, later)
  known[fingerprint] = TokenizerFiles(
    label,
    directory,
    fingerprint,
    ids,
    added,
    kind=_kind(model),
    spelling=_spelling(content),
    whole_words=bool(model.get("ignore_merges")),
  )
  return known[fingerprint]


def _model_ids(path: pathlib.Path, vocab: Mapping[str, Any] | Sequence[Any]) -> dict[str, int]:
  if isinstance(vocab, list):  # Unigram: pairs of piece and score; the place is the id
    if not all(isinstance(p, list) and p and isinstance(p[0], str) for p in vocab):
      raise BadData(f"{path}: expected pairs of piece and score in the vocab")
    return {piece[0]: i for i, piece in enumerate(vocab)}
  ids = dict(vocab)
  wrong = [token for token, i in ids.items() if type(i) is not int or not 0 <= i < _MAX_ID]
  if wrong:
    raise BadData(f"{path}: no usable id for {listing(map(repr, wrong))}; the file is damaged")
  return ids


def _assign(
  ids: dict[str, int], *batches: Sequence[Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
  """Gives added tokens their ids in `ids`, as the tokenizers library does; returns their flags by token.

  Args:
    ids: of the model's vocabulary.
    *batches: entries of added_tokens that the library is given at once. New ones are counted on from the highest id of
      an earlier batch, or from the size of the vocabulary.
  """
  count, top = len(ids), -1
  added: dict[str, Mapping[str, Any]] = {}
  for batch in batches:
    following = max(count, top + 1)
    for entry in batch:
      token = entry["content"]
      if not token:
        continue
      if token not in ids:
        ids[token] = following
        following += 1
      top = max(top, ids[token])
      added[token] = {key: value for key, value in entry.items() if key not in ("id", "__type")}
  return added


def _added_on_loading(directory: pathlib.Path) -> list[dict[str, Any]]:
  """What transformers adds to tokenizer.json: the added tokens of its config, then special tokens, in that order."""
  config_path, map_path = directory / TOKENIZER_CONFIG, directory / "special_tokens_map.json"
  added_path = directory / "added_tokens.json"
  config = read_json(config_path) if config_path.is_file() else {}
  entries: list[dict[str, Any]] = []
  decoder = config.get("added_tokens_decoder")
  if isinstance(decoder, dict):
    try:
      entries += [decoder[key] for key in sorted(decoder, key=int)]
    except ValueError as error:
      raise BadData(f"{config_path}: keys of added_tokens_decoder must be ids: {error}") from error
  else:
    if map_path.is_file():
      config = config | read_json(map_path)
    if added_path.is_file():
      table = read_json(added_path)
      entries += [
        {"content": token} for token in sorted(table, key=lambda t: str(table[t]).zfill(9))
      ]
  listed = [config.get("additional_special_tokens"), config.get("extra_special_tokens")]
  specials = [config.get(name) for name in _SPECIAL]
  specials += [token for tokens in listed if isinstance(tokens, list) for token in tokens]
  entries += [
    token if isinstance(token, dict) else {"content": token, "special": True}
    for token in specials
    if isinstance(token, str | dict)
  ]
  return [entry for entry in entries if isinstance(entry.get("content"), str)]


def _kind(model: Mapping[str, Any]) -> str:
  if isinstance(model.get("type"), str):
    return model["type"]
  if isinstance(model["vocab"], list):  # files of before the type was written down
    return "Unigram"
  if "merges" in model:
    return "BPE"
  return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _spelling(content: Mapping[str, Any]) -> str:
  """From the steps around the model, not from tokens: a byte-level vocabulary may hold a ▁, and the other way round."""
  steps = json.dumps(
    [content.get("normalizer"), content.get("pre_tokenizer"), content.get("decoder")],
    ensure_ascii=False,
  )
  if '"ByteLevel"' in steps:
    return "bytes"
  return "metaspace" if "▁" in steps or '"Metaspace"' in steps else "plain"
