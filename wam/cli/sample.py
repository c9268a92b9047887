"""`wam sample MODEL --prompt TEXT`: completions of a prompt."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from wam.cli.models import load
from wam.core.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
  """Prints completions, one after the other; with --json one JSON object a line."""
  options = _parser().parse_args(arguments)

  import jax
  import numpy as np

  from wam.core import rng
  from wam.data import encoding
  from wam.data.tokenizers import eos_id, padding_id
  from wam.generation.sampling import generate

  loaded = load(options.model, stacked=False)
  tokenizer = loaded.tokenizer
  prompts = options.prompt or [sys.stdin.read().rstrip("\n")]
  longest = max(len(ids) for ids in encoding.encode_texts(tokenizer, prompts))
  # Rounded up: prompts of similar length share one compiled program.
  length = max(-(-longest // 16) * 16, 16)
  rows = encoding.prompt_rows(tokenizer, prompts, length=length).arrays
  if not rows["mask"].any(axis=1).all():
    raise ConfigError(
      "a prompt is empty, and this tokenizer puts no token before a text; give at least a letter"
    )
  samples = jax.device_get(
    generate(
      loaded.model,
      loaded.params,
      jax.numpy.asarray(rows["tokens"]),
      jax.numpy.asarray(rows["mask"]),
      rng.key(options.seed, "sample"),
      max_new_tokens=options.max_new_tokens,
      eos_id=eos_id(tokenizer),
      pad_id=padding_id(tokenizer),
      temperature=options.temperature,
      top_k=options.top_k,
      top_p=options.top_p,
      num_samples=options.num_samples,
    )
  )
  for row, (tokens, mask) in enumerate(
    zip(np.asarray(samples.completions), np.asarray(samples.completion_mask), strict=True)
  ):
    prompt = prompts[row // options.num_samples]
    text = _continuation(tokenizer, prompt, tokens[mask].tolist())
    if options.json:
      import json

      logprob = float(np.asarray(samples.logprobs)[row].sum())
      print(json.dumps({"prompt": prompt, "completion": text, "logprob": round(logprob, 4)}))
    else:
      print(f"{prompt}{text}\n")
  return 0


def _continuation(tokenizer: object, prompt: str, ids: list[int]) -> str:
  """The text that the tokens add: decoded behind the prompt, since a first token may begin with a blank."""
  decode = tokenizer.decode  # type: ignore[attr-defined]
  before = tokenizer(prompt, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
  whole = decode(before + ids, skip_special_tokens=True)
  start = decode(before, skip_special_tokens=True)
  return (
    whole[len(start) :] if whole.startswith(start) else " " + decode(ids, skip_special_tokens=True)
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="wam sample", description=__doc__)
  parser.add_argument("model", type=pathlib.Path, help="a Hugging Face model directory")
  parser.add_argument(
    "--prompt", action="append", help="may be given several times; default: standard input"
  )
  parser.add_argument("--num-samples", type=int, default=1, help="completions of each prompt")
  parser.add_argument("--max-new-tokens", type=int, default=128)
  parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
  parser.add_argument("--top-k", type=int, default=0, help="0 is all tokens")
  parser.add_argument("--top-p", type=float, default=1.0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--json", action="store_true", help="one JSON object a line, with the log-probability in nats"
  )
  return parser
