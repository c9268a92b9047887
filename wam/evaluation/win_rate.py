"""How often one policy's completion is better than another's, by a judge that gives rewards.

Both policies answer the same prompts, each with samples of its own. The judge may have another vocabulary than the
policies. Leaves out judges that compare two texts directly.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wam.core import rng
from wam.core.errors import BadData, ConfigError, check_rank
from wam.core.types import Params
from wam.data import encoding
from wam.data.examples import Example
from wam.data.tokenizers import Tokenizer, bos_ids, eos_id, padding_id
from wam.evaluation.statistics import Interval, mean_interval
from wam.generation.sampling import generate
from wam.models.decoder import LanguageModel
from wam.models.heads import ScalarModel
from wam.rewards import scorers
from wam.rewards.scorers import RolloutScorer

# Rewards of equal completions differ by rounding, where they were computed in different batches.
_ROUNDING = 1e-6
# Prompts are padded to a multiple of this.
_MULTIPLE = 8


class Judged(NamedTuple):
  """A policy's completions, judged.

  Attributes:
    rewards: float32 [P, N], N completions of each of P prompts.
    finished: bool [P, N], whether EOS came.
    lengths: int [P, N], tokens, EOS included.
    truncated_prompts: how many prompts were cut on their left.
  """

  rewards: np.ndarray
  finished: np.ndarray
  lengths: np.ndarray
  truncated_prompts: int


class WinRate(NamedTuple):
  """One policy against another.

  Attributes:
    rate: the share of comparisons won, ties counting half, and its bootstrap interval over prompts.
    wins: the share of comparisons won.
    losses: lost.
    ties: neither.
    per_prompt: float64 [P], the rate on each prompt.
    reward_difference: mean reward of the first minus that of the second, and its bootstrap interval over prompts.
  """

  rate: Interval
  wins: float
  losses: float
  ties: float
  per_prompt: np.ndarray
  reward_difference: Interval


def win_rate(
  ours: np.ndarray,
  theirs: np.ndarray,
  *,
  level: float = 0.95,
  num_resamples: int = 2000,
  seed: int = 0,
) -> WinRate:
  """Compares rewards on the same prompts: every sample of one policy with every sample of the other.

  Rewards that differ by no more than float32 rounding tie, so equal completions do, and a judge that gives everything
  the same reward calls every comparison a tie. The interval is over prompts, since samples of one prompt are not
  independent comparisons.

  Args:
    ours: [P, N].
    theirs: [P, M], of the same prompts in the same order.
    level: of confidence.
    num_resamples: bootstrap samples.
    seed: of the resampling.

  Raises:
    BadData: fewer than two prompts, other numbers of prompts, or rewards that are not finite.
    ConfigError: if the level is not between 0 and 1.
  """
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  check_rank("ours", ours, 2)
  check_rank("theirs", theirs, 2)
  if len(ours) != len(theirs) or len(ours) < 2 or not ours.shape[1] or not theirs.shape[1]:
    raise BadData(
      f"win rate: expected rewards of the same prompts, two or more, found {ours.shape} and {theirs.shape}"
    )
  if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
    raise BadData("win rate: the judge gave rewards that are NaN or infinite")
  difference = ours[:, :, None] - theirs[:, None, :]
  size = np.maximum(np.abs(ours[:, :, None]), np.abs(theirs[:, None, :]))
  ties = np.abs(difference) <= _ROUNDING * np.maximum(size, 1.0)
  wins = (difference > 0) & ~ties
  per_prompt = (wins + ties / 2).mean(axis=(1, 2))
  settings: dict[str, Any] = {"level": level, "num_resamples": num_resamples, "seed": seed}
  return WinRate(
    mean_interval(per_prompt, method="percentile", **settings),
    float(wins.mean()),
    float((~wins & ~ties).mean()),
    float(ties.mean()),
    per_prompt,
    mean_interval(ours.mean(axis=1) - theirs.mean(axis=1), method="percentile", **settings),
  )


def judge(
  model: LanguageModel,
  params: Params,
  tokenizer: Tokenizer,
  prompts: Sequence[str],
  scorer: RolloutScorer,
  *,
  stream: str,
  sampling: Mapping[str, Any],
  num_samples: int = 1,
  prompt_length: int = 256,
  batch_size: int = 32,
  seed: int = 0,
  dtype: Any = jnp.float32,
) -> Judged:
  """Draws completions of every prompt and scores them.

  Args:
    model: the policy.
    params: its weights.
    tokenizer: its tokenizer.
    prompts: P texts.
    scorer: the judge, on the policy's tokens: `scorers.from_model`, or `judge_of_text`.
    stream: names the policy's random stream. Policies that are compared have different ones: their samples must
      be independent.
    sampling: keywords of `generate`: max_new_tokens, temperature, top_k, top_p.
    num_samples: N.
    prompt_length: tokens; longer prompts keep BOS and their right end, and are counted.
    batch_size: prompts at a time.
    seed: of the samples.
    dtype: of the computation.

  Raises:
    BadData: there are no prompts, or one has no tokens.
    NonFinite: the judge gave NaN or infinity.
  """
  if batch_size < 1 or num_samples < 1:
    raise ConfigError(
      f"batch_size and num_samples must be at least 1, found {batch_size} and {num_samples}"
    )
  if not prompts:
    raise BadData("win rate: there are no prompts")
  rows = _prompt_rows(tokenizer, prompts, prompt_length)
  tokens, mask = rows.arrays["tokens"], rows.arrays["mask"]
  P, size = len(prompts), min(batch_size, len(prompts))
  rewards, finished, lengths = [], [], []
  for call, start in enumerate(range(0, P, size)):
    # The last batch is filled up with its first row, to keep the shape.
    index = np.arange(start, start + size)
    index = np.where(index < P, index, start)
    samples = generate(
      model,
      params,
      jnp.asarray(tokens[index]),
      jnp.asarray(mask[index]),
      rng.key(seed, f"win_rate/{stream}", call),
      num_samples=num_samples,
      eos_id=eos_id(tokenizer),
      pad_id=padding_id(tokenizer),
      dtype=dtype,
      **sampling,
    )
    arrays = [
      np.asarray(x)
      for x in (
        samples.prompt_tokens,
        samples.prompt_mask,
        samples.completions,
        samples.completion_mask,
      )
    ]
    rewards.append(scorers.check_rewards(scorer(*arrays), size * num_samples, name="judge"))
    finished.append(np.asarray(samples.finished))
    lengths.append(arrays[3].sum(axis=1))

  def joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)[: P * num_samples].reshape(P, num_samples)

  return Judged(
    joined(rewards), joined(finished), joined(lengths), rows.counts["truncated_prompts"]
  )


def _prompt_rows(tokenizer: Tokenizer, prompts: Sequence[str], most: int) -> encoding.Rows:
  """Prompts, padded no further than they have to be."""
  longest = max(len(ids) for ids in encoding.encode_texts(tokenizer, prompts))
  length = min(most, -(-longest // _MULTIPLE) * _MULTIPLE)
  rows = encoding.prompt_rows(tokenizer, prompts, length=max(length, 2))
  empty = np.flatnonzero(~rows.arrays["mask"].any(axis=1))
  if empty.size:
    raise BadData(f"win rate: prompt {empty[0]} has no tokens, and the tokenizer adds no BOS")
  return rows


def same_vocabulary(a: Tokenizer, b: Tokenizer) -> bool:
  """Whether two tokenizers give the same ids to the same tokens, BOS and EOS included."""
  specials = [(t.bos_token_id, t.eos_token_id) for t in (a, b)]
  return specials[0] == specials[1] and a.get_vocab() == b.get_vocab()


def judge_of_text(
  model: ScalarModel,
  params: Params,
  tokenizer: Tokenizer,
  policy_tokenizer: Tokenizer,
  *,
  length: int,
  chunk: int = 32,
  dtype: Any = jnp.float32,
) -> RolloutScorer:
  """A reward model of another vocabulary: it reads the text of prompt and completion, in its own tokens.

  A completion that ended in EOS ends in the judge's EOS; one that was cut has none. Prompt and completion that are
  longer than `length` together lose the left end of the prompt.

  Args:
    model: the reward model.
    params: its weights.
    tokenizer: its tokenizer.
    policy_tokenizer: of the rollouts.
    length: tokens that the reward model reads.
    chunk: rows at a time.
    dtype: of the computation.
  """
  policy_eos = eos_id(policy_tokenizer)

  def scorer(
    prompt_tokens: np.ndarray,
    prompt_mask: np.ndarray,
    completions: np.ndarray,
    completion_mask: np.ndarray,
  ) -> np.ndarray:
    decode = _decoder(policy_tokenizer)
    examples, ended = [], []
    for row in range(len(completions)):
      before = prompt_tokens[row][prompt_mask[row]].tolist()
      after = completions[row][completion_mask[row]].tolist()
      start = decode(before)
      # Decoded together: the first token of a completion may begin with a blank, which decoding it alone would lose.
      examples.append(Example(start, decode(before + after)[len(start) :]))
      ended.append(bool(after) and after[-1] == policy_eos)
    prompts, texts = encoding.encode_examples(tokenizer, examples, add_eos=False)
    ends = eos_id(tokenizer)
    texts = [ids + [ends] * end for ids, end in zip(texts, ended, strict=True)]
    rows = encoding.sequence_rows(
      prompts,
      texts,
      length=length,
      pad_id=padding_id(tokenizer),
      keep_first=len(bos_ids(tokenizer)),
    ).arrays
    return scorers.score_tokens(
      model, params, rows["tokens"], rows["mask"], chunk=chunk, dtype=dtype, name="judge"
    )

  return scorer


def _decoder(tokenizer: Tokenizer) -> Callable[[list[int]], str]:
  return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))
