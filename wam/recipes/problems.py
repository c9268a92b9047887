"""Problems: what a recipe trains on, is rewarded by and is measured with. The invented world, or the user's files.

A problem is strings and scorers; nothing is tokenised here. Leaves out models and every choice of training.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wam.core import sections
from wam.core.errors import ConfigError, unknown_name
from wam.data import items, preferences, text
from wam.data import prompts as prompt_data
from wam.data.examples import Example, Pair
from wam.data.tokenizers import Tokenizer, word_tokenizer
from wam.data.world import World, gold_reward
from wam.evaluation import suites
from wam.evaluation.tasks import AnswerTask, ChoiceTask, LastWordTask, Task, TextTask
from wam.rewards.scorers import Scorer

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Problem:
  """Everything a recipe needs that is not a model.

  Attributes:
    corpus: what pre-training reads; empty where the model is pre-trained already.
    demonstrations: what supervised fine-tuning imitates; may be empty.
    pairs: by split ("train", "validation"): what the proxy reward model learns from and is tested on.
    prompts: by split.
    tasks: by split ("validation", "test").
    gold: the true reward, or None: then a control reward model judges.
    control_pairs: as `pairs`, disjoint from them, for that model; empty with a gold reward.
    ood_pairs: pairs of another distribution, which reward models are tested on; may be empty.
    words: the vocabulary, for problems that bring their own tokenizer; None: the model's is used.
  """

  corpus: Sequence[Example]
  demonstrations: Sequence[Example]
  pairs: Mapping[str, Sequence[Pair]]
  prompts: Mapping[str, Sequence[str]]
  tasks: Mapping[str, Sequence[Task]]
  gold: Scorer | None = None
  control_pairs: Mapping[str, Sequence[Pair]] = dataclasses.field(default_factory=dict)
  ood_pairs: Sequence[Pair] = ()
  words: Sequence[str] | None = None

  def tokenizer(self) -> Tokenizer | None:
    """The problem's own tokenizer, if it has one."""
    return None if self.words is None else word_tokenizer(self.words)


def world_problem(
  *,
  seed: int = 0,
  size: Mapping[str, int] | None = None,
  num_corpus: int = 40_000,
  num_demonstrations: int = 4_000,
  num_pairs: int = 2_000,
  num_validation_pairs: int = 500,
  num_prompts: int = 1_500,
  num_items: int = 100,
  sharpness: float = 8.0,
  label_noise: float = 0.0,
) -> Problem:
  """The invented world of `data/world.py`.

  Args:
    seed: of the world; not of the run.
    size: keywords of `World` other than the seed.
    num_corpus: texts to pre-train on.
    num_demonstrations: examples for supervised fine-tuning.
    num_pairs: preference pairs for the reward model.
    num_validation_pairs: held-out pairs.
    num_prompts: chat prompts for RLHF; validation and test have `num_items` each.
    num_items: items a task and split for passages and translation; facts are asked all.
    sharpness: Bradley-Terry's inverse temperature on the gold reward.
    label_noise: share of the training pairs that are swapped.
  """
  world = sections.call(World, size or {}, "problem.size", seed=seed)
  return Problem(
    corpus=world.corpus(num_corpus),
    demonstrations=world.demonstrations("train", num_demonstrations),
    pairs={
      "train": world.pairs("train", num_pairs, sharpness=sharpness, label_noise=label_noise),
      "validation": world.pairs("validation", num_validation_pairs, sharpness=sharpness),
    },
    prompts={
      split: world.prompts(split, num_prompts if split == "train" else num_items)
      for split in SPLITS
    },
    tasks={
      split: [
        ChoiceTask("facts", world.choice_items(split)),
        AnswerTask("passages", world.passage_items(split, num_items), "f1", max_new_tokens=6),
        AnswerTask(
          "translation",
          world.translation_items(split, num_items),
          "bleu",
          max_new_tokens=8,
          bleu_tokenizer="none",
        ),
      ]
      for split in SPLITS[1:]
    },
    gold=gold_reward(world),
    words=world.vocabulary,
  )


def file_problem(
  *,
  data_dir: str | None = None,
  pairs: Mapping[str, Any],
  prompts: Mapping[str, Any],
  tasks: Mapping[str, Any],
  control_pairs: Mapping[str, Any] | None = None,
  ood_pairs: Mapping[str, Any] | None = None,
  demonstrations: Mapping[str, Any] | None = None,
  corpus: Mapping[str, Any] | None = None,
) -> Problem:
  """The user's own data; the specs are those of `wam.data` (sources.py for the keys that all share).

  Args:
    data_dir: where relative paths start; default the environment variable WAM_DATA.
    pairs: {"train": spec, "validation": spec} of `preferences.load_pairs`, for the proxy reward model.
    prompts: {"train": spec, "validation": spec, "test": spec} of `prompts.load_prompts`.
    tasks: by name: {"kind": ..., "validation": spec, "test": spec, "options": {...}}, the kind one of TASKS; or, with
      the kind "suite", a benchmark of `evaluation.suites` with its data and prompts: specs and options are keys of
      `suites.load`, and the option "suite" names it where the task has another name.
    control_pairs: as `pairs`, for the judge; best from other rows than `pairs`.
    ood_pairs: a spec of pairs of another distribution, to test reward models on.
    demonstrations: a spec of `prompts.load_examples`, to fine-tune on first.
    corpus: a spec of `text.load_texts`, to pre-train on first.

  Raises:
    WamError: names the spec, file and line.
  """
  fill = _filler(data_dir)
  for name, splits in (("pairs", pairs), ("control_pairs", control_pairs or {})):
    _check_splits(splits, f"problem.{name}", SPLITS[:2] if splits else ())
  _check_splits(prompts, "problem.prompts", SPLITS)
  return Problem(
    corpus=[Example("", t) for t in text.load_texts(fill(corpus))] if corpus else [],
    demonstrations=prompt_data.load_examples(fill(demonstrations)) if demonstrations else [],
    pairs={split: preferences.load_pairs(fill(spec)) for split, spec in pairs.items()},
    control_pairs={
      split: preferences.load_pairs(fill(spec)) for split, spec in (control_pairs or {}).items()
    },
    ood_pairs=preferences.load_pairs(fill(ood_pairs)) if ood_pairs else (),
    prompts={split: prompt_data.load_prompts(fill(spec)) for split, spec in prompts.items()},
    tasks={
      split: [_load_task(name, task, split, fill) for name, task in tasks.items()]
      for split in SPLITS[1:]
    },
  )


# By kind: what loads the items of a task, and the task itself.
TASKS: dict[str, tuple[Callable[[Mapping[str, Any]], Sequence[Any]], Callable[..., Task]]] = {
  "choice": (items.load_choice_items, ChoiceTask),
  "answer": (items.load_answer_items, AnswerTask),
  "text": (text.load_texts, TextTask),
  "last_word": (items.load_last_word, LastWordTask),
}

# The kind of a task that is a benchmark of evaluation/suites.py.
SUITE = "suite"


def _load_task(
  name: str, task: Mapping[str, Any], split: str, fill: Callable[[Any], dict[str, Any]]
) -> Task:
  kind = task.get("kind", "")
  if kind not in (*TASKS, SUITE):
    raise unknown_name(f"kind of problem.tasks.{name}", kind, [*TASKS, SUITE])
  _check_splits(
    {key: spec for key, spec in task.items() if key not in ("kind", "options")},
    f"problem.tasks.{name}",
    SPLITS[1:],
  )
  options = dict(task.get("options", {}))
  if kind == SUITE:
    suite = options.pop("suite", name)
    loaded = suites.load(suite, options | fill(task[split]))
    return dataclasses.replace(loaded.task, name=name)
  load, make_task = TASKS[kind]
  given = ("name", "items", "documents", "examples")
  sections.check(make_task, options, f"problem.tasks.{name}.options", given=given)
  return make_task(name, load(fill(task[split])), **options)


def _check_splits(splits: Mapping[str, Any], name: str, expected: Sequence[str]) -> None:
  if set(splits) != set(expected):
    raise ConfigError(
      f"{name}: expected the splits {', '.join(expected) or '(none)'}; found"
      f" {', '.join(sorted(splits)) or 'none'}"
    )


def _filler(data_dir: str | None) -> Callable[[Any], dict[str, Any]]:
  """Puts the problem's data_dir into specs that have none."""

  def fill(spec: Any) -> dict[str, Any]:
    return {"data_dir": data_dir, **spec}

  return fill


PROBLEMS: dict[str, Callable[..., Problem]] = {"world": world_problem, "files": file_problem}


def make(section: Mapping[str, Any]) -> Problem:
  """The problem of a config section: its "kind", and the keywords of that kind's function.

  Raises:
    ConfigError: for a misspelt key; UnknownName: for an unknown kind.
  """
  keywords = dict(section)
  kind = keywords.pop("kind", "")
  if kind not in PROBLEMS:
    raise unknown_name("problem.kind", kind, PROBLEMS)
  return sections.call(PROBLEMS[kind], keywords, "problem")
