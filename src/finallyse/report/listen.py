"""The audio of the report: selection of utterances, their players, each sound encoded once."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from finallyse.audio.io import decode, mono
from finallyse.metrics import goodness, headlines
from finallyse.report import figures
from finallyse.report.audio import data_uri, mp3
from finallyse.report.collect import Network, Score, Utterance
from finallyse.report.figures import number

SIGNALS = {"noisy": "Noisy", "enhanced": "Enhanced", "reference": "Reference"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Selection of the audio in the page, which determines its size."""

    utterances: int = 3
    """For each network: the worst, the best, and those evenly spaced between."""
    seconds: float = 8.0
    """Longer utterances are cut."""
    rank_by: str | None = None
    """Metric that ranks utterances; None: the first of the headlines (finallyse.metrics) that was computed."""


LOUDER_DB = 6.0
"""An output louder than its reference by more than this (RMS) is played at the reference's level, with a note."""


class Sounds:
    """Encodes each signal once, however many players use it, and draws its spectrogram."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._embedded: set[str] = set()

    def load(self, path: Path) -> tuple[np.ndarray, int]:
        """The beginning of a file as mono float32 [T], and its rate in Hz."""
        wav, rate = decode(path)
        return mono(wav[:, : round(self.seconds * rate)]), rate

    def embed(self, wav: np.ndarray, rate: int) -> tuple[str, str]:
        """Id of the sound's element, and its data URI (empty if the page already contains that sound)."""
        digest = hashlib.sha256(f"{rate}:".encode() + np.ascontiguousarray(wav).tobytes()).hexdigest()[:12]
        identity = f"sound-{digest}"
        if identity in self._embedded:
            return identity, ""
        self._embedded.add(identity)
        return identity, Markup(data_uri("audio/mpeg", mp3(wav, rate)))


def player(
    name: str,
    signals: Sequence[tuple[str, str, Path, str]],
    sounds: Sounds,
    *,
    badge: str = "",
    facts: Sequence[str] = (),
) -> dict[str, Any]:
    """A player of `signals`: (kind, label, path, note), drawn on one scale of frequency and level."""
    loaded = [(kind, label, path, note, *sounds.load(path)) for kind, label, path, note in signals]
    top_hz = max(rate for *_, rate in loaded) / 2
    level = max(figures.loudest_db(wav, rate) for kind, *_, wav, rate in loaded if kind == _scale_kind(loaded))
    seconds = max(len(wav) / rate for *_, wav, rate in loaded)
    tracks = []
    usual = max((_rms_db(wav) for kind, *_, wav, _ in loaded if kind == "reference"), default=0.0)
    for kind, label, _, note, wav, rate in loaded:
        heard, excess = wav, _rms_db(wav) - usual
        if excess > LOUDER_DB:  # a young network can be painfully loud
            heard = wav * np.float32(10 ** (-excess / 20))
            note = f"{note} played {excess:.0f} dB lower".strip()
        identity, source = sounds.embed(heard, rate)
        spoken = f"{label}, {name}"
        padded = np.pad(wav, (0, round(seconds * rate) - len(wav)))
        image = figures.spectrogram(padded, rate, top_hz, level)
        tracks.append(
            {
                "kind": kind,
                "label": label,
                "note": note,
                "audio": identity,
                "src": source,
                "spoken": spoken,
                "image": Markup(data_uri("image/webp", image)),
                "described": f"Spectrogram of {spoken}: 0 to {top_hz / 1000:g} kHz, {seconds:.1f} s",
            }
        )
    return {
        "name": name,
        "badge": badge,
        "facts": list(facts),
        "spoken": f"Player: {badge + ' ' if badge else ''}{name}",
        "seconds": seconds,
        "marks": [
            {"label": f"{hz / 1000:g}", "up": f"{100 * figures.mel_share(hz, top_hz):.1f}%"}
            for hz in (1000, 4000, 8000)
            if hz < top_hz
        ],
        "top_khz": f"{top_hz / 1000:g}",
        "columns": 3 if len(tracks) in (3, 5, 6) else len(tracks),
        "tracks": tracks,
    }


def _rms_db(wav: np.ndarray) -> float:
    return 10 * math.log10(max(float(np.mean(np.square(wav, dtype=np.float64))), 1e-10))


def _scale_kind(loaded: Iterable[tuple]) -> str:
    """The kind of signal that sets the scale of level: the reference, if there is one."""
    kinds = {kind for kind, *_ in loaded}
    return "reference" if "reference" in kinds else "enhanced"


def ranking_metric(network: Network, wanted: str | None) -> Score | None:
    """The score by which utterances of `network` are ranked."""
    scores = {s.metric: s for s in network.scores if not s.missing}
    if wanted:
        return scores.get(wanted)
    return next((scores[m] for m in headlines() if m in scores), None)


def ranked(utterances: Sequence[Utterance], score: Score) -> list[Utterance]:
    """Utterances that have the score, worst first."""
    having = [u for u in utterances if math.isfinite(u.scores.get(score.metric, math.nan))]
    return sorted(having, key=lambda u: (goodness(u.scores[score.metric], score.better), u.name))


def spread(items: Sequence, wanted: int) -> list:
    """`wanted` items evenly spaced over the sequence, its ends included."""
    if wanted >= len(items):
        return list(items)
    if wanted == 1:
        return [items[len(items) // 2]]
    return [items[round(i * (len(items) - 1) / (wanted - 1))] for i in range(wanted)]


def chosen(network: Network, options: Options) -> list[tuple[Utterance, str]]:
    """The utterances to listen to, each with its badge: best, worst, or none."""
    score = ranking_metric(network, options.rank_by)
    if score is None:
        return [(u, "") for u in spread(network.utterances, options.utterances)]
    order = ranked(network.utterances, score)
    picked = spread(order, options.utterances)
    if len(picked) < 2:
        return [(u, "") for u in picked or spread(network.utterances, options.utterances)]
    badges = ["worst", *[""] * (len(picked) - 2), "best"]
    return list(zip(picked, badges, strict=True))[::-1]


def shared_utterances(network: Network) -> list[Utterance]:
    """The utterances that all compared systems have a file of; all if there is no such utterance."""
    shared = [u for u in network.utterances if all(u.name in c.utterances for c in network.compared)]
    return shared or network.utterances


def _facts(utterance: Utterance, network: Network, score: Score | None) -> list[str]:
    facts = []
    shown = [score] if score else []
    shown += [s for s in network.scores if s.metric in ("si_sdr", "stoi") and s is not score]
    for s in shown:
        value = utterance.scores.get(s.metric, math.nan)
        if math.isfinite(value):
            before = utterance.input_scores.get(s.metric, math.nan)
            text = f"{s.label} {number(value)}"
            facts.append(text + (f" (input {number(before)})" if math.isfinite(before) else ""))
    return facts


def network_players(network: Network, options: Options, sounds: Sounds) -> list[dict[str, Any]]:
    score = ranking_metric(network, options.rank_by)
    players = []
    shown = dataclasses.replace(network, utterances=shared_utterances(network))
    for utterance, badge in chosen(shown, options):
        signals = []
        for kind, label in SIGNALS.items():
            if kind in utterance.paths:
                label = network.task.input_label or label if kind == "noisy" else label
                if kind == "enhanced" and "noisy" not in utterance.paths:
                    label = "Generated"
                signals.append((kind, label, utterance.paths[kind], ""))
            if kind == "enhanced":
                signals += _compared_signals(network, utterance.name, score)
        players.append(player(utterance.name, signals, sounds, badge=badge, facts=_facts(utterance, network, score)))
    return players


def _compared_signals(network: Network, name: str, score: Score | None) -> list[tuple[str, str, Path, str]]:
    """The signals of the compared systems for `player`, with the ranking score of each."""
    signals = []
    for compared in network.compared:
        if utterance := compared.utterances.get(name):
            value = utterance.scores.get(score.metric, math.nan) if score else math.nan
            note = f"{score.label} {number(value)}" if math.isfinite(value) else ""
            signals.append(("compared", compared.system.name, utterance.paths["enhanced"], note))
    return signals
