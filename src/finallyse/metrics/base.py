"""Base classes of the metrics: their requirements, the utterance to score, the reason for a missing score."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from finallyse.audio.resample import resample
from finallyse.errors import UserError

# Enhanced and reference may differ by this much (s): both are then cut to the shorter. More means that the files do not
# match, or that one is truncated, and metrics that compare them report no number.
LENGTH_TOLERANCE_S = 0.1

Better = Literal["higher", "lower", "zero"]
"""Which of two numbers of a metric is the better one: the higher, the lower, or the one nearer to 0."""


def goodness(value: float, better: Better) -> float:
    """A number that increases as `value` gets better, in the metric's sense of better."""
    return {"higher": value, "lower": -value, "zero": -abs(value)}[better]


class Unscored(Exception):
    """This metric cannot score this utterance; the message is the reason, which is counted and reported."""


@dataclass(frozen=True)
class Needs:
    """What a metric needs and where it comes from, so that a report can say why a number is missing.

    Attributes:
        reference: compares with the clean reference (intrusive).
        rate: sample rate at which both signals are scored, Hz; None: the reference's rate (without one, the enhanced
            signal's).
        weights: file to download, relative to the resources folder; None: no weights, or included in a package.
        source: where that file is published.
        paper: the paper to cite.
        packages: modules of the extra `guards` that it imports.
    """

    reference: bool
    rate: int | None
    paper: str
    weights: str | None = None
    source: str | None = None
    packages: tuple[str, ...] = ()

    def __str__(self) -> str:
        needs = [
            "a reference" if self.reference else "no reference",
            f"{self.rate} Hz" if self.rate else "the reference's rate",
        ]
        needs += [f"{self.weights} ({self.source})"] if self.weights else []
        return ", ".join([*needs, *(f"package {package}" for package in self.packages)])


class Utterance:
    """One enhanced utterance and, if there is one, its clean reference; each is resampled once per rate.

    Args:
        enhanced: float [T], in [-1, 1].
        rate: its sample rate, Hz.
        reference: float [T'], or None.
        reference_rate: its sample rate, Hz; None: `rate`.

    Raises UserError for a rate that is not positive and for a signal that is not one channel.
    """

    def __init__(
        self, enhanced: np.ndarray, rate: int, reference: np.ndarray | None = None, reference_rate: int | None = None
    ):
        self._signals = {"enhanced": (np.asarray(enhanced, np.float32), int(rate))}
        if reference is not None:
            reference_rate = rate if reference_rate is None else reference_rate
            self._signals["reference"] = (np.asarray(reference, np.float32), int(reference_rate))
        for role, (wav, wav_rate) in self._signals.items():
            if wav_rate <= 0:
                raise UserError(f"{role} audio has a sample rate of {wav_rate} Hz; it must be positive")
            if wav.ndim != 1:
                raise UserError(f"{role} audio must be one channel [T], not {list(wav.shape)}")
        self._resampled: dict[tuple[str, int], np.ndarray] = {}
        self._problems = {role: _problem(role, wav) for role, (wav, _) in self._signals.items()}

    @property
    def has_reference(self) -> bool:
        return "reference" in self._signals

    @property
    def seconds(self) -> float:
        """Duration of the enhanced signal."""
        wav, rate = self._signals["enhanced"]
        return len(wav) / rate

    @property
    def length_difference_s(self) -> float:
        """Seconds by which the enhanced signal is longer than the reference; 0 without one."""
        if not self.has_reference:
            return 0.0
        wav, rate = self._signals["reference"]
        return self.seconds - len(wav) / rate

    def native_rate(self) -> int:
        """The reference's rate, or the enhanced signal's if there is none; Hz."""
        return self._signals["reference" if self.has_reference else "enhanced"][1]

    def signal(self, rate: int | None = None) -> np.ndarray:
        """The enhanced signal at `rate`, float32 [T]; raises Unscored if there is nothing to score."""
        return self._at("enhanced", rate or self.native_rate())

    def pair(self, rate: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(enhanced, reference) at `rate`, float32 [T] each, cut to the shorter.

        Raises Unscored if one is empty, silent or not finite, or if the lengths differ by more than 0.1 s.
        """
        rate = rate or self.native_rate()
        if not self.has_reference:
            raise Unscored("no reference")
        if abs(self.length_difference_s) > LENGTH_TOLERANCE_S:
            raise Unscored(f"lengths differ by more than {LENGTH_TOLERANCE_S} s")
        reference = self._at("reference", rate)
        enhanced = self._at("enhanced", rate)
        length = min(len(enhanced), len(reference))
        return enhanced[:length], reference[:length]

    def _at(self, role: str, rate: int) -> np.ndarray:
        if self._problems[role]:
            raise Unscored(self._problems[role])
        wav, own = self._signals[role]
        if own == rate:
            return wav
        if (role, rate) not in self._resampled:
            self._resampled[role, rate] = np.asarray(resample(wav, own, rate), np.float32)
        return self._resampled[role, rate]


def _problem(role: str, wav: np.ndarray) -> str | None:
    if wav.size == 0:
        return f"{role} is empty"
    if not np.isfinite(wav).all():
        return f"{role} has NaN or infinite samples"
    if not wav.any():
        return f"{role} is silent (all zeros)"
    return None


def pieces(length: int, limit: int) -> list[slice]:
    """Cut `length` samples into the fewest equal pieces of at most `limit` samples."""
    count = max(1, -(-length // limit))
    edges = [length * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


class Metric:
    """Base class of the metrics, which score one utterance.

    Args:
        resources: folder that contains `weights/`.
        device: "cpu", "cuda" or "auto"; no effect on metrics that run on the CPU only.

    Subclasses set the attributes below and implement `score`.

    Attributes:
        needs: its requirements, and the paper to cite.
        columns: name of each of its numbers -> its name in reports; the first one has the name of the metric.
        unit: unit of all of them.
        better: which numbers are better.
        rank: its position among the metrics that a report shows first and ranks utterances by; None: not among them.
    """

    needs: ClassVar[Needs]
    columns: ClassVar[Mapping[str, str]]
    unit: ClassVar[str] = ""
    better: ClassVar[Better] = "higher"
    rank: ClassVar[int | None] = None

    def __init__(self, resources: str = "resources", device: str = "auto"):
        self.resources = Path(resources)
        self.device = device

    @property
    def name(self) -> str:
        """Its name in the registry, and of its first number."""
        return next(iter(self.columns))

    @classmethod
    def absent(cls) -> str | None:
        """The first of its packages that is not installed, or None."""
        return next((name for name in cls.needs.packages if importlib.util.find_spec(name) is None), None)

    @property
    def weights(self) -> Path | None:
        """The required file, or None."""
        return self.resources / self.needs.weights if self.needs.weights else None

    def missing(self) -> str | None:
        """Why this metric cannot be computed at all, or None if it can."""
        if absent := self.absent():
            return f"missing: needs package {absent} (pip install --no-deps -r requirements-guards.txt)"
        if self.weights and not self.weights.exists():
            return f"missing: needs {self.weights} ({self.needs.source})"
        return None

    def score(self, utterance: Utterance) -> dict[str, float]:
        """One number for each of `columns`; raises Unscored with the reason if there is none."""
        raise NotImplementedError
