"""Explorers in a real browser: keys move them, and scores, completions and the marks in the figures follow."""

import json

import pytest

from tests.browser.devtools import BROWSER, Browser
from tests.report import study_runs
from wam.report import write_report

pytestmark = [
  pytest.mark.browser,
  pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH"),
]

READY = "document.body && document.body.dataset.explorers === 'true'"
# What a reader sees of an explorer; `name` is its element, `figure` the first figure beside it.
SEEN = """(() => {
  const root = document.getElementById(%s);
  const text = (selector) => [...root.querySelectorAll(selector)].map((e) => e.textContent);
  const mark = document.getElementById("front-0").data.find((t) => t.meta === "where the explorer is");
  return {
    where: text(".where")[0], scores: text(".scores .value"), completions: text(".completion"),
    mark: [mark.x[0], mark.y[0]],
  };
})()"""


@pytest.fixture
def show(write_run, tmp_path):
  """Opens the report of a made-up run; returns the browser."""
  opened = []

  def open_page(recipe, records, **size):
    path = write_report(write_run(records, study_runs.header(recipe)))
    browser = Browser(tmp_path / "profile", **size)
    opened.append(browser)
    browser.open(path, READY)
    return browser

  yield open_page
  for browser in opened:
    browser.__exit__()


def seen(browser, name):
  return browser.evaluate(SEEN % json.dumps(name))


def expected(records, family, label):
  (record,) = [
    r for r in records
    if r.get("study") == "front" and (r["family"], r["label"]) == (family, label)
  ]  # fmt: skip
  return record["values"]


def test_arrow_keys_slide_along_the_front(show):
  records = study_runs.soups()
  browser = show("rewarded_soups", records)
  before = seen(browser, "explorer-lambda")
  assert before["where"] == "rewarded soups: λ = 0.5|0.5"
  browser.evaluate("document.querySelector('#explorer-lambda input[type=range]').focus()")
  for steps, label in ((1, "λ = 0.4|0.6"), (2, "λ = 0.2|0.8"), (5, "λ = 0|1")):
    for _ in range(steps):
      browser.press("ArrowRight")
    now = seen(browser, "explorer-lambda")
    values = expected(records, "rewarded soups", label)
    assert now["where"] == f"rewarded soups: {label}"
    assert now["completions"] == [f"At {label} it says ({i})" for i in range(3)]
    shown = [float(text.replace("−", "-")) for text in now["scores"]]
    for text, name in zip(shown, ("reward_brevity", "reward_warmth", "kl"), strict=False):
      assert text == pytest.approx(values[name], abs=0.005)
    assert now["mark"] == [values["reward_brevity"], values["reward_warmth"]]
  spoken = (
    "document.querySelector('#explorer-lambda input[type=range]').getAttribute('aria-valuetext')"
  )
  assert browser.evaluate(spoken) == "λ = 0|1"
  assert browser.logged == []


def test_another_line_starts_at_the_nearest_position(show):
  browser = show("rewarded_soups", study_runs.soups())
  browser.evaluate("""(() => {
    const select = document.querySelector("#explorer-lambda select");
    select.value = "1";
    select.dispatchEvent(new Event("change"));
  })()""")
  now = seen(browser, "explorer-lambda")
  assert now["where"] == "MORL: λ = 0.5|0.5"
  assert now["completions"] == []
  hidden = "document.querySelector('#explorer-lambda .no-completions').hidden"
  assert browser.evaluate(hidden) is False


def test_arrow_keys_move_in_the_triangle(show):
  records = study_runs.soups(study_runs.TRIPLE, steps=5)
  browser = show("rewarded_soups", records)
  assert seen(browser, "explorer-lambda")["where"] == "rewarded soups: λ = 0.4|0.4|0.2"
  browser.evaluate("document.querySelector('.triangle [aria-checked=true]').focus()")
  # Down: a fifth less of what is at the top; right: a fifth from the left corner to the right one.
  for key, label in (("ArrowRight", "λ = 0.2|0.6|0.2"), ("ArrowLeft", "λ = 0.4|0.4|0.2")):
    browser.press(key)
    now = seen(browser, "explorer-lambda")
    assert now["where"] == f"rewarded soups: {label}"
    assert now["completions"][0] == f"At {label} it says (0)"
    focused = "document.activeElement.getAttribute('aria-label')"
    assert browser.evaluate(focused) == label
  for _ in range(6):
    browser.press("ArrowUp")
  assert seen(browser, "explorer-lambda")["where"] == "rewarded soups: λ = 0|0|1"
  assert browser.evaluate("document.querySelectorAll('.triangle [tabindex=\"0\"]').length") == 1
  assert browser.logged == []


def test_eta_and_a_click_on_a_point(show):
  records = study_runs.warp()
  browser = show("warp", records)
  assert seen(browser, "explorer-eta")["where"] == "WARP, episode 2: η = 0.5"
  browser.evaluate("document.querySelector('#explorer-eta input[type=range]').focus()")
  browser.press("End")
  values = expected(records, "WARP, episode 2", "η = 1")
  now = seen(browser, "explorer-eta")
  assert now["where"] == "WARP, episode 2: η = 1"
  assert now["mark"] == [values["kl"], values["reward_gold"]]
  values = expected(records, "WARP, episode 1", "η = 0.3")
  browser.evaluate(
    f"""document.getElementById("front-0").emit("plotly_click",
    {{points: [{{x: {values["kl"]!r}, y: {values["reward_gold"]!r}, data: {{}}}}]}})"""
  )
  now = seen(browser, "explorer-eta")
  assert now["where"] == "WARP, episode 1: η = 0.3"
  assert now["completions"][1] == "Episode 1 at η = 0.3 (1)"


@pytest.mark.parametrize("recipe", study_runs.RUNS)
@pytest.mark.parametrize("width", [390, 1300])
def test_nothing_sticks_out_and_every_figure_is_drawn(show, recipe, width):
  browser = show(recipe, study_runs.RUNS[recipe](), width=width)
  assert browser.evaluate("document.documentElement.scrollWidth") <= width
  drawn = """[...document.querySelectorAll(".plot")].filter((p) => !p.closest("details:not([open])"))
    .every((p) => p.querySelector("svg").width.baseVal.value <= p.getBoundingClientRect().width + 0.01)"""
  assert browser.evaluate(drawn) is True
  # Training curves are drawn when they are unfolded.
  unfolded = """new Promise((done) => {
    for (const details of document.querySelectorAll("details")) details.open = true;
    setTimeout(() => done([...document.querySelectorAll(".plot")].every((p) => p.querySelector("svg"))), 1500);
  })"""
  assert browser.evaluate(unfolded) is True
  assert browser.logged == []
