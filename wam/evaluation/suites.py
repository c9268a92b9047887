"""Benchmarks by name: what is asked, how it is scored, and where the data are looked for.

`load("arc_easy", {"path": ..., "limit": 100})` gives a task. A spec has the keys that all sources share
(data/sources.py), and

* limit: how many items are asked, at most; the first ones.
* few_shot: so many solved examples before every question, separated by a blank line.
* few_shot_split: where they are taken from, in the same source; by default they are the first rows of the split that is
  asked, which are then not asked.
* max_new_tokens, stop: of answers: where they are cut, and the text, or several, that they end before.
* span_separator (DROP): splits an answer into spans.
* source_language, target_language, reference_path, bleu_tokenizer (translation): codes of the languages; where the
  source is a text file, the file of the translations; sacrebleu's tokenizer.
* window, stride (perplexity): tokens; 0: the model's context, and no overlap but one token.
* separator, heading, field (perplexity): as for `load_texts`, and the field of rows that holds the text.

Solved examples are separated from their answers by one blank, as in lm-evaluation-harness but for DROP (none there) and
WMT14 (two). DROP's answers end at the first full stop there and here, decimal points included; set stop to change it.

Without a path the suite's places are tried under data_dir (or WAM_DATA). Prompts are those of lm-evaluation-harness 0.4
(schemas.py). Nothing is downloaded.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wam.core.errors import ConfigError, MissingFile, did_you_mean, unknown_name
from wam.data import sources
from wam.data.sources import Source
from wam.evaluation import schemas, suite_tasks
from wam.evaluation.task_kinds import AnswerTask, ChoiceTask, LastWordTask, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
  """A benchmark.

  Attributes:
    about: one line.
    metrics: that are shown; the first is the task's own.
    split: that is asked where a source has several.
    places: where its data are looked for, under the data directory.
    make: (name, source, **options) -> task. The options are the suite's keywords and their defaults.
  """

  about: str
  metrics: tuple[str, ...]
  split: str
  places: tuple[str, ...]
  make: Callable[..., Task]

  def options(self) -> dict[str, Any]:
    """The suite's own keys and their defaults."""
    only = inspect.Parameter.KEYWORD_ONLY
    found = inspect.signature(self.make).parameters
    return {name: p.default for name, p in found.items() if p.kind is only}


class Loaded(NamedTuple):
  """A suite with its data.

  Attributes:
    task: what `tasks.prepare` takes; its name is the suite's.
    metrics: that are shown.
    settings: plain data: path, split, options; what a record of the scores should say.
  """

  task: Task
  metrics: tuple[str, ...]
  settings: dict[str, Any]


def load(name: str, spec: Mapping[str, Any] | None = None) -> Loaded:
  """The task of a suite.

  Args:
    name: one of SUITES.
    spec: see the module.

  Raises:
    UnknownName: there is no such suite.
    ConfigError: a key is misspelt or out of range.
    MissingFile: its data are nowhere.
    BadData: a row cannot be used; names file and line.
  """
  if name not in SUITES:
    raise unknown_name("suite", name, SUITES)
  suite, given = SUITES[name], dict(spec or {})
  limit = given.pop("limit", None)
  if limit is not None and (type(limit) is not int or limit < 1):
    raise ConfigError(f"suite {name}: limit must be a whole number from 1 on, found {limit!r}")
  options = suite.options()
  _check_keys(name, given, options)
  source = Source(**{"path": "", **{k: given[k] for k in given if k in Source._fields}})
  if not source.path:
    source = source._replace(path=_find(name, suite, source.data_dir))
  source = source._replace(split=_split(source, suite.split))
  chosen = options | {key: given[key] for key in given if key in options}
  task = _first(suite.make(name, source, **chosen), limit)
  shown = {"path": source.path, "split": source.split, "shuffle_seed": source.shuffle_seed}
  shown["limit"] = limit
  return Loaded(task, suite.metrics, shown | chosen)


def _first(task: Task, limit: int | None) -> Task:
  """The task with its first items only."""
  if isinstance(task, ChoiceTask):
    return dataclasses.replace(task, items=task.items[:limit])
  if isinstance(task, AnswerTask):
    return dataclasses.replace(task, items=task.items[:limit])
  if isinstance(task, LastWordTask):
    return dataclasses.replace(task, examples=task.examples[:limit])
  return dataclasses.replace(task, documents=task.documents[:limit], counted=task.counted[:limit])


def _check_keys(name: str, given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
  known = [*Source._fields, "limit", *options]
  for key in given:
    if key not in known:
      raise ConfigError(
        f"suite {name}: unknown key '{key}'.{did_you_mean(key, known)} Known: {', '.join(sorted(known))}"
      )
    if isinstance(options.get(key), int) and type(given[key]) is not int:
      raise ConfigError(f"suite {name}: {key} must be a whole number, found {given[key]!r}")


def _find(name: str, suite: Suite, data_dir: str | None) -> str:
  """The first of the suite's places that exists."""
  if not suite.places:
    raise ConfigError(f"{name}: say of what: {name}=PATH, a text file or rows with a text field")
  for place in suite.places:
    try:
      sources.resolve(_folder(place), data_dir=data_dir)
    except MissingFile:
      continue
    return place
  raise MissingFile(
    f"no data for {name}: looked in the data directory for {', '.join(suite.places)}. Say where they are: {name}=PATH,"
    " a file, a Hugging Face data directory or tfds:NAME:SPLIT"
  )


def _folder(path: str) -> str:
  """A path as it lies on the disk: of TFDS, the builder's directory."""
  return path.removeprefix(sources.TFDS_PREFIX).partition(":")[0] if _is_tfds(path) else path


def _is_tfds(path: str) -> bool:
  return path.startswith(sources.TFDS_PREFIX)


def _split(source: Source, default: str) -> str:
  """The split to ask: the named one, else the suite's where the source has several."""
  name, slice_ = sources.parse_split(source.split)
  path = sources.resolve(_folder(source.path), data_dir=source.data_dir, hint=source.hint)
  named = name or (_is_tfds(source.path) and ":" in source.path.removeprefix(sources.TFDS_PREFIX))
  if not named and path.is_dir():
    name = default
  return f"{name}[{slice_}]" if slice_ else name


_CHOICE_METRICS = ("accuracy", "accuracy_per_character")
SUITES: dict[str, Suite] = {
  "arc_easy": Suite(
    about="ARC, easy questions (Clark et al. 2018)",
    metrics=_CHOICE_METRICS,
    split="test",
    places=(
      "arc_easy",
      "arc_easy.jsonl",
      "ai2_arc/ARC-Easy",
      "tfds:ai2_arc/ARC-Easy",
      "eval-gauntlet/arc_easy.jsonl.gz",
    ),
    make=suite_tasks.choices(schemas.arc),
  ),
  "arc_challenge": Suite(
    about="ARC, hard questions (Clark et al. 2018)",
    metrics=_CHOICE_METRICS,
    split="test",
    places=(
      "arc_challenge",
      "arc_challenge.jsonl",
      "ai2_arc/ARC-Challenge",
      "tfds:ai2_arc/ARC-Challenge",
      "eval-gauntlet/arc_challenge.jsonl.gz",
    ),
    make=suite_tasks.choices(schemas.arc),
  ),
  "piqa": Suite(
    about="PIQA, how things are done (Bisk et al. 2020)",
    metrics=_CHOICE_METRICS,
    split="validation",
    places=("piqa", "piqa.jsonl", "tfds:piqa", "eval-gauntlet/piqa.jsonl.gz"),
    make=suite_tasks.choices(schemas.piqa),
  ),
  "race": Suite(
    about="RACE, the last question about each article (Lai et al. 2017)",
    metrics=_CHOICE_METRICS,
    split="test",
    places=("race/high", "race", "race.jsonl", "tfds:race/high"),
    make=suite_tasks.race,
  ),
  "boolq": Suite(
    about="BoolQ, yes or no after a passage (Clark et al. 2019)",
    metrics=_CHOICE_METRICS,
    split="validation",
    places=(
      "boolq",
      "boolq.jsonl",
      "super_glue/boolq",
      "tfds:bool_q",
      "tfds:super_glue/boolq",
      "eval-gauntlet/boolq.jsonl.gz",
    ),
    make=suite_tasks.choices(schemas.boolq),
  ),
  "squad": Suite(
    about="SQuAD v1.1, an answer from a passage (Rajpurkar et al. 2016)",
    metrics=("squad_f1", "exact_match"),
    split="validation",
    places=(
      "squad",
      "squad.jsonl",
      "dev-v1.1.json",
      "squad/plain_text",
      "tfds:squad/v1.1",
      "xquad-en/xquad.en.json.gz",
    ),
    make=suite_tasks.squad,
  ),
  "drop": Suite(
    about="DROP, counting and comparing in a passage (Dua et al. 2019)",
    metrics=("drop_f1", "drop_exact_match"),
    split="validation",
    places=("drop", "drop.jsonl", "drop_dataset_dev.json", "tfds:drop:dev"),
    make=suite_tasks.drop,
  ),
  "wmt14_fr_en": Suite(
    about="WMT14 news, French to English (Bojar et al. 2014)",
    metrics=("bleu",),
    split="test",
    places=("wmt14/fr-en", "wmt14_fr_en", "wmt14_fr_en.jsonl", "tfds:wmt14_translate/fr-en"),
    make=suite_tasks.translation("fr", "en"),
  ),
  "ntrex_fr_en": Suite(
    about="NTREX-128 news, French to English (Federmann et al. 2022)",
    metrics=("bleu",),
    split="test",
    places=(
      "NTREX-128/newstest2019-ref.fra.txt",
      "ntrex-en-fr/newstest2019-ref.fra.txt.gz",
    ),
    make=suite_tasks.translation("fr", "en", ("ref.fra", "src.eng")),
  ),
  "lambada": Suite(
    about="LAMBADA, the last word of a passage (Paperno et al. 2016)",
    metrics=("accuracy", "perplexity"),
    split="test",
    places=(
      "lambada",
      "lambada.jsonl",
      "lambada_openai",
      "tfds:lambada",
      "eval-gauntlet/lambada_openai.jsonl.gz",
    ),
    make=suite_tasks.lambada,
  ),
  "perplexity": Suite(
    about="perplexity of any text, by token, word and byte",
    metrics=("token_perplexity", "word_perplexity", "byte_perplexity"),
    split="test",
    places=(),
    make=suite_tasks.perplexity,
  ),
  "wikitext": Suite(
    about="WikiText-2 by page, without its tokenisation marks (Merity et al. 2016)",
    metrics=("word_perplexity", "byte_perplexity", "bits_per_byte"),
    split="test",
    places=("wikitext_document_level", "wikitext-2/test.txt.gz", "wikitext-2/test.txt"),
    make=suite_tasks.wikitext,
  ),
}
