"""A differentiable PESQ (ITU-T P.862), as torch-pesq computes it: no time alignment, level alignment by a filter.

The two filters (level, pre-emphasis) are applied as truncated impulse responses in the frequency domain, so that
gradients flow through FFTs instead of through a loop over samples. Names of the steps are those of P.862, section 10.2.
"""

from __future__ import annotations

import numpy as np
import scipy.fft  # `scipy.signal`, half a second to import, is loaded by its first use
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.audio.stft import stft
from finallyse.errors import UserError
from finallyse.losses import losses_registry
from finallyse.losses.resampling import to_16k
from finallyse.precision import full_precision

# fmt: off
# The 49 Bark bands of P.862 at 16 kHz: STFT bins per band, width in Bark, centre in Bark, correction of the power
# density, absolute hearing threshold (power).
BINS = (
    1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 3, 4, 5, 4, 5, 6, 6, 7, 8,
    9, 9, 12, 12, 15, 16, 18, 21, 25, 20,
)
WIDTH_BARK = (
    0.157344, 0.317994, 0.322441, 0.326934, 0.331474, 0.336061, 0.340697, 0.345381, 0.350114, 0.354897,
    0.359729, 0.364611, 0.369544, 0.374529, 0.379565, 0.384653, 0.389794, 0.394989, 0.400236, 0.405538,
    0.410894, 0.416306, 0.421773, 0.427297, 0.432877, 0.438514, 0.444209, 0.449962, 0.455774, 0.461645,
    0.467577, 0.473569, 0.479621, 0.485736, 0.491912, 0.498151, 0.504454, 0.510819, 0.517250, 0.523745,
    0.530308, 0.536934, 0.543629, 0.550390, 0.557220, 0.564119, 0.571085, 0.578125, 0.585232,
)
CENTRE_BARK = (
    0.078672, 0.316341, 0.636559, 0.961246, 1.290450, 1.624217, 1.962597, 2.305636, 2.653383, 3.005889,
    3.363201, 3.725371, 4.092449, 4.464486, 4.841533, 5.223642, 5.610866, 6.003256, 6.400869, 6.803755,
    7.211971, 7.625571, 8.044611, 8.469146, 8.899232, 9.334927, 9.776288, 10.223374, 10.676242, 11.134952,
    11.599563, 12.070135, 12.546731, 13.029408, 13.518232, 14.013264, 14.514566, 15.022202, 15.536238, 16.056736,
    16.583761, 17.117382, 17.657663, 18.204674, 18.758478, 19.319147, 19.886751, 20.461355, 21.043034,
)
CORRECTION = (
    100.000000, 99.999992, 100.000000, 100.000008, 100.000008, 100.000015, 99.999992, 99.999969, 50.000027, 100.000000,
    99.999969, 100.000015, 99.999947, 100.000061, 53.047077, 110.000046, 117.991989, 65.000000, 68.760147, 69.999931,
    71.428818, 75.000038, 76.843384, 80.968781, 88.646126, 63.864388, 68.155350, 72.547775, 75.584831, 58.379192,
    80.950836, 64.135651, 54.384785, 73.821884, 64.437073, 59.176456, 65.521278, 61.399822, 58.144047, 57.004543,
    64.126297, 54.311001, 61.114979, 55.077751, 56.849335, 55.628868, 53.137054, 54.985844, 79.546974,
)
THRESHOLD = (
    51286152.000000, 2454709.500000, 70794.593750, 4897.788574, 1174.897705, 389.045166, 104.712860, 45.708820,
    17.782795, 9.772372, 4.897789, 3.090296, 1.905461, 1.258925, 0.977237, 0.724436, 0.562341, 0.457088, 0.389045,
    0.331131, 0.295121, 0.269153, 0.257040, 0.251189, 0.251189, 0.251189, 0.251189, 0.263027, 0.288403, 0.309030,
    0.338844, 0.371535, 0.398107, 0.436516, 0.467735, 0.489779, 0.501187, 0.501187, 0.512861, 0.524807, 0.524807,
    0.524807, 0.512861, 0.478630, 0.426580, 0.371535, 0.363078, 0.416869, 0.537032,
)
# fmt: on
POWER_SCALE, LOUDNESS_SCALE, ZWICKER_POWER = 6.910853e-6, 1.866055e-1, 0.23
N_FFT, HOP = 512, 256  # 32 ms, half overlapping
TAPS = 1024  # of the impulse responses: the rest has less than 1e-12 of their energy
SILENCE = 1e-10  # mean power (-100 dBFS) below which a clip counts as silent and is not amplified to level
SYLLABLE, SYLLABLE_HOP = 20, 10  # frames


@losses_registry.register("pesq")
class PESQLoss(nn.Module):
    """0.1 * symmetric + 0.0309 * asymmetric disturbance of PESQ, mean over the batch; 0 for equal clips.

    It decreases as quality increases: minimise it as is. PESQ's score is a decreasing function of it (`mos`).

    wav, wav_hat: [B, 1, T] at sample_rate, any T (clips of less than 5376 samples at 16 kHz, the 20 frames of one PESQ
    syllable, count as followed by undisturbed frames). Value and gradient are finite on silence.
    Raises UserError if the shapes differ.
    """

    label = "PESQ loss"
    needs = ("wav", "wav_hat", "sample_rate")
    sees_level = False  # both clips are brought to one level

    def __init__(self):
        super().__init__()
        level = scipy.signal.butter(5, [325, 3250], fs=16000, btype="band")
        level = [np.float32(coefficients).astype(float) for coefficients in level]  # as rounded in torch-pesq
        emphasis = ([2.740826, -5.4816519, 2.740826], [1.0, -1.9444777, 0.94597794])
        impulse = np.eye(1, TAPS)[0]
        responses = [scipy.signal.lfilter(b, a, impulse) for b, a in (level, emphasis)]
        bands = np.repeat(np.eye(len(BINS)), BINS, axis=0)  # [bins, bands]
        edge = np.arange(1, 16) / 16.0
        exponents = np.clip(6.0 / (np.array(CENTRE_BARK) + 2.0), 1.0, 2.0) ** 0.15 * ZWICKER_POWER
        constants = {
            "responses": np.stack(responses),
            "bands": bands * (np.array(CORRECTION) * POWER_SCALE),
            "edge": edge,
            "width": np.array(WIDTH_BARK),
            "threshold": np.array(THRESHOLD),
            "exponent": exponents,
        }
        for name, value in constants.items():
            self.register_buffer(name, torch.from_numpy(value).float(), persistent=False)
        self.total_width = float(sum(WIDTH_BARK[1:]))

    def forward(self, wav: Tensor, wav_hat: Tensor, sample_rate: int) -> Tensor:
        symmetric, asymmetric = self.disturbances(wav, wav_hat, sample_rate)
        return (0.1 * symmetric + 0.0309 * asymmetric).mean()

    def mos(self, wav: Tensor, wav_hat: Tensor, sample_rate: int) -> Tensor:
        """Estimated wideband MOS [B], between 1 and 5."""
        symmetric, asymmetric = self.disturbances(wav, wav_hat, sample_rate)
        return 0.999 + 4.0 * torch.sigmoid(1.3669 * (4.5 - 0.1 * symmetric - 0.0309 * asymmetric) - 3.8224)

    def disturbances(self, wav: Tensor, wav_hat: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
        """Symmetric and asymmetric disturbance of each clip, [B] each."""
        if wav.dim() != 3 or wav.shape != wav_hat.shape or 0 in wav.shape:
            raise UserError(
                f"pesq takes wav and wav_hat [B, 1, T] of one shape, not {[*wav.shape]} and {[*wav_hat.shape]}"
            )
        with full_precision(wav):
            both = torch.cat([wav.flatten(0, 1), wav_hat.flatten(0, 1)])
            powers = self.bark_powers(to_16k(both, sample_rate))
            return self.compare(*powers.chunk(2))

    def bark_powers(self, wav: Tensor) -> Tensor:
        """Power of the level-aligned, pre-emphasised clips in Bark bands: [B, T] at 16 kHz -> [B, frames, bands]."""
        length, fade = wav.shape[-1], len(self.edge)
        level, emphasis = self.responses
        power = self.filter(wav, level).square().sum(1, keepdim=True) / (length + 5120) / 1.04684
        wav = wav * (1e7 / power.clamp(min=SILENCE)).sqrt()
        if length >= 2 * fade:
            wav = wav * torch.cat([self.edge, wav.new_ones(length - 2 * fade), self.edge.flip(0)])
        wav = self.filter(wav, emphasis)
        spectrum = stft(F.pad(wav, (0, length % HOP)), N_FFT, HOP, center=False)
        powers = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)  # [B, frames, bins]
        powers = torch.cat([torch.zeros_like(powers[..., :1]), powers[..., 1:-1]], -1)
        return powers @ self.bands

    @staticmethod
    def filter(wav: Tensor, response: Tensor) -> Tensor:
        """Causal filter: [B, T] and an impulse response [TAPS] -> [B, T]."""
        length = wav.shape[-1]
        size = scipy.fft.next_fast_len(length + TAPS - 1, real=True)
        return torch.fft.irfft(torch.fft.rfft(wav, size) * torch.fft.rfft(response, size), size)[:, :length]

    def compare(self, ref: Tensor, deg: Tensor) -> tuple[Tensor, Tensor]:
        """Disturbances [B] of Bark powers [B, frames, bands]."""
        # partial compensation of the transfer function, then of gain variations
        silent = self.audible(ref, 100.0).sum(-1, keepdim=True) < 1e7
        mean_ref, mean_deg = (self.audible(x, 100.0).masked_fill(silent, 0.0).mean(1, keepdim=True) for x in (ref, deg))
        ref = ref * ((mean_deg + 1000.0) / (mean_ref + 1000.0)).clamp(0.01, 100.0)
        loudest = self.audible(ref).sum(-1)
        gain = (loudest + 5e3) / (self.audible(deg).sum(-1) + 5e3)
        gain = torch.cat([gain[:, :1], 0.8 * gain[:, 1:] + 0.2 * gain[:, :-1]], 1)
        deg = deg * gain.clamp(3e-4, 5.0).unsqueeze(-1)
        # disturbance density
        loud_ref, loud_deg = self.loudness(ref), self.loudness(deg)
        difference = loud_deg - loud_ref
        masked = 0.25 * torch.minimum(loud_deg, loud_ref)
        density = difference.sign() * (difference.abs() - masked).clamp(min=0.0)
        asymmetry = ((deg + 50.0) / (ref + 50.0)) ** 1.2
        asymmetry = asymmetry.masked_fill(asymmetry < 3.0, 0.0).clamp(max=12.0)
        emphasis = ((loudest + 1e5) / 1e7) ** 0.04
        frames = (self.over_bands(density, 2), self.over_bands(density * asymmetry, 1))
        symmetric, asymmetric = (over_time((x / emphasis).clamp(max=45.0)) for x in frames)
        return symmetric, asymmetric

    def audible(self, powers: Tensor, factor: float = 1.0) -> Tensor:
        """The powers above `factor` times the hearing threshold, 0 for the others."""
        return powers.masked_fill(powers <= self.threshold * factor, 0.0)

    def loudness(self, powers: Tensor) -> Tensor:
        """Zwicker's loudness density in Sone per Bark."""
        scale = LOUDNESS_SCALE * (2.0 * self.threshold) ** self.exponent
        loudness = scale * ((0.5 + 0.5 * powers / self.threshold) ** self.exponent - 1.0)
        return loudness.masked_fill(powers <= self.threshold, 0.0)

    def over_bands(self, density: Tensor, p: int) -> Tensor:
        """Width-weighted p-norm over all bands but the first: [B, frames, bands] -> [B, frames]."""
        weighted = (self.width * density / self.total_width ** (1.0 / p))[..., 1:]
        return self.total_width * torch.linalg.vector_norm(weighted, p, dim=-1)


def over_time(disturbance: Tensor) -> Tensor:
    """6-norm within half-overlapping syllables, 2-norm over them: [B, frames] -> [B]."""
    disturbance = F.pad(disturbance, (0, max(0, SYLLABLE - disturbance.shape[1])))
    syllables = disturbance.unfold(1, SYLLABLE, SYLLABLE_HOP)
    # the added 1e-24 bounds the root's gradient where nothing is disturbed, and lifts 0 to 1e-4
    syllables = (syllables.pow(6).mean(-1) + 1e-24) ** (1.0 / 6.0)
    return syllables.square().mean(1).sqrt()
