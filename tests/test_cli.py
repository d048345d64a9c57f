"""The `finallyse` command: its help, and the order of its words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from finallyse.cli import COMMANDS, main


def run(*words: str) -> int | None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code


def test_help_lists_the_commands_and_imports_nothing_large(root):
    code = (
        "import sys\nfrom finallyse.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'numpy', 'torch', 'rich', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    for name in COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in lines), name


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_describes_itself(name, capsys):
    assert run(name, "--help") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: finallyse {name}") and COMMANDS[name].__doc__.splitlines()[0] in said


def test_wrong_words_are_refused(capsys):
    assert run() == 2 and "enhance" in capsys.readouterr().out
    assert run("enhanced") == 2 and "invalid choice: 'enhanced'" in capsys.readouterr().err
    assert run("enhance", "a.wav", "b.wav", "--checkpoint=x", "--batch=0") == 2
    assert "argument --batch: 0 is not 1 or more" in capsys.readouterr().err
    assert run("models", "--seconds=0") == 2


@pytest.mark.parametrize(
    "words",
    [
        "--checkpoint x.ckpt --rate 16000 a.wav b c",
        "a.wav b c --checkpoint x.ckpt --rate 16000",
        "a.wav --rate 16000 b --checkpoint x.ckpt c",
        "a.wav b --checkpoint=x.ckpt --rate=16000 -- c",
    ],
)
def test_options_stand_anywhere(words, monkeypatch):
    given = {}

    def enhance(inputs, output, checkpoint, **options):
        given.update(inputs=inputs, output=output, checkpoint=checkpoint, **options)
        return 1

    monkeypatch.setattr("finallyse.inference.command.run", enhance)
    assert run("enhance", "--format=FLAC", *words.split()) == 1
    assert given == {
        "inputs": ["a.wav", "b"],
        "output": "c",
        "checkpoint": "x.ckpt",
        "rate": 16000,
        "suffix": ".flac",
        "window_s": 20.48,
        "batch": None,
        "device": "auto",
        "engine": "auto",
        "dither": False,
        "keep_tags": False,
        "keep_times": False,
        "plugins": [],
        "accept_cut": False,
        "force": False,
        "resume": False,
        "precision": "fp32",
        "subtype": None,
        "threads": None,
        "wavlm": None,
    }


@pytest.mark.parametrize(
    "words", ["a.yaml b=1 --config c.yaml --config d=2", "--config c.yaml a.yaml --config d=2 b=1"]
)
def test_settings_of_the_pipeline(words, monkeypatch):
    shown = []
    monkeypatch.setattr("finallyse.status.show", shown.extend)
    assert not run("status", *words.split())
    assert shown == ["c.yaml", "d=2", "a.yaml", "b=1"]


@pytest.mark.parametrize(
    ("words", "seconds", "arguments"),
    [
        ("--watch", 5.0, []),
        ("--watch 2.5 c.yaml", 2.5, ["c.yaml"]),
        ("--watch c.yaml a=1", 5.0, ["c.yaml", "a=1"]),
        ("c.yaml --watch --config d=2", 5.0, ["d=2", "c.yaml"]),
    ],
)
def test_the_seconds_of_watching_may_be_left_out(words, seconds, arguments, monkeypatch):
    watched = []
    monkeypatch.setattr("finallyse.status.watch", lambda *given: watched.append(given))
    assert not run("status", *words.split())
    assert watched == [(arguments, seconds)]
    assert run("status", "--watch", "0") == 2
