"""Tables of a terminal: whole columns, or their names."""

import io

import pytest
from rich.console import Console

from wam.report.fitted_table import FittedTable


def printed(table, width):
  console = Console(file=io.StringIO(), width=width)
  console.print(table)
  return console.file.getvalue()


def made(count, **keywords):
  table = FittedTable(title="a table", **keywords)
  table.add_column("line")
  table.add_column("model")
  for i in range(count):
    table.add_column(f"number {i}", justify="right")
  table.add_row("a line of many words that can be wrapped", "α = 1", *(f"{i}.2345" for i in range(count)))  # fmt: skip
  return table


def test_everything_is_shown_where_there_is_room():
  text = printed(made(6), 120)
  assert all(f"{i}.2345" in text and f"number {i}" in text for i in range(6))
  assert "no room" not in text


@pytest.mark.parametrize("width", [50, 60, 80, 100])
def test_what_does_not_fit_is_named_and_the_rest_is_whole(width):
  text = printed(made(12), width)
  table, _, hidden = text.partition("no room for:")
  hidden = " ".join(hidden.split())
  assert "…" not in text
  for i in range(12):
    assert (f"{i}.2345" in table.replace(f"1{i}.2345", "")) != (f"number {i}" in hidden.split(", ")), i  # fmt: skip
  assert "0.2345" in table
  assert all(len(line.rstrip()) <= width for line in text.splitlines())


def test_the_caption_stays():
  text = printed(made(12, caption="chosen by [bold]reward[/bold]"), 60)
  assert "chosen by reward" in text
  assert "no room for" in text


def test_numbers_that_only_place_a_row_go_first():
  table = made(12)
  table.num_spare = 4
  text, _, hidden = printed(table, 100).partition("no room for:")
  assert "4.2345" in text and "5.2345" in text
  assert not any(f" {i}.2345" in text for i in range(4))
  assert [f"number {i}" in hidden for i in range(6)] == [True] * 4 + [False] * 2
  # There, and in their places, where there is room.
  assert "no room" not in printed(table, 400)
