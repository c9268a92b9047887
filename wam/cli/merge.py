"""Merge checkpoints into one, from disk to disk, in bounded memory.

  wam merge RECIPE.yaml OUT                                  a recipe, in mergekit's format
  wam merge --method slerp --base SFT A B --out OUT          or on the command line
  wam merge --method ties --base SFT A B --weights 0.6 0.4 --set density=0.3 --out OUT
  wam merge --verify OUT                                     check a merge against its manifest

A checkpoint is a Hugging Face directory, a .safetensors file, an Orbax directory, or MODEL+ADAPTER for a PEFT LoRA.
The plan is printed first; --dry-run stops there. What cannot work is refused before anything is written, OUT appears
when all of it is there, and a merge that was interrupted goes on where it was with the same command.
"""

import argparse
import pathlib
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wam.core.errors import ConfigError

if TYPE_CHECKING:
  from wam.streaming.recipes.recipe_data import Recipe

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def main(arguments: Sequence[str]) -> int:
  """Plans, and unless asked otherwise merges; 0, 2 where a verification found something, 130 after Ctrl-C."""
  options = _parser().parse_args(arguments)
  if options.methods:
    return _print_methods()
  if options.verify:
    return _verify(options.verify)

  from wam.cli.progress import bytes_bars, keep_freed_memory
  from wam.streaming.inputs.sources import open_source
  from wam.streaming.merge import merge_files
  from wam.streaming.recipes import planning
  from wam.streaming.results import summary

  recipe, out = _recipe(options)
  plan = planning.build(
    recipe, open_source=open_source, out_dtype=options.out_dtype, seed=options.seed
  )
  try:
    if not options.quiet or options.dry_run:
      print(summary.describe(plan, bytes_per_second=summary.probe(plan)))
    if options.dry_run:
      return 0
    keep_freed_memory()
    with bytes_bars() as progress:
      report = merge_files(
        plan,
        out,
        form=options.format,
        shard_bytes=options.shard_size,
        threads=options.threads,
        memory=options.memory,
        rounding=options.rounding,
        allow_non_finite=options.allow_non_finite,
        with_hashes=not options.no_hashes,
        overwrite=options.overwrite,
        flush=options.flush,
        started=None if options.quiet else _say_what_is_there,
        progress=progress,
      )
  except KeyboardInterrupt:
    print("wam merge: interrupted; the same command goes on where it was", file=sys.stderr)
    return 128 + signal.SIGINT
  finally:
    for source in plan.sources.values():
      source.close()
  if not options.quiet:
    print(summary.describe_report(report, plan, out))
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="wam merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "paths",
    nargs="*",
    metavar="RECIPE OUT | MODEL ...",
    help="a recipe and OUT; or, with --method, checkpoints",
  )
  what = parser.add_argument_group("what (in place of a recipe)")
  what.add_argument("--method", help="see --methods")
  what.add_argument("--methods", action="store_true", help="list the methods and their parameters")
  what.add_argument("--base", help="the checkpoint that the others started from")
  what.add_argument("--out", type=pathlib.Path, help="where the merge is written")
  what.add_argument("--weights", type=float, nargs="+", help="one for each model")
  what.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="a parameter; VALUE as in a recipe",
  )
  what.add_argument(
    "--group", choices=("leaf", "layer", "global"), help="tensors that make one vector"
  )
  what.add_argument("--importances", nargs="+", help="for fisher: a checkpoint for each model")
  what.add_argument("--tokenizer", help="base, union, or one of the models")
  what.add_argument("--chat-template", help="auto, or its text")
  how = parser.add_argument_group("how")
  how.add_argument("--dry-run", action="store_true", help="print the plan and stop")
  how.add_argument(
    "--out-dtype", help="bfloat16, float16, float32 or float64; default that of the inputs"
  )
  how.add_argument(
    "--rounding", default="nearest", help="nearest (default) or stochastic (bfloat16)"
  )
  how.add_argument("--seed", type=int, help="of masks and stochastic rounding (default 0)")
  how.add_argument("--format", default="huggingface", help="huggingface (default) or orbax")
  how.add_argument("--shard-size", type=_size, default="5GB", help="of the output (default 5GB)")
  how.add_argument(
    "--memory", type=_size, default="1GiB", help="bound on arrays in memory (default 1GiB)"
  )
  how.add_argument("--threads", type=int, help="default: one for every core")
  how.add_argument("--allow-non-finite", action="store_true", help="let NaN and infinity pass")
  how.add_argument("--overwrite", action="store_true", help="replace OUT when the merge is done")
  how.add_argument(
    "--no-hashes", action="store_true", help="leave SHA-256 of files out of the manifest"
  )
  how.add_argument("--flush", action="store_true", help="wait until the disk has everything")
  how.add_argument("--quiet", action="store_true", help="print nothing but errors")
  parser.add_argument(
    "--verify", type=pathlib.Path, metavar="OUT", help="check a merge and its inputs"
  )
  return parser


def _size(text: str) -> int:
  """Bytes from "512MiB", "1GiB", "2GB" or a number."""
  found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", text, re.I)
  if not found:
    raise argparse.ArgumentTypeError(f"expected a size such as 512MiB or 5GB, found {text!r}")
  number, unit, binary = found.groups()
  unit = unit.upper()
  table: Mapping[str, int] = _UNITS if binary or not unit else _DECIMAL
  return int(float(number) * table[unit])


def _recipe(options: argparse.Namespace) -> "tuple[Recipe, pathlib.Path]":
  """The recipe, from its file or from the arguments, and where the merge goes."""
  from wam.streaming.recipes import recipes

  if options.method is None:
    given = ["base", "weights", "set", "group", "importances", "tokenizer", "chat_template"]
    stray = [f"--{name.replace('_', '-')}" for name in given if getattr(options, name)]
    if stray:
      raise ConfigError(f"{', '.join(stray)} go with --method; a recipe holds them itself")
    if len(options.paths) != 2 - (options.out is not None):
      raise ConfigError(
        f"expected RECIPE.yaml and OUT, or --method with models and --out; found {options.paths}"
      )
    out = options.out or pathlib.Path(options.paths[1])
    return recipes.read_recipe(options.paths[0]), out
  if options.out is None and not options.dry_run:
    raise ConfigError("--method needs --out: where is the merge to be written?")
  recipe = recipes.from_arguments(
    method=options.method,
    models=options.paths,
    base=options.base,
    weights=options.weights,
    parameters=_parameters(options.set),
    importances=options.importances,
    tokenizer=options.tokenizer,
    chat_template=options.chat_template,
    group=options.group,
  )
  return recipe, options.out


def _parameters(settings: Sequence[str]) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for setting in settings:
    name, equals, value = setting.partition("=")
    if not equals or not name:
      raise ConfigError(f"--set: expected NAME=VALUE, found {setting!r}")
    if name in found:
      raise ConfigError(f"--set: {name} is given twice")
    found[name] = value
  return found


def _say_what_is_there(sink: Any) -> None:
  if sink.discarded:
    print(f"started afresh: {sink.discarded}")
  if sink.resumed:
    print(f"resumed: {sink.resumed} tensors were there already")
  sys.stdout.flush()


def _print_methods() -> int:
  from wam.merging.methods import METHODS

  for name, method in METHODS.items():
    base = {"needed": "--base", "optional": "[--base]", "unused": ""}[method.init]
    parameters = ", ".join(f"{k}={v}" for k, v in method.defaults.items())
    print(f"{name:<18} {base:<9} {parameters}\n{'':<18} {method.paper}")
  return 0


def _verify(directory: pathlib.Path) -> int:
  from wam.cli.progress import bytes_bars
  from wam.streaming.results import manifest

  with bytes_bars() as progress:
    result = manifest.verify(directory, progress=lambda a, b: progress("hashing", a, b))
  print("\n".join(result.lines()))
  return 0 if result.ok else 2
