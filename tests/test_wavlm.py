"""WavLM: equal to transformers' network, frozen, once per audio, any length, offline, and one-line errors."""

import json

import numpy as np
import pytest
import torch

from finallyse.errors import UserError
from finallyse.models.wavlm import WavLM
from support.networks import make_wavlm

BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavlm") / "small"
    make_wavlm(folder)
    return folder


def normed(wav):
    return (wav - wav.mean(-1, keepdim=True)) / (wav.var(-1, keepdim=True, correction=0) + 1e-7).sqrt()


@pytest.mark.parametrize("kind", [{}, BASE, {"conv_bias": True}])
@pytest.mark.parametrize("safetensors", [True, False])
def test_equals_transformers(tmp_path, kind, safetensors):
    network = make_wavlm(tmp_path / "w", safetensors=safetensors, **kind)
    wavlm = WavLM(tmp_path / "w")
    wav = torch.from_numpy(0.1 * np.random.default_rng(0).standard_normal((2, 16000))).float()
    with torch.no_grad():
        want = network(normed(wav))
        features = network.feature_extractor(wav)
        normed_features = network.feature_projection.layer_norm(features.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(
        wavlm.last_hidden_state(wav), want.last_hidden_state.transpose(1, 2), atol=1e-5, rtol=1e-5
    )
    # at the level that the audio has: only the last hidden state is of normalised audio
    torch.testing.assert_close(wavlm.conv_features(wav), normed_features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wavlm.conv_features(wav, layer_norm=False), features, atol=1e-5, rtol=1e-5)


def test_without_normalisation(tmp_path):
    network = make_wavlm(tmp_path / "w", normalize=False)
    wav = torch.randn(1, 4000)
    with torch.no_grad():
        want = network(wav).last_hidden_state.transpose(1, 2)
    torch.testing.assert_close(WavLM(tmp_path / "w").last_hidden_state(wav), want, atol=1e-5, rtol=1e-5)


def test_gradient_of_conv_features_is_transformers(tmp_path):
    network = make_wavlm(tmp_path / "w")
    wavlm = WavLM(tmp_path / "w")
    gradients = []
    for function in (wavlm.conv_features, lambda wav: network(wav).extract_features):
        wav = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2000))).float().requires_grad_()
        function(wav).square().sum().sqrt().backward()
        gradients.append(wav.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in wavlm.parameters())


def test_frozen_and_in_eval_mode(folder):
    wavlm = WavLM(folder).train()
    assert not wavlm.training and not any(module.training for module in wavlm.modules())
    assert not any(parameter.requires_grad for parameter in wavlm.parameters())
    wav = torch.randn(1, 1000, requires_grad=True)
    assert not wavlm.last_hidden_state(wav).requires_grad


@pytest.mark.parametrize("samples, frames", [(1, 1), (399, 1), (400, 1), (720, 2), (8192, 25), (65536, 204)])
def test_any_length(folder, samples, frames):
    assert WavLM(folder).last_hidden_state(torch.randn(1, samples)).shape == (1, 24, frames)


def test_silence_is_finite_with_its_gradient(folder):
    wavlm = WavLM(folder)
    wav = torch.zeros(1, 2000, requires_grad=True)
    features = wavlm.conv_features(wav)
    features.square().sum().backward()
    assert features.isfinite().all() and wav.grad.isfinite().all()
    assert wavlm.last_hidden_state(wav).isfinite().all()


def test_bfloat16_autocast_is_close_and_casts_once(folder):
    wavlm = WavLM(folder)
    wav = torch.randn(2, 4000)
    exact = wavlm.last_hidden_state(wav)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = wavlm.last_hidden_state(wav)
        cast = wavlm.transformer.layers[0].wide._cast[1]
        wavlm.last_hidden_state(wav.clone())
    assert wavlm.transformer.layers[0].wide._cast[1] is cast
    assert low.dtype == torch.float32
    assert (low - exact).abs().mean() < 0.05 * exact.std()


def test_inference_mode_leaves_nothing_behind(folder):
    wavlm = WavLM(folder)
    wav = torch.randn(1, 2000)
    with torch.inference_mode():
        wavlm.last_hidden_state(wav)
    hat = torch.randn(1, 2000, requires_grad=True)
    (wavlm.conv_features(wav) - wavlm.conv_features(hat)).square().sum().backward()
    assert hat.grad.abs().sum() > 0


def test_wrong_folders_and_input_are_one_line_errors(folder, tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        WavLM(tmp_path / "none")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        WavLM(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="not readable as safetensors"):
        WavLM(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"surplus": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"missing feature_extractor\.conv_layers\.0\.conv\.weight.*left over surplus"):
        WavLM(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "hubert"}))
    with pytest.raises(UserError, match="model_type is 'hubert'"):
        WavLM(tmp_path)
    with pytest.raises(UserError, match=r"\[B, T\] or \[B, 1, T\]"):
        WavLM(folder).last_hidden_state(torch.zeros(1, 2, 100))
