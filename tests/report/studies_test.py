"""Pages of WARM, WARP, Rewarded Soups and CLP: their numbers, their words, unfinished runs, hostile text."""

import csv
import html
import io
import json
import math
import re

import pytest
from rich.console import Console

from tests.report import study_runs
from wam.report import blocks_page, charts, explorers, read_run, studies, summary, write_report
from wam.report.blocks import Explorer

RUNS = {**study_runs.RUNS, "three rewards": lambda: study_runs.soups(study_runs.TRIPLE, steps=5)}
RECIPES = {name: name for name in study_runs.RUNS} | {"three rewards": "rewarded_soups"}


@pytest.fixture
def page_of(write_run):
  """The page of records, as blocks."""

  def make(recipe, records):
    return studies.page_of(read_run(write_run(records, study_runs.header(recipe), name=recipe)))

  return make


def own_text(path):
  page = path.read_text(encoding="utf-8")
  return re.sub(r'<script id="plotly">.*?</script>', "", page, flags=re.S)


def json_of(page, name):
  return json.loads(re.search(rf'id="{name}">(.*?)</script>', page, flags=re.S)[1])


def value_of(records, family, label, name):
  (found,) = [
    r["values"][name]
    for r in records
    if r.get("study") == "front" and (r["family"], r["label"]) == (family, label)
  ]
  return found


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run(name, write_run):
  records = RUNS[name]()
  path = write_report(write_run(records, study_runs.header(RECIPES[name])))
  page = own_text(path)
  assert "Not in the records" not in page
  assert html.escape(f"wam run --config configs/{RECIPES[name]}/tiny.py") in page
  drawn = charts.all_figures(studies.page_of(read_run(path.parents[1])))
  pictures = {f"{figures.name}.png" for figures in drawn}
  found = {p.name for p in path.parent.iterdir()}
  assert found == pictures | {"index.html", "measurements.csv", "fronts.csv", "curves.png"}
  # The page loads nothing.
  sources = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]+)""", page)
  assert [s for s in sources if not s.startswith("data:image/png") and s not in found] == []
  for loader in ("http:", "https:", "@import", "url(", "fetch(", "<link", "<iframe", "import("):
    assert loader not in page, loader
  # Every row of the table is a record.
  with (path.parent / "measurements.csv").open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
  measured = [r for r in records if r["kind"] == "measurement"]
  assert len(rows) == len(measured)
  for row, record in zip(rows, measured, strict=True):
    for value, number in record["values"].items():
      assert float(row[value]) == number
      if "halves" in record:
        assert float(row[f"{value}_high"]) == pytest.approx(number + record["halves"][value])


@pytest.mark.parametrize("name", RUNS)
def test_plotly_accepts_the_figures(name, page_of):
  import plotly.graph_objects

  page = page_of(RECIPES[name], RUNS[name]())
  styles = charts.page_styles(page)
  drawn = [
    panel for figures in charts.all_figures(page) for panel in charts.panels(figures, styles)
  ]
  assert drawn
  for panel in drawn:
    text = json.dumps(panel["figure"]).replace('"INK"', '"#000000"').replace('"GRID"', '"#eeeeee"')
    plotly.graph_objects.Figure(json.loads(text))  # refuses unknown names and values


def test_the_front_of_soups_holds_the_records(page_of):
  records = study_runs.soups()
  (front, *_) = charts.all_figures(page_of("rewarded_soups", records))
  (soup,) = [drawn for drawn in front.panels[0].lines if drawn.name == "rewarded soups"]
  measured = [r for r in records if r.get("study") == "front" and r["family"] == "rewarded soups"]
  measured.sort(key=lambda r: r["x"]["lambda_warmth"])
  assert soup.x == [r["values"]["reward_brevity"] for r in measured]
  assert soup.y == [r["values"]["reward_warmth"] for r in measured]
  assert soup.y_half == pytest.approx([0.04] * 11)


@pytest.mark.parametrize(("name", "count"), [("rewarded_soups", 11), ("three rewards", 21)])
def test_the_explorer_has_every_position_with_scores_and_completions(name, count, page_of):
  records = RUNS[name]()
  page = page_of("rewarded_soups", records)
  (explorer,) = [b for s in page.sections for b in s.blocks if isinstance(b, Explorer)]
  assert explorer.is_triangle == (name == "three rewards")
  soup = explorer.paths[0]
  assert (soup.name, len(soup.positions)) == ("rewarded soups", count)
  for position in soup.positions:
    assert math.fsum(position.weights) == pytest.approx(1)
    assert len(position.samples) == 3
    assert position.samples[0].completion == f"At {position.label} it says (0)"
    for score, found in zip(explorer.scores, position.scores, strict=True):
      assert found.mean == value_of(records, "rewarded soups", position.label, score)
  sent = explorers.payload(explorer)
  shares = [s["at"] for p in sent["paths"] for q in p["positions"] for s in q["scores"]]
  assert min(low for low, _, _ in shares) == 0
  assert max(high for _, _, high in shares) == 1
  table = blocks_page.position_table(explorer)
  assert len(table.rows) == sum(len(path.positions) for path in explorer.paths)


def test_a_judge_has_its_panel_its_score_and_its_table(page_of):
  records = study_runs.soups()
  for record in records:
    if record.get("study") == "front":
      record["values"]["reward_gold"] = 0.5
  gain = {"reward_gold": 0.5, "better_end": 0.4, "gain_over_better_end": 0.1}
  records.append(study_runs.measurement("judges", "rewarded soups", "gold", gain, half=0.02))
  page = page_of("rewarded_soups", records)
  (explorer,) = [b for s in page.sections for b in s.blocks if isinstance(b, Explorer)]
  assert list(explorer.scores) == ["reward_brevity", "reward_warmth", "reward_gold", "kl", "length"]
  along = next(f for f in charts.all_figures(page) if f.name == "along_lambda")
  assert any("gold reward" in panel.title for panel in along.panels)
  (judged,) = [s for s in page.sections if s.name == "judges"]
  cells = [cell.text for row in judged.blocks[1].rows for cell in row]
  assert any("0.100" in cell for cell in cells), cells
  assert (
    "By gold, which nothing was trained on, rewarded soups has 0.500 ± 0.020 at its best inner λ and the better of the"
    " one-reward models 0.400 ± 0.020 (difference 0.100 ± 0.020)."
  ) in page.headline
  # Not a corner of the simplex.
  assert explorer.corners == ["brevity", "warmth"]


def test_budgets_are_drawn_for_groups_of_lines_and_listed_for_all(page_of):
  records = study_runs.warp()
  for family in ("static anchor: β = 0.1", "WARP, episode 1"):
    for budget in (5.0, 10.0):
      label = f"KL = {budget:g}"
      for judge in ("reward_gold", "reward_proxy"):  # a record each
        values, x = {judge: 0.1}, {"kl": budget}
        records.append(
          study_runs.measurement("reward within a KL", family, label, values, half=0.02, x=x)
        )
  page = page_of("warp", records)
  (budgets,) = [s for s in page.sections if s.name == "budgets"]
  _, figures, table = budgets.blocks
  assert [drawn.name for drawn in figures.panels[0].lines] == ["WARP", "static anchor"]
  assert "gold reward" in figures.panels[0].title
  listed = {row[0].text for row in table.rows}
  assert listed == {"WARP", "static anchor", "static anchor: β = 0.1", "WARP, episode 1"}
  # Both rewards of a budget stand in one row.
  (row, *_) = [row for row in table.rows if row[0].text == "WARP, episode 1"]
  assert [cell.text for cell in row].count("0.100") == 2


def test_fitted_curves_follow_the_form_of_gao(page_of):
  found = {f.name: f for f in charts.all_figures(page_of("warm", study_runs.warm()))}
  panel = next(p for p in found["best_of_n"].panels if "√KL" in p.title)
  lines = [drawn for drawn in panel.lines if drawn.name == "best single"]
  measured, fitted = lines
  assert (measured.form, fitted.form) == ("both", "curve")
  assert fitted.y[0] == 0.4
  d = fitted.x[-1]
  assert d == pytest.approx(math.sqrt(math.log(256) - 255 / 256))
  assert fitted.y[-1] == pytest.approx(0.4 + d * (0.3 - 0.12 * d))


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("warm", "The labels of 5 training pairs of 20 (25.0%) were swapped."),
    ("warm", "clean train 96.0 % ± 1.2 against 99.0 % ± 1.2 (lower)"),
    ("warm", "validation 76.5 % ± 1.2 against 76.0 % ± 1.2 (intervals overlap)"),
    ("warm", "validation 76.5 % ± 1.2 against 73.0 % ± 1.2 (higher; it was chosen by these)"),
    ("warm", "validation +0.5 ± 0.6, no clear difference; out of distribution +1.5 ± 0.6."),
    ("warm", "best single peaks at n = 16 (0.586 ± 0.010) and ends 0.092 lower"),
    ("warp", "within a KL of 3 nats: WARP 0.450 ± 0.020, static anchor 0.500 ± 0.020; the intervals do not"
     " overlap: static anchor is ahead"),
    ("warp", "within a KL of 8 nats: WARP 0.700 ± 0.020, static anchor 0.620 ± 0.020; the intervals do not"
     " overlap: WARP is ahead"),
    ("warp", "Chosen on the validation split (largest proxy): WARP, episode 2, η = 0.5"),
    ("warp", "a straight average has 94% of their length"),
    ("rewarded_soups", "brevity at 1 of 2 (clearly below at 1) and warmth at 0 of 2 (clearly below at 0)"),
    ("rewarded_soups", "rewarded soups 1.31 (1.21 to 1.41), MORL 1.36 (1.26 to 1.46), the best of the others; the"
     " intervals overlap, so this run does not tell them apart"),
    ("clp", "CLP full (the way with the largest hypervolume, chosen by looking at it) 1.50"),
  ],
)  # fmt: skip
def test_the_headline_says_what_was_measured(name, words, page_of):
  assert words in " ".join(page_of(name, RUNS[name]()).headline)


def test_what_was_resampled_together_goes_before_two_intervals(page_of):
  def ratio(family, low, high):
    return study_runs.measurement(
      "comparison", family, "against rewarded soups", {"hypervolume_ratio": (low + high) / 2},
      intervals={"hypervolume_ratio": [low, high]},
    )  # fmt: skip

  records = [*study_runs.clp(), ratio("CLP full", 1.02, 1.1), ratio("CLP logit", 0.9, 1.04)]
  text = " ".join(page_of("clp", records).headline)
  assert "CLP full hypervolume ratio 1.06 (1.02 to 1.10: better)" in text
  assert "CLP logit hypervolume ratio 0.97 (0.90 to 1.04: no clear difference)" in text
  assert "overlap" not in text


def test_scales_of_rewards_and_repeated_candidates_are_shown(page_of):
  scale = {"kind": "reward", "stage": "reward_a", "name": "a", "normalise": "z-score", "mean": 0.25}
  sections = {s.name: s for s in page_of("clp", [*study_runs.clp(), scale]).sections}
  (_, table) = sections["rewards"].blocks
  assert [[cell.text for cell in row] for row in table.rows] == [["a", "z-score", "0.25"]]
  repeated = {"kind": "candidates", "stage": "best_of_n", "repeated": 0.125}
  sections = {s.name: s for s in page_of("warm", [*study_runs.warm(), repeated]).sections}
  assert sections["best-of-n"].blocks[0].paragraphs[1].startswith("12.5% of the completions")


@pytest.mark.parametrize("name", RUNS)
def test_unfinished_runs_say_what_is_missing(name, page_of, tmp_path):
  """Cut anywhere, a run has a page; the less is there, the more is missing."""
  records = RUNS[name]()
  whole = page_of(RECIPES[name], records)
  assert not whole.missing
  missing = []
  for cut in range(1, len(records), 17):
    run = read_run_of(tmp_path / f"cut{cut}", RECIPES[name], records[:cut])
    page = studies.page_of(run)
    missing.append(len(page.missing))
    assert page.headline
    blocks_page._render(run, page, charts.page_styles(page), tmp_path)
  assert missing == sorted(missing, reverse=True)
  assert missing[0] > 3


def read_run_of(workdir, recipe, records):
  workdir.mkdir()
  (workdir / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  (workdir / "config.json").write_text(json.dumps(study_runs.header(recipe)))
  return read_run(workdir)


def test_text_from_records_is_text(write_run):
  evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>$x_1$ {{ 7*7 }}"
  records = study_runs.soups()
  for record in records:
    for field in ("family", "label", "stage"):
      if record.get(field) in ("MORL", "λ = 0.5|0.5", "pretrain"):
        record[field] = evil
    if record["kind"] == "samples":
      record["completions"] = [evil] * 3
  records.append(study_runs.measurement(evil, evil, evil, {evil: 1.0}, x={evil: 2.0}))
  path = write_report(write_run(records, study_runs.header("rewarded_soups", evil=evil)))
  page = own_text(path)
  assert "<script>alert" not in page
  assert "<img src=x" not in page
  assert "$x_1$ 49" not in html.unescape(page)
  for figure in json_of(page, "figures").values():
    for trace in figure["data"]:
      shown = [trace["name"], *trace.get("hovertext", []), *trace.get("text", [])]
      assert not any("<img" in text or "<script" in text for text in shown)


def test_two_reports_of_one_run_are_equal_and_old_pictures_go(write_run):
  workdir = write_run(study_runs.clp(), study_runs.header("clp"))
  first = write_report(workdir).read_bytes()
  (workdir / "report" / "old.png").write_bytes(b"")
  assert write_report(workdir).read_bytes() == first
  assert not (workdir / "report" / "old.png").exists()


def test_a_recipe_without_a_page_of_its_own_shows_everything(page_of, write_run):
  records = study_runs.warm()
  page = page_of("novel", records)
  assert "the recipe 'novel'" in page.headline[0]
  studied = {r["study"] for r in records if r["kind"] == "measurement"}
  assert len(page.sections) == len(studied)
  assert studies.page_of(read_run(write_run(records, None, name="bare"))).sections
  tax = [{"kind": "point", "family": "init", "label": "a", "scores": {"s": 1.0}}]
  assert studies.page_of(read_run(write_run(tax, None, name="tax"))) is None


def test_lines_go_along_the_preference_whatever_the_order_of_measuring(write_run):
  records = study_runs.soups()
  records.append(
    records.pop(next(i for i, r in enumerate(records) if r.get("label") == "λ = 0.5|0.5"))
  )
  page = studies.page_of(read_run(write_run(records, study_runs.header("rewarded_soups"))))
  (section,) = (s for s in page.sections if s.title == "Along λ")
  (drawn,) = (block for block in section.blocks if hasattr(block, "panels"))
  lines = [line for figure in drawn.panels for line in figure.lines if len(line.x) > 2]
  assert lines and all(list(line.x) == sorted(line.x) for line in lines)


def test_the_terminal_shows_headline_and_tables(write_run):
  run = read_run(write_run(study_runs.warp(), study_runs.header("warp")))
  long, short = (printed(summary(run, every_point=flag)) for flag in (True, False))
  for text in (long, short):
    assert "Along WARP, episode 2 the gold reward is highest at η = 1" in text
    assert "Task vectors" in text
    assert "have a cosine of 0.78" in " ".join(text.split())  # WARP's, not a comparison's
  assert "Every model that was evaluated" in long
  assert "Every model that was evaluated" not in short
  assert "measurements without conclusions" in printed(summary(run.records))


def printed(shown):
  console = Console(width=200, record=True, file=io.StringIO())
  console.print(shown)
  return console.export_text()
