"""A headless Chromium that is spoken to through a pipe, so that tests can press real keys and read what is shown.

The DevTools protocol: JSON messages that end in a zero byte, on the browser's file descriptors 3 (in) and 4 (out).
"""

import base64
import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

BROWSER = (
  shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
_OPTIONS = (
  "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
  " --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
)
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "End": 35, "Tab": 9}


class Browser:
  """One page of a browser of its own; use as a context manager."""

  def __init__(self, profile: pathlib.Path, *, width: int = 1300, height: int = 900) -> None:
    theirs_in, self._out = os.pipe()
    self._in, theirs_out = os.pipe()
    # The shell puts the pipes where the browser looks for them.
    command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    self._process = subprocess.Popen(
      ["bash", "-c", command, "-", BROWSER, *_OPTIONS.split(), f"--user-data-dir={profile}"],
      pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    self._unread = b""
    self._number = 0
    self._session: str | None = None
    self.logged: list[str] = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log"):
      self.call(f"{domain}.enable")
    self.resize(width, height)

  def __enter__(self) -> "Browser":
    return self

  def __exit__(self, *error: object) -> None:
    self._session = None
    self.call("Browser.close")
    self._process.wait(timeout=30)
    os.close(self._in)
    os.close(self._out)

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """Sends a command and waits for its answer; what the page logs on the way is kept in `logged`."""
    self._number += 1
    message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._out, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._read()
      if answer.get("id") == self._number:
        assert "error" not in answer, answer
        return answer["result"]
      if answer.get("method") in (
        "Runtime.exceptionThrown",
        "Log.entryAdded",
        "Runtime.consoleAPICalled",
      ):
        self.logged.append(json.dumps(answer["params"]))

  def open(self, path: pathlib.Path, ready: str) -> None:
    """Loads a page and waits until a JavaScript expression is true."""
    self.call("Page.navigate", url=path.as_uri())
    wait = f"""new Promise((done, fail) => {{
      const look = () => {{ if ({ready}) done(true); else setTimeout(look, 50); }};
      setTimeout(() => fail("not ready"), 60000); look();
    }})"""
    self.evaluate(wait)

  def evaluate(self, expression: str) -> Any:
    """The value of a JavaScript expression, promises awaited."""
    found = self.call(
      "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
    )
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")

  def press(self, key: str) -> None:
    """Presses a key, as a user does."""
    code = _KEYS[key]
    for kind in ("rawKeyDown", "keyUp"):
      self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

  def resize(self, width: int, height: int) -> None:
    """Gives the page this width and height in pixels."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width, height=height, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip

  def screenshot(self, path: pathlib.Path, *, dark: bool = False) -> None:
    """Writes the whole page as PNG, in one of the two themes."""
    theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self.call("Emulation.setEmulatedMedia", features=[theme])
    self.evaluate("new Promise((done) => setTimeout(done, 500))")
    found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(found["data"]))

  def _read(self) -> dict[str, Any]:
    while b"\0" not in self._unread:
      more = os.read(self._in, 1 << 16)
      assert more, "the browser ended"
      self._unread += more
    message, _, self._unread = self._unread.partition(b"\0")
    return json.loads(message)
