"""scripts/evaluate.py: folders by name, in parallel, resumed after a kill, every gap counted."""

import csv
import importlib.util
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf

from finallyse.audio.io import write_wav
from finallyse.audio.resample import resample
from finallyse.errors import UserError
from finallyse.metrics import MetricSet, Scores, Utterance, metrics_registry
from finallyse.metrics import evaluate as evaluation
from finallyse.metrics.evaluate import Row, Task, as_text, evaluate, from_text

RATE = 16000
METRICS = ["si_sdr", "lsd"]  # quick to import and to compute


@pytest.fixture
def folders(tmp_path, speech_16k):
    """enhanced/, reference/, noisy/ with eight half-second clips a.wav .. h.wav."""
    rng = np.random.default_rng(0)
    for index, name in enumerate("abcdefgh"):
        clip = speech_16k[index * 7000 :][:8000]
        for role, level in (("reference", 0), ("enhanced", 0.003), ("noisy", 0.03)):
            (tmp_path / role).mkdir(exist_ok=True)
            noise = level * rng.standard_normal(len(clip))
            sf.write(tmp_path / role / f"{name}.wav", clip + noise, RATE, subtype="FLOAT")
    return tmp_path


def run(folders, *more, output="out.csv", **options):
    return evaluate(
        folders / "enhanced",
        METRICS,
        folders / output,
        reference=folders / "reference",
        jobs=1,
        **options,
    )


def keep_only(folders, names):
    for path in folders.rglob("*.wav"):
        if path.stem not in names:
            path.unlink()


def table(path):
    with path.open() as file:
        return {next(iter(row.values())): row for row in csv.DictReader(file)}


def script(folders, *arguments, root, **more):
    command = [
        sys.executable,
        "scripts/evaluate.py",
        "--enhanced",
        folders / "enhanced",
        "--output",
        folders / "out.csv",
    ]
    return subprocess.Popen(
        [*map(str, command), *map(str, arguments)], cwd=root, text=True, stderr=subprocess.PIPE, **more
    )


def test_tables(folders, root):
    arguments = ["--reference", folders / "reference", "--noisy", folders / "noisy", "--metrics", "si_sdr", "wv-mos"]
    process = script(folders, *arguments, "--resources", "nowhere", root=root, stdout=subprocess.PIPE)
    printed, errors = process.communicate()
    assert process.returncode == 1  # a metric that was named could not be computed
    assert errors.splitlines()[-1].startswith("error: metric wv-mos: missing: needs nowhere/weights/wav2vec2-mos/")
    assert "si_sdr" in printed and "wv-mos" in printed

    rows = table(folders / "out.csv")
    assert list(rows) == list("abcdefgh")
    enhanced, noisy, reference = (
        sf.read(folders / role / "c.wav", dtype="float32")[0] for role in ("enhanced", "noisy", "reference")
    )
    expected = metrics_registry["si_sdr"]().score(Utterance(enhanced, RATE, reference))["si_sdr"]
    assert float(rows["c"]["si_sdr"]) == pytest.approx(expected, abs=1e-6)
    expected = metrics_registry["si_sdr"]().score(Utterance(noisy, RATE, reference))["si_sdr"]
    assert float(rows["c"]["noisy_si_sdr"]) == pytest.approx(expected, abs=1e-6)
    assert rows["c"]["seconds"] == "0.500000" and rows["c"]["wv-mos"] == "" and rows["c"]["unscored"] == ""

    summary = table(folders / "out.summary.csv")
    values = [float(row["si_sdr"]) for row in rows.values()]
    assert float(summary["si_sdr"]["mean"]) == pytest.approx(np.mean(values), abs=1e-5)
    assert (summary["si_sdr"]["n"], summary["si_sdr"]["unscored"], summary["si_sdr"]["better"]) == ("8", "0", "higher")
    assert float(summary["si_sdr"]["noisy_mean"]) < float(summary["si_sdr"]["mean"])
    assert summary["wv-mos"]["missing"].startswith("missing: needs nowhere/weights/wav2vec2-mos/wav2vec2.ckpt")
    assert summary["wv-mos"]["mean"] == "" and summary["wv-mos"]["n"] == "0"
    assert not list(folders.glob("*.part*"))


def test_parallel_is_serial(folders):
    one = run(folders, noisy=folders / "noisy")
    evaluate(
        folders / "enhanced",
        METRICS,
        folders / "two.csv",
        reference=folders / "reference",
        noisy=folders / "noisy",
        jobs=2,
    )
    assert len(one.rows) == 8
    for suffix in (".csv", ".summary.csv"):
        assert (folders / f"two{suffix}").read_bytes() == (folders / f"out{suffix}").read_bytes()


def test_a_killed_run_goes_on(folders, root):
    rng = np.random.default_rng(0)
    for index in range(60):
        for role in ("enhanced", "reference"):
            sf.write(folders / role / f"n{index:03}.wav", 0.1 * rng.standard_normal(48000), RATE)
    arguments = ["--reference", folders / "reference", "--metrics", "lsd", "si_sdr", "stoi", "--jobs", "1"]
    process = script(folders, *arguments, root=root)
    partial = folders / "out.csv.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 5):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folders / "out.csv").exists()
    kept = partial.read_bytes()
    assert kept.count(b"\n") < 69
    partial.write_bytes(kept + b'{"stamp": [["enh')  # a line truncated by the kill
    os.utime(folders / "enhanced" / "a.wav", ns=(1, 1))  # changed since then: measured again

    process = script(folders, *arguments, root=root)
    errors = process.communicate()[1]
    assert process.returncode == 0 and "of 68 files were measured before" in errors
    assert int(errors.split(" of 68")[0].split()[-1]) >= 4
    resumed = (folders / "out.csv").read_bytes()
    evaluate(folders / "enhanced", ["lsd", "si_sdr", "stoi"], folders / "fresh.csv", reference=folders / "reference")
    assert (folders / "fresh.csv").read_bytes() == resumed
    assert not partial.exists()


def test_other_metrics_start_afresh(folders, capsys):
    (folders / "out.csv.partial").write_text('{"metrics": ["stoi"]}\n{"nonsense": 1}\n')
    assert len(run(folders).rows) == 8
    assert "measured before" not in capsys.readouterr().err


# --- bad input --------------------------------------------------------------------------------------------------------


def test_corrupt_files_are_counted_and_nothing_is_lost(folders, root):
    keep_only(folders, "abcde")
    (folders / "enhanced" / "c.wav").write_bytes(b"RIFF\x00\x00garbage")
    (folders / "reference" / "d.wav").write_bytes(b"")
    wav = (folders / "enhanced" / "e.wav").read_bytes()
    (folders / "enhanced" / "e.wav").write_bytes(wav[:2000])
    process = script(folders, "--reference", folders / "reference", "--metrics", "si_sdr", "distillmos", root=root)
    errors = process.communicate()[1]
    assert process.returncode == 1
    for name in ("enhanced/c.wav", "reference/d.wav", "enhanced/e.wav"):
        assert f"error: {folders}/{name}" in errors
    rows, summary = table(folders / "out.csv"), table(folders / "out.summary.csv")
    assert len(rows) == 5
    assert rows["c"]["unscored"].startswith("si_sdr: enhanced file cannot be read; distillmos: enhanced file")
    assert rows["d"]["unscored"] == "si_sdr: reference file cannot be read" and rows["d"]["distillmos"]
    assert (summary["si_sdr"]["n"], summary["si_sdr"]["unscored"]) == ("2", "3")
    assert summary["si_sdr"]["reasons"] == "2 x enhanced file cannot be read; 1 x reference file cannot be read"
    assert (summary["distillmos"]["n"], summary["distillmos"]["unscored"]) == ("3", "2")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["stoi", "si_sdr"], 0),
        (["si_sdr", "utmos", "--skip-missing"], 0),
        (["utmos"], 1),
        (["si_sdr", "wv-mos", "mosnet"], 1),
    ],
)
def test_a_metric_without_any_score_is_a_failure(folders, root, arguments, status, capsys):
    keep_only(folders, "a")
    spec = importlib.util.spec_from_file_location("evaluate_script", root / "scripts" / "evaluate.py")
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    options = ["--enhanced", folders / "enhanced", "--reference", folders / "reference", "--output", folders / "o.csv"]
    options += ["--resources", folders, "--jobs", "1", "--metrics", *arguments]
    assert command.main([str(option) for option in options]) == status
    failed = [line.split(":")[1].split()[-1] for line in capsys.readouterr().err.splitlines() if "error: " in line]
    absent = [name for name in arguments if name in ("utmos", "wv-mos", "mosnet")]
    assert failed == (absent if status else [])
    assert len(table(folders / "o.csv")) == 1  # the tables are complete in either case


def test_a_metric_without_its_reference_is_a_failure(folders):
    keep_only(folders, "ab")
    result = evaluate(folders / "enhanced", ["stoi", "distillmos"], folders / "out.csv", jobs=1)
    assert result.failed == {"stoi": "no file could be scored: 2 x no reference"}


def test_lengths_silence_rates_and_channels(folders, speech_16k):
    clip = speech_16k[:8000]
    sf.write(folders / "enhanced" / "a.wav", sf.read(folders / "enhanced" / "a.wav")[0][:-100], RATE)  # a little short
    sf.write(folders / "enhanced" / "b.wav", clip[:4000], RATE)  # far too short
    sf.write(folders / "reference" / "c.wav", np.zeros(8000), RATE)
    sf.write(folders / "enhanced" / "d.wav", resample(sf.read(folders / "enhanced" / "d.wav")[0], RATE, 48000), 48000)
    stereo = sf.read(folders / "enhanced" / "e.wav")[0]
    sf.write(folders / "enhanced" / "e.wav", np.stack([stereo, stereo], 1), RATE)
    (folders / "enhanced" / "f.wav").rename(folders / "enhanced" / "f.x.wav")
    (folders / "reference" / "f.wav").rename(folders / "reference" / "f.x.wav")  # a dot in the name
    header = bytearray((folders / "enhanced" / "g.wav").read_bytes())
    header[24:28] = bytes(4)  # a rate of 0
    (folders / "enhanced" / "g.wav").write_bytes(header)
    (folders / "reference" / "h.wav").unlink()
    result = run(folders)
    rows = {row.utterance: row.scores["enhanced"] for row in result.rows}
    for name in ("a", "d", "e", "f.x"):
        assert rows[name].values["si_sdr"] > 5, name
    assert rows["b"].reasons["si_sdr"] == "lengths differ by more than 0.1 s"
    assert rows["c"].reasons["si_sdr"] == "reference is silent (all zeros)"
    assert rows["g"].reasons["si_sdr"] == "enhanced file cannot be read"
    assert rows["h"].reasons["si_sdr"] == "no reference"
    assert result.rows[0].length_difference_s == pytest.approx(-100 / RATE)
    assert len(result.unreadable) == 1 and "g.wav" in result.unreadable[0]
    assert result.summaries["enhanced"]["si_sdr"].unscored == 4


def test_names(folders, tmp_path, capsys):
    sub = folders / "enhanced" / "p225"
    sub.mkdir()
    for role in ("enhanced", "reference"):
        (folders / role / "p225").mkdir(exist_ok=True)
        (folders / role / "a.wav").rename(folders / role / "p225" / "a.wav")
    sf.write(folders / "reference" / "extra.wav", np.ones(8000) * 0.1, RATE)
    (folders / "reference" / "notes.txt").write_text("no audio")
    wav, _ = sf.read(folders / "reference" / "b.wav")
    (folders / "reference" / "b.wav").unlink()
    sf.write(folders / "reference" / "b.flac", wav, RATE)  # another suffix is the same name
    result = run(folders)
    assert [row.utterance for row in result.rows] == ["b", "c", "d", "e", "f", "g", "h", "p225/a"]
    assert result.summaries["enhanced"]["si_sdr"].n == 8
    assert "1 files of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: [p.unlink() for p in (f / "enhanced").iterdir()], "contains no audio files"),
        (lambda f: [p.rename(p.with_name(f"x{p.name}")) for p in (f / "reference").iterdir()], "has a counterpart in"),
        (lambda f: sf.write(f / "enhanced" / "a.flac", np.zeros(10), RATE), "have the same name"),
        (lambda f: (f / "reference").rename(f / "elsewhere"), "no such folder"),
    ],
)
def test_folders_that_cannot_be_measured(folders, change, message):
    change(folders)
    with pytest.raises(UserError, match=message):
        run(folders)
    assert not (folders / "out.csv").exists()


def test_command_line_errors(folders, root):
    process = script(folders, "--metrics", "pesq", root=root)
    assert process.communicate()[1] == "error: unknown metric 'pesq'; did you mean 'wb_pesq' or 'nb_pesq'?\n"
    assert process.returncode == 2
    with pytest.raises(UserError, match=r"must end in \.csv"):
        run(folders, output="out.txt")
    with pytest.raises(UserError, match="needs --reference"):
        evaluate(folders / "enhanced", METRICS, folders / "out.csv", score_reference=True)


def test_references_are_measured_on_demand(folders):
    keep_only(folders, "a")
    result = evaluate(
        folders / "enhanced",
        ["si_sdr", "distillmos"],
        folders / "out.csv",
        reference=folders / "reference",
        score_reference=True,
    )
    assert set(result.summaries["reference"]) == {"distillmos"}
    assert result.summaries["reference"]["distillmos"].mean > result.summaries["enhanced"]["distillmos"].mean
    header = (folders / "out.csv").read_text().splitlines()[0].split(",")
    assert "reference_distillmos" in header and "reference_si_sdr" not in header


def die_at_c(task, accept_cut):
    """Simulates C code that kills its process at one file."""
    if task.utterance == "c":
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluation.measure(task, evaluation._metric_set)


def fail_at_c(task, metric_set, accept_cut):
    if task.utterance == "c":
        raise ZeroDivisionError("something\nunheard of")
    return Row(task.utterance, 1.0, 0.0, {role: Scores({"si_sdr": 1.0}, {}) for role in task.score}, [])


@pytest.mark.parametrize("name", ["=1+1", "-a", "+a", "@a", "'=a", "''=a", "a=b", "'a", "", "001"])
def test_names_are_no_formulas_in_a_spreadsheet(name):
    assert as_text(name)[:1] not in set("=+-@") and from_text(as_text(name)) == name


def test_a_journal_that_is_damaged_costs_its_damaged_entries(folders, monkeypatch):
    keep_only(folders, ["=c", "a", "b"])
    for role in ("enhanced", "reference"):
        (folders / role / "b.wav").rename(folders / role / "=b.wav")

    def stop(path, *_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "write_csv", stop)
        run(folders)
    journal = folders / "out.csv.partial"
    settings, first, second = journal.read_bytes().splitlines()
    journal.write_bytes(
        b"\n".join([settings, first.replace(b"scores", b"scorez"), second[:30] + b"\xff" + second[31:], b"\xff"])
    )
    assert [row.utterance for row in run(folders).rows] == ["=b", "a"]
    assert not journal.exists()
    assert {from_text(name) for name in table(folders / "out.csv")} == {"=b", "a"}


def test_any_exception_costs_one_utterance(folders, monkeypatch):
    monkeypatch.setattr(evaluation, "measure", fail_at_c)
    monkeypatch.setattr(evaluation, "_metric_set", MetricSet(["si_sdr"]))
    rows = {
        name: evaluation._measure_in_worker(Task(name, {"enhanced": f"{name}.wav"}, ("enhanced",)), False)
        for name in "bc"
    }
    assert not rows["b"].unreadable
    assert rows["c"].unreadable == ["c.wav: measuring failed (ZeroDivisionError: something unheard of)"]
    assert rows["c"].scores["enhanced"].reasons == {
        "si_sdr": "measuring failed (ZeroDivisionError: something unheard of)"
    }


def test_names_may_be_composed_or_decomposed(tmp_path, speech_16k):
    """macOS writes an accent after its letter, others write one letter."""
    for folder, name in (("enhanced", "e\u0301.wav"), ("reference", "\u00e9.wav")):
        (tmp_path / folder).mkdir()
        write_wav(tmp_path / folder / name, speech_16k + (0.01 if folder == "enhanced" else 0), 16000, overload="scale")
    result = evaluate(tmp_path / "enhanced", ["si_sdr"], tmp_path / "out.csv", reference=tmp_path / "reference", jobs=1)
    assert result.summaries["enhanced"]["si_sdr"].n == 1


def test_a_process_that_dies_costs_one_utterance(folders, monkeypatch):
    monkeypatch.setattr(evaluation, "_measure_in_worker", die_at_c)
    result = run(folders)
    assert result.summaries["enhanced"]["si_sdr"].n == 7
    assert {row.utterance: row.scores["enhanced"].reasons for row in result.rows}["c"] == dict.fromkeys(
        METRICS, "the process that measured it died"
    )
