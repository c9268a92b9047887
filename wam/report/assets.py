"""What pages are made of: templates, styles and scripts of this package, and pictures as data."""

import base64
from importlib import resources
from pathlib import Path


def asset(name: str) -> str:
  """The text of a file of this package."""
  return (resources.files("wam.report") / name).read_text(encoding="utf-8")


def data_url(path: Path) -> str:
  """A PNG as a URL that holds it."""
  return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
