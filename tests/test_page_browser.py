"""The page in a real browser: the samples it makes, its errors, the microphone, the keyboard, every width."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import finallyse
from finallyse.audio.resample import resample
from finallyse.inference.files import Options, enhance_file
from finallyse.inference.windows import join, length_at, plan
from finallyse.page.write import write
from finallyse.pretrained import FOLDER
from support.browser import CONTRAST, CONTROLS, Browser
from support.server import serve
from support.speech import read_speech

PHONE, TABLET, DESK = (390, 844), (820, 1100), (1200, 900)
RATE = 16000
FINISHED = "document.querySelectorAll('.result').length + document.querySelectorAll('#errors li').length"
ERRORS = "[...document.querySelectorAll('#errors li > span:first-child')].map((e) => e.textContent)"
IDLE = "!document.documentElement.classList.contains('busy') && document.querySelector('#progress').hidden"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def enhancer():
    return finallyse.load()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Browser:
    """The page, just opened from the disk."""
    chromium.console.clear()
    chromium.requests.clear()
    chromium.open(page, *DESK)
    return chromium


def enhanced(browser: Browser, source: Path, folder: Path) -> np.ndarray:
    """What the page makes of a file, as it is downloaded: float32 [C, T]."""
    browser.choose("#file", source)
    browser.wait(FINISHED, 240)
    assert browser.run(ERRORS) == []
    folder.mkdir(exist_ok=True)
    made = browser.download(".result .download", folder)
    assert made.name == f"{source.stem}.enhanced.wav" and sf.info(made).subtype == "PCM_16"
    return sf.read(made, dtype="float32", always_2d=True)[0].T


def wanted(enhancer, source: Path, folder: Path) -> np.ndarray:
    """What `finallyse enhance` makes of it."""
    enhance_file(enhancer, str(source), str(folder / "wanted.wav"), Options(force=True))
    return sf.read(folder / "wanted.wav", dtype="float32", always_2d=True)[0].T


def difference_db(heard: np.ndarray, expected: np.ndarray) -> float:
    assert heard.shape == expected.shape
    return 10 * np.log10(np.square(heard - expected).sum() / np.square(expected).sum() + 1e-30)


def only_itself(browser: Browser, address: str) -> None:
    """Nothing was loaded but the page and what it holds in memory; nothing was complained about."""
    assert [url for url in browser.requests if not url.startswith("blob:")] == [address]
    assert browser.console == []


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def test_equals_the_command(browser, page, enhancer, root, tmp_path):
    """A noisy recording at the network's rate, from a page that is opened from a disk."""
    source = tmp_path / "noisy.wav"
    wav, rate = sf.read(root / "resources" / "demo" / "example" / "noisy.flac", dtype="float32")
    assert rate == RATE
    sf.write(source, wav, rate, subtype="PCM_16")
    heard = enhanced(browser, source, tmp_path / "made")
    assert difference_db(heard, wanted(enhancer, source, tmp_path)) < -60
    facts = browser.run("document.querySelector('.result .facts').textContent")
    assert facts.startswith("0:0616 kHzmono") and "times real time" in facts
    only_itself(browser, page.as_uri())


def test_windows_and_channels_equal_the_commands(browser, enhancer, tmp_path):
    """Two windows; two channels of different levels, of which each keeps its own."""
    speech = read_speech(RATE, 24)
    noise = np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    source = tmp_path / "stereo.wav"
    sf.write(source, np.stack([speech + 0.01 * noise, 0.05 * speech[::-1]], 1), RATE, subtype="FLOAT")
    heard, expected = enhanced(browser, source, tmp_path / "made"), wanted(enhancer, source, tmp_path)
    for channel in (0, 1):
        assert difference_db(heard[channel], expected[channel]) < -50
    assert browser.console == []


@pytest.mark.parametrize(("rate", "suffix", "channels"), [(48000, ".wav", 1), (44100, ".flac", 2), (8000, ".wav", 1)])
def test_other_rates_come_close(browser, enhancer, tmp_path, rate, suffix, channels):
    """The page's resampling is its own, the command's is soxr's: -45 dB."""
    speech = read_speech(rate, 4)
    source = tmp_path / f"other{suffix}"
    sf.write(source, np.stack([speech, speech[::-1]][:channels], 1), rate, subtype="PCM_16")
    heard = enhanced(browser, source, tmp_path / "made")
    assert difference_db(heard, wanted(enhancer, source, tmp_path)) < -45


def test_peaks_that_would_clip_are_turned_down(browser, enhancer, tmp_path):
    """As a whole; so is the signal before, in the player. The network itself keeps within the range."""
    made = browser.run(
        "(() => { const { bytes, gain } = encodeWav([Float32Array.of(0.5, -2), Float32Array.of(1, 0)], 8000);"
        "return [gain, ...new Int16Array(bytes.slice(44))]; })()"
    )
    assert made == [0.5, 8192, 16384, -32768, 0]
    source = tmp_path / "loud.wav"
    speech = read_speech(RATE, 3)
    sf.write(source, 3 * speech / np.abs(speech).max(), RATE, subtype="FLOAT")
    heard = enhanced(browser, source, tmp_path / "made")
    assert difference_db(heard, wanted(enhancer, source, tmp_path)) < -50


@pytest.mark.parametrize("samples", [1, 37, 160])
def test_the_shortest_recordings(browser, enhancer, tmp_path, samples):
    source = tmp_path / "short.wav"
    sf.write(source, read_speech(RATE, 1)[-samples - 4000 :][:samples], RATE, subtype="FLOAT")
    heard = enhanced(browser, source, tmp_path / "made")
    assert np.abs(heard - wanted(enhancer, source, tmp_path)).max() < 1e-3


def test_windows_are_the_packages(browser):
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(400):
        grid, context = int(rng.integers(1, 40)), int(rng.integers(0, 60))
        size = -(-2 * context // grid) * grid + grid * int(rng.integers(1, 9)) + int(rng.integers(grid))
        cases.append([int(rng.integers(1, 2000)), size, context, grid])
    made = browser.run(f"{json.dumps(cases)}.map((c) => plan(...c))")
    assert made == [[list(window) for window in plan(*case)] for case in cases]
    windows, fade = plan(1500, 300, 60, 20), 40
    assert len(windows) > 3
    pieces = [rng.standard_normal(stop - start).astype(np.float32) for start, stop in windows]
    script = (
        f"(() => {{ const y = new Float32Array({windows[-1][1]});"
        f"const j = new Joiner(y, {json.dumps(windows)}, {fade});"
        f"for (const p of {json.dumps([piece.tolist() for piece in pieces])}) j.add(Float32Array.from(p));"
        "return [...y]; })()"
    )
    assert browser.run(script) == pytest.approx(np.concatenate(list(join(windows, pieces, fade))), abs=1e-6)


@pytest.mark.parametrize("rates", ["48000 16000", "44100 16000", "16000 48000", "11025 16000", "16000 8000"])
def test_resampling_comes_close_to_soxr(browser, rates):
    given, to = map(int, rates.split())
    wav = read_speech(given, 1.5)
    script = f"[...resample(Float32Array.from({json.dumps(wav.tolist())}), {given}, {to})]"
    made = np.array(browser.run(script), np.float32)
    expected = resample(wav, given, to)
    assert len(made) == length_at(len(wav), given, to)
    count = min(len(made), len(expected))
    assert difference_db(made[:count], expected[:count]) < -50


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "WAV"])
def test_rates_of_compressed_files_are_known(browser, tmp_path, kind):
    for rate in (16000, 44100, 48000):
        path = tmp_path / f"{rate}.{kind.lower()}"
        sf.write(path, read_speech(rate, 1), rate, format=kind)
        stated = browser.run(f"statedRate(Uint8Array.from({list(path.read_bytes()[:5000])}))")
        assert stated == rate


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def told(browser: Browser) -> str:
    """The one error that is shown."""
    browser.wait(FINISHED, 120)
    browser.wait(IDLE)
    (line,) = browser.run(ERRORS)
    assert "\n" not in line and browser.run("document.querySelector('#errors').getAttribute('role')") == "alert"
    return line


def test_files_that_cannot_be_used(browser, page, tmp_path):
    garbage, empty, silent = tmp_path / "notes.txt", tmp_path / "empty.wav", tmp_path / "none.wav"
    garbage.write_text("no audio " * 1000)
    empty.touch()
    sf.write(silent, np.zeros(0, np.float32), RATE)
    infinite = tmp_path / "infinite.wav"
    sf.write(infinite, np.array([0.1, np.inf, 0.2], np.float32), RATE, subtype="FLOAT")
    for path, text in (
        (garbage, "notes.txt: this browser finds no audio that it can read in it."),
        (empty, "empty.wav: the file is empty."),
        (silent, "none.wav: has no samples."),
        (infinite, "infinite.wav: contains samples that are not finite numbers."),
    ):
        browser.choose("#file", path)
        assert browser.wait(f"{ERRORS}.find((t) => t.startsWith({json.dumps(path.name)}))").startswith(text)
        browser.wait(IDLE)
    # What follows works, and removes what was told.
    sf.write(tmp_path / "good.wav", read_speech(RATE, 1), RATE)
    browser.choose("#file", tmp_path / "good.wav")
    browser.wait("document.querySelector('.result')")
    assert browser.run(ERRORS) == []
    only_itself(browser, page.as_uri())


def test_recordings_that_are_too_long(browser, tmp_path):
    """Told before anything is decoded: from the header, or by the browser's own reading of the length."""
    path = tmp_path / "long.wav"
    count = 61_000_000
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + count, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", count
    )
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + count)
    browser.choose("#file", path)
    line = told(browser)
    assert line.startswith("long.wav: 2:07:05 is too long") and "at most 2:05:00 at 8 kHz" in line
    assert "`finallyse enhance` has no limit" in line
    browser.open(browser.run("location.href"), *DESK)
    packed = tmp_path / "long.flac"
    with sf.SoundFile(packed, "w", 16000, 1) as file:
        for _ in range(65):
            file.write(np.zeros(60 * 16000, np.int16))
    browser.choose("#file", packed)
    assert told(browser).startswith("long.flac: 1:05:00 is too long")


@pytest.mark.parametrize("part", ["graph", "runtime", "library"])
def test_a_page_that_is_missing_a_part_or_has_a_damaged_one(chromium, page, tmp_path, part):
    whole, source = page.read_text(), tmp_path / "speech.wav"
    sf.write(source, read_speech(RATE, 1), RATE)
    begin = whole.index(">", whole.index(f'id="{part}"')) + 1
    end = whole.index("<", begin)
    what = "network" if part == "graph" else "program"
    middle = (begin + end) // 2
    damaged = (
        whole[:middle] + ("AAAAAAAA" if whole[middle : middle + 8] != "AAAAAAAA" else "BBBBBBBB") + whole[middle + 8 :]
    )
    for content in (whole[:begin] + whole[end:], whole[:middle] + whole[end:], damaged):
        broken = tmp_path / "broken.html"
        broken.write_text(content)
        chromium.open(broken, *DESK)
        chromium.choose("#file", source)
        assert told(chromium).startswith(f"The {what} in this page is missing or damaged")


def test_a_graph_that_the_program_cannot_run(chromium, page, tmp_path):
    import base64
    import gzip

    other = base64.b64encode(gzip.compress(b"no graph")).decode()
    broken, source = tmp_path / "broken.html", tmp_path / "speech.wav"
    broken.write_text(re.sub(r'(id="graph">)[^<]*', rf"\g<1>{other}", page.read_text()))
    sf.write(source, read_speech(RATE, 1), RATE)
    chromium.open(broken, *DESK)
    chromium.choose("#file", source)
    assert told(chromium).startswith("The network cannot be loaded: ")


def test_a_browser_without_simd(chromium, page):
    script = "WebAssembly.validate = () => false"
    added = chromium.send("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    try:
        chromium.open(page, *DESK)
        assert told(chromium).startswith("This browser lacks WebAssembly SIMD")
        assert chromium.run("document.querySelector('#choose').disabled && document.querySelector('#record').disabled")
    finally:
        chromium.send("Page.removeScriptToEvaluateOnNewDocument", identifier=added)


def test_cancelling_keeps_what_there_is(browser, tmp_path):
    short, long = tmp_path / "short.wav", tmp_path / "long.wav"
    sf.write(short, read_speech(RATE, 1), RATE)
    sf.write(long, read_speech(RATE, 300), RATE)
    browser.choose("#file", short)
    browser.wait("document.querySelector('.result')")
    browser.choose("#file", long)
    left = browser.wait("[document.querySelector('#left').textContent].find((text) => /about .* left/.test(text))")
    assert re.match(r"\d+ %, about \d+:\d\d left", left)
    assert 0 <= browser.run("document.querySelector('#bar').value") < 1
    browser.run("document.querySelector('#cancel').click()")
    browser.wait(IDLE)
    assert browser.run("document.querySelector('#said').textContent") == "Cancelled: long.wav"
    assert browser.run(FINISHED) == 1
    browser.choose("#file", short)  # a new worker
    browser.wait("document.querySelectorAll('.result').length === 2")
    assert browser.run(ERRORS) == [] and browser.console == []


def test_several_files_are_taken_one_after_the_other_and_dropped(browser, tmp_path):
    paths = [tmp_path / f"{name}.wav" for name in ("one", "two")]
    for path in paths:
        sf.write(path, read_speech(RATE, 1), RATE)
    browser.choose("#file", *paths)
    browser.wait("document.querySelectorAll('.result').length === 2")
    content = list(paths[0].read_bytes())
    browser.run(
        f"(() => {{ const d = new DataTransfer(); d.items.add(new File([Uint8Array.from({content})], 'dropped.wav'));"
        "for (const kind of ['dragenter', 'dragover', 'drop'])"
        "document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: d, bubbles: true, cancelable: true})); })()"
    )
    browser.wait("document.querySelectorAll('.result').length === 3")
    names = browser.run("[...document.querySelectorAll('.utterance')].map((e) => e.textContent)")
    assert names == ["dropped.wav", "two.wav", "one.wav"]
    assert not browser.run("document.documentElement.classList.contains('dragging')")
    browser.run("document.querySelectorAll('.remove')[1].click()")
    assert browser.run("document.querySelectorAll('.result').length") == 2


def test_nothing_can_be_sent(browser):
    sent = "fetch('https://elsewhere.example/').then(() => 'sent', (error) => error.name)"
    assert browser.run(sent) == "TypeError"
    assert any("Content Security Policy" in line for line in browser.console)
    image = (
        "new Promise((r) => { const i = new Image(); i.onload = () => r('sent'); i.onerror = () => r('refused');"
        "i.src = 'https://elsewhere.example/x.png'; })"
    )
    assert browser.run(image) == "refused"


# ---------------------------------------------------------------------------------------------------------------------
# The microphone


def test_no_microphone(browser):
    browser.run("document.querySelector('#record').click()")
    assert told(browser) in (
        "No microphone was found. Plug one in, or choose a file.",
        "The microphone is not allowed. Allow it in the browser's settings for this page, or choose a file.",
    )


def test_a_microphone_that_is_refused(page, tmp_path):
    with Browser(tmp_path / "profile", ["--use-fake-device-for-media-stream", "--deny-permission-prompts"]) as browser:
        browser.open(page, *DESK)
        browser.run("document.querySelector('#record').click()")
        assert told(browser).startswith("The microphone is not allowed.")
        assert browser.run("document.querySelector('#record .label').textContent") == "Record"


@pytest.fixture
def address(request, page) -> Iterator[Path | str]:
    """The page on a disk, or from a web server."""
    if request.param == "disk":
        yield page
    else:
        with serve(page.parent) as server:
            yield f"{server.url}/index.html"


@pytest.mark.parametrize("address", ["disk", "server"], indirect=True)
def test_recording(address, tmp_path):
    """What the microphone hears is enhanced; a recording that is not enhanced can be saved."""
    spoken = tmp_path / "spoken.wav"
    sf.write(spoken, read_speech(48000, 6), 48000)
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    (tmp_path / "made").mkdir()
    with Browser(tmp_path / "profile", [*flags, f"--use-file-for-fake-audio-capture={spoken}"]) as browser:
        browser.open(address, *DESK)
        browser.run("document.querySelector('#record').click()")
        browser.wait("recording && recording.samples > 3 * recording.rate")
        assert browser.run("document.querySelector('#record .label').textContent") == "Stop and enhance"
        assert re.fullmatch(r"0:0\d", browser.run("document.querySelector('#elapsed').textContent"))
        browser.run("document.querySelector('#record').click()")
        browser.wait(FINISHED, 120)
        assert browser.run(ERRORS) == []
        made = browser.download(".result .download", tmp_path / "made")
        assert re.fullmatch(r"Recording \d{4}-\d\d-\d\d \d\d\.\d\d\.\d\d\.enhanced\.wav", made.name)
        heard, rate = sf.read(made)
        assert len(heard) > 3 * rate and np.sqrt(np.mean(heard**2)) > 0.003
        # Cancelled, it stays.
        browser.run("document.querySelector('#record').click()")
        browser.wait("recording && recording.samples > 2 * recording.rate")
        browser.run("document.querySelector('#record').click(); document.querySelector('#cancel').click()")
        browser.wait(IDLE)
        (line,) = browser.run(ERRORS)
        assert "is not enhanced, and is kept here" in line
        kept = browser.download("#errors a", tmp_path / "made")
        assert sf.info(kept).duration > 2
        # Discarded, it does not.
        browser.run("document.querySelector('#record').click()")
        browser.wait("recording && recording.samples > 1000")
        browser.run("document.querySelector('#discard').click()")
        assert browser.run("recording === null") and browser.run(IDLE)
        assert [line for line in browser.console if "ScriptProcessorNode is deprecated" not in line] == []


# ---------------------------------------------------------------------------------------------------------------------
# Looks and handling

STATE = """
(() => {
  const root = document.querySelector(".player");
  const sounds = [...root.querySelectorAll("audio")];
  return {
    playing: root.classList.contains("playing"),
    pressed: [...root.querySelectorAll(".pick")].map((b) => b.getAttribute("aria-pressed") === "true"),
    sounding: sounds.map((a) => !a.paused),
    positions: sounds.map((a) => a.currentTime),
    seek: Number(root.querySelector(".seek").value),
  };
})()
"""


@pytest.fixture
def result(browser: Browser, root: Path) -> Browser:
    """The page with a result."""
    browser.choose("#file", root / "resources" / "demo" / "example" / "noisy.flac")
    browser.wait("document.querySelector('.result')", 120)
    browser.wait(IDLE)
    return browser


def test_signals_switch_at_the_same_position(result):
    wait = "new Promise((done) => setTimeout(done, {}))"
    result.run("document.querySelectorAll('.pick')[0].click()")
    result.run(wait.format(900))
    first = result.run(STATE)
    assert first["playing"] and first["sounding"] == [True, False] and 0.2 < first["positions"][0] < 2
    result.run("document.querySelectorAll('.pick')[1].click()")
    result.run(wait.format(300))
    second = result.run(STATE)
    assert second["pressed"] == [False, True] and second["sounding"] == [False, True]
    assert first["positions"][0] - 0.05 < second["positions"][1] < first["positions"][0] + 1.5
    assert result.console == []


def test_everything_works_by_keyboard(result):
    result.run("document.querySelectorAll('details').forEach((d) => (d.open = true)); document.activeElement.blur()")
    result.run("document.querySelector('#said').scrollIntoView()")
    count = result.run(CONTROLS)
    assert count >= 12
    for _ in range(count + 8):
        result.press("Tab", 9)
        if result.run("new Set(order.filter((i) => i >= 0)).size") == count:
            break
    assert result.run("controls.filter((c, i) => !order.includes(i)).map((c) => c.outerHTML.slice(0, 120))") == []
    unnamed = "controls.filter((c) => !(c.getAttribute('aria-label') || c.textContent.trim())).map((c) => c.outerHTML)"
    assert result.run(unnamed) == []
    result.run("document.querySelector('.toggle').focus()")
    result.press("Enter", 13, "\r")
    assert result.run(STATE)["sounding"] == [False, True]
    result.press("1", 49, "1")
    assert result.run(STATE)["pressed"] == [True, False]
    result.press("Tab", 9)
    result.press(" ", 32, " ")
    assert not result.run(STATE)["playing"]
    result.run("document.querySelector('.remove').focus()")
    result.press("Enter", 13, "\r")
    assert result.run("document.activeElement.id") == "choose" and result.run(
        "document.querySelector('#results').hidden"
    )


def test_says_what_it_does(result):
    """To screen readers: regions, names, and what has happened."""
    said = "document.querySelector('#said').textContent"
    assert result.run(said) == "Enhanced noisy.flac. Its player is under Results."
    assert result.run("document.querySelector('#said').getAttribute('role')") == "status"
    tree = result.send("Accessibility.getFullAXTree")["nodes"]
    named = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n["ignored"]}
    for expected in (
        ("button", "Choose a file"),
        ("button", "Record"),
        ("group", "Player: noisy.flac"),
        ("button", "Play before, noisy.flac"),
        ("button", "Play after, noisy.flac"),
        ("link", "Download noisy.enhanced.wav"),
        ("heading", "Results"),
    ):
        assert expected in named
    pictures = [name for role, name in named if role in ("image", "img") and name.startswith("Spectrogram")]
    assert sorted(pictures) == [
        "Spectrogram after enhancing, noisy.flac: 0 to 8 kHz, 6.4 s",
        "Spectrogram before enhancing, noisy.flac: 0 to 8 kHz, 6.4 s",
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, TABLET, DESK], ids=["phone", "tablet", "desk"])
def test_looks_right(chromium, page, root, size, dark):
    chromium.console.clear()
    chromium.open(page, *size, dark=dark, phone=size == PHONE)
    chromium.choose("#file", root / "README.md", root / "resources" / "demo" / "example" / "noisy.flac")
    chromium.wait("document.querySelector('.result')", 120)
    chromium.wait(IDLE)
    chromium.run("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert chromium.run("[document.documentElement.scrollWidth, innerWidth]") == [size[0], size[0]]
    seen, low = chromium.run(CONTRAST)
    assert seen > 20 and low == []
    boxes = chromium.run(
        "[...document.querySelectorAll('.spectrogram canvas')].map((c) => {"
        "const b = c.getBoundingClientRect(); return [b.left, b.width, b.height]; })"
    )
    assert boxes[0] == boxes[1] and boxes[0][1] > 300 and boxes[0][2] >= 100  # aligned
    small = chromium.run(
        "[...document.querySelectorAll('button, .download, summary')].filter((e) => e.checkVisibility())"
        ".map((e) => [e.textContent, e.getBoundingClientRect().height]).filter(([, height]) => height < 38)"
    )
    assert small == []  # for fingers
    # The spectrograms are drawn, the speech brighter than the silence, and the enhanced one darker.
    means = chromium.run(
        "[...document.querySelectorAll('canvas')].map((c) => {"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return d.reduce((a, b) => a + b, 0) / d.length; })"
    )
    assert means[0] > means[1] > 70
    assert chromium.console == []


# ---------------------------------------------------------------------------------------------------------------------
# With a server


def test_served_with_a_larger_network(chromium, enhancer, root, tmp_path):
    pytest.importorskip("uvicorn")
    from test_serve import serving

    shutil.copy(FOLDER / "small.ckpt", tmp_path / "large.ckpt")
    source, made = tmp_path / "speech.wav", tmp_path / "made"
    made.mkdir()
    sf.write(source, read_speech(RATE, 3), RATE)
    with serving(tmp_path, "--checkpoint", str(tmp_path / "large.ckpt")) as server:
        address = f"http://127.0.0.1:{server.port}/"
        chromium.console.clear()
        chromium.requests.clear()
        chromium.open(address, *DESK)
        assert "large, 16 kHz, up to 60 minutes" in chromium.run("document.querySelector('#where').innerText")
        private = "document.querySelector('#privacy').textContent"
        assert chromium.run(private).startswith("Nothing leaves this device")
        expected = wanted(enhancer, source, tmp_path)
        heard = enhanced(chromium, source, made)
        assert difference_db(heard, expected) < -60
        chromium.run("document.querySelector('#on-server').click()")
        assert "sent to 127.0.0.1" in chromium.run(private)
        chromium.run("document.querySelector('.remove').click()")
        heard = enhanced(chromium, source, tmp_path / "again")
        assert difference_db(heard, expected) < -60
        assert "on the server" in chromium.run("document.querySelector('.result .facts').textContent")
        assert [url for url in chromium.requests if not url.startswith("blob:")] == [address, f"{address}enhance"]
        assert chromium.console == []
        chromium.run("document.querySelector('.remove').click()")
        server.process.kill()
        chromium.choose("#file", source)
        assert told(chromium) == "speech.wav: the server cannot be reached. Is it still running?"
