"""What happened, in plain sentences made from the measured numbers.

Every sentence states what was measured, also where it speaks against averaging; nothing is said that the
records do not hold.
"""

from collections.abc import Sequence

from wam.report import fronts
from wam.report.points import AVERAGING, EARLY_STOPPING, MEAN, Estimate, Points
from wam.report.records import Record, finite, of_kind


def number(value: float | None) -> str:
  """Writes a number with as many digits as a reader wants.

  >>> (
  ...   number(0.4567),
  ...   number(0.0123),
  ...   number(-3.0),
  ...   number(123.4),
  ...   number(500.0),
  ...   number(1234.5),
  ...   number(None),
  ... )
  ('0.46', '0.012', '−3.00', '123.4', '500', '1234', '–')
  """
  if value is None:
    return "–"
  return _fixed(value, _decimals(value))


def interval(estimate: Estimate | None) -> str:
  """Writes a mean with the half width of its interval, without it where the seeds agree or there is but one.

  >>> interval(Estimate(0.5, 0.4, 0.6, 3)), interval(Estimate(0.5, None, None, 1))
  ('0.50 ± 0.10', '0.50')
  """
  if estimate is None:
    return "–"
  half = half_width(estimate)
  return number(estimate.mean) + (f" ± {half}" if half else "")


def half_width(estimate: Estimate | None) -> str:
  """Writes the half width of an interval with the decimals of its mean, empty where it would be zero."""
  if estimate is None or estimate.high is None:
    return ""
  text = _fixed(estimate.high - estimate.mean, _decimals(estimate.mean))
  return text if float(text) else ""


def duration(seconds: float) -> str:
  """Writes seconds for people.

  >>> duration(7.31), duration(192), duration(7325)
  ('7.3 s', '3 min 12 s', '2 h 2 min')
  """
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} min {rest} s"
  return f"{minutes // 60} h {minutes % 60} min"


def reward_name(name: str) -> str:
  """'reward_gold' becomes 'gold reward'."""
  return f"{name.removeprefix('reward_')} reward"


def sentences(points: Points, records: Sequence[Record]) -> list[str]:
  """Returns the summary: what RLHF bought, what it cost, and what averaging makes of it."""
  between = fronts.ends(points.shown)
  if between.before is None or between.after is None:
    absent = "before" if between.before is None else "after"
    return [
      f"The run has not evaluated the model {absent} RLHF yet, so this page cannot say what RLHF"
      " bought or cost; it shows what has been measured so far."
    ]
  return [
    _bought(points, between),
    _cost(points, between),
    _deal(points, between, fronts.select(points, records)),
  ]


def overoptimisation(points: Points) -> str | None:
  """Says whether the judge's reward fell while the proxy went on rising."""
  if points.x == "reward_proxy":
    return None
  name = reward_name(points.x)
  path = [p for p in fronts.trajectory(points.shown) if p.value(points.x)]
  if len(path) < 3 or not all(p.value("reward_proxy") for p in path):
    return None
  judged = [p.measures[points.x] for p in path]
  proxy = [p.measures["reward_proxy"].mean for p in path]
  peak = max(range(len(judged)), key=lambda i: judged[i].mean)
  lost = judged[peak].mean - judged[-1].mean
  noise = max(_half(judged[peak]), _half(judged[-1]))
  if lost > noise and proxy[-1] > proxy[peak]:
    return (
      f"Over-optimised: the {name} peaked at {path[peak].label} ({number(judged[peak].mean)}) and"
      f" ended {number(lost)} lower, while the proxy rose from {number(proxy[peak])} to"
      f" {number(proxy[-1])}."
    )
  return (
    f"No clear over-optimisation: the proxy went from {number(proxy[0])} to {number(proxy[-1])}, and"
    f" the {name} ended at {number(judged[-1].mean)}, its best being {number(judged[peak].mean)}."
  )


def hypervolumes(records: Sequence[Record]) -> str | None:
  """Compares the hypervolumes of averaging and early stopping on the mean of the skills."""
  found = {r["family"]: r for r in of_kind(records, "front") if r["y"] == MEAN}
  ours, baseline = found.get(AVERAGING), found.get(EARLY_STOPPING)
  if ours is None or baseline is None:
    return None
  text = (
    f"On the mean of the skills the hypervolume of {AVERAGING} is {number(ours['hypervolume'])},"
    f" that of {EARLY_STOPPING} {number(baseline['hypervolume'])}"
  )
  bounds = [finite(r.get(k)) for r in (ours, baseline) for k in ("low", "high")]
  if None in bounds:
    return text + " (without intervals)."
  our_low, our_high, base_low, base_high = (b for b in bounds if b is not None)
  if our_low > base_high:
    return text + "; the intervals do not overlap: averaging has the better front."
  if base_low > our_high:
    return text + "; the intervals do not overlap: early stopping has the better front."
  return text + "; the intervals overlap, so this run does not tell which front is better."


def _bought(points: Points, between: fronts.Ends) -> str:
  assert between.before and between.after
  before, after = between.before.value(points.x), between.after.value(points.x)
  if before is None or after is None:
    return "RLHF was run, but its reward was not measured."
  gain = after.mean - before.mean
  verb = "raised" if gain > 0 else "lowered"
  distance = between.after.value("kl")
  drift = f", at a KL of {number(distance.mean)} nats from the start" if distance else ""
  # Before anything else was made of the last checkpoint, it may not be the last one of the run.
  last = between.after
  far = f" (as far as {last.label})" if last.family == EARLY_STOPPING else ""
  return (
    f"RLHF{far} {verb} the {reward_name(points.x)} from {number(before.mean)} to"
    f" {number(after.mean)} ({_signed(gain)}){drift}."
  )


def _cost(points: Points, between: fronts.Ends) -> str:
  assert between.before and between.after
  worse: list[str] = []
  same: list[str] = []
  better: list[str] = []
  for skill in points.skills:
    before, after = between.before.value(skill.name), between.after.value(skill.name)
    if before is None or after is None:
      continue
    change = after.mean - before.mean if skill.higher_is_better else before.mean - after.mean
    text = f"{skill.name} {number(before.mean)} → {number(after.mean)}"
    noise = max(_half(before), _half(after), 0.005 * abs(before.mean))
    (worse if change < -noise else better if change > noise else same).append(text)
  parts = []
  if worse:
    parts.append(f"It cost {_list(worse)}")
  if same:
    parts.append(f"{'it left' if worse else 'It left'} {_list(same)} as good as unchanged")
  if better:
    parts.append(f"{'it improved' if parts else 'It improved'} {_list(better)}")
  return "; ".join(parts) + "." if parts else "No skill was measured before and after it."


def _deal(points: Points, between: fronts.Ends, selection: fronts.Selection | None) -> str:
  if not fronts.averages(points.shown):
    return "No averaged model has been evaluated yet."
  if selection is None:
    return (
      "There is no trade to make by averaging here: RLHF did not both raise the reward and lower"
      " the mean of the skills."
    )
  point = selection.point
  reward, skill = point.value(points.x), point.value(MEAN)
  name = f"{point.series}, {point.label}"
  if reward is None or skill is None:
    return f"The selected average is {name}; its reward or skills were not measured."
  reward_kept = fronts.kept(point, between, points.x)
  tax_paid = fronts.kept(point, between, MEAN)
  text = (
    f"The averaged model that the rule picks ({name}) has {reward_name(points.x)}"
    f" {number(reward.mean)} and mean skill {number(skill.mean)}"
  )
  if reward_kept is not None and tax_paid is not None:
    text += (
      f": it keeps {reward_kept:.0%} of the reward that RLHF bought and wins back"
      f" {1 - tax_paid:.0%} of the skill that RLHF cost"
    )
  return text + "; " + _against_early_stopping(fronts.compare(point, points))


def _against_early_stopping(comparison: fronts.Comparison | None) -> str:
  if comparison is None:
    return "the early-stopping path does not reach that reward, so there is no baseline for it."
  at = f"an early-stopped model with the same reward has {number(comparison.baseline)}"
  if not comparison.clear:
    return at + ", so averaging makes no clear difference here."
  if comparison.difference > 0:
    return at + ", so averaging is the better deal."
  return at + ", so averaging did not help: stopping early is the better deal."


def _decimals(value: float) -> int:
  size = abs(value)
  if size >= 100 and float(value).is_integer():
    return 0
  return 0 if size >= 1000 else 1 if size >= 100 else 3 if 0.0005 <= size < 0.0995 else 2


def _fixed(value: float, decimals: int) -> str:
  text = f"{value:.{decimals}f}"
  return text.replace("-", "−") if float(text) else text.lstrip("-")


def _half(estimate: Estimate) -> float:
  return 0.0 if estimate.high is None else estimate.high - estimate.mean


def _signed(value: float) -> str:
  return ("+" if value > 0 else "") + number(value)


def _list(items: list[str]) -> str:
  return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
