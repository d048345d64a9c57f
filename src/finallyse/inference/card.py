"""Model cards: what a checkpoint says about itself, and the scores that lie in its folder of results, as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finallyse.models.base import Generator
from finallyse.models.checkpoint import Checkpoint

MOST_LISTED = 12


def card_of(checkpoint: Checkpoint, generator: Generator, parameters: int) -> str:
    """The model card of a checkpoint: its network, training, data and configuration, and scores where it has any.

    Scores are those of `metrics/<network>.summary.csv` and the row for its step in `state/<network>/validation.csv`, in
    the folder of the checkpoint. Nothing is claimed that is not recorded: what nobody has measured is said to be so.

    Args:
        generator: as the checkpoint builds it.
        parameters: its number of parameters, norms folded in.
    """
    config, results = checkpoint.config, checkpoint.path.parent
    settings = config.get("generator") or {}
    takes = {
        "mel": "log-mel spectrogram",
        "wav": "mono waveform",
        "wav+ssl": "mono waveform and WavLM's features of it",
    }
    level = f"a peak of {checkpoint.level['peak']:g}" if checkpoint.level else "any"
    facts = {
        "network": f"`{settings.get('name')}` ({generator.paper})" if hasattr(generator, "paper") else settings["name"],
        "parameters": f"{parameters:,}",
        "input": f"{takes[generator.input_kind]}, {generator.input_rate} Hz, level: {level}",
        "output": f"waveform, {generator.output_rate} Hz",
        "trained by": f"finallyse {checkpoint.package_version}",
        "steps": f"{checkpoint.step:,}{_devices(checkpoint.devices)}",
        "losses": ", ".join((config.get("losses") or {}).get("generator") or {}),
    }
    lines = [f"# {checkpoint.network}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value]
    lines += ["", "## How good it is", "", *_scores(results, checkpoint.network, checkpoint.step)]
    lines += ["", "## Trained on", "", *_data(config.get("data") or {})]
    described = {key: config[key] for key in ("generator", "losses", "data", "train") if config.get(key)}
    lines += ["", "## Configuration", "", "```yaml", yaml.safe_dump(described, sort_keys=False).rstrip(), "```", ""]
    return "\n".join(lines)


def _devices(devices: Mapping[str, int]) -> str:
    return f" on {', '.join(devices)}" if devices else ""


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _scores(results: Path, network: str, step: int) -> list[str]:
    lines = []
    summary = results / "metrics" / f"{network}.summary.csv"
    rows = [row for row in _rows(summary) if row.get("metric") and row.get("mean")]
    if rows:
        lines += ["Means and 95 % confidence intervals on the test set of its configuration:", ""]
        lines += ["| metric | output | input | recordings |", "|---|---|---|---|"]
        for row in rows:
            output, given = (_interval(row, role) for role in ("", "noisy_"))
            lines.append(f"| {_cell(row['metric'])} | {output} | {given} | {_cell(row.get('n') or '')} |")
    own = [row for row in _rows(results / "state" / network / "validation.csv") if row.get("step") == str(step)]
    if own:
        measured = {key: value for key, value in own[-1].items() if key not in ("step", "seconds", "items") and value}
        lines += [""] if lines else []
        lines += [f"Validation after step {step}:", "", "| metric | mean |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_rounded(value)} |" for name, value in measured.items()]
    return lines or ["Not measured: no scores lie beside this checkpoint."]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def _interval(row: Mapping[str, str], role: str) -> str:
    mean, half = row.get(f"{role}mean"), row.get(f"{role}ci95")
    if not mean:
        return ""
    return f"{_rounded(mean)} ± {_rounded(half)}" if half else _rounded(mean)


def _rounded(text: str) -> str:
    try:
        return f"{float(text):.3f}"
    except ValueError:
        return _cell(text)


def _data(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for kind in ("train", "validation"):
        part = data.get(kind) or {}
        if part.get("name"):
            named = ", ".join(_corpora((part.get("args") or {}).get("manifest"))) or "not recorded"
            lines.append(f"- {kind}: dataset `{part['name']}` of {_cell(named)}")
            augmented = [str(one.get("name")) for one in (part.get("args") or {}).get("augmentations") or []]
            if augmented:
                lines.append(f"  - degraded by {_cell(', '.join(dict.fromkeys(augmented)))}")
    return lines or ["Not recorded in the checkpoint."]


def _corpora(manifests: str | Sequence[str] | None) -> list[str]:
    """The names of the corpora: prepared/<corpus>/<rate>/<part>.csv; of another layout, the name of the file."""
    paths = [manifests] if isinstance(manifests, str) else list(manifests or [])
    names = [Path(p).parts[-3] if len(Path(p).parts) > 3 else Path(p).name for p in map(str, paths)]
    names = list(dict.fromkeys(names))
    return names if len(names) <= MOST_LISTED else [*names[:MOST_LISTED], f"{len(names) - MOST_LISTED} more"]
