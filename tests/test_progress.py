"""Progress lines, durations and sizes."""

from __future__ import annotations

import io
import threading
import time

import pytest

from finallyse.progress import AudioProgress, NowAndThen, Progress, data_size, duration


def test_speed_and_time_left_count_only_this_run():
    progress = Progress("evaluate", 100, "files", io.StringIO())
    progress.keep(40)
    progress.add(20)
    assert progress.describe(10) == "60 of 100 files (40 kept from an earlier run), 2 per s, 20 s left"
    progress.add(40)
    assert progress.describe(10) == "100 of 100 files (40 kept from an earlier run), 6 per s"


def test_audio():
    progress = AudioProgress("enhance", 3600, io.StringIO())
    progress.add(125)
    assert progress.describe(10) == "2:05 of 1:00:00 of audio, real-time factor 0.08, 4:38 left"


def test_lines_of_a_log():
    stream = io.StringIO()
    with Progress("unpack", None, "MB", stream, every_s=0) as progress:
        progress.add(3)
        progress.say("a.zip: 3 files", "b.zip: 2 files")
        progress.finish()
    first, *said, last = stream.getvalue().splitlines()
    assert said == ["a.zip: 3 files", "b.zip: 2 files"]
    assert first.startswith("unpack: 3 MB, ") and last.startswith("unpack: 3 MB, ")


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (59.4, "59 s"), (200, "3:20"), (7509, "2:05:09")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(9, "9 bytes"), (1234, "1.23 kB"), (12.3e6, "12.3 MB"), (4.56e9, "4.56 GB")]
)
def test_sizes(size, text):
    assert data_size(size) == text


def test_lines_now_and_then_go_on_after_a_file_was_away_and_end_when_told():
    heard, calls, enough = [], iter(range(1000)), threading.Event()

    def lines():
        call = next(calls)
        if call == 1:
            raise FileNotFoundError("history.csv")
        return [f"call {call}"]

    def write(line):
        heard.append(line)
        if len(heard) == 3:
            enough.set()

    telling = NowAndThen(lines, write, every_s=0.01)
    assert enough.wait(10)
    telling.stop()
    told = list(heard)
    time.sleep(0.05)
    assert told == heard and told[:3] == ["call 0", "call 2", "call 3"]
