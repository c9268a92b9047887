"""A search for ratios inside a run: gradient steps or the exact solver, with records, and a place to go on from.

What the objectives of adaptive averaging share. Leaves out the objectives (wam/algorithms/adaptive_averaging.py).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wam.core import rng
from wam.core.errors import ConfigError, unknown_name
from wam.core.types import Params
from wam.merging import adaptive, ratio_search, ratios
from wam.models.decoder import LanguageModel
from wam.training import iterations, optimizers, sharding
from wam.training.between import Between
from wam.training.progress import Progress
from wam.training.small_state import SmallState
from wam.training.workdir import Run

# (ratios [K], step) -> what is climbed, and its slopes [K].
Objective = Callable[[np.ndarray, int], tuple[float, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averaging:
  """The numbers that every search for ratios has.

  Attributes:
    alpha: the mean of the ratios; 1 is the RLHF model.
    num_parts: K.
    parts: keywords of `adaptive.layout`: split, scope, biases, embeddings, final_norm, head. The paper's: linear
      layers only, the head with α.
    form: "projected", "coded", "printed" or "free", see `ratios.form`.
    epsilon: how near α the ratios have to stay.
    penalty: of the regulariser Σ_layers w_l |α_l - α|, 1e-4 in the authors' code.
    optimizer: keywords of `optimizers.make` without `total_steps`, for gradient steps. The paper has Adam with 2e-5
      (RSF) or 4e-5 and a cosine, which moves the ratios by a hundredth of themselves.
    rows_per_call: completions of one forward pass, to bound its memory.
    mode: "forward" or "reverse": how derivatives are taken.
    dtype: of the computation.
  """

  alpha: float
  num_parts: int = 3
  parts: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"scope": "linear"})
  form: str = "projected"
  epsilon: float = 0.0
  penalty: float = 0.0
  optimizer: Mapping[str, Any] | None = None
  rows_per_call: int = 8
  mode: str = "forward"
  dtype: str = "float32"

  def __post_init__(self) -> None:
    ratios.bounds(self.form, self.num_parts, self.alpha, epsilon=self.epsilon)
    if self.mode not in adaptive.MODES:
      raise unknown_name("mode", self.mode, adaptive.MODES)
    if self.rows_per_call < 1 or not self.penalty >= 0:
      raise ConfigError(
        f"expected rows_per_call from 1 and a penalty from 0, found {self.rows_per_call} and {self.penalty}"
      )

  def make_form(self) -> ratios.Form:
    """How ratios follow from the variables."""
    return ratios.form(self.form, self.num_parts, self.alpha, epsilon=self.epsilon)


class Averaged(NamedTuple):
  """What a search found.

  Attributes:
    params: the average.
    ratios: by part, float32 numbers.
    objective: at these ratios, without the regulariser: eq. 8 on the examples; for a search by reward the mean reward
      last sampled.
    uniform: the objective where all ratios are the same (the first mean reward).
    evaluations: of the gradient.
  """

  params: Params
  ratios: dict[str, float]
  objective: float
  uniform: float
  evaluations: int


class Search:
  """One search: its models, where it stands, its records."""

  def __init__(
    self,
    model: LanguageModel,
    reference: Params,
    tuned: Params,
    config: Averaging,
    temperature: float,
    *,
    run: Run,
    stage: str,
    objective: str = "likelihood",
  ):
    """Places the models on the run's mesh, and reads where the search was left.

    Args:
      model: the decoder.
      reference: θ_0.
      tuned: θ.
      config: the numbers.
      temperature: of the policies.
      run: the open workdir.
      stage: names the search.
      objective: of `between.OBJECTIVES`.
    """
    where = iterations.parameter_shardings(reference, run)
    ends = [sharding.put(weights, where, copy=False) for weights in (reference, tuned)]
    self.between = Between(
      model,
      *ends,
      num_parts=config.num_parts,
      parts=config.parts,
      temperature=temperature,
      rows_per_call=config.rows_per_call,
      mode=config.mode,
      objective=objective,
      dtype=config.dtype,
      place=lambda batch: sharding.put_whole_batch(batch, run.mesh),
    )
    self._config, self._run, self._stage = config, run, stage
    self._saved = SmallState(run.stage_directory(stage) / "search.json")
    self._form = config.make_form()
    self.equal_ratios = np.asarray(self._form.ratios(self._form.start))
    by_layer = ratios.closeness_weights(sum(map(len, self.between.layout.layers().values())))
    self._penalties = config.penalty * np.array(
      [by_layer[layers].sum() for layers in self.between.layout.layers().values()]
    )
    self.values: list[float] = []

  @property
  def done(self) -> bool:
    """Whether the search was finished before."""
    return self._saved.result is not None

  def climb(
    self, objective: Objective, optimizer: Mapping[str, Any], *, num_steps: int
  ) -> np.ndarray:
    """Gradient steps, from where they were left; the ratios after the last [K]."""
    tx = optimizers.make(total_steps=num_steps, **optimizer)
    ascent = ratio_search.ascent(self._form, tx)
    state, self.values = self._saved.restore(ascent.init())
    first = len(self.values)
    self._run.records.drop_after(self._stage, first)
    with Progress(self._stage, num_steps, start=first, enabled=self._run.show) as bar:
      for step in range(first, num_steps):
        clock = time.monotonic()
        a = np.asarray(ascent.value(state))
        value, slopes = objective(a, step)
        self.values.append(value)
        state = ascent.update(jnp.asarray(slopes - self._penalty(a)[1], jnp.float32), state)
        self._log(step + 1, a, value, time.monotonic() - clock)
        self._saved.save(state, self.values)
        self._run.interrupts.check(f"step {step + 1} of {self._stage}")
        bar.update(step + 1, {"objective": value})
    return np.asarray(ascent.value(state))

  def solve(self, objective: Objective, *, num_starts: int = 1) -> tuple[np.ndarray, int]:
    """The exact solver's ratios [K], from equal ratios and other starts, and its number of evaluations."""
    config = self._config
    self._run.records.drop_after(self._stage, 0)
    low, high = ratios.bounds(config.form, config.num_parts, config.alpha, epsilon=config.epsilon)

    def evaluate(a: np.ndarray) -> tuple[float, np.ndarray]:
      clock = time.monotonic()
      self._run.interrupts.check(self._stage)
      value, slopes = objective(a, 0)
      self.values.append(value)
      self._log(len(self.values), a, value, time.monotonic() - clock)
      penalty, its_slopes = self._penalty(a)
      return value - penalty, slopes - its_slopes

    size = (config.num_parts, config.alpha)
    generator = rng.generator(self._run.seed, f"{self._stage}/starts")
    more = ratios.random_points(generator, num_starts - 1, *size, low=low, high=high)
    starts = np.concatenate([np.full((1, config.num_parts), config.alpha), more])
    found = ratio_search.solve(evaluate, *size, low=low, high=high, starts=starts)
    return found.ratios.astype(np.float32), found.evaluations

  def finish(
    self, a: np.ndarray, *, objective: float, uniform: float, evaluations: int
  ) -> Averaged:
    """Records and saves the result."""
    found = {
      "ratios": dict(zip(self.between.names, a.tolist(), strict=True)),
      "objective": objective,
      "uniform": uniform,
      "evaluations": evaluations,
    }
    self._run.log(
      found | {"alpha": self._config.alpha}, kind="ratios", stage=self._stage, step=evaluations
    )
    self._run.records.sync()
    self._saved.finish(found)
    return self.result()

  def result(self) -> Averaged:
    """What was found."""
    found = self._saved.result
    assert found is not None
    params = self.between.params(list(found["ratios"].values()), self._config.alpha)
    return Averaged(params, **found)

  def _penalty(self, a: np.ndarray) -> tuple[float, np.ndarray]:
    return ratios.closeness_penalty(a, self._config.alpha, self._penalties)

  def _log(self, step: int, a: np.ndarray, value: float, seconds: float) -> None:
    by_part = {f"ratio/{n}": float(x) for n, x in zip(self.between.names, a, strict=True)}
    record = {"objective": value, "mean_ratio": float(np.mean(a)), **by_part, "seconds": seconds}
    self._run.log(record, stage=self._stage, step=step)
