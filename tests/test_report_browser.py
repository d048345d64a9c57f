"""The report in a real browser, on a phone and on a desktop, light and dark: layout, sound, keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support import results as built
from support.browser import CONTRAST, CONTROLS, Browser

PHONE, DESK = (390, 844), (1280, 900)
WIDTHS = (390, 820, 1200)

DURATIONS = """
(async () => {
  const durations = {};
  for (const audio of document.querySelectorAll("audio")) {
    await new Promise((resolve, reject) => {
      audio.onloadedmetadata = resolve;
      audio.onerror = () => reject(new Error(audio.id + ": " + audio.error.message));
      audio.preload = "metadata";
      audio.load();
    });
    durations[audio.id] = audio.duration;
    audio.preload = "none";
  }
  return durations;
})()
"""

STATE = """
(() => {
  const player = document.querySelectorAll(".player")[%d];
  const tracks = [...player.querySelectorAll(".track")].map((t) => document.getElementById(t.dataset.audio));
  return {
    playing: player.classList.contains("playing"),
    sounding: tracks.map((audio) => !audio.paused),
    pressed: [...player.querySelectorAll(".pick")].map((b) => b.getAttribute("aria-pressed") === "true"),
    positions: tracks.map((audio) => audio.currentTime),
    seek: Number(player.querySelector(".seek").value),
  };
})()
"""


# Tables that must be scrolled sideways, and words in their cells that are broken; code and paths may be.
TABLES = """
(() => {
  document.querySelectorAll("details").forEach((d) => (d.open = true));
  const wide = [...document.querySelectorAll(".scroll")].filter((s) => s.scrollWidth > s.clientWidth);
  const broken = [];
  let words = 0;
  for (const cell of document.querySelectorAll("th, td")) {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
      if (node.parentElement.closest("code, .absent, .visually-hidden, svg")) continue;
      for (const found of node.data.matchAll(/[^\\s/-]+/g)) {
        const range = document.createRange();
        range.setStart(node, found.index);
        range.setEnd(node, found.index + found[0].length);
        words += 1;
        if (new Set([...range.getClientRects()].map((r) => Math.round(r.top))).size > 1) broken.push(found[0]);
      }
    }
  }
  return [words, wide.map((s) => s.getAttribute("aria-label")), broken];
})()
"""

# Of each player: the tops and heights of the pictures of the tracks that are in one row.
ROWS = """
[...document.querySelectorAll(".player")].map((player) => {
  const rows = {};
  for (const track of player.querySelectorAll(".track")) {
    const b = track.querySelector(".spectrogram").getBoundingClientRect();
    (rows[Math.round(track.getBoundingClientRect().top)] ??= []).push([Math.round(b.top), Math.round(b.height)]);
  }
  return Object.values(rows);
})
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, speech: list[Path]) -> Path:
    return built.page_once(built.results_once(tmp_path_factory, speech))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"), dtype=np.int16)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_looks_right(browser: Browser, page: Path, tmp_path: Path, size: tuple[int, int], dark: bool) -> None:
    """Nothing wider than the window, every section drawn, readable text, colours of the scheme, no complaint."""
    browser.console.clear()
    browser.requests.clear()
    browser.open(page, *size, dark=dark, phone=size == PHONE)
    width, inner = browser.run("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width == inner == size[0]

    seen, low = browser.run(CONTRAST)
    assert seen > 500
    assert low == []

    background = (17, 22, 28) if dark else (255, 255, 255)
    first = _pixels(browser.screenshot(tmp_path / "first.png"))
    assert first.shape == (size[1], size[0], 3)
    assert tuple(first[size[1] // 2, 3]) == background
    banner = browser.run('(({x, y, width, height}) => [x, y, width, height])'
                         '(document.querySelector(".banner").getBoundingClientRect())')  # fmt: skip
    x, y, w, h = map(int, banner)
    assert y < size[1], "the banner is seen without scrolling"
    inside = first[y + 3 : min(y + h, size[1]) - 3, x + 8 : x + w - 3].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) > 20, "the banner holds text"
    assert tuple(np.median(inside, axis=0)) == ((51, 39, 10) if dark else (255, 244, 214))

    whole = _pixels(browser.screenshot(tmp_path / "whole.png", whole_page=True, scale=0.5))
    boxes = browser.run(
        'Object.fromEntries([...document.querySelectorAll("main > section, article")].map((e) => '
        "{ const b = e.getBoundingClientRect(); return [e.id, [b.top + scrollY, b.bottom + scrollY]]; }))"
    )
    assert len(boxes) == 6 + len(built.NETWORKS)
    for name, (top, bottom) in boxes.items():
        part = whole[int(top / 2) : int(bottom / 2)]
        assert (np.abs(part - background).max(axis=2) > 60).mean() > 0.01, f"{name} is drawn"
    # The spectrograms are drawn: magma's purples, which nothing else on the page has.
    purple = (whole[..., 0] > 90) & (whole[..., 2] > 90) & (whole[..., 1] < 60)
    assert purple.mean() > 0.01
    assert browser.console == []
    assert browser.requests == [page.resolve().as_uri()]


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_fit_and_spectrograms_are_aligned(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width, 900, phone=width == WIDTHS[0])
    words, wide, broken = browser.run(TABLES)
    assert words > 300 and wide == [] and broken == []
    overview = browser.run('(() => { const t = document.querySelector(".overview"); return t.innerText; })()')
    assert all(name in overview for name in built.NETWORKS) and "WB-PESQ" in overview
    # Longer names and notes, as of compared systems, take two lines in some tracks.
    browser.run(
        'document.querySelectorAll(".player").forEach((p) => { const l = p.querySelector(".label"); '
        'l.textContent = "A system with a name that is longer than its column is wide, 2024"; })'
    )
    rows = browser.run(ROWS)
    assert len(rows) > 10
    for tracks in rows:
        assert all(len({tuple(place) for place in row}) == 1 for row in tracks)
    assert any(len(row) > 1 for tracks in rows for row in tracks) == (width > WIDTHS[0])


def test_every_sound_loads_and_has_its_length(browser: Browser, page: Path) -> None:
    browser.open(page, *DESK)
    durations = browser.run(DURATIONS)
    assert len(durations) > 30
    shown = browser.run(
        'Object.fromEntries([...document.querySelectorAll(".track")].map((t) => '
        '[t.dataset.audio, Number(t.closest(".player").dataset.seconds)]))'
    )
    assert durations.keys() == shown.keys()
    for name, seconds in durations.items():
        assert seconds == pytest.approx(shown[name], abs=0.03)
    assert browser.console == []


def test_signals_switch_at_the_same_position(browser: Browser, page: Path) -> None:
    browser.open(page, *DESK)
    wait = "new Promise((done) => setTimeout(done, {}))"
    click = 'document.querySelectorAll(".player")[{}].querySelectorAll("button")[{}].click()'
    browser.run(click.format(4, 0))
    browser.run(wait.format(700))
    first = browser.run(STATE % 4)
    assert (
        first["playing"]
        and first["pressed"][0]
        and first["sounding"] == [True] + [False] * (len(first["sounding"]) - 1)
    )
    assert 0.2 < first["positions"][0] < 2
    browser.run(click.format(4, 1))
    browser.run(wait.format(250))
    second = browser.run(STATE % 4)
    assert second["pressed"][1] and second["sounding"][:2] == [False, True]
    assert first["positions"][0] - 0.05 < second["positions"][1] < first["positions"][0] + 1.5
    # Another player silences this one.
    browser.run(click.format(6, 1))
    browser.run(wait.format(250))
    assert not browser.run(STATE % 4)["playing"] and browser.run(STATE % 6)["playing"]
    # A click into a spectrogram plays from there; the slider moves everything.
    browser.run(
        '(() => { const s = document.querySelectorAll(".player")[6].querySelector(".spectrogram"); '
        "const b = s.getBoundingClientRect(); "
        's.dispatchEvent(new MouseEvent("click", {clientX: b.left + b.width / 2})); })()'
    )
    browser.run(wait.format(150))
    state = browser.run(STATE % 6)
    seconds = browser.run('Number(document.querySelectorAll(".player")[6].dataset.seconds)')
    assert state["sounding"][0] and seconds / 2 - 0.05 < state["positions"][0] < seconds / 2 + 1
    assert browser.console == []


def test_every_control_is_reached_by_tab_and_named(browser: Browser, page: Path) -> None:
    browser.open(page, *DESK)
    browser.run('document.querySelectorAll("details").forEach((d) => (d.open = true))')
    count = browser.run(CONTROLS)
    assert count > 100
    for _ in range(count + 5):
        browser.press("Tab", 9)
        if browser.run("new Set(order.filter((i) => i >= 0)).size") == count:
            break
    left = browser.run("controls.filter((c, i) => !order.includes(i)).map((c) => c.outerHTML.slice(0, 120))")
    assert left == []
    order = browser.run("order.filter((i) => i >= 0)")
    assert order == sorted(order), "the order of the focus is that of the page"
    unnamed = browser.run(
        'controls.filter((c) => !(c.ariaLabel || c.getAttribute("aria-label") || c.textContent.trim()))'
        ".map((c) => c.outerHTML.slice(0, 120))"
    )
    assert unnamed == []
    outline = browser.run("(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle; })()")
    assert outline == "solid"


def test_players_work_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page, *DESK)
    browser.run('document.querySelectorAll(".player")[6].querySelector(".toggle").focus()')
    browser.press("Enter", 13, "\r")
    assert browser.run(STATE % 6)["playing"]
    browser.press("3", 51, "3")
    assert browser.run(STATE % 6)["pressed"][2]
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.className") == "seek"
    browser.press(" ", 32, " ")
    state = browser.run(STATE % 6)
    assert not state["playing"] and not any(state["sounding"])
    before = state["seek"]
    for _ in range(5):
        browser.press("ArrowRight", 39)
    assert browser.run(STATE % 6)["seek"] > before


def test_without_scripts_the_browsers_own_players_are_there(browser: Browser, page: Path) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page, *PHONE, phone=True)
        shown = browser.run(
            '[...document.querySelectorAll("audio")].map((a) => a.controls && a.getBoundingClientRect().height)'
        )
        transports = browser.run(
            '[...document.querySelectorAll(".transport")].filter((t) => t.checkVisibility()).length'
        )
        width = browser.run("document.documentElement.scrollWidth")
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert shown and all(height >= 30 for height in shown)
    assert transports == 0 and width == PHONE[0]
