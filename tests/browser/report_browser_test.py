"""The report in a real browser: every figure is drawn, nothing is refused or fails.

Needs a Chromium; skipped where there is none.
"""

import json
import re
import shutil
import subprocess

import pytest

from wam.report import write_report

BROWSER = (
  shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH"),
]


def load(path, profile):
  """Opens a page headless; returns its final DOM and what the browser logged."""
  options = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=20000 --window-size=1300,2000"
  )
  done = subprocess.run(
    [BROWSER, *options.split(), f"--user-data-dir={profile}", "--dump-dom", path.as_uri()],
    capture_output=True, text=True, timeout=120, check=True,
  )  # fmt: skip
  return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_every_figure_is_drawn_and_the_console_is_silent(records, write_run, tmp_path):
  path = write_report(write_run(records))
  figures = json.loads(
    re.search(r'id="figures">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)[1]
  )
  dom, console = load(path, tmp_path / "profile")
  assert console == []
  assert 'data-ready="true"' in dom  # the page's script ran to its end
  assert dom.count('<svg class="main-svg"') >= 2 * len(
    figures
  )  # plotly lays two or more over each other
  drawn = re.sub(r"<script.*?</script>", "", dom, flags=re.S)
  assert len(re.findall(r'<g class="trace scatter', drawn)) == sum(
    len(f["data"]) for f in figures.values()
  )
  assert "Something went wrong" not in drawn


def test_the_console_check_can_fail(tmp_path):
  page = tmp_path / "broken.html"
  page.write_text("<script>throw new Error('broken')</script>")
  _, console = load(page, tmp_path / "profile")
  assert any("broken" in line for line in console)


def test_the_legend_hides_a_line_and_a_head_sorts(records, write_run, tmp_path):
  path = write_report(write_run(records))
  # By rising reward, so clicked twice; then what the reader would see is left in the title.
  clicks = """<script>
    document.querySelector('.legend button[data-series="early stopping"]').click();
    const head = [...document.querySelectorAll("table.points th")].find((th) => th.textContent === "gold reward");
    head.click(); head.click();
    const column = [...head.parentNode.cells].indexOf(head);
    const values = [...head.closest("table").tBodies[0].rows].map((row) => Number(row.cells[column].dataset.value));
    document.title = JSON.stringify({
      rising: values.every((value, i) => i === 0 || values[i - 1] <= value), rows: values.length,
      hidden: document.getElementById("front-0").data.filter((t) => t.visible === false).map((t) => t.meta),
    });
  </script></body>"""
  page = path.read_text(encoding="utf-8")
  path.write_text(page.replace("</body>", clicks), encoding="utf-8")
  dom, console = load(path, tmp_path / "profile")
  assert console == []
  seen = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
  assert seen == {"rising": True, "rows": 33, "hidden": ["early stopping"]}
