"""Log-mel spectrograms and STFTs: librosa's filterbank, any length, bases built once, float32 under autocast."""

import librosa
import numpy as np
import pytest
import torch

from finallyse.audio import mel as mel_module
from finallyse.audio.mel import LogMel, mel_filterbank
from finallyse.audio.stft import hann_window, istft, reflect_pad, stft
from finallyse.errors import UserError


@pytest.mark.parametrize(
    "setting", [(16000, 1024, 80, 0, 8000), (48000, 2048, 128, 20, 24000), (22050, 512, 40, 0, 8000)]
)
def test_filterbank_is_librosas(setting):
    sample_rate, n_fft, n_mels, fmin, fmax = setting
    want = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax, dtype=np.float64)
    np.testing.assert_allclose(mel_filterbank(*setting), want, atol=1e-12)


def test_equals_the_definition_written_out():
    wav = torch.from_numpy(0.1 * np.random.default_rng(0).standard_normal((2, 4096))).float()
    padded = np.pad(wav.numpy(), ((0, 0), (384, 384)), mode="reflect")
    frames = np.stack([padded[:, k * 256 : k * 256 + 1024] for k in range(16)], -1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    spectrum = np.sqrt(np.abs(np.fft.rfft(frames * window[:, None], axis=1)) ** 2 + 1e-9)
    bands = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    want = np.log(np.maximum(bands @ spectrum, 1e-5))
    np.testing.assert_allclose(LogMel()(wav).numpy(), want, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 255, 256, 385, 5000])
def test_any_length(samples):
    wav = torch.ones(2, 1, samples)
    assert LogMel()(wav).shape == (2, 80, max(samples // 256, 1))
    want = np.pad(wav.numpy(), ((0, 0), (0, 0), (384, 500)), mode="reflect")
    np.testing.assert_array_equal(reflect_pad(wav, 384, 500).numpy(), want)


def test_silence_is_finite_with_its_gradient():
    wav = torch.zeros(1, 1024, requires_grad=True)
    mel = LogMel(fmax=None)(wav)
    mel.sum().backward()
    assert mel.isfinite().all() and wav.grad.isfinite().all()


def test_bases_are_built_once_and_serve_training_after_inference(monkeypatch):
    mel_module._filterbanks.clear()
    with torch.inference_mode():
        LogMel()(torch.zeros(1, 2048))
    assert len(mel_module._filterbanks) == 1
    monkeypatch.setattr(mel_module, "mel_filterbank", None)  # a second build would fail
    LogMel()(torch.zeros(1, 2048, requires_grad=True)).sum().backward()
    window = hann_window(1024, torch.device("cpu"), torch.float32)
    assert window is hann_window(1024, torch.device("cpu"), torch.float32)


def test_float32_under_autocast():
    wav = torch.randn(1, 4096)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mel = LogMel()(wav.bfloat16())
    assert mel.dtype == torch.float32


def test_stft_round_trip():
    wav = torch.randn(2, 5000)
    spectrum = stft(wav, 1024, 256, center=True)
    torch.testing.assert_close(
        spectrum, torch.stft(wav, 1024, 256, window=torch.hann_window(1024), return_complex=True)
    )
    torch.testing.assert_close(istft(spectrum, 1024, 256, 5000), wav, atol=1e-5, rtol=1e-5)


def test_wrong_shape_and_band_are_one_line_errors():
    with pytest.raises(UserError, match=r"\[B, T\]"):
        LogMel()(torch.zeros(3))
    with pytest.raises(UserError, match=r"\[B, T\]"):
        LogMel()(torch.zeros(1, 2, 100))
    with pytest.raises(UserError, match="fmin"):
        LogMel(fmax=9000)
