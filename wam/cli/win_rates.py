"""`wam evaluate A B --judge REWARD_MODEL --prompts FILE`: how often each model beats the first one."""

import argparse
from collections.abc import Sequence
from typing import Any

from wam.cli.models import load
from wam.core.errors import ConfigError


def measure(options: argparse.Namespace, spec: dict[str, Any]) -> list[dict[str, Any]]:
  """Draws completions of every model, judges them, and compares each with the first model's; a row a model.

  Args:
    options: of `wam evaluate`.
    spec: keys for `prompts.load_prompts` beside the path.
  """
  if len(options.models) < 2 or not options.prompts:
    raise ConfigError("--judge compares: give two models or more, and --prompts FILE")

  from wam import pretrained
  from wam.data import prompts as prompt_data
  from wam.evaluation import win_rate
  from wam.evaluation.win_rate import Judged

  spec = {"path": options.prompts, "data_dir": options.data_dir} | spec
  prompts = prompt_data.load_prompts(spec)
  if options.limit:
    prompts = prompts[: options.limit]
  judge = pretrained.load_scalar(options.judge)
  if judge.tokenizer is None:
    raise ConfigError(f"{options.judge} has no tokenizer; put its tokenizer.json there")
  sampling = {
    "max_new_tokens": options.max_new_tokens,
    "temperature": options.temperature,
    "top_p": options.top_p,
  }
  rows: list[dict[str, Any]] = []
  first: Judged | None = None
  for number, directory in enumerate(options.models):
    loaded = load(directory)
    # The judge has to read all of it, too.
    context = min(m.model.config.max_position_embeddings for m in (loaded, judge))
    context = options.max_length or context
    if context <= options.max_new_tokens + 1:
      raise ConfigError(
        f"{directory}: --max-new-tokens {options.max_new_tokens} leaves no room for prompts in a context of {context}"
      )
    judged = win_rate.judge(
      loaded.model,
      loaded.params,
      loaded.tokenizer,
      prompts,
      _scorer(judge, loaded.tokenizer, options.batch_size),
      stream=f"{number}",
      sampling=sampling,
      num_samples=options.num_samples,
      prompt_length=context - options.max_new_tokens,
      batch_size=options.batch_size,
      seed=options.seed,
    )
    row = {
      "model": str(directory),
      "against": str(options.models[0]),
      "judge": str(options.judge),
      "prompts": len(prompts),
      "num_samples": options.num_samples,
      "reward": float(judged.rewards.mean()),
      "length": float(judged.lengths.mean()),
      "finished": float(judged.finished.mean()),
      "truncated_prompts": judged.truncated_prompts,
      "interval": "percentile bootstrap over prompts",
      "level": options.level,
      "sampling": sampling,
      "seed": options.seed,
    }
    if first is None:
      first = judged
    else:
      row |= _comparison(win_rate.win_rate(judged.rewards, first.rewards, level=options.level))
    rows.append(row)
  return rows


def _comparison(result: Any) -> dict[str, float]:
  """A `WinRate` as fields of a record."""
  return {
    "win_rate": result.rate.value,
    "low": result.rate.low,
    "high": result.rate.high,
    "wins": result.wins,
    "losses": result.losses,
    "ties": result.ties,
    "reward_difference": result.reward_difference.value,
    "reward_difference_low": result.reward_difference.low,
    "reward_difference_high": result.reward_difference.high,
  }


def show(rows: Sequence[dict[str, Any]]) -> None:
  """Prints the table."""
  import rich.table

  from wam.cli.evaluate import wide_console

  level = f"{100 * rows[0]['level']:g}%"
  table = rich.table.Table(
    title=f"Against {rows[0]['model']}, by {rows[0]['judge']}, on {rows[0]['prompts']} prompts",
    caption=f"Ties count half. Intervals: {level}, percentile bootstrap over prompts.",
  )
  columns = ("model", "win rate", "interval", "ties", "reward", "difference", "finished", "cut")
  for name in columns:
    table.add_column(name, justify="left" if name == "model" else "right")
  for row in rows:
    compared = "win_rate" in row
    table.add_row(
      row["model"],
      f"{row['win_rate']:.3f}" if compared else "",
      f"{row['low']:.3f} to {row['high']:.3f}" if compared else "",
      f"{row['ties']:.3f}" if compared else "",
      f"{row['reward']:.4g}",
      f"{row['reward_difference']:.4g} ({row['reward_difference_low']:.4g} to {row['reward_difference_high']:.4g})"
      if compared
      else "",
      f"{row['finished']:.2f}",
      str(row["truncated_prompts"] or ""),
    )
  wide_console().print(table)


def _scorer(judge: Any, tokenizer: Any, chunk: int) -> Any:
  """The judge on a policy's tokens: directly where it has the same vocabulary, else by the text."""
  from wam.evaluation import win_rate
  from wam.rewards import scorers

  if win_rate.same_vocabulary(judge.tokenizer, tokenizer):
    return scorers.from_model(judge.model, judge.params, chunk=chunk, name="judge")
  return win_rate.judge_of_text(
    judge.model,
    judge.params,
    judge.tokenizer,
    tokenizer,
    length=judge.model.config.max_position_embeddings,
    chunk=chunk,
  )
