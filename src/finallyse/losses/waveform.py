"""Regression losses on the signal itself: waveform, level, and compressed or logarithmic spectra."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.audio.stft import stft
from finallyse.errors import UserError
from finallyse.losses import losses_registry
from finallyse.precision import full_precision


@losses_registry.register("l1_wav_loss")
class L1WavLoss(nn.Module):
    """mean(|wav_hat - wav|) of waveforms [B, 1, T]; sensitive to phase and level."""

    label = "waveform L1"
    needs = ("wav", "wav_hat")
    sees_level = True

    def forward(self, wav: Tensor, wav_hat: Tensor) -> Tensor:
        return F.l1_loss(wav_hat.float(), wav.float())


@losses_registry.register("level_loss")
class LevelLoss(nn.Module):
    """Mean over clips of |level of wav_hat - level of wav| in dB, of the mean power of [B, 1, T] each.

    For networks that omit what they cannot predict, such as a vocoder whose harmonics do not yet keep their phase:
    spectral losses tolerate it. Levels below -70 dBFS count as -70 dBFS.
    """

    label = "level"
    needs = ("wav", "wav_hat")
    sees_level = True
    floor = 1e-7  # of the power

    def forward(self, wav: Tensor, wav_hat: Tensor) -> Tensor:
        power, power_hat = (x.float().square().mean((1, 2)) + self.floor for x in (wav, wav_hat))
        return (10 * torch.log10(power_hat / power)).abs().mean()


@losses_registry.register("snr_loss")
class SNRLoss(nn.Module):
    """Mean over clips of the error in dB: 10 log10(|wav_hat - wav|^2 / |wav|^2 + 10^(-max_snr_db / 10)).

    The negative signal-to-noise ratio, soft-limited at max_snr_db, so that clean clips do not outweigh noisy ones
    (Wisdom et al., "What's all the fuss about free universal sound separation data?", ICASSP 2021). Unlike SI-SDR it
    depends on the level; a quiet clip counts as much as a loud one. Clips of less than -70 dBFS count as if they had
    that level.

    Args:
        max_snr_db: dB, above which little is gained.

    wav, wav_hat: [B, 1, T], any rate.
    """

    label = "negative SNR"
    needs = ("wav", "wav_hat")
    sees_level = True
    floor = 1e-7  # of the power

    def __init__(self, max_snr_db: float = 30.0):
        super().__init__()
        self.threshold = 10 ** (-max_snr_db / 10)

    def forward(self, wav: Tensor, wav_hat: Tensor) -> Tensor:
        power = wav.float().square().mean((1, 2)) + self.floor
        error = (wav_hat.float() - wav.float()).square().mean((1, 2))
        return (10 * torch.log10(error / power + self.threshold)).mean()


@losses_registry.register("stft_loss")
class STFTLoss(nn.Module):
    """Distance of power-law compressed spectra (Braun and Tashev, arXiv 2009.12286, section 3), mean over resolutions.

    With S' = |S|^compression * S / |S|: complex_weight * mean(|S' - S_hat'|^2) + (1 - complex_weight) * mean of the
    squared difference of |S'| and |S_hat'|. Compression makes quiet parts count, the complex part depends on the phase.

    Args:
        n_ffts: window lengths of the resolutions, samples; the hop is a quarter of each.
        compression: exponent of the magnitudes, in (0, 1].
        complex_weight: weight of the complex part, which depends on phase, 0 to 1.
        relative: divide both clips by the root mean square of `wav` first, so that a quiet clip counts as much as a
            loud one (Braun and Tashev, arXiv 2008.06412). Clips of less than -70 dBFS count as if they had that level.

    wav, wav_hat: [B, 1, T], any rate. Raises UserError for arguments out of range.
    """

    label = "compressed STFT"
    needs = ("wav", "wav_hat")
    sees_level = True
    floor = 1e-8  # of the power: bounds the gradient of a silent bin
    quietest = 1e-7  # power of a clip

    def __init__(
        self,
        n_ffts: list[int] = (2048, 1024, 512, 256),
        compression: float = 0.3,
        complex_weight: float = 0.3,
        relative: bool = False,
    ):
        super().__init__()
        if not 0 < compression <= 1 or not 0 <= complex_weight <= 1:
            raise UserError(
                f"stft_loss: compression={compression} must lie in (0, 1] and complex_weight={complex_weight} in [0, 1]"
            )
        if not n_ffts or any(n_fft < 16 or n_fft % 4 for n_fft in n_ffts):
            raise UserError(f"stft_loss: n_ffts={list(n_ffts)} must be multiples of 4 of at least 16 samples")
        self.n_ffts, self.compression, self.complex_weight = tuple(n_ffts), compression, complex_weight
        self.relative = relative

    def forward(self, wav: Tensor, wav_hat: Tensor) -> Tensor:
        with full_precision(wav_hat):
            pair = wav.float().squeeze(1), wav_hat.float().squeeze(1)
            if self.relative:
                gain = (pair[0].square().mean(1, keepdim=True) + self.quietest).rsqrt()
                pair = pair[0] * gain, pair[1] * gain
            return sum(self._distance(*pair, n_fft) for n_fft in self.n_ffts) / len(self.n_ffts)

    def _distance(self, wav: Tensor, wav_hat: Tensor, n_fft: int) -> Tensor:
        with torch.no_grad():
            want = self._compressed(wav, n_fft)
        got = self._compressed(wav_hat, n_fft)
        real, imaginary, magnitude = ((a - b).square().mean() for a, b in zip(got, want, strict=True))
        return self.complex_weight * (real + imaginary) + (1 - self.complex_weight) * magnitude

    def _compressed(self, wav: Tensor, n_fft: int) -> tuple[Tensor, Tensor, Tensor]:
        """Real part, imaginary part and magnitude of the compressed spectrum, [B, bins, frames] each."""
        spectrum = stft(wav, n_fft, n_fft // 4, center=True, normalized=True)
        real, imaginary = torch.view_as_real(spectrum).unbind(-1)
        power = real.square() + imaginary.square() + self.floor
        magnitude = power.pow(self.compression / 2)
        factor = magnitude * power.rsqrt()
        return real * factor, imaginary * factor, magnitude


@losses_registry.register("log_stft_loss")
class LogSTFTLoss(nn.Module):
    """mean(|log |S_hat| - log |S||) of spectra, in nepers (Parallel WaveGAN, arXiv 1910.11480, section 2.2).

    A bin between words counts as much as one of speech: noise that remains there is heard, and is little to a loss of
    waveforms or compressed spectra.

    Args:
        n_fft: window length, samples; the hop is a quarter of it.
        floor_db: relative to the root mean square of `wav`, dB, negative: what is quieter hardly counts. Clips of less
            than -70 dBFS count as if they had that level.

    wav, wav_hat: [B, 1, T], any rate. Raises UserError for arguments out of range.
    """

    label = "log STFT"
    needs = ("wav", "wav_hat")
    sees_level = True
    quietest = 1e-7  # power of a clip

    def __init__(self, n_fft: int = 512, floor_db: float = -50.0):
        super().__init__()
        if n_fft < 16 or n_fft % 4:
            raise UserError(f"log_stft_loss: n_fft={n_fft} must be a multiple of 4 of at least 16 samples")
        if not -120 <= floor_db < 0:
            raise UserError(f"log_stft_loss: floor_db={floor_db} must be negative, at least -120")
        self.n_fft, self.floor = n_fft, 10 ** (floor_db / 10)

    def forward(self, wav: Tensor, wav_hat: Tensor) -> Tensor:
        with full_precision(wav_hat):
            pair = wav.float().squeeze(1), wav_hat.float().squeeze(1)
            gain = (pair[0].square().mean(1, keepdim=True) + self.quietest).rsqrt()
            want, got = (self._log_power(x * gain) for x in pair)
            return F.l1_loss(got, want) / 2

    def _log_power(self, wav: Tensor) -> Tensor:
        spectrum = stft(wav, self.n_fft, self.n_fft // 4, center=True, normalized=True)
        real, imaginary = torch.view_as_real(spectrum).unbind(-1)
        return torch.log(real.square() + imaginary.square() + self.floor)
