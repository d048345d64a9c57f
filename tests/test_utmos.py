"""UTMOSv2: its pieces against other implementations, the loss that it is; the metric is tested in test_metrics.py."""

import copy
import functools
import hashlib
import importlib.util
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finallyse.errors import UserError
from finallyse.losses import losses_registry
from finallyse.models import utmosv2
from finallyse.models.utmosv2 import STAGES, EfficientNetV2, UTMOSv2

TINY = {
    "windows": (512, 256),
    "n_fft": 512,
    "hop": 256,
    "bands": 32,
    "stages": [("conv", 1, 1, 1, 8), ("fused", 2, 2, 2, 8), ("inverted", 2, 2, 2, 16)],
    "stem": 8,
    "head": 8,
    "wav2vec2": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
        "conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 2,
    },
}  # fmt: skip


def randomised(network, seed=0):
    """The network with weights and statistics that are neither the ones of initialisation nor far from them."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in network.state_dict().items():
        if value.dim() > 1:  # uniform, of variance 2 / fan-in
            value.uniform_(-1, 1, generator=generator).mul_((6.0 / value[0].numel()) ** 0.5)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif key.endswith("num_batches_tracked"):
            value.zero_()
        elif key.endswith("weight"):
            value.uniform_(0.5, 1.0, generator=generator)
        else:
            value.uniform_(-0.1, 0.1, generator=generator)
    for name in ("ssl", "spec_long"):  # they mix layers or maps
        getattr(network, name).weights.uniform_(-0.5, 1.0, generator=generator)
    network.fc.weight.mul_(0.1)
    return network


@pytest.fixture(scope="session")
def tiny():
    return randomised(UTMOSv2(**TINY))


@pytest.fixture(scope="session")
def published():
    """The published sizes, without values; smaller images, on which no weight depends."""
    with torch.device("meta"):
        return UTMOSv2(n_fft=1024, windows=(1024, 512, 256, 128), hop=256, bands=64)


@pytest.fixture(scope="session")
def full(published):
    """The same with values, folded as for use."""
    network = copy.deepcopy(published)
    for part in (network.ssl, network.spec_long, network.fc):
        part.to_empty(device="cpu")
    return randomised(network).fold()


@pytest.fixture(scope="session")
def crop(speech_16k):
    return torch.from_numpy(speech_16k[20_000 : 20_000 + utmosv2.FRAME])


def loss_of(network, monkeypatch, **args):
    monkeypatch.setattr(utmosv2, "load_utmosv2", lambda weights: network)
    return losses_registry["utmos"](weights="elsewhere", **args)


# --- the published network --------------------------------------------------------------------------------------------


def test_weights_have_the_published_names_and_shapes(published):
    """The digest was taken of transformers' wav2vec2-base and timm's tf_efficientnetv2_s, put together as published.

    Saved with the module names of timm 0.9 from a GPU, without the two records that torch.save has added since, they
    make a file of 818 531 314 bytes: exactly as many as the published checkpoint has.
    """
    state = published.state_dict()
    assert len(state) == 3343 and sum(value.nbytes for value in state.values()) == 817_166_976
    lines = "\n".join(f"{key} {list(value.shape)} {value.dtype}" for key, value in state.items())
    digest = "f8aee79595c4b7b4e511bb912cccd83d990a4a96b56c3133056e377a68ac6b84"
    assert hashlib.sha256(lines.encode()).hexdigest() == digest


def test_image_classifier_is_the_one_of_timm():
    """Expected values: timm 1.0.31, tf_efficientnetv2_s with these weights on this image."""
    network = EfficientNetV2(STAGES, 24, 1280).eval()
    generator = torch.Generator().manual_seed(0)
    for key, value in network.state_dict().items():
        if value.dim() > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
        elif key.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif key.endswith("weight"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator) * 0.5)
        elif not key.endswith("num_batches_tracked"):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    with torch.inference_mode():
        maps = network(torch.rand(1, 1, 70, 96, generator=generator))
    assert maps.shape == (1, 1280, 3, 3)
    assert maps.mean().item() == pytest.approx(0.0934858, rel=1e-3)
    assert maps.std().item() == pytest.approx(0.3686116, rel=1e-3)
    assert maps[0, ::320, 1, 2].tolist() == pytest.approx([-0.2637308, 0.0689546, -0.1600304, -0.0342310], abs=1e-3)


def test_images_are_those_of_librosa(crop):
    import librosa

    windows = (4096, 2048, 1024, 512)
    images = utmosv2.MelImages(windows, 4096, 32, 512)(crop[None, None, None])
    assert images.shape == (1, 1, 4, 512, 512)
    for image, window in zip(images[0, 0], windows, strict=True):
        power = librosa.feature.melspectrogram(
            y=crop.numpy(), sr=16000, n_fft=4096, hop_length=32, n_mels=512, win_length=window
        )
        level = torch.from_numpy((librosa.power_to_db(power, ref=np.max) + 80) / 80)[None, None]
        expected = F.interpolate(level, (512, 512), mode="bilinear", antialias=True)[0, 0]
        assert (image - expected).abs().max() < 2e-4
    assert images.min() >= 0 and 0.9 < images.max() <= 1


@pytest.mark.parametrize("samples", [1, 8192, 22_400, 22_401, 48_000, 64_000])
def test_crops_are_those_of_the_published_package(tiny, speech_16k, samples):
    wav = speech_16k[:samples]
    crops = tiny.draw(np.random.RandomState(7), 1, samples)
    np.random.seed(7)

    def pick(length):
        tiled = wav if len(wav) > length else np.tile(wav, length // len(wav) + 1)
        start = np.random.randint(0, len(tiled) - length)
        return tiled[start : start + length]

    def cut(starts, length):
        return utmosv2._cut(torch.from_numpy(wav)[None], starts, length)[0].numpy()

    assert np.array_equal(cut(crops.speech, 48_000), pick(48_000))
    for frame in range(2):
        assert np.array_equal(cut(crops.frames, 22_400)[frame], pick(22_400))
        for kind in range(2):
            assert np.array_equal(cut(crops.partners, 22_400)[frame, kind], pick(22_400))
            assert crops.shares[0, frame, kind] == np.float32(np.random.beta(0.4, 0.4))


def attended(attention, x):
    """Multi-head self-attention by its definition: x [N, D] -> [N, D]."""
    width, heads = x.shape[1], 8
    query, key, value = (x @ attention.in_proj_weight.T + attention.in_proj_bias).split(width, 1)
    results = []
    for q, k, v in zip(query.chunk(heads, 1), key.chunk(heads, 1), value.chunk(heads, 1), strict=True):
        results.append(torch.softmax(q @ k.T / (width / heads) ** 0.5, 1) @ v)
    return torch.cat(results, 1) @ attention.out_proj.weight.T + attention.out_proj.bias


def speech_features(branch, wav):
    """What the speech branch gives for wav [T], through torchaudio's wav2vec2: [2 * D]."""
    from finallyse.audio.torchaudio_shim import torchaudio

    encoder = torchaudio.models.wav2vec2.utils.import_huggingface_model(branch.encoder["model"]).eval()
    wav = (wav - wav.mean()) / (wav.var(unbiased=False) + 1e-7).sqrt()
    layers = encoder.extract_features(wav[None])[0]
    projected, _ = encoder.feature_extractor(wav[None], None)
    layers = [encoder.encoder.transformer._preprocess(encoder.encoder.feature_projection(projected))] + layers
    x = sum(weight * layer[0] for weight, layer in zip(branch.weights, layers, strict=True))
    return torch.cat([attended(branch.attn[0], x).mean(0), x.max(0).values])


def image_features(branch, images):
    """What the image branch gives for images [frames, kinds, H, H], frame by frame: [4 * head]."""
    kinds = range(images.shape[1])
    mixed = [sum(branch.weights[k] * branch.backbones[k](frame[k][None, None]) for k in kinds) for frame in images]
    maps = torch.cat(mixed, 3)
    pooled = [F.adaptive_avg_pool2d(maps, (None, 1)), F.adaptive_max_pool2d(maps, (None, 1))]
    x = torch.cat(pooled, 1)[0, :, :, 0].T
    return torch.cat([attended(branch.attn, x).mean(0), x.max(0).values])


@torch.inference_mode()
def test_score_by_hand(tiny, speech_16k):
    wav = torch.from_numpy(np.stack([speech_16k[:50_000], speech_16k[14_000:]]))
    crops = tiny.draw(np.random.RandomState(1), 2, 50_000)
    scores = tiny(wav, crops)
    assert scores.shape == (2,) and scores[0] != scores[1]
    for i in range(2):
        speech = speech_features(tiny.ssl, wav[i, crops.speech[i] : crops.speech[i] + 48_000])
        images = torch.empty(2, 2, 32, 32)
        for frame, kind in np.ndindex(2, 2):
            window = tiny.to_images.windows[kind]
            one, other = (
                tiny.to_images.image(wav[i, start : start + 22_400][None, None], window)[0, 0]
                for start in (crops.frames[i, frame], crops.partners[i, frame, kind])
            )
            share = float(crops.shares[i, frame, kind])
            images[frame, kind] = share * one + (1 - share) * other
        features = [speech, torch.zeros(10), image_features(tiny.spec_long, images), torch.zeros(10)]
        expected = torch.cat([*features, F.one_hot(torch.tensor(1), 10)]) @ tiny.fc.weight[0] + tiny.fc.bias[0]
        assert scores[i].item() == pytest.approx(expected.item(), abs=1e-4)


@torch.inference_mode()
def test_folding_changes_nothing(tiny, speech_16k):
    wav = torch.from_numpy(speech_16k)[None]
    folded = randomised(UTMOSv2(**TINY)).fold()
    crops = tiny.draw(np.random.RandomState(0), 1, wav.shape[1])
    assert folded(wav, crops).item() == pytest.approx(tiny(wav, crops).item(), abs=1e-4)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.modules())
    assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in tiny.modules()) == 2 * (1 + 1 + 2 * 2 + 2 * 3 + 1)


def test_frozen_and_in_eval_mode(tiny):
    assert not any(p.requires_grad for p in tiny.parameters())
    torch.nn.Sequential(tiny).train()
    assert not any(layer.training for layer in tiny.modules())
    with pytest.raises(UserError, match=r"wav \[B, T\].*not \[2, 1, 5\]"):
        tiny(torch.zeros(2, 1, 5), None)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["weights/utmosv2", "weights/utmosv2/fold0_s42_best_model.pth"])
def test_without_weights_it_names_the_file(tmp_path, where):
    with pytest.raises(UserError) as error:
        losses_registry["utmos"](weights=str(tmp_path / where))
    expected = f"utmos needs {tmp_path}/weights/utmosv2/fold0_s42_best_model.pth, the weights of UTMOSv2 from "
    assert str(error.value).startswith(expected + "huggingface.co/sarulab-speech/UTMOSv2")


def test_checkpoint_of_the_published_format(tiny, tmp_path, monkeypatch, speech_16k):
    monkeypatch.setattr(utmosv2, "UTMOSv2", functools.partial(UTMOSv2, **TINY))
    state = dict(tiny.state_dict())
    position = "ssl.encoder.model.encoder.pos_conv_embed.conv."
    for new, old in (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        state[position + old] = state.pop(position + new)
    path = tmp_path / utmosv2.FILE
    torch.save(state, path)
    wav = torch.from_numpy(speech_16k)[None]
    crops = tiny.draw(np.random.RandomState(0), 1, wav.shape[1])
    for weights in (tmp_path, path):
        with torch.inference_mode():
            score = utmosv2.load_utmosv2(str(weights))(wav, crops)
            assert score.item() == pytest.approx(tiny(wav, crops).item(), abs=1e-4)

    del state["fc.bias"]
    state["fc.weight"] = torch.zeros(1, 3)
    state["ssl.fc.weight"] = torch.zeros(1, 2)
    torch.save(state, path)
    with pytest.raises(UserError) as error:
        utmosv2.load_utmosv2(path)
    for part in (str(path), "missing fc.bias [1]", "left over ssl.fc.weight [1, 2]", "fc.weight has shape [1, 3]"):
        assert part in str(error.value)
    torch.save([1], path)
    with pytest.raises(UserError, match=r"not the weights of UTMOSv2"):
        utmosv2.load_utmosv2(path)
    path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"fold0_s42_best_model\.pth: not readable as a checkpoint"):
        utmosv2.load_utmosv2(path)


def test_importing_needs_no_transformers(monkeypatch):
    for name in ("transformers", "timm"):
        monkeypatch.setitem(sys.modules, name, None)  # to import it is an error
    spec = importlib.util.spec_from_file_location("utmosv2_again", utmosv2.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with pytest.raises(ImportError, match="transformers"):
        module.UTMOSv2(**TINY)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_true_shapes_run_with_gradients(full, monkeypatch, speech_48k):
    loss = loss_of(full, monkeypatch)
    wav = torch.from_numpy(speech_48k[50_000 : 50_000 + 24_576])[None, None].requires_grad_()
    torch.manual_seed(0)
    value = loss(wav_hat=wav, sample_rate=48000)
    value.backward()
    assert value.dtype == torch.float32 and value.dim() == 0 and -5 < value.item() < 0
    assert wav.grad.isfinite().all() and wav.grad.abs().max() > 0


@pytest.mark.parametrize("what", ["speech", "silence", "one sample", "nearly silence"])
def test_value_and_gradient_are_finite(tiny, monkeypatch, speech_48k, what):
    wav = {
        "speech": speech_48k[50_000 : 50_000 + 2 * 24_576].reshape(2, 1, -1),
        "silence": np.zeros((1, 1, 24_576), np.float32),
        "one sample": np.full((1, 1, 1), 0.1, np.float32),
        "nearly silence": 1e-12 * speech_48k[None, None, :24_576],
    }[what]
    wav = torch.from_numpy(wav).requires_grad_()
    value = loss_of(tiny, monkeypatch)(wav_hat=wav, sample_rate=48000)
    value.backward()
    assert -5 < value.item() < 0 and wav.grad.isfinite().all()
    if what == "speech":
        assert (wav.grad.abs().amax((1, 2)) > 0).all()


def test_value_gradient_and_chunks(tiny, monkeypatch, speech_16k):
    wav = torch.from_numpy(speech_16k[: 3 * 16_000].reshape(3, 1, -1).copy())
    results = []
    for chunk in (1, 2, 3):
        loss = loss_of(tiny, monkeypatch, chunk=chunk)
        assert loss.needs == ("wav_hat", "sample_rate")
        given = wav.clone().requires_grad_()
        torch.manual_seed(3)
        value = loss(wav_hat=given, sample_rate=16000)
        (2 * value).backward()
        torch.manual_seed(3)
        with torch.no_grad():
            assert loss(wav_hat=wav, sample_rate=16000).item() == pytest.approx(value.item(), abs=1e-6)
        results.append((value.item(), given.grad))
    # the whole batch in one graph
    given = wav.clone().requires_grad_()
    torch.manual_seed(3)
    rng = np.random.RandomState(int(torch.randint(2**31, ())))
    mos = tiny(given[:, 0], tiny.draw(rng, 3, 16_000))
    expected = -(5 / (1 + torch.exp(2.5 - mos))).mean()
    (2 * expected).backward()
    for value, gradient in results:
        assert value == pytest.approx(expected.item(), abs=1e-6)
        assert (gradient - given.grad).abs().max() < 1e-4 * given.grad.abs().max()


def test_a_step_along_the_gradient_raises_the_score(tiny, monkeypatch, speech_16k):
    loss = loss_of(tiny, monkeypatch)
    wav = torch.from_numpy(speech_16k)[None, None].requires_grad_()

    def value():
        torch.manual_seed(0)
        return loss(wav_hat=wav, sample_rate=16000)

    before = value()
    before.backward()
    with torch.no_grad():
        wav -= 1e-3 * wav.grad / wav.grad.norm()
    assert value().item() < before.item()


def test_wrong_shapes_are_told(tiny, monkeypatch):
    loss = loss_of(tiny, monkeypatch)
    for shape in ((1, 100), (1, 2, 100), (1, 1, 0)):
        with pytest.raises(UserError, match=r"utmos takes wav_hat \[B, 1, T\]"):
            loss(wav_hat=torch.zeros(shape), sample_rate=16000)
    with pytest.raises(UserError, match="chunk is a number of clips"):
        loss_of(tiny, monkeypatch, chunk=0)
