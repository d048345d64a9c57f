"""Speed of the page of `finallyse page` in headless Chromium: a table.

    python benchmarks/browser.py [--seconds 10 60] [--repeats 3] [--checkpoint NAME|FILE] [--output FILE.md]

WebAssembly SIMD, one thread, the page opened from a disk. Recordings of 16 kHz mono are chosen in the page as a visitor
would; the time is from the choice to the result, with decoding, resampling, the measurement of the speed, and the
spectrograms. The real-time factor is of the medians; the first run of all loads the network and is not counted.
Memory is the largest resident size of the page's process. One free core is needed; about 3 minutes.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import soundfile as sf

from finallyse.hardware import processor
from finallyse.page.write import RUNTIME_VERSION, write
from support.browser import Browser
from support.speech import read_speech
from support.timing import parser_of, publish

RATE = 16000
GOAL = 0.5
# Takes the place of the function that shows a result, to tell the time at which it does.
WATCH = """
(() => {
  const show = addResult;
  addResult = (recording, result) => { show(recording, result); window.finished = [performance.now(), result.computing]; };
})()
"""


def main() -> None:
    """Measure and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60], help="lengths of the recordings, s")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--checkpoint", help="network (default: small)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finallyse-bench-") as name:
        folder = Path(name)
        page = write(folder / "page", arguments.checkpoint)
        with Browser(folder / "profile") as browser:
            browser.open(page, 1200, 900)
            version = browser.send("Browser.getVersion")["product"]
            browser.run(WATCH)
            enhance(browser, folder, 1)
            rows = [measure(browser, folder, seconds, arguments.repeats) for seconds in arguments.seconds]
            memory = resident_mb(browser)
    lines = [
        f"{processor()}, {version}, ONNX Runtime Web {RUNTIME_VERSION}, one thread; memory of the page {memory:.0f} MB",
        "",
        "| recording, 16 kHz | real-time factor | of it the network | goal |",
        "|---|---|---|---|",
        *rows,
    ]
    publish(lines, arguments.output)


def measure(browser: Browser, folder: Path, seconds: float, repeats: int) -> str:
    """A row of the table."""
    times = [enhance(browser, folder, seconds) for _ in range(repeats)]
    total, network = (statistics.median(column) / seconds for column in zip(*times, strict=True))
    return f"| {seconds:g} s | {total:.3f} | {network:.3f} | {GOAL} |"


def enhance(browser: Browser, folder: Path, seconds: float) -> tuple[float, float]:
    """Seconds from the choice of a recording to its result, and those of the network in it."""
    source = folder / "speech.wav"
    sf.write(source, read_speech(RATE, seconds), RATE, subtype="PCM_16")
    browser.run("window.finished = null; window.chosen = null;")
    browser.run(
        "$('file').addEventListener('change', () => { window.chosen = performance.now(); }, {capture: true, once: true})"
    )
    browser.choose("#file", source)
    finished, network = browser.wait("window.finished", 600)
    chosen = browser.run("window.chosen")
    browser.run("document.querySelector('.result .remove').click()")
    return (finished - chosen) / 1000, network


def resident_mb(browser: Browser) -> float:
    """The largest resident size that a page's process has had, in MB."""
    sizes = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            command = status.with_name("cmdline").read_bytes()
            text = status.read_text()
        except OSError:  # it has ended meanwhile
            continue
        if b"--type=renderer" in command and f"\nPPid:\t{browser.process.pid}\n" not in text:
            sizes += [int(line.split()[1]) / 1e3 for line in text.splitlines() if line.startswith("VmHWM")]
    return max(sizes)


if __name__ == "__main__":
    main()
