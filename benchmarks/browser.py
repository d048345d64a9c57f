"""Speed of the page of `finallyse page` in headless Chromium: a table.

    python benchmarks/browser.py [--seconds 10 60] [--repeats 3] [--checkpoint NAME|FILE] [--output FILE.md]

WebAssembly SIMD, one thread, the page opened from a disk. Recordings of 16 kHz mono are chosen in the page as a
visitor would; what is counted is from the choice to the result, with decoding, resampling and the spectrograms. CPU
time is that of the page's process, which does not depend on what else the machine does; it includes the compilation of
the program in the background. Elapsed time is more where cores are not free. Medians; the first run of all loads the
network and is not counted. Memory is the largest resident size of the page's process. One free core is needed; about 3
minutes.
"""

from __future__ import annotations

import contextlib
import os
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
# Notes when a recording is chosen and when its result is shown.
WATCH = """
(() => {
  window.chosen = window.finished = null;
  $("file").addEventListener("change", () => { window.chosen = performance.now(); }, { capture: true, once: true });
  const shown = () => { window.finished = performance.now(); };
  new MutationObserver((_, observer) => { shown(); observer.disconnect(); }).observe($("list"), { childList: true });
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
            enhance(browser, folder, 1)
            rows = [measure(browser, folder, seconds, arguments.repeats) for seconds in arguments.seconds]
            memory = resident_mb(browser)
    lines = [
        f"{processor()}, {version}, ONNX Runtime Web {RUNTIME_VERSION}, one thread; memory of the page {memory:.0f} MB",
        "",
        "| recording, 16 kHz | CPU s per s of audio | elapsed s per s of audio | goal |",
        "|---|---|---|---|",
        *rows,
    ]
    publish(lines, arguments.output)


def measure(browser: Browser, folder: Path, seconds: float, repeats: int) -> str:
    """A row of the table."""
    times = [enhance(browser, folder, seconds) for _ in range(repeats)]
    processor_time, elapsed = (statistics.median(column) / seconds for column in zip(*times, strict=True))
    return f"| {seconds:g} s | {processor_time:.3f} | {elapsed:.3f} | {GOAL} |"


def enhance(browser: Browser, folder: Path, seconds: float) -> tuple[float, float]:
    """Seconds of CPU time, and elapsed ones, from the choice of a recording to its result."""
    source = folder / "speech.wav"
    sf.write(source, read_speech(RATE, seconds), RATE, subtype="PCM_16")
    browser.run(WATCH)
    before = cpu_seconds(browser)
    browser.choose("#file", source)
    browser.wait("window.finished", 600)
    spent = cpu_seconds(browser) - before
    elapsed = browser.run("(window.finished - window.chosen) / 1000")
    browser.run("document.querySelector('.result .remove').click()")
    return spent, elapsed


def pages(browser: Browser) -> list[Path]:
    """The folders in /proc of the processes of the browser's pages."""
    parents: dict[str, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]

    def descends(process: str | None) -> bool:
        return process is not None and (process == str(browser.process.pid) or descends(parents.get(process)))

    found = [Path("/proc") / process for process in parents if descends(process)]
    return [folder for folder in found if b"--type=renderer" in (folder / "cmdline").read_bytes()]


def cpu_seconds(browser: Browser) -> float:
    """CPU time that the pages have taken."""
    ticks = [(page / "stat").read_text().rpartition(")")[2].split()[11:13] for page in pages(browser)]
    return sum(int(tick) for pair in ticks for tick in pair) / os.sysconf("SC_CLK_TCK")


def resident_mb(browser: Browser) -> float:
    """The largest resident size that a page has had."""
    lines = [line for page in pages(browser) for line in (page / "status").read_text().splitlines()]
    return max(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
