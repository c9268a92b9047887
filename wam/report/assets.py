"""What pages are made of: templates, styles and scripts of this package, and pictures as data."""

import base64
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jinja2 import Template


def asset(name: str) -> str:
  """The text of a file of this package."""
  return (resources.files("wam.report") / name).read_text(encoding="utf-8")


def data_url(path: Path) -> str:
  """A PNG as a URL that holds it."""
  return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def template(name: str) -> "Template":
  """A template of this package; it escapes what it is given, and refuses what it is not given."""
  from jinja2 import Environment, FunctionLoader, StrictUndefined

  environment = Environment(
    loader=FunctionLoader(asset),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(name)
