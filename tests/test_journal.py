"""Journals of finished work: resumed after a kill, and only with the same settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finallyse.journal import Journal

SETTINGS = {"format": 1, "metrics": ["stoi"]}


def test_entries_survive_a_kill(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert Journal(path, SETTINGS).read() == []
    Journal(path, SETTINGS).write([{"source": "a"}])
    with Journal(path, SETTINGS).appending() as append:
        append({"source": "b"})
        assert path.read_text().count("\n") == 3, "each entry is written at once"
    with path.open("a") as file:
        file.write('{"source": "tor')
    damaged = (
        b'\n{"source": "\xff"}\n["source"]\n' + b"[" * 100_000 + b"\n"
    )  # bytes of another file, as disks leave them
    path.write_bytes(path.read_bytes() + damaged)
    assert Journal(path, SETTINGS).read() == [{"source": "a"}, {"source": "b"}]


def test_other_settings_start_over(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path, SETTINGS).write([{"source": "a"}])
    assert Journal(path, SETTINGS | {"format": 2}).read() == []
    path.write_text(path.read_text()[5:])  # the settings themselves are damaged
    assert Journal(path, SETTINGS).read() == []
    path.write_bytes(b"\xff\n" + path.read_bytes())
    assert Journal(path, SETTINGS).read() == []
    path.write_text("")
    assert Journal(path, SETTINGS).read() == []


def test_names_that_are_not_utf8(tmp_path):
    entry = {"source": b"\xff.wav".decode("utf-8", "surrogateescape")}
    Journal(tmp_path / "j", SETTINGS).write([entry])
    assert Journal(tmp_path / "j", SETTINGS).read() == [entry]
    assert json.loads((tmp_path / "j").read_text().splitlines()[1]) == entry


def test_damaged_lines_are_left_out(tmp_path):
    Journal(tmp_path / "j", SETTINGS).write([{"source": "a"}, {"source": "b"}])
    with (tmp_path / "j").open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"source": "c"}\n')
    assert [entry["source"] for entry in Journal(tmp_path / "j", SETTINGS).read()] == ["a", "b", "c"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_journal(tmp_path):
    (tmp_path / "j").symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/j'"),
        Journal(tmp_path / "j", SETTINGS).appending() as append,
    ):
        append({"source": "a"})
