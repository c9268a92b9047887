"""Running text for suites: documents, line-aligned translations, WikiText without its marks."""

import re
from collections.abc import Sequence

from wam.core.errors import BadData, ConfigError
from wam.data import readers, sources, text
from wam.data.sources import Source

# " = Title = ", and not the " = = Section = = " below it.
WIKITEXT_TITLE = r"^ = [^=\n]*[^=\s] = $"


def read(
  source: Source, *, separator: str | None, heading: str | None, field: str, strip: bool = True
) -> list[str]:
  """Documents of a text file or of a field of rows, blank ones left out.

  Args:
    source: where.
    separator: text files: what stands between documents.
    heading: text files: a regular expression of a document's first line.
    field: rows: that holds the text.
    strip: text files: whether white space goes off both ends of a document.

  Raises:
    BadData: there are none.
  """
  spec = source._asdict()
  if text.is_text(source.path):
    found = text.load_texts(spec | {"separator": separator, "heading": heading, "strip": strip})
  else:
    found = text.load_texts(spec | {"fields": {"text": field}})
  documents = [document for document in found if document.strip()]
  if not documents:
    raise BadData(f"{source.path}: no document that is not blank")
  return documents


def read_lines(source: Source, reference: str) -> list[tuple[str, str]]:
  """Pairs of lines of two text files.

  Args:
    source: of the first file.
    reference: path of the second.

  Raises:
    BadData: the files differ in their number of lines, or a line is blank.
    ConfigError: a split is named.
  """
  name, slice_ = sources.parse_split(source.split)
  if name:
    raise ConfigError(f"{source.path} is one file without named splits; split='[{slice_}]'")
  paths = [
    sources.resolve(path, data_dir=source.data_dir, hint=source.hint)
    for path in (source.path, reference)
  ]
  # Not splitlines(): U+2028 and the like are no ends of lines to who aligned them.
  files = [readers.read_text(path).removesuffix("\n").split("\n") for path in paths]
  if len(files[0]) != len(files[1]):
    raise BadData(
      f"{paths[0]} has {len(files[0])} lines and {paths[1]} {len(files[1])}; expected a translation a line"
    )
  for path, lines in zip(paths, files, strict=True):
    blank = next((n for n, line in enumerate(lines, start=1) if not line.strip()), None)
    if blank:
      raise BadData(f"{path}, line {blank}: blank; expected a sentence a line")
  pairs = [(a.strip(), b.strip()) for a, b in zip(*files, strict=True)]
  return sources.select(pairs, source, slice_, "lines")


def without_wikitext_marks(page: str) -> str:
  """WikiText as it is usually scored: number marks, blanks before punctuation and around brackets taken out.

  The replacements and their order are those of lm-evaluation-harness' wikitext task.

  >>> without_wikitext_marks("He paid 1 @,@ 200 pounds ( in 1999 ) , twice .")
  'He paid 1,200 pounds (in 1999), twice .'
  """
  for pattern, replacement in _WIKITEXT:
    page = re.sub(pattern, replacement, page)
  return page


def _literal(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
  return [(re.escape(old), new) for old, new in pairs]


_WIKITEXT: list[tuple[str, str]] = [
  *_literal([("s '", "s'")]),
  # A slip of the original, kept: it never matches, since slashes are no part of the text.
  (r"/' [0-9]/", r"/'[0-9]/"),
  *_literal([(f" @{mark}@ ", mark) for mark in "-,."]),
  *_literal([(f" {mark} ", f"{mark} ") for mark in ":;.!?,"]),
  (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
  (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
  (r"{\s*([^}]*?)\s*}", r"{\1}"),
  (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
  (r"'\s*([^']*?)\s*'", r"'\1'"),
  *_literal([("= = = =", "===="), ("= = =", "==="), ("= =", "==")]),
  *_literal([(" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")]),
]
