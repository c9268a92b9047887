"""The page of a ledger: every claim with what was measured and its verdict, and the experiment's pictures."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wam.checkpoints.records import write_atomically, writing
from wam.report import ledgers
from wam.report.assets import asset, data_url
from wam.report.ledgers import Entry

FOLDER = "report"
PAGE = "index.html"


def write_ledger_report(folder: Path | str) -> Path:
  """Writes the page of an experiment into `folder/report`.

  Args:
    folder: holds `ledger.json` and, if there are any, pictures in `results/*.png`.

  Returns:
    The path of the page. It replaces an older one only when it is complete.

  Raises:
    MissingFile, BadData: see `ledgers.read`. CannotWrite: on a full disk or without permission.
  """
  from jinja2 import Environment, StrictUndefined

  directory = Path(folder)
  entries = ledgers.read(directory)
  environment = Environment(
    autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  pictures = sorted((directory / "results").glob("*.png"))
  text = environment.from_string(asset("ledger.html.jinja")).render(
    name=directory.resolve().name,
    style=asset("page.css"),
    counts=counts(entries),
    entries=entries,
    pictures={path.stem.replace("_", " "): data_url(path) for path in pictures},
  )
  out = directory / FOLDER
  with writing(FOLDER, out):
    out.mkdir(exist_ok=True)
  write_atomically(out / PAGE, text)
  return out / PAGE


def counts(entries: Sequence[Entry]) -> str:
  """How many claims have which verdict, in a sentence.

  >>> counts([])
  'No claims yet.'
  """
  found = Counter(entry.verdict for entry in entries)
  if not found:
    return "No claims yet."
  listed = ", ".join(
    f"{found[verdict]} {verdict}" for verdict in ledgers.VERDICTS if found[verdict]
  )
  return f"{len(entries)} claim{'s' if len(entries) > 1 else ''}: {listed}."
