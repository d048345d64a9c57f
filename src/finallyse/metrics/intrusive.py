"""Metrics that compare with the clean reference."""

from __future__ import annotations

import warnings

import numpy as np

from finallyse.metrics import metrics_registry
from finallyse.metrics.base import Metric, Needs, Unscored, Utterance, pieces


class _Pesq(Metric):
    """PESQ as the `pesq` package computes it (ITU-T P.862 code).

    P.862.3 requires signals of at most 30 s, and the code supports at most 50 utterances: a longer file is cut into
    the fewest equal pieces of at most 30 s, and its score is the mean over the pieces in which PESQ finds speech.
    """

    unit = "MOS-LQO"
    mode: str
    limit_s = 30

    def score(self, utterance: Utterance) -> dict[str, float]:
        import pesq

        rate = self.needs.rate
        enhanced, reference = utterance.pair(rate)
        if len(reference) < rate // 4:
            raise Unscored("shorter than 0.25 s, too short for PESQ")
        scores, reason = [], ""
        for piece in pieces(len(reference), self.limit_s * rate):
            # `pesq` divides by the common peak: a piece in which both are silent has none
            if not reference[piece].any():
                reason = "PESQ finds no utterance in the reference"
                continue
            if not enhanced[piece].any():
                raise Unscored(f"enhanced is silent for {self.limit_s // 2} s or more")
            try:
                scores.append(pesq.pesq(rate, reference[piece], enhanced[piece], self.mode))
            except pesq.NoUtterancesError:
                reason = "PESQ finds no utterance in the reference"
            except pesq.PesqError as error:
                raise Unscored(f"PESQ: {_message(error)}") from error
        if not scores:
            raise Unscored(reason)
        return {self.name: float(np.mean(scores))}


def _message(error: Exception) -> str:
    text = error.args[0] if error.args else type(error).__name__
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


@metrics_registry.register("wb_pesq")
class WidebandPesq(_Pesq):
    """Wideband PESQ, 16 kHz."""

    columns = {"wb_pesq": "WB-PESQ"}
    rank = 1
    mode = "wb"
    needs = Needs(reference=True, rate=16000, paper="ITU-T P.862.2 (2007), P.862.3 for lengths")


@metrics_registry.register("nb_pesq")
class NarrowbandPesq(_Pesq):
    """Narrowband PESQ, 8 kHz."""

    columns = {"nb_pesq": "NB-PESQ"}
    mode = "nb"
    needs = Needs(reference=True, rate=8000, paper="ITU-T P.862 (2001), P.862.1 mapping, P.862.3 for lengths")


class _Stoi(Metric):
    """Short-time objective intelligibility as `pystoi` computes it (inside at 10 kHz)."""

    extended: bool

    def score(self, utterance: Utterance) -> dict[str, float]:
        import pystoi

        enhanced, reference = utterance.pair(self.needs.rate)
        reason = "less than 0.4 s of speech in the reference, too short for STOI"
        if len(reference) < 0.4 * self.needs.rate:
            raise Unscored(reason)
        with warnings.catch_warnings():
            # pystoi warns and returns 1e-5 for a clip that is too short; that is not a score
            warnings.simplefilter("error", RuntimeWarning)
            try:
                value = pystoi.stoi(reference, enhanced, self.needs.rate, extended=self.extended)
            except RuntimeWarning as warning:
                raise Unscored(reason if "Not enough STFT frames" in str(warning) else f"STOI: {warning}") from warning
        return {self.name: float(value)}


@metrics_registry.register("stoi")
class Stoi(_Stoi):
    """Short-time objective intelligibility, 0 to 1."""

    columns = {"stoi": "STOI"}
    rank = 2
    extended = False
    needs = Needs(reference=True, rate=16000, paper="Taal et al., IEEE TASLP 19(7), 2011")


@metrics_registry.register("estoi")
class ExtendedStoi(_Stoi):
    """Extended STOI, for fluctuating noise; 0 to 1."""

    columns = {"estoi": "ESTOI"}
    extended = True
    needs = Needs(reference=True, rate=16000, paper="Jensen and Taal, IEEE/ACM TASLP 24(11), 2016")


@metrics_registry.register("si_sdr")
class SiSdr(Metric):
    """Scale-invariant signal-to-distortion ratio, dB; at 16 kHz for all networks, so that scores are comparable.

    alpha = <enhanced, reference> / |reference|^2; 10 log10(|alpha reference|^2 / |enhanced - alpha reference|^2).
    As published, the mean is not removed: a constant offset of the output is distortion.
    """

    columns = {"si_sdr": "SI-SDR"}
    rank = 7
    unit = "dB"
    zero_mean = False
    needs = Needs(reference=True, rate=16000, paper="Le Roux et al., ICASSP 2019, arXiv 1811.02508")

    def score(self, utterance: Utterance) -> dict[str, float]:
        enhanced, reference = (wav.astype(np.float64) for wav in utterance.pair(self.needs.rate))
        if self.zero_mean:
            for role, wav in (("enhanced", enhanced), ("reference", reference)):
                if not np.ptp(wav):
                    raise Unscored(f"{role} is constant: without its mean nothing is left")
            enhanced, reference = enhanced - enhanced.mean(), reference - reference.mean()
        target = (enhanced @ reference) / (reference @ reference) * reference
        residual = enhanced - target
        signal, noise = target @ target, residual @ residual
        if not noise:
            raise Unscored("enhanced equals the reference up to its gain: SI-SDR is infinite")
        if not signal:
            raise Unscored("enhanced is orthogonal to the reference: SI-SDR is minus infinite")
        return {self.name: float(10 * np.log10(signal / noise))}


@metrics_registry.register("zm_si_sdr")
class ZeroMeanSiSdr(SiSdr):
    """SI-SDR of both signals without their means, so that a constant offset, which is inaudible, does not count."""

    columns = {"zm_si_sdr": "SI-SDR, zero mean"}
    zero_mean = True
    needs = Needs(reference=True, rate=16000, paper="Luo and Mesgarani, IEEE/ACM TASLP 27(8), 2019, arXiv 1809.07454")


@metrics_registry.register("level")
class Level(Metric):
    """How much louder the output is than the reference, dB: 20 log10(rms(enhanced) / rms(reference)) of the whole clip.

    PESQ, STOI and SI-SDR are level-invariant by design. Measured at the reference's own rate, because at 16 kHz
    anything a network adds above 8 kHz would not count.
    """

    columns = {"level": "Level"}
    unit = "dB"
    better = "zero"
    needs = Needs(reference=True, rate=None, paper="root mean square of the output over that of the reference")

    def score(self, utterance: Utterance) -> dict[str, float]:
        enhanced, reference = (wav.astype(np.float64) for wav in utterance.pair(self.needs.rate))
        powers = enhanced @ enhanced, reference @ reference
        if not all(powers):  # only the part cut off to equalise the lengths was not silent
            raise Unscored("enhanced or reference is silent up to where the shorter one ends")
        return {"level": float(10 * np.log10(powers[0] / powers[1]))}


@metrics_registry.register("lsd")
class LogSpectralDistance(Metric):
    """Log-spectral distance, dB, at the reference's own rate: it includes what is missing above a network's band.

    Power spectra P of 2048-sample Hann windows every 512 samples, scaled so that a full-scale sine reads 0 dB and
    floored at -100 dB: mean over frames of sqrt(mean over bins of (10 log10 P_reference - 10 log10 P_enhanced)^2).
    """

    columns = {"lsd": "LSD"}
    unit = "dB"
    better = "lower"
    needs = Needs(reference=True, rate=None, paper="Gray and Markel, IEEE TASSP 24(5), 1976")
    n_fft, hop, floor = 2048, 512, 1e-10

    def score(self, utterance: Utterance) -> dict[str, float]:
        enhanced, reference = utterance.pair(None)
        distances = []
        # in blocks of frames: the whole spectrogram of an hour would take gigabytes
        block = 256 * self.hop
        last = max(1, len(reference) - self.n_fft + 1)
        for start in range(0, last, block):
            stop = min(start + block - self.hop, last - 1) + self.n_fft
            difference = self._level(enhanced[start:stop]) - self._level(reference[start:stop])
            distances.append(np.sqrt(np.mean(difference**2, axis=-1)))
        return {"lsd": float(np.mean(np.concatenate(distances)))}

    def _level(self, wav: np.ndarray) -> np.ndarray:
        """Levels in dB, [frames, bins]; a clip shorter than a window is padded with zeros to one."""
        wav = np.pad(wav.astype(np.float64), (0, max(0, self.n_fft - len(wav))))
        window = np.hanning(self.n_fft + 1)[:-1]
        frames = np.lib.stride_tricks.sliding_window_view(wav, self.n_fft)[:: self.hop]
        spectrum = np.fft.rfft(frames * window, axis=-1) / (window.sum() / 2)
        return 10 * np.log10(np.maximum(np.abs(spectrum) ** 2, self.floor))


@metrics_registry.register("l1_mel_diff")
class MelDifference(Metric):
    """Mean absolute difference of natural-log mel spectrograms: 16 kHz, 80 bands up to 8 kHz, n_fft 1024, hop 256."""

    columns = {"l1_mel_diff": "Mel L1"}
    rank = 8
    better = "lower"
    needs = Needs(reference=True, rate=16000, paper="HiFi-GAN, arXiv 2010.05646, section 3 (mel-spectrogram loss)")

    def score(self, utterance: Utterance) -> dict[str, float]:
        import torch

        from finallyse.audio.mel import LogMel

        log_mel = LogMel(sample_rate=self.needs.rate, n_fft=1024, hop=256, win=1024, n_mels=80, fmin=0.0, fmax=None)
        total, count = 0.0, 0
        enhanced, reference = utterance.pair(self.needs.rate)
        for piece in pieces(len(reference), 600 * self.needs.rate):
            mels = [log_mel(torch.from_numpy(wav[piece].copy())[None]) for wav in (enhanced, reference)]
            total += float((mels[0] - mels[1]).abs().double().sum())
            count += mels[0].numel()
        return {"l1_mel_diff": total / count}
