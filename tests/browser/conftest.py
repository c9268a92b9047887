"""Lends the made-up run of the report's tests to the browser's."""

import importlib.util
import pathlib

_PATH = pathlib.Path(__file__).resolve().parents[1] / "report" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("report_fixtures", _PATH)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)

records = _MODULE.records
write_run = _MODULE.write_run
