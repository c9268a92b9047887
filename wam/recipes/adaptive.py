"""The section "adaptive" of a recipe: Adaptive Model Averaging between θ_0 and θ, for several mean ratios and K.

Completions are drawn once for all searches. With a grid, ratios of one mean are measured all over the simplex, beside
what the objectives think of them. Leaves out the search itself (algorithms/adaptive_averaging.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wam.algorithms import adaptive_averaging
from wam.core import sections
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params
from wam.generation.rollouts import Rollout
from wam.merging import adaptive, ratios
from wam.recipes import tuning
from wam.recipes.policies import sampling_settings
from wam.recipes.tuning import Setting, prompts
from wam.training import iterations, sharding
from wam.training.between import Between, Weighted

FAMILY, GRID = "adaptive", "ratio grid"
# What keeps the average near θ_0: nothing (the paper), completions of θ_0, texts that it was pre-trained on.
ANCHORS = ("none", "samples", "corpus")
# What the program passes itself.
_GIVEN = ("alpha",)
_DRAWN = ("model", "tuned", "prompts", "scorer", "run", "sampling", "stage")


class Search(NamedTuple):
  """One search: a mean ratio, a number of parts, and one of ANCHORS."""

  alpha: float
  num_parts: int
  anchors: str

  @property
  def family(self) -> str:
    """The line of the figure."""
    return FAMILY if self.anchors == "none" else f"{FAMILY}, anchored by {self.anchors}"

  @property
  def label(self) -> str:
    """What its result is called in figures."""
    return f"K = {self.num_parts}, α = {self.alpha:g}"

  @property
  def stage(self) -> str:
    """Its name in records and among the checkpoints."""
    more = "" if self.anchors == "none" else f"-{self.anchors}"
    return f"adaptive-{self.num_parts}-{self.alpha:g}{more}"


class Section(NamedTuple):
  """The section "adaptive", read."""

  searches: list[Search]
  examples: Mapping[str, Any]
  grid: np.ndarray  # [G, K] ratios
  alpha: float  # of the grid
  settings: dict[str, Any]  # fields of `adaptive_averaging.Settings`


class Average(NamedTuple):
  """An average to be measured.

  Attributes:
    family, label: what it is called in figures.
    ratios: by part.
    stage: its name among all models of the run.
    make: makes its weights.
  """

  family: str
  label: str
  ratios: dict[str, float]
  stage: str
  make: Callable[[], Params]


class Texts(NamedTuple):
  """What likelihoods are taken of: completions of θ with high rewards, and what is known of each of ANCHORS."""

  examples: Rollout
  anchors: Mapping[str, Weighted]


def read(section: Mapping[str, Any]) -> Section:
  """The section.

  Raises:
    ConfigError, UnknownName: names the key.
  """
  settings = adaptive_averaging.Settings
  sections.check(_read, section, "adaptive", given=_GIVEN, also=[settings])
  return _read(**section)


def _read(
  *,
  examples: Mapping[str, Any],
  alphas: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
  num_parts: Sequence[int] = (3,),
  anchors: Sequence[str] = ("none",),
  grid: Mapping[str, Any] | None = None,
  **settings: Any,
) -> Section:
  """The keys of the section.

  Args:
    examples: keywords of `adaptive_averaging.distillation_set`: num_prompts, samples_per_prompt, pool, size, ...
    alphas: mean ratios, which θ is multiplied with.
    num_parts: numbers of parts K; each goes with each α.
    anchors: of ANCHORS; each goes with each α, those but "none" for the first K alone.
    grid: {"alpha", "step", "num_parts"}: ratios to measure, see `ratios.grid`; None for none.
    **settings: the fields of `adaptive_averaging.Settings`.
  """
  for name in anchors:
    if name not in ANCHORS:
      raise unknown_name("anchors in adaptive.anchors", name, ANCHORS)
  searches = [
    Search(alpha, parts, name)
    for name in anchors
    for parts in (num_parts if name == "none" else num_parts[:1])
    for alpha in alphas
  ]
  if not searches:
    raise ConfigError("adaptive: alphas, num_parts and anchors must name at least one search")
  points, alpha = np.zeros((0, 1)), 0.0
  if grid is not None:
    points, alpha = sections.call(_grid, grid, "adaptive.grid")
  return Section(searches, examples, points, alpha, settings)


def _grid(*, alpha: float, step: float, num_parts: int = 3) -> tuple[np.ndarray, float]:
  """The keys of the grid."""
  return ratios.grid(num_parts, alpha, step=step), alpha


def check(section: Mapping[str, Any], params: Params, *, has_corpus: bool) -> Section:
  """The section; refuses what cannot work before anything is trained.

  Raises:
    ConfigError, UnknownName: names the key.
  """
  found = read(section)
  sections.check(
    adaptive_averaging.distillation_set, found.examples, "adaptive.examples", given=_DRAWN
  )
  for search in found.searches:
    made = _settings(found, search.alpha, search.num_parts)
    adaptive.layout(params, search.num_parts, **made.parts)
    if search.anchors == "corpus" and not has_corpus:
      raise ConfigError(
        "adaptive.anchors: 'corpus' needs texts of pre-training; give problem.corpus, or take 'samples'"
      )
  if len(found.grid):
    adaptive.layout(params, found.grid.shape[1], **_settings(found, found.alpha, 1).parts)
  return found


def _texts(section: Section, tuned: Params, setting: Setting) -> Texts:
  """The completions of θ whose likelihood the ratios maximise, scored by the proxy reward; and the anchors.

  All anchors that there are if the section has a grid, else those that it searches with.
  """
  named = set(ANCHORS if len(section.grid) else [search.anchors for search in section.searches])
  examples = _draw(section.examples, tuned, setting, "adaptive-examples")
  anchors = {}
  if "samples" in named:
    # As many, but of all that θ_0 writes.
    everything = dict(section.examples) | {"pool": 2**62}
    own = _draw(everything, setting.reference, setting, "adaptive-anchors")
    anchors["samples"] = adaptive_averaging.counted(own)
  if "corpus" in named and setting.data.corpus:
    rows = tuning.replayed(setting, limit=len(examples.completions))
    kept = (rows["loss_mask"] & rows["mask"])[:, 1:].astype(np.float32)
    anchors["corpus"] = Weighted(rows["tokens"], rows["mask"], kept)
  return Texts(examples, anchors)


def _draw(keywords: Mapping[str, Any], params: Params, setting: Setting, stage: str) -> Rollout:
  return adaptive_averaging.distillation_set(
    setting.policy.model,
    params,
    prompts(setting),
    setting.rewards.scorers["proxy"],
    run=setting.run,
    sampling=sampling_settings(**setting.sampling)[1] | setting.policy.ends,
    stage=stage,
    **keywords,
  )


def averages(section: Section, tuned: Params, setting: Setting) -> list[Average]:
  """Carries all searches out, or loads what they found, and judges the grid."""
  texts = _texts(section, tuned, setting)
  found = [_found(search, section, texts, tuned, setting) for search in section.searches]
  if len(section.grid):
    _judge_grid(section, texts, tuned, setting)
  return found + [_point(point, section, tuned, setting) for point in section.grid]


def _found(
  search: Search, section: Section, texts: Texts, tuned: Params, setting: Setting
) -> Average:
  def find() -> adaptive_averaging.Averaged:
    return adaptive_averaging.run(
      setting.policy.model,
      setting.reference,
      tuned,
      texts.examples,
      anchors=texts.anchors.get(search.anchors),
      run=setting.run,
      stage=search.stage,
      alpha=search.alpha,
      num_parts=search.num_parts,
      **section.settings,
    )

  # The weights are made again when they are measured: those of all searches at once are too many.
  return Average(search.family, search.label, find().ratios, search.stage, lambda: find().params)


def _point(point: np.ndarray, section: Section, tuned: Params, setting: Setting) -> Average:
  made = _settings(section, section.alpha, len(point))
  layout = adaptive.layout(tuned, len(point), **made.parts)

  def make() -> Params:
    ratios_ = np.asarray(point, np.float32)
    return adaptive.merge(layout, setting.reference, tuned, ratios_, alpha=section.alpha)

  label = f"({'|'.join(f'{ratio:.3g}' for ratio in point)})"
  return Average(
    GRID, label, dict(zip(layout.names, point.tolist(), strict=True)), f"{GRID} {label}", make
  )


def _judge_grid(section: Section, texts: Texts, tuned: Params, setting: Setting) -> None:
  """Writes a record of kind "objective" for every point of the grid, and for both ends.

  Its "ratios" [K] and, under "likelihood", the mean log-likelihoods in nats a sequence: of "examples" (eq. 8) and of
  the anchors.
  """
  run, stage = setting.run, f"{FAMILY}-grid"
  every = {"examples": adaptive_averaging.counted(texts.examples), **texts.anchors}
  num_parts = section.grid.shape[1]
  made = _settings(section, section.alpha, num_parts)
  run.records.drop(lambda record: record["kind"] == "objective" and record["stage"] == stage)
  with jax.set_mesh(run.mesh):
    where = iterations.parameter_shardings(tuned, run)
    ends = [sharding.put(p, where, copy=False) for p in (setting.reference, tuned)]
    between = Between(
      setting.policy.model,
      *ends,
      num_parts=num_parts,
      parts=made.parts,
      temperature=made.temperature,
      rows_per_call=made.rows_per_call,
      dtype=made.dtype,
      place=lambda batch: sharding.put_whole_batch(batch, run.mesh),
    )
    whole = [np.full(num_parts, end) for end in (0.0, 1.0)]
    for step, point in enumerate([*whole, *section.grid]):
      # What belongs to no part has α: at the ends, theirs.
      alpha = float(point[0]) if step < len(whole) else section.alpha
      found = {
        name: between.value(point, alpha, adaptive_averaging.mean_of(each))
        for name, each in every.items()
      }
      fields = {"ratios": np.asarray(point).tolist(), "alpha": alpha, "likelihood": found}
      run.log(fields, kind="objective", stage=stage, step=step)
      run.interrupts.check(f"{stage} after point {step + 1}")


def _settings(section: Section, alpha: float, num_parts: int) -> adaptive_averaging.Settings:
  return adaptive_averaging.Settings(alpha=alpha, num_parts=num_parts, **section.settings)
