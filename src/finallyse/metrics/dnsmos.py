"""DNSMOS: Microsoft's networks that predict listeners' scores of noise suppression, run with ONNX Runtime.

The networks and their pre- and post-processing are those of the PyPI package `speechmos`, and so are the scores, for
signals of any length.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np

from finallyse.metrics import metrics_registry
from finallyse.metrics.base import Metric, Needs, Utterance

RATE = 16000
WINDOW_S = 9.01
WINDOW = int(WINDOW_S * RATE)
# polynomials of SIG, BAK, OVRL, highest power first
POLYNOMIALS = {
    "dnsmos": (
        (-0.08397278, 1.22083953, 0.0052439),
        (-0.13166888, 1.60915514, -0.39604546),
        (-0.06766283, 1.11546468, 0.04602535),
    ),
    "pdnsmos": (
        (-0.01019296, 0.02751166, 1.19576786, -0.24348726),
        (-0.04976499, 0.44276479, -0.1644611, 0.96883132),
        (-0.00533021, 0.005101, 1.18058466, -0.11236046),
    ),
}
PAPER = "DNSMOS P.835, arXiv 2110.01763"


@functools.cache
def _session(relative: str):
    """The ONNX network `relative` of speechmos, on one thread: evaluation is parallel over files."""
    import onnxruntime

    package = importlib.util.find_spec("speechmos")
    path = Path(package.submodule_search_locations[0]) / relative
    onnxruntime.disable_telemetry_events()  # nothing about the scored data should be sent
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def windows(wav: np.ndarray) -> np.ndarray:
    """Windows of 9.01 s, [N, 144160], of wav [T] at 16 kHz; a shorter signal is first doubled until it is long enough.

    One begins every second, except at 7 to 23 s: there (i + 9.01) * 16000 is a little less than a whole number, and the
    published code rounds the window's end down and drops the window as incomplete.
    """
    while len(wav) < WINDOW:
        wav = np.concatenate([wav, wav])
    count = int(len(wav) // RATE - WINDOW_S) + 1
    starts = [RATE * i for i in range(count) if int((i + WINDOW_S) * RATE) - RATE * i == WINDOW]
    return np.lib.stride_tricks.sliding_window_view(wav, WINDOW)[starts]


@functools.cache
def _mel_bases() -> tuple[np.ndarray, np.ndarray]:
    """Hann window [321] and mel filterbank [120, 161] of the P.808 network."""
    from finallyse.audio.mel import mel_filterbank

    return np.hanning(322)[:-1], mel_filterbank(RATE, 321, 120, 0.0, RATE / 2)


def log_mel(batch: np.ndarray) -> np.ndarray:
    """Input of the P.808 network: levels of 120 mel bands, [N, T] -> [N, T // 160, 120]; 1 is the peak."""
    window, bank = _mel_bases()
    padded = np.pad(batch.astype(np.float64), ((0, 0), (160, 160)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 321, axis=-1)[:, ::160]
    power = np.abs(np.fft.rfft(frames * window, axis=-1)) ** 2 @ bank.T
    level = 10 * np.log10(np.maximum(power, 1e-10))
    level -= level.max(axis=(1, 2), keepdims=True)
    return ((np.maximum(level, -80.0) + 40) / 40).astype(np.float32)


class _Dnsmos(Metric):
    unit = "MOS"
    network: str

    def score(self, utterance: Utterance) -> dict[str, float]:
        raw, p808 = [], []
        for window in windows(utterance.signal(RATE)):  # one by one: batches are no faster, and cost 75 MB each
            batch = np.ascontiguousarray(window[None], np.float32)
            raw.append(_session(f"{self.network}_models/sig_bak_ovr.onnx").run(None, {"input_1": batch})[0])
            if len(self.columns) == 4:
                features = log_mel(batch[:, :-160])
                p808.append(_session("dnsmos_models/model_v8.onnx").run(None, {"input_1": features})[0])
        sig, bak, ovrl = (
            float(np.polyval(polynomial, column.astype(np.float64)).mean())
            for polynomial, column in zip(POLYNOMIALS[self.network], np.concatenate(raw).T, strict=True)
        )
        values = [ovrl, sig, bak] + ([float(np.concatenate(p808).mean())] if p808 else [])
        return dict(zip(self.columns, values, strict=True))


def background(wav: np.ndarray) -> float:
    """DNSMOS BAK of the 9.01 s in the middle of wav [T], 16 kHz; a shorter signal is repeated."""
    start = max(0, len(wav) - WINDOW) // 2
    window = np.resize(wav[start : start + WINDOW], WINDOW).astype(np.float32)
    bak = _session("dnsmos_models/sig_bak_ovr.onnx").run(None, {"input_1": window[None]})[0][0, 1]
    return float(np.polyval(POLYNOMIALS["dnsmos"][1], float(bak)))


@metrics_registry.register("dnsmos")
class Dnsmos(_Dnsmos):
    """Overall quality (`dnsmos`), signal, background (P.835) and the single score of P.808."""

    columns = {
        "dnsmos": "DNSMOS OVRL",
        "dnsmos_sig": "DNSMOS SIG",
        "dnsmos_bak": "DNSMOS BAK",
        "dnsmos_p808": "DNSMOS P.808",
    }
    rank = 3
    network = "dnsmos"
    needs = Needs(reference=False, rate=RATE, paper=f"{PAPER}; P.808: arXiv 2010.15258")


@metrics_registry.register("legacy_dnsmos")
class PersonalisedDnsmos(_Dnsmos):
    """The personalised network, which also counts a neighbouring talker as noise: overall, signal, background."""

    columns = {
        "legacy_dnsmos": "pDNSMOS OVRL",
        "legacy_dnsmos_sig": "pDNSMOS SIG",
        "legacy_dnsmos_bak": "pDNSMOS BAK",
    }
    network = "pdnsmos"
    needs = Needs(reference=False, rate=RATE, paper=PAPER)
