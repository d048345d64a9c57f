"""Whether a network beats its input: by scipy's paired t-test, and as reported by the script and target `learn`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy.stats import ttest_rel

from finallyse.errors import UserError
from finallyse.metrics import metrics_registry
from finallyse.report.figures import Interval
from finallyse.report.improvement import CURVE_ROWS, improvement, markdown, parse_goals
from finallyse.report.paired import level_verdict, paired_change, trends, verdict

GAINS = {"good": 0.3, "bad": -0.3, "same": 0.0}
METRICS = ["wb_pesq", "lsd", "level"]


def write_tables(
    results: Path, network: str, gain: float, *, level: float = 0.2, n: int = 20, unscored: int = 0
) -> None:
    """Output of rule compute_metrics and of a training: WB-PESQ changed by `gain`, LSD reduced by as much.

    Utterances differ thirty times as much as their changes; the first `unscored` have no WB-PESQ of the output.
    """
    rng = np.random.default_rng(len(network))
    given = 2 + rng.standard_normal(n)
    noise = 0.03 * rng.standard_normal(n)
    noise -= noise.mean()  # so that a gain of 0 is one
    table = {"utterance": [f"u{i}" for i in range(n)], "wb_pesq": given + gain + noise, "noisy_wb_pesq": given}
    table |= {"lsd": 5 - given - gain - noise, "noisy_lsd": 5 - given, "level": level + noise, "noisy_level": given}
    table = pandas.DataFrame(table)
    table.loc[: unscored - 1, "wb_pesq"] = np.nan
    if network == "vocoder":
        table = table[[column for column in table if not column.startswith("noisy_")]]
    (results / "metrics").mkdir(parents=True, exist_ok=True)
    table.to_csv(results / "metrics" / f"{network}.csv", index=False)
    rows = []
    for metric in METRICS:
        row = {"metric": metric, "mean": table[metric].mean(), "ci95": 0.1, "n": table[metric].count()}
        row |= {"unscored": table[metric].isna().sum(), "reasons": "1 x too short" if unscored else "", "missing": ""}
        if network != "vocoder":
            row |= {"noisy_mean": table[f"noisy_{metric}"].mean(), "noisy_ci95": 0.5}
        kind = metrics_registry[metric]
        rows.append(row | {"unit": kind.unit, "better": kind.better, "paper": ""})
    pandas.DataFrame(rows).to_csv(results / "metrics" / f"{network}.summary.csv", index=False)
    state = results / "state" / network
    state.mkdir(parents=True, exist_ok=True)
    steps = np.arange(100, 3100, 100)
    curve = {"step": steps, "wb_pesq": 1 + steps / 2000, "lsd": 3 - steps / 2000, "items": 4, "seconds": 1.0}
    curve["wb_pesq"][steps == 2500] = 9.0
    pandas.DataFrame(curve).to_csv(state / "validation.csv", index=False)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for network, gain in GAINS.items():
        write_tables(tmp_path, network, gain)
    write_tables(tmp_path, "vocoder", 0.0)
    return tmp_path


def test_verdicts_are_those_of_a_paired_t_test() -> None:
    """Over changes from clear to none, in both directions of better, with utterances that miss a number."""
    rng = np.random.default_rng(0)
    told = {"higher": set(), "lower": set()}
    for trial in range(200):
        n = int(rng.integers(3, 40))
        given = rng.normal(0, 5, n)
        output = given + rng.normal(rng.choice([-1, -0.3, 0, 0.3, 1]), 1, n)
        missing = rng.random(n) < 0.1
        missing[:2] = False
        output[missing] = np.nan
        change = paired_change(pandas.DataFrame({"m": output, "noisy_m": given}), "m")
        test = ttest_rel(output[~missing], given[~missing])
        expected = test.confidence_interval(0.95)
        assert (change.interval.low, change.interval.high) == pytest.approx(tuple(expected), abs=1e-9)
        assert (change.pairs, change.unpaired) == (n - missing.sum(), missing.sum())
        for better, upwards, downwards in (("higher", "better", "worse"), ("lower", "worse", "better")):
            clear = upwards if test.statistic > 0 else downwards
            said = verdict(change.interval, better)
            assert said == (clear if test.pvalue < 0.05 else "no clear difference"), trial
            told[better].add(said)
    assert all(said == {"better", "worse", "no clear difference"} for said in told.values())


def test_too_few_pairs_are_no_verdict() -> None:
    table = pandas.DataFrame({"m": [2.0, np.nan], "noisy_m": [1.0, 1.0]})
    change = paired_change(table, "m")
    assert (change.pairs, change.unpaired, change.interval.mean) == (1, 1, 1.0)
    assert verdict(change.interval, "higher") == "no clear difference"
    assert paired_change(table[["m"]], "m") is None
    with pytest.raises(ValueError, match="good"):
        paired_change(pandas.DataFrame({"m": ["good"], "noisy_m": [1.0]}), "m")


def test_a_level_is_right_within_1_db() -> None:
    said = [level_verdict(Interval(mean)) for mean in (-1.01, -1.0, 0.0, 1.0, 1.01)]
    assert said == ["wrong level", "right level", "right level", "right level", "wrong level"]


def test_trends_of_validations(results: Path) -> None:
    table = pandas.read_csv(results / "state" / "vocoder" / "validation.csv")
    pesq, lsd = trends(table)
    assert (pesq.metric, pesq.direction, pesq.first, pesq.last) == ("wb_pesq", "rising", (100, 1.05), (3000, 2.5))
    assert pesq.best == (2500, 9.0)
    assert (lsd.metric, lsd.direction, lsd.best) == ("lsd", "falling", (3000, 1.5))
    assert trends(table.iloc[:1]) == [] == trends(None)


def test_a_better_and_a_worse_network_are_told_as_such(results: Path) -> None:
    write_tables(results, "good", 0.3, unscored=3)
    found = improvement(results, [*GAINS, "vocoder"], parse_goals([], [], []))
    said = {(row.network, row.score.metric): row.score.verdict for row in found.rows}
    for metric in ("wb_pesq", "lsd"):
        told = [said[network, metric] for network in (*GAINS, "vocoder")]
        assert told == ["better", "worse", "no clear difference", None]
    assert all(said[network, "level"] == "right level" for network in GAINS)
    text = markdown(found)
    assert "| good | `wb_pesq` (MOS-LQO) |" in text and "| 17 of 20 | better |  |" in text
    assert "| bad | `lsd` (dB) |" in text and "+0.300 ± 0.0" in text and "−0.300 ± 0.0" in text
    assert "−0.000" not in text
    row = next(line for line in text.splitlines() if line.startswith("| vocoder | `wb_pesq`"))
    assert row.endswith("| – | 20 | rising |  |")
    assert "- `wb_pesq` rising: 1.05 at step 100, 2.50 at step 3,000; best 9.00 at step 2,500" in text
    curve = text.split("### good")[1].split("###")[0]
    assert f"{CURVE_ROWS} of 30 validations:" in curve
    assert curve.count("\n| ") == 1 + CURVE_ROWS and "| 100 |" in curve and "| 3,000 |" in curve


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/improvement.py", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_the_script_checks_what_is_asked(results: Path, root: Path) -> None:
    place = ["--results", str(results), "--networks", *GAINS, "vocoder"]
    met = run(
        root, *place, "--improves", "good.wb_pesq", "good.lsd", "--reaches", "vocoder.wb_pesq=1.5", "vocoder.lsd=9"
    )
    assert met.returncode == 0 and not met.stderr, met.stderr
    text = (results / "improvement.md").read_text()
    assert text in met.stdout and "Nothing: all is met." in text
    assert "| better | better: met |" in text and "| right level | within 1 dB: met |" in text and "≤ 9: met" in text

    write_tables(results, "same", 0.004)
    assert run(root, *place, "--improves", "same.lsd").returncode == 0
    assert "| no clear difference | better in the mean: met |" in (results / "improvement.md").read_text()

    write_tables(results, "same", -0.004, level=-6)
    asked = ["--improves", "good.wb_pesq", "bad.wb_pesq", "same.lsd", "--reaches", "vocoder.wb_pesq=3.5"]
    unmet = run(root, *place, *asked)
    assert unmet.returncode == 1
    lines = unmet.stderr.splitlines()
    assert [line.split(" must ")[0] for line in lines] == [
        "error: bad: wb_pesq",
        "error: same: lsd",
        "error: same: level",
        "error: vocoder: wb_pesq",
    ]
    assert "must be better than the input's: worse, change −0.300 ± 0.0" in lines[0] and "over 20 pairs" in lines[0]
    assert "no clear difference, change " in lines[1]
    assert "must be within 1 dB of the reference's: its mean is −6.00 ± 0.10 dB over 20 utterances" in lines[2]
    assert "must reach 3.5: its mean is " in lines[3]
    text = (results / "improvement.md").read_text()
    assert all(f"- {line.removeprefix('error: ')}" in text for line in lines)

    (results / "improvement.md").unlink()
    shown = run(root, *place, *asked, "--only-show")
    assert shown.returncode == 0 and not shown.stderr
    assert (results / "improvement.md").read_text() == text


def test_what_was_not_measured_is_not_met(results: Path) -> None:
    path = results / "metrics" / "good.summary.csv"
    table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[table["metric"] == "wb_pesq", ["mean", "n", "missing"]] = ["", "0", "missing: needs a file"]
    table.to_csv(path, index=False)
    rows = pandas.read_csv(results / "metrics" / "good.csv")
    rows.drop(columns=["wb_pesq", "noisy_wb_pesq"]).to_csv(results / "metrics" / "good.csv", index=False)
    goals = parse_goals(["good.wb_pesq"], ["good.wb_pesq=1"], ["good"])
    found = improvement(results, ["good"], goals)
    assert found.unmet == [
        "good: wb_pesq must be better than the input's, which was not measured (missing: needs a file)",
        "good: wb_pesq must reach 1: it was not measured (missing: needs a file)",
    ]
    assert "| not measured | better: not met; ≥ 1: not met |" in markdown(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--improves", "god.wb_pesq"],
            "--improves god.wb_pesq: no network 'god' among --networks; did you mean 'good'",
        ),
        (["--improves", "good.pesk"], "--improves good.pesk: no metric 'pesk'"),
        (["--improves", "good.stoi"], "metrics/good.summary.csv: has no stoi, by which good is to be judged"),
        (["--reaches", "good.wb_pesq"], "--reaches good.wb_pesq: must be NETWORK.METRIC=NUMBER"),
        (["--reaches", "good.wb_pesq=high"], "--reaches good.wb_pesq=high: must be NETWORK.METRIC=NUMBER"),
        ([], "nothing to check: give --improves or --reaches"),
        (["--only-show", "--networks", "other"], "metrics/other.summary.csv: no such file; run the workflow"),
    ],
)
def test_wrong_options_and_missing_tables_are_one_line(results, root, arguments, message) -> None:
    done = run(root, "--results", str(results), "--networks", "good", *arguments)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert not (results / "improvement.md").exists()


def test_a_broken_table_is_named(results: Path) -> None:
    path = results / "metrics" / "good.csv"
    path.write_text(path.read_text().replace("u3,", "u3,much"))
    with pytest.raises(UserError, match=r"good\.csv: the columns of wb_pesq are not as scripts/evaluate.py writes"):
        improvement(results, ["good"], parse_goals([], [], []))


def test_learn_fails_with_its_reasons_on_the_screen_and_keeps_the_table(results: Path, root: Path) -> None:
    """The rules as they are, on finished results."""
    (results / "Snakefile").write_text(
        "import os, sys\n"
        "import json\n"
        "from pathlib import Path\n"
        "own, anywhere, swept, SWEEPS = str, str, lambda *files: [], {}\n"
        f"RESULTS, NETWORKS, AUGMENTATIONS_PAGE, COMPARED = {str(results)!r}, ['good', 'bad'], [], {{}}\n"
        "def goal_options(): return ['--improves', 'good.wb_pesq', *config.get('more', '').split()]\n"
        f"os.environ['PATH'] = {str(Path(sys.executable).parent)!r} + os.pathsep + os.environ['PATH']\n"
        f"include: '{root}/workflow/rules/report.smk'\n"
    )
    for network in ("good", "bad"):
        (results / f"{network}.ckpt").touch()
        for kept in (f"configs/{network}.yaml", f"enhanced/{network}/x"):
            (results / kept).parent.mkdir(parents=True, exist_ok=True)
            (results / kept).touch()
    (results / "figures").mkdir()
    (results / "report.html").touch()

    def learn(*config: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("snakemake"), "--snakefile", results / "Snakefile", "--cores", "1"]
        return subprocess.run(
            [*command, "--nolock", "--rerun-triggers", "mtime", "params", *config, "--", "learn"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )

    met = learn()
    assert met.returncode == 0, met.stderr
    assert "Nothing: all is met." in (results / "improvement.md").read_text()
    unmet = learn("--config", "more=bad.wb_pesq")
    assert unmet.returncode == 1
    assert "error: bad: wb_pesq must be better than the input's: worse" in unmet.stdout + unmet.stderr
    assert "- bad: wb_pesq must be better" in (results / "improvement.md").read_text()
    assert "error: bad: wb_pesq must be better" in (results / "logs" / "learn.log").read_text()
