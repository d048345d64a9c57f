"""Errors as the user sees them: one line with the file, without a traceback, and the exit status."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finallyse import atomic
from finallyse.audio.io import write_wav
from finallyse.corpora.manifest import Manifest
from finallyse.corpora.sources import read_sources
from finallyse.errors import UserError, naming, one_line_errors
from finallyse.models.tensors import save_tensors
from finallyse.progress import Progress
from finallyse.report.collect import collect
from finallyse.training.state import write_whole


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


def test_a_disk_that_cannot_be_written_at_all_is_the_error(tmp_path, capsys, monkeypatch):
    """On a read-only disk even the removal of a draft that is not there fails."""

    def refuse(self, *_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    scores = tmp_path / "scores.csv"
    assert said(capsys, 2, atomic.write_bytes, scores, b"x") == f"{scores}: Read-only file system"
    wav = tmp_path / "a.wav"
    assert said(capsys, 2, write_wav, wav, np.zeros(10), 16000) == f"{wav}: Read-only file system"
    line = said(capsys, 2, save_tensors, tmp_path / "x.ckpt", {})
    assert (
        line
        == f"{tmp_path / 'x.ckpt'}: could not be written: [Errno 30] Read-only file system: '{tmp_path / 'x.ckpt'}'"
    )
    line = said(capsys, 2, write_whole, tmp_path / "state", lambda file: file.write(b"x"))
    assert line == f"{tmp_path / 'state'}: cannot be written (Read-only file system); what was saved before is kept"


def test_a_message_is_one_line_without_commands_to_the_terminal(capsys):
    def refuse():
        raise UserError("a\x1b[2J\nb\u202e\udcff.wav: ä cannot be read")

    assert said(capsys, 2, refuse) == "a\\x1b[2J b\\u202e\\udcff.wav: ä cannot be read"
    Progress("x\x1b[2J.wav", 1, "files", sys.stderr).say("y\x1b[1m")
    assert capsys.readouterr().err == "y\\x1b[1m\n"
    assert Progress("x\x1b[2J.wav", 1, "files").line().startswith("x\\x1b[2J.wav: ")


WORK = """
import concurrent.futures, time
from finallyse.errors import one_line_errors
from finallyse.processes import process_pool
with one_line_errors():
    with process_pool(2) as pool:
        tasks = [pool.submit(time.sleep, 60) for _ in range(2)]
        print("started", flush=True)
        try:
            time.sleep(60)
        finally:
            print("stopping", flush=True)
            time.sleep({pause})
"""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_is_one_word_however_often_it_comes(root, times):
    process = subprocess.Popen(
        [sys.executable, "-c", WORK.replace("{pause}", str(60 * (times - 1)))],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "started\n"
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well, which only just begin
        assert process.stdout.readline() in ("stopping\n", "")
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "interrupted\n")


def test_a_reader_that_leaves_is_no_error(root):
    """Such as `head`."""
    code = "from finallyse.errors import one_line_errors\nwith one_line_errors():\n  [print(i) for i in range(99999)]"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 1 and process.stderr.read() == b""
    process.stderr.close()
