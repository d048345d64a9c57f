"""Every command of the documentation, followed as it stands: dry runs, real argument parsers, validated YAML.

Commands are the lines of indented and fenced blocks, what stands in backticks and begins with one of `OURS`,
and the headers of config files. What cannot be followed is listed in `NOT_FOLLOWED`, with the reason.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import finallyse
from finallyse.cli import COMMANDS, main
from finallyse.config import load_experiment, load_pipeline
from finallyse.new import write
from finallyse.schema import read_schema
from support import ROOT

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "README.ru.md", "CONTRIBUTING.md", "SECURITY.md", "config/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
HEADERS = [ROOT / "Snakefile", ROOT / "workflow/publish.smk", *sorted((ROOT / "config").glob("*.yaml"))]
OURS = ("snakemake", "finallyse", "python", "make")

NOT_FOLLOWED = {
    "git": "needs the address of a repository",
    "cd": "into what git made",
    "pip": "installs packages",
    "pre-commit": "installs hooks",
    "pytest": "the test that `finallyse new` writes; tests/test_plugins.py runs it",
    ".": "activates an environment, which the tests run in",
    "$EDITOR": "opens an editor; its file is checked to exist",
    "tmux": "a terminal",
    "srun": "SLURM's; the command that it runs is followed",
    "squeue": "SLURM's",
    "tail": "a log of a run",
    "ls": "logs of a run on a cluster",
    "cat": "a table of a run",
    "du": "data of a run",
    "cp": "data of a run",
    "podman": "builds an image from registries",
    "apptainer": "builds an image",
    "kubectl": "needs a cluster",
    "arecord": "needs a microphone",
    "aplay": "needs a loudspeaker",
    "curl": "needs a server; tests/test_serve.py sends the same",
    "xdg-open": "opens a browser",
    "echo": "compares a checksum",
    "sha256sum": "compares a checksum",
    "bash": "starts a cluster; .ci/run does it, and its file is checked to exist",
}
"""First words of commands that are not run."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def blocks(text: str) -> Iterator[str]:
    """The parts of indented and fenced blocks between empty lines, without their indentation; of ```text, none."""
    fenced, block = False, []
    for line in [*re.sub(r"^```text$.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).splitlines(), "end"]:
        if line.startswith("```"):
            fenced = not fenced
        inside = fenced or line.startswith("    ")
        if inside and line.strip() and not line.startswith("```"):
            block.append(line)
        elif block:
            yield textwrap.dedent("\n".join(block))
            block = []


def kind(block: str) -> str:
    """`yaml`, `snakefile`, `python` or `commands`."""
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    if not lines:
        return "comments"
    if re.match(r"(module|use rule|onstart)\b", lines[0]):
        return "snakefile"
    if re.match(r"(import|from) ", lines[0]):
        return "python"
    return "yaml" if re.match(r"\w+:( |$)", lines[0]) else "commands"


def commands_of(block: str) -> list[str]:
    """The command lines of a block, continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    return [line for line in lines if not line.startswith("#")]


def all_blocks(wanted: str) -> list[tuple[Path, str]]:
    return [(path, block) for path in DOCUMENTS for block in blocks(path.read_text()) if kind(block) == wanted]


def all_commands() -> list[str]:
    """Every command of the documentation, once."""
    found = [command for _, block in all_blocks("commands") for command in commands_of(block)]
    for path in DOCUMENTS:
        text = path.read_text()
        found += re.findall(r"^    # \S+\.yaml: (snakemake .*)", text, re.MULTILINE)
        found += re.findall(rf"`((?:{'|'.join(OURS)}) [^`]+)`", re.sub(r"\s*\n\s*", " ", text))
    for path in HEADERS:
        found += re.findall(r"^(?:#|    |)(?:.*[ :])?(snakemake --.*)", path.read_text(), re.MULTILINE)
    # `[...]` is optional in the documentation, `...` stands for more of the same
    plain = [re.sub(r"(?<=\s)\[([^\[\]]*)\]", r"\1", command).replace("...", "") for command in found]
    return list(dict.fromkeys(" ".join(command.split()) for command in plain))


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


COMMAND_LINES = all_commands()


def parts(command: str) -> list[list[str]]:
    """The words of each command of a line."""
    return [words_of(part) for part in re.split(r" && | \| ", command)]


def of(program: str) -> list[list[str]]:
    """The words after the program of its commands, also of those that another program runs; each once."""
    found = {}
    for words in [words for command in COMMAND_LINES for words in parts(command)]:
        if words[0] in ("srun", "exec"):
            words = words[next(i for i, word in enumerate(words) if word in OURS) :]
        if words[0] == program:
            found[tuple(words[1:])] = words[1:]
    return list(found.values())


# ---------------------------------------------------------------------------------------------------------------------
# Following


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone of the project as links, with the config files and folders that the documentation names."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in ("config", "results", "speech", ".git", ".snakemake", ".venv"):
            (folder / path.name).symlink_to(path)
    for name in ("config", "config/experiments"):
        (folder / name).mkdir()
        for path in (ROOT / name).iterdir():
            if path.name != "experiments":
                (folder / name / path.name).symlink_to(path)
    for _, block in all_blocks("yaml"):
        if named := re.match(r"# (config/\S+\.yaml)", block):
            (folder / named[1]).write_text(in_place(block, folder))
    module = "\n\n".join(block for _, block in all_blocks("snakefile"))
    (folder / "module").mkdir()
    (folder / "module" / "Snakefile").write_text(in_place(module, folder))
    write("loss", "my_loss", folder)
    write("network", "my_network", folder)
    for path in ("my_clean_speech/a.wav", "speech/x", "DIR/a.wav"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    for _, block in all_blocks("yaml"):
        for path in re.findall(r"/data(/[\w/]+)", block):
            (folder / path[1:]).mkdir(parents=True, exist_ok=True)
            (folder / path[1:] / "a.wav").touch()
    schema = read_schema(ROOT / "config/schema.json")
    config = load_pipeline([ROOT / "config/config.yaml"], {}, schema)
    (folder / "results/configs").mkdir(parents=True)
    for name in ("finally_stage1", "hifigan"):
        (folder / f"results/configs/{name}.yaml").write_text(yaml.safe_dump(config["experiments"][name]))
    return folder


def in_place(text: str, clone: Path) -> str:
    """The text with the example's absolute paths in the clone."""
    return re.sub(r"/data(?=/)|/path/to/finallyse", str(clone), text)


DRY_RUNS = """
import json, os, sys
import snakemake.api, snakemake.cli, snakemake.dag, snakemake.workflow  # once: forked for each command
statuses = []
for number, words in enumerate(json.loads(sys.stdin.read())):
    child = os.fork()
    if child == 0:
        log = os.open(f"{sys.argv[1]}.{number}", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1), os.dup2(log, 2)
        snakemake.cli.main(words)
        os._exit(9)  # it exits by itself
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""
"""Runs Snakemake for each list of words on stdin; the output of the third goes to ARGUMENT.2."""


def test_snakemake_plans_what_is_documented(clone, tmp_path):
    """As dry runs. Commands that differ only in their number of cores or in `-n` count once."""
    distinct: dict[tuple[str, ...], list[str]] = {}
    for words in of("snakemake"):
        assert {"--cores", "--profile", "--unlock"} & set(words), f"refused without a number of cores: {words}"
        words = [in_place(word, clone) for word in words if word != "-n"]
        at = words.index("--cores") if "--cores" in words else len(words)
        distinct.setdefault((*words[:at], *words[at + 2 :]), words)
    assert len(distinct) >= 20
    followed = [words for words in distinct.values() if not only_parsed(words)]
    assert len(followed) >= 15
    followed.append(["--cores", "1", "--directory", "module", "--snakefile", "module/Snakefile"])
    quietly = ["--nolock", "--quiet", "all"]
    followed = [[*([] if "--unlock" in words else ["-n"]), *quietly, *words] for words in followed]
    halves = [followed[::2], followed[1::2]]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DRY_RUNS, str(tmp_path / f"log{half}")],
            cwd=clone,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for half in (0, 1)
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda run, half: run.communicate(json.dumps(half))[0], runs, halves)
    for half, (answer, commands) in enumerate(zip(answers, halves, strict=True)):
        statuses = json.loads(answer.splitlines()[-1])
        assert len(statuses) == len(commands)
        for number, (status, words) in enumerate(zip(statuses, commands, strict=True)):
            told = (tmp_path / f"log{half}.{number}").read_text()
            assert status == 0, f"snakemake {shlex.join(words)}\n{told[-1500:]}"


def only_parsed(words: list[str]) -> bool:
    """Parse the words, and say whether more cannot be done: without conda or Apptainer, or a bucket with results."""
    from snakemake.cli import get_argument_parser, parse_config

    typed, _ = get_argument_parser().parse_known_args(words)
    assert all(Path(path).suffix == ".yaml" for path in typed.configfile or []), f"takes a target for a file: {words}"
    parse_config(typed.config)  # refuses a target among the settings
    programs = [str(method).rpartition(".")[2].lower() for method in typed.software_deployment_method or []]
    return not all(map(shutil.which, programs)) or "workflow/publish.smk" in words


NAMED_IN_PASSING = {"compare", "config", "convert", "enhance", "export", "new", "pack", "page"}
"""Commands that need arguments, and are also named without any."""


def test_the_command_of_the_package_understands_what_is_documented(clone, monkeypatch, capsys):
    """Networks are not run, nor what needs results; the rest is."""
    monkeypatch.chdir(clone)
    given = []
    run = (
        "inference.command.run",
        "inference.command.run_live",
        "inference.pack.pack",
        "export.command.export",
        "serve.command.run",
        "models.table.show",
        "preflight.check",
        "report.comparison.compare",
    )
    for function in run:
        monkeypatch.setattr(f"finallyse.{function}", lambda *words, **options: given.append((words, options)))
    shutil.copy(ROOT / "src/finallyse/pretrained/small.ckpt", clone / "finally.ckpt")  # of `finallyse pack`
    monkeypatch.setattr("finallyse.page.write.write", lambda *words: given.append((words, {})) or clone / "README.md")
    commands = of("finallyse")
    assert {words[0] for words in commands} >= {"enhance", "config", "data", "status", "pack", "models"}
    for words in commands:
        if len(words) == 1 and words[0] in NAMED_IN_PASSING:
            assert words[0] in COMMANDS
            continue
        with pytest.raises(SystemExit) as stop:
            main([*words, "--force"] if words[0] == "new" else words)  # its file is there for the other commands
        assert not stop.value.code, f"finallyse {shlex.join(words)}: {capsys.readouterr().err}"
    assert len(given) >= 4


class Parsed(Exception):
    """The command line was understood."""


PLACEHOLDERS = {"RUN": "hifigan", "SWITCH": "clip"}


def test_scripts_understand_what_is_documented(clone, monkeypatch):
    """Their own parsers read the words; nothing is computed."""
    monkeypatch.chdir(clone)
    monkeypatch.setenv("TMPDIR", str(clone))
    schema = read_schema("config/schema.json")
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *arguments: object) -> None:
        parse(self, *arguments)
        raise Parsed

    commands = of("python")
    assert len(commands) >= 9
    for script, *words in commands:
        words = [os.path.expandvars(PLACEHOLDERS.get(word, word)) for word in words]
        if script in ("scripts/train.py", "scripts/inference.py"):
            assert load_experiment(words, schema).trainer
            continue
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", [script, *words])
            patched.setattr(argparse.ArgumentParser, "parse_args", parse_only)
            patched.syspath_prepend(str(ROOT / Path(script).parent))
            with pytest.raises(Parsed):
                runpy.run_path(str(ROOT / script), run_name="__main__")


def test_make_has_the_documented_targets(clone):
    targets = [word for words in of("make") for word in words]
    assert {"demo", "learn", "test", "install", "schema"} <= set(targets)
    done = subprocess.run(["make", "-n", *sorted(set(targets))], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_other_commands_are_known_not_to_be_followed():
    others = {}
    for words in [words for command in COMMAND_LINES for words in parts(command)]:
        if words[0] not in (*OURS, "exec"):
            others[words[0]] = words
        if words[0] in ("$EDITOR", "bash"):
            names = re.sub(r"\{(\w+),(\w+)\}", r"\1", words[1]), re.sub(r"\{(\w+),(\w+)\}", r"\2", words[1])
            assert all((ROOT / name).is_file() for name in names), words
    assert others.keys() == NOT_FOLLOWED.keys()


@pytest.mark.parametrize("block", [block for _, block in all_blocks("yaml")], ids=lambda block: block[:40])
def test_yaml_is_valid_where_it_is_said_to_stand(block, clone, monkeypatch, tmp_path):
    monkeypatch.chdir(clone)
    named = re.match(r"# (config/\S+\.yaml)", block)
    path = Path(named[1]) if named else tmp_path / "overlay.yaml"
    path.write_text(in_place(block, clone))
    schema = read_schema("config/schema.json")
    if path.parent.name == "experiments":
        assert load_experiment([f"exp.config_path={path}"], schema).trainer
    else:
        assert load_pipeline(["config/config.yaml", path], {}, schema)["targets"]


def test_python_runs():
    examples = dict.fromkeys(all_blocks("python"))
    wav = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    enhanced, played, model = [], [], finallyse.load()
    for path, block in examples:
        names = {"wav": wav, "sample_rate": 16_000, "model": model, "source": np.split(wav, 10), "play": played.append}
        exec(compile(block, str(path), "exec"), names)
        if "enhanced" in names:
            enhanced.append(names["enhanced"].shape == (2 * names.get("rate", 16_000),))
    assert len(enhanced) >= 2 and all(enhanced)
    assert sum(block.size for block in played) == wav.size
