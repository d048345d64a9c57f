"""Errors as the user sees them: one line with the file, without a traceback, and the exit status."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finallyse import atomic
from finallyse.corpora.manifest import Manifest
from finallyse.corpora.sources import read_sources
from finallyse.errors import UserError, naming, one_line_errors
from finallyse.report.collect import collect


def said(capsys, status: int, action, *arguments) -> str:
    """The error line with which `action` ends at the command line."""
    with pytest.raises(SystemExit) as stop, one_line_errors():
        action(*arguments)
    assert stop.value.code == status
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message.removeprefix("error: ").rstrip()


def test_a_user_error_is_its_message(capsys):
    def refuse():
        raise UserError("a.yaml: train.steps: must be positive")

    assert said(capsys, 2, refuse) == "a.yaml: train.steps: must be positive"


def test_files_that_cannot_be_opened(tmp_path, capsys):
    absent = tmp_path / "absent.yaml"
    assert said(capsys, 2, read_sources, absent) == f"{absent}: No such file or directory"
    assert said(capsys, 2, read_sources, tmp_path) == f"{tmp_path}: Is a directory"
    below = absent / "x"
    absent.write_text("")
    assert said(capsys, 2, read_sources, below) == f"{below}: Not a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_files_without_permission(tmp_path, capsys):
    secret = tmp_path / "secret.yaml"
    secret.touch(mode=0)
    assert said(capsys, 2, read_sources, secret) == f"{secret}: Permission denied"
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    line = said(capsys, 2, atomic.write_bytes, folder / "scores.csv", b"x")
    assert line == f"{folder / 'scores.csv'}: Permission denied"


def test_permission_is_refused_to_root_as_well(tmp_path, capsys, monkeypatch):
    """The same, simulated, for tests that run as root."""
    manifest = tmp_path / "train.csv"
    manifest.write_text("path,samples,rate\n")

    def refuse(self, *_args, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    assert said(capsys, 2, Manifest, manifest) == f"{manifest}: Permission denied"
    scores = tmp_path / "scores.csv"
    assert said(capsys, 2, atomic.write_bytes, scores, b"x") == f"{scores}: Permission denied"


def test_the_first_error_is_told_where_even_removing_the_draft_fails(tmp_path, capsys, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    def read_only(self, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr(Path, "unlink", read_only)
    scores = tmp_path / "scores.csv"
    assert said(capsys, 2, atomic.write_bytes, scores, b"x") == f"{scores}: No space left on device"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_file(tmp_path, capsys):
    """The system does not name the file of a failed write."""
    (tmp_path / "scores.csv.part").symlink_to("/dev/full")
    line = said(capsys, 2, atomic.write_bytes, tmp_path / "scores.csv", b"x")
    assert line == f"{tmp_path / 'scores.csv'}: No space left on device"
    assert not list(tmp_path.iterdir())

    def write():
        with naming("journal.jsonl"), Path("/dev/full").open("w") as file:
            file.write("x")

    assert said(capsys, 2, write) == "journal.jsonl: No space left on device"


def test_two_files_and_none(tmp_path, capsys):
    missing, other = tmp_path / "a", tmp_path / "b"
    assert said(capsys, 2, missing.rename, other) == f"{missing} -> {other}: No such file or directory"

    def fail():
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert said(capsys, 2, fail) == "a file: Input/output error"


@pytest.mark.parametrize("error", [OSError("of a library, for reasons of its own"), ValueError("a bug")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error), match=str(error)), one_line_errors():
        raise error


def test_a_results_table_that_is_a_folder(tmp_path, capsys):
    (tmp_path / "state" / "hifigan" / "history.csv").mkdir(parents=True)
    assert said(capsys, 2, collect, tmp_path, ["hifigan"]).endswith("hifigan/history.csv: Is a directory")


@pytest.mark.parametrize(
    "command",
    [
        ["scripts/write_experiment.py", "{}", "{folder}/absent/x.yaml"],
        ["scripts/download.py", "vctk", "--registry", "{folder}", "--output", "{folder}/x"],
        ["scripts/run_notebook.py", "{folder}", "--output", "{folder}/x.html"],
        ["scripts/prepare.py", "--corpus=vctk", "--source=src", "--output=/proc/x", "--rate=16000"],
    ],
    ids=lambda command: command[0],
)
def test_scripts_end_with_one_line(tmp_path, root, command):
    arguments = [part.replace("{folder}", str(tmp_path)) for part in command]
    done = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_error(root):
    """Such as `head`."""
    code = "from finallyse.errors import one_line_errors\nwith one_line_errors():\n  [print(i) for i in range(99999)]"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 1 and process.stderr.read() == b""
    process.stderr.close()
