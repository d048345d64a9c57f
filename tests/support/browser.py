"""Headless Chromium for tests, driven over a pipe by the Chrome DevTools protocol; needs nothing but Chromium."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


# Every visible text, with its colour and background: WCAG's contrast ratio and the size of the type.
CONTRAST = """
(() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const luminance = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "TITLE"].includes(element.tagName)) continue;
    if (!element.checkVisibility() || element.closest(".skip, .hz, .top")) continue; // on a spectrogram: own test
    const style = getComputedStyle(element);
    const color = parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const back = behind(element);
    const [a, b] = [luminance(over(color, back)), luminance(back)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${element.tagName}: ${node.data.trim().slice(0, 40)}`);
  }
  return [seen, low];
})()
"""

# Every visible control, in `controls`; `order` becomes the numbers of those that have had the focus.
CONTROLS = """
(() => {
  const selector = 'a[href], button, input, summary, [tabindex="0"], audio[controls]';
  window.controls = [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility());
  window.order = [];
  addEventListener("focusin", (event) => order.push(controls.indexOf(event.target)));
  return controls.length;
})()
"""


def find() -> str:
    """Path of the browser. Without one, skips the test, or fails it if FINALLYSE_REQUIRE_BROWSER=1."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    reason = "no Chromium on the PATH (Debian: apt-get install chromium)"
    if os.environ.get("FINALLYSE_REQUIRE_BROWSER") == "1":
        pytest.fail(f"FINALLYSE_REQUIRE_BROWSER=1, but there is {reason}")
    pytest.skip(reason)


class Browser:
    """One headless Chromium with one page. Use as a context manager.

    Args:
        profile: folder of its own files.
        flags: more of Chromium's.

    Attributes:
        console: warnings and errors in the console, and uncaught exceptions.
        requests: requested URLs, without `data:`.
    """

    def __init__(self, profile: Path, flags: Sequence[str] = ()):
        path = find()
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4; our own are moved away first.
        to_read, from_write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_read, from_write))

        def connect() -> None:
            os.dup2(to_read, 3)
            os.dup2(from_write, 4)

        self.process = subprocess.Popen(
            [
                path,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--mute-audio",
                "--autoplay-policy=no-user-gesture-required",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                *flags,
            ],
            pass_fds=(3, 4),
            preexec_fn=connect,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        self._out, self._in, self._left = to_write, from_read, b""
        self._next, self._session = 0, None
        self.console: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    def __enter__(self) -> Browser:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._out)
        os.close(self._in)

    def send(self, method: str, timeout_s: float = 60, **params: Any) -> dict:
        """Send a command and return its result."""
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self._out, rest) :]
        answers: list[dict] = []

        def answered() -> bool:
            answers.extend(m for m in self._receive() if m.get("id") == message["id"])
            return bool(answers)

        self._until(answered, timeout_s, method)
        if "error" in answers[0]:
            raise RuntimeError(f"{method}: {answers[0]['error']['message']}")
        return answers[0]["result"]

    def open(self, page: Path | str, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Load a file, or a URL, in a window of this size in CSS pixels."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.send("Emulation.setEmulatedMedia", features=[scheme, motion])
        self._loaded = False
        self.send("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self._until(lambda: self._receive() is not None and self._loaded, 60, "loading the page")

    def run(self, script: str, timeout_s: float = 60) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        result = self.send(
            "Runtime.evaluate",
            timeout_s=timeout_s,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return result["result"].get("value")

    def wait(self, condition: str, timeout_s: float = 60) -> Any:
        """The value of a JavaScript expression, once it is true (of an element: True)."""
        found: list[Any] = []

        def holds() -> bool:
            found.append(self.run(f"((value) => (value instanceof Node ? true : value))({condition})"))
            return bool(found[-1])

        self._until(holds, timeout_s, condition)
        return found[-1]

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an <input type=file>."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve()) for path in files])

    def download(self, selector: str, folder: Path) -> Path:
        """Click on a link to a download; returns the file."""
        before = set(folder.iterdir())
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder.resolve()))
        self.run(f"document.querySelector({json.dumps(selector)}).click()")
        made: list[Path] = []

        def arrived() -> bool:
            made[:] = [path for path in set(folder.iterdir()) - before if path.suffix != ".crdownload"]
            return bool(self._receive() is not None and made)

        self._until(arrived, 60, f"downloading {selector}")
        return made[0]

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        """Press and release a key."""
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **shared, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **shared)

    def screenshot(self, path: Path, *, whole_page: bool = False, scale: float = 1) -> Path:
        """Write a PNG of the window, or of the whole page shrunk by `scale`."""
        options: dict[str, Any] = {}
        if whole_page:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            options = {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": scale},
            }
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png", **options)["data"]))
        return path

    def _receive(self) -> list[dict]:
        """The messages that have arrived; events are recorded."""
        if not select.select([self._in], [], [], 0.05)[0]:
            return []
        chunk = os.read(self._in, 1 << 20)
        if not chunk:
            raise RuntimeError(f"Chromium ended (exit status {self.process.poll()})")
        *complete, self._left = (self._left + chunk).split(b"\0")
        messages = [json.loads(message) for message in complete]
        for message in messages:
            self._note(message.get("method"), message.get("params", {}))
        return messages

    def _note(self, event: str | None, params: dict) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            self.console.append(json.dumps(params["exceptionDetails"])[:500])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.console.append(json.dumps(params["args"])[:500])
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])

    def _until(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        end = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"Chromium: {what} took longer than {timeout_s:g} s")
