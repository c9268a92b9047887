"""The files of a report: numbers, self-containedness, escaping, runs in progress."""

import csv
import html
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from wam.core.errors import BadData
from wam.report import connectivity_figure, summary, write_report

PNG = b"\x89PNG\r\n\x1a\n"


def rows_of(path):
  with path.open(encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


def own_text(page):
  """The page without plotly's script, which holds addresses that it loads only for maps."""
  return re.sub(r'<script id="plotly">.*?</script>', "", page, flags=re.S)


def figures_of(page):
  return json.loads(re.search(r'id="figures">(.*?)</script>', page, flags=re.S)[1])


def test_a_whole_run(records, write_run):
  workdir = write_run(records)
  path = write_report(workdir)
  assert path == workdir / "report" / "index.html"
  names = {p.name for p in path.parent.iterdir()}
  assert names == {"index.html", "points.csv", "fronts.csv", "front.png", "curves.png"}
  for name in ("front.png", "curves.png"):
    assert (path.parent / name).read_bytes().startswith(PNG)
  page = own_text(path.read_text(encoding="utf-8"))
  for words in (
    "RLHF raised the gold reward from 0.46 to 0.91",
    "on the validation split",
    html.escape("wam run --config configs/alignment_tax/tiny.py --workdir runs/demo"),
    "label_noise",
    "jax 0.10.2",
    "2 min 21 s",
    "KL is exact, summed over the completion.",
    "sampling seeds 0, 1, 2",
    "Recall of facts by multiple choice.",
  ):
    assert words in page, words
  assert "Not in the records" not in page


def test_csv_holds_the_means_of_the_records(records, write_run):
  folder = write_report(write_run(records)).parent
  rows = rows_of(folder / "points.csv")
  points = [r for r in records if r["kind"] == "point"]
  assert len(rows) * 3 == len(points)
  for row in rows:
    same = [
      r
      for r in points
      if (r["family"], r["label"], r["split"]) == (row["family"], row["label"], row["split"])
    ]
    np.testing.assert_allclose(
      float(row["reward_gold"]), np.mean([r["reward_gold"] for r in same]), rtol=1e-12
    )
    np.testing.assert_allclose(
      float(row["facts"]), np.mean([r["scores"]["facts"] for r in same]), rtol=1e-12
    )
    assert row["passages_seeds"] == "3"
    assert float(row["passages_low"]) < float(row["passages"]) < float(row["passages_high"])
  fronts = rows_of(folder / "fronts.csv")
  expected = [r["hypervolume"] for r in records if r["kind"] == "front"]
  assert [float(row["hypervolume"]) for row in fronts] == expected
  assert fronts[0]["reference"] == "0.4 0.0"


def test_the_figures_hold_the_same_numbers(records, write_run):
  path = write_report(write_run(records))
  figures = figures_of(path.read_text(encoding="utf-8"))
  rows = [
    r
    for r in rows_of(path.parent / "points.csv")
    if r["split"] == "test" and r["family"] == "model averaging"
  ]
  for panel, column in (("front-0", "mean"), ("front-1", "facts"), ("front-3", "translation")):
    trace = next(t for t in figures[panel]["data"] if t["meta"] == "model averaging")
    assert trace["y"] == [float(r[column]) for r in rows]
    assert trace["x"] == [float(r["reward_gold"]) for r in rows]
    assert "coefficients: 0.5" in trace["hovertext"][5]
    assert "proxy reward" in trace["hovertext"][5]


def test_plotly_accepts_the_figures(records, write_run):
  import plotly.graph_objects

  page = write_report(write_run(records)).read_text(encoding="utf-8")
  paint = {"INK": "#000000", "GRID": "#eeeeee"}
  text = json.dumps(figures_of(page))
  for name, colour in paint.items():
    text = text.replace(f'"{name}"', f'"{colour}"')
  for figure in json.loads(text).values():
    plotly.graph_objects.Figure(figure)  # refuses unknown names and values


def test_hypervolumes_are_in_a_table_with_interval_and_reference(records, write_run):
  page = own_text(write_report(write_run(records)).read_text(encoding="utf-8"))
  row = next(
    r for r in re.findall(r"<tr>(.*?)</tr>", page) if "<td>mean</td><td>model averaging</td>" in r
  )
  assert "0.410" in row
  assert "0.390 to 0.430" in row
  assert "0.40, 0.00" in row
  assert "the intervals do not overlap: averaging has the better front" in page


def test_the_page_loads_nothing(records, write_run):
  page = own_text(write_report(write_run(records)).read_text(encoding="utf-8"))
  sources = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]+)""", page)
  local = ("data:image/png;base64,", "points.csv", "fronts.csv", "front.png", "curves.png")
  assert sources
  assert [s for s in sources if not s.startswith(local)] == []
  for loader in (
    "http:",
    "https:",
    "@import",
    "url(",
    "fetch(",
    "XMLHttpRequest",
    "<link",
    "<iframe",
    "import(",
  ):
    assert loader not in page, loader
  assert "default-src 'none'" in page


def test_text_from_records_is_text(records, write_run):
  evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>$x_1$ {{ 7*7 }}"
  for record in records:
    if record["kind"] == "point" and record["label"] == "alpha=0.5":
      record["label"] = evil
      record["scores"] = {evil if k == "facts" else k: v for k, v in record["scores"].items()}
    if record["kind"] == "metric" and record["stage"] == "sft":
      record["stage"] = evil
      record[evil] = 1.0
  records += [{"kind": "note", "text": evil}, {"kind": "stage", "stage": evil, "seconds": 1.0}]
  header = {"config": {evil: evil}, "command": evil, "versions": {evil: evil}}
  page = own_text(write_report(write_run(records, header)).read_text(encoding="utf-8"))
  assert "<script>alert" not in page
  assert "<img src=x" not in page
  assert "49" not in re.findall(r"onerror=alert\(2\)\S*\$x_1\$ (\S+)", html.unescape(page))
  traces = [t for figure in figures_of(page).values() for t in figure["data"]]
  shown = [
    text for t in traces for text in [t["name"], *t.get("hovertext", []), *t.get("text", [])]
  ]
  assert not any("<img" in text or "<script" in text for text in shown)


@pytest.mark.parametrize(
  ("kinds", "absent"),
  [
    (("metric",), ["the model before RLHF", "averaged models", "hypervolumes"]),
    (("metric", "stage", "point"), ["hypervolumes"]),
    (("point", "front"), ["training curves"]),
    (("note",), ["training curves", "the model before RLHF"]),
  ],
)
def test_a_run_without_some_kinds(records, write_run, kinds, absent):
  path = write_report(write_run([r for r in records if r["kind"] in kinds], None))
  page = own_text(path.read_text(encoding="utf-8"))
  for words in (*absent, "config.json is missing", "The command was not recorded"):
    assert words in page
  assert (path.parent / "front.png").exists() == ("point" in kinds)
  assert (path.parent / "curves.png").exists() == ("metric" in kinds)


def test_a_run_in_its_rlhf_stage(records, write_run):
  done = [r for r in records if r["kind"] != "point" or r["family"] in ("init", "early stopping")]
  page = own_text(
    write_report(write_run([r for r in done if r["kind"] != "front"])).read_text(encoding="utf-8")
  )
  assert "RLHF (as far as iteration 12) raised" in page
  assert "No averaged model has been evaluated yet." in page
  assert "averaged models; hypervolumes" in page


def test_pictures_of_an_earlier_run_do_not_stay(records, write_run):
  workdir = write_run(records)
  write_report(workdir)
  (workdir / "records.jsonl").write_text('{"kind": "note", "text": "new"}\n')
  assert not (write_report(workdir).parent / "front.png").exists()


def test_two_reports_of_one_run_are_equal(records, write_run):
  workdir = write_run(records)
  first = write_report(workdir).read_bytes()
  assert write_report(workdir).read_bytes() == first


def test_losses_are_drawn_upside_down(write_run):
  records = [
    {"kind": "task", "name": "stories", "metric": "nats per token", "higher_is_better": False}
  ]
  for i, reward in enumerate((0.0, 0.5, 1.0)):
    records.append(
      {"kind": "point", "family": "model averaging", "label": f"alpha={reward}", "coefficients": {"all": reward},
       "reward_gold": reward, "scores": {"stories": 2.0 + i}}
    )  # fmt: skip
  page = write_report(write_run(records)).read_text(encoding="utf-8")
  assert "stories (nats per token), lower is better" in own_text(page)
  (figure,) = [f for name, f in figures_of(page).items() if name.startswith("front")]
  assert figure["layout"]["yaxis"]["autorange"] == "reversed"


def test_the_table_in_the_terminal(records):
  console = Console(width=160, record=True, file=io.StringIO())
  console.print(summary(records))
  text = console.export_text()
  line = next(line for line in text.splitlines() if "alpha=0.5 (selected)" in line)
  gold = np.mean([
    r["reward_gold"] for r in records
    if r["kind"] == "point" and r["label"] == "alpha=0.5" and r["split"] == "test"
  ])  # fmt: skip
  assert f"{gold:.2f}" in line
  assert "selected by" in text
  assert summary(records, every_point=False).row_count == 3


def test_connectivity_figure(tmp_path):
  result = {
    "lambdas": [0, 0.5, 1], "values": [1.0, 1.4, 1.2], "low": [0.9, 1.3, 1.1], "high": [1.1, 1.5, 1.3],
    "metric": "loss", "higher_is_better": False, "names": ["a$b", "c"], "barriers": {"mean": 0.3, "interpolated": 0.3},
  }  # fmt: skip
  connectivity_figure(result, tmp_path / "curve.png")
  assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
  with pytest.raises(BadData, match="as many values"):
    connectivity_figure({"lambdas": [0, 1], "values": [1.0]}, tmp_path / "no.png")


def test_no_jax_no_pyplot_and_nothing_heavy_before_it_is_needed(records, write_run):
  workdir = write_run(records)
  program = f"""
import sys
import wam.report
heavy = {{"jax", "matplotlib", "plotly", "scipy", "jinja2", "rich"}}
print(sorted(heavy & set(sys.modules)))
wam.report.write_report({str(workdir)!r})
print(sorted({{"jax", "matplotlib.pyplot"}} & set(sys.modules)))
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines() == ["[]", "[]"]
