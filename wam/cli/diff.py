"""`wam diff BASE A [B ...]`: what a merge of these checkpoints will face, before it is made.

For every layer and part: how far each model moved from the base (‖δ‖/‖base‖), the share of entries that did not move at
all, the cosines between the task vectors, and how often their signs conflict. Files are streamed: any size fits.
"""

import argparse
import pathlib
from collections.abc import Sequence

VIEWS = ("part", "layer", "tensor")


def main(arguments: Sequence[str]) -> int:
  """Prints the table, and writes JSON and picture where asked."""
  parser = argparse.ArgumentParser(
    prog="wam diff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("base", help="the checkpoint that the others started from")
  parser.add_argument("models", nargs="+", help="checkpoints, or BASE+ADAPTER for a LoRA adapter")
  parser.add_argument(
    "--by", choices=VIEWS, default="layer", help="rows of the table (default: layer)"
  )
  parser.add_argument("--json", type=pathlib.Path, help="write all numbers to this file")
  parser.add_argument("--figure", type=pathlib.Path, help="draw them into this PNG")
  parser.add_argument("--threads", type=int, help="default: one for every core")
  parser.add_argument("--allow-non-finite", action="store_true", help="go on over NaN and infinity")
  options = parser.parse_args(arguments)

  from wam.cli.progress import bytes_bars, keep_freed_memory
  from wam.streaming import differences
  from wam.streaming.inputs.sources import open_source

  keep_freed_memory()
  labels = _labels([options.base, *options.models])
  base, *models = [
    open_source(text, label=label)
    for text, label in zip([options.base, *options.models], labels, strict=True)
  ]
  with bytes_bars() as progress:
    found = differences.compare(
      base,
      models,
      threads=options.threads,
      allow_non_finite=options.allow_non_finite,
      progress=lambda done, total: progress("comparing", done, total),
    )
  views = {"part": found.by_part, "layer": found.by_layer, "tensor": lambda: found.tensors}
  stats = views[options.by]() | {"all": found.total()}
  for header, rows in differences.tables(stats, found.models):
    _print_table(header, rows)
  if found.copied:
    print(f"not compared (not floating point): {', '.join(found.copied)}")
  if options.json:
    from wam.checkpoints.records import writing

    with writing("the differences", options.json):
      options.json.parent.mkdir(parents=True, exist_ok=True)
      options.json.write_text(found.to_json(), encoding="utf-8")
    print(f"numbers: {options.json}")
  if options.figure:
    import json

    from wam.report.differences import differences_figure

    options.figure.parent.mkdir(parents=True, exist_ok=True)
    differences_figure(json.loads(found.to_json()), options.figure)
    print(f"picture: {options.figure}")
  return 0


def _labels(texts: Sequence[str]) -> list[str]:
  """Short names: the last parts of the paths, as many as tell them apart."""
  paths = [pathlib.PurePath(t.rstrip("/")).parts for t in texts]
  longest = max(len(p) for p in paths)
  for depth in range(1, longest + 1):
    labels = ["/".join(p[-depth:]) for p in paths]
    if len(set(labels)) == len(labels):
      return labels
  return [f"{label} ({i})" for i, label in enumerate(labels)]


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  from rich import box
  from rich.console import Console
  from rich.table import Table

  table = Table(box=box.SIMPLE_HEAD)
  for i, title in enumerate(header):
    words = title.split(" ", 1)
    table.add_column("\n".join(words), justify="left" if i == 0 else "right", no_wrap=True)
  for row in rows:
    table.add_row(*row)
  # Rather lines longer than the terminal than numbers cut to dots.
  console = Console()
  needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
  console.width = max(console.width, needed)
  console.print(table)
