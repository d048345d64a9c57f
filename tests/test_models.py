"""Networks: any length in and out, folding, initialisation, padding, precision, and one-line errors."""

import re

import pytest
import torch
import torch.nn.functional as F

from finallyse.audio.mel import LogMel
from finallyse.audio.stft import istft, stft
from finallyse.errors import UserError
from finallyse.models import models_registry
from finallyse.models.base import Generator
from finallyse.models.complex_mask import means_of_last
from finallyse.models.hifipp import mel_interpolation
from finallyse.models.norms import fold, init_identity, norm_of, normed_layers
from support.networks import SMALL, UPSAMPLING, make_network

A2A_GENERATORS = ["a2a_hifi++_gen", "finally_gen", "finally_gen/48k"]  # HiFi++ from waveform
WAV_GENERATORS = [*A2A_GENERATORS, "complex_mask_gen"]
GENERATORS = ["hifigan_gen", "hifi++_gen", *WAV_GENERATORS]
NORMED = [name for name in GENERATORS if name != "complex_mask_gen"]  # which has layer norms only
DISCRIMINATORS = ["mpd", "msd", "ms-stft_disc"]


def build(name, **changes):
    head = UPSAMPLING if name.endswith("/48k") else {}
    name = name.removesuffix("/48k")
    return make_network(name, **(SMALL[name] | head | changes))


def inputs(model, samples, batch=1):
    torch.manual_seed(1)
    wav = 0.1 * torch.randn(batch, 1, samples)
    if model.input_kind == "mel":
        return (torch.randn(batch, 80, samples) - 5,)
    if model.input_kind == "wav":
        return (wav,)
    return (wav, torch.randn(batch, model.ssl_dim, max(1, (samples - 80) // 320)))


@pytest.mark.parametrize("samples", [1, 2, 255, 1024, 1025, 5000])
@pytest.mark.parametrize("name", WAV_GENERATORS)
def test_as_many_samples_out_as_in(name, samples):
    model = build(name)
    factor = model.output_rate // model.input_rate
    assert factor == (3 if name.endswith("48k") else 1)
    wav = model(*inputs(model, samples, batch=2))
    assert wav.shape == (2, 1, factor * samples)
    assert wav.isfinite().all()


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("name", ["hifigan_gen", "hifi++_gen"])
def test_a_hop_of_samples_for_each_frame(name, frames):
    assert build(name)(torch.randn(2, 80, frames)).shape == (2, 1, 256 * frames)


@pytest.mark.parametrize("samples", [1, 2, 11, 1000])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminators_take_any_length(name, samples):
    logits, feature_maps = build(name)(torch.randn(2, 1, samples))
    assert len(logits) == len(feature_maps) == (3 if name == "msd" else 2)
    assert all(x.isfinite().all() for x in logits)


def test_ten_minutes():
    narrow = {"hifi_upsample_rates": [16, 16], "hifi_upsample_kernel_sizes": [16, 16], "hifi_input_channels": 80}
    narrow |= {"hifi_upsample_initial_channel": 4, "hifi_resblock_kernel_sizes": [3], "use_spectralunet": False}
    narrow |= {"hifi_resblock_dilation_sizes": [[1]], "hifi_resblock": "2", "use_waveunet": False}
    narrow |= {"spectralmasknet_block_widths": [1], "spectralmasknet_block_depth": 0}
    model = build("a2a_hifi++_gen", **narrow).eval()
    with torch.inference_mode():
        assert model(*inputs(model, 9_600_000)).shape == (1, 1, 9_600_000)


@pytest.mark.parametrize("name", GENERATORS)
def test_silence_is_finite(name):
    model = build(name)
    output = model(*(torch.zeros_like(x) for x in inputs(model, 20 if model.input_kind == "mel" else 3000)))
    output.square().sum().backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", [*NORMED, *DISCRIMINATORS])
def test_folding_keeps_the_output_and_counts(name):
    model = build(name)
    x = inputs(model, 40) if name in GENERATORS else (torch.randn(1, 1, 3000),)
    model(*x)  # a training pass, so that spectral norms have moved from their start
    model.eval()
    count = len(normed_layers(model))
    with torch.no_grad():
        before = model(*x)
        assert fold(model) == count > 0
        after = model(*x)
    for got, want in zip(torch.utils._pytree.tree_leaves(after), torch.utils._pytree.tree_leaves(before), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert not normed_layers(model)
    assert all("parametrizations" not in key for key in model.state_dict())
    assert fold(model) == 0  # it is folded already


@pytest.mark.parametrize("norm_type", ["weight", "spectral"])
def test_identity_initialisation_survives_the_norm(norm_type):
    conv = init_identity(norm_of(norm_type)(torch.nn.Conv1d(8, 8, 1)))
    x = torch.randn(2, 8, 50)
    torch.testing.assert_close(conv(x), x)
    optimizer = torch.optim.SGD(conv.parameters(), lr=1e-6)
    conv(x).square().sum().backward()
    optimizer.step()  # the first update starts from the identity, too
    torch.testing.assert_close(conv(x), x, atol=1e-2, rtol=1e-2)


def test_skip_connections_start_as_the_identity():
    model = build("a2a_hifi++_gen")
    x = torch.randn(1, model.hifi.out_channels, 64)
    for skip in (model.waveunet_skip_connect, model.spectralmasknet_skip_connect):
        torch.testing.assert_close(skip(x), x)


def test_hifigan_starts_as_the_published_network_does(speech_16k):
    """Figures of the published code, whose N(0, 0.01) is lost to the weight norm."""
    torch.manual_seed(0)
    model = models_registry["hifigan_gen"]()
    published = {"ups.3": 0.051, "resblocks.11.convs1.0": 0.031, "conv_post": 0.038}
    for name, std in published.items():
        assert model.get_submodule(name).weight.std().item() == pytest.approx(std, rel=0.1), name
    wav = torch.from_numpy(speech_16k)[None]
    with torch.no_grad():
        output = model(LogMel()(0.95 * wav / wav.abs().max()))
    assert output.std().item() == pytest.approx(0.0113, rel=0.5)


@pytest.mark.parametrize("name", [*NORMED, *DISCRIMINATORS])
def test_every_layer_but_the_skip_connections_starts_from_pytorchs_default(name):
    """std of U(-1/sqrt(fan in), 1/sqrt(fan in)) is 1/sqrt(3 fan in); spectral norm then divides the weight."""
    checked = 0
    for part, layer in build(name).named_modules():
        if not isinstance(layer, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.ConvTranspose1d)) or "skip" in part:
            continue
        norm = getattr(getattr(layer, "parametrizations", None), "weight", [None])[0]
        weight = layer.parametrizations.weight.original if "Spectral" in type(norm).__name__ else layer.weight
        if weight.numel() >= 256:
            want = (3 * weight[0].numel()) ** -0.5
            assert weight.std().item() == pytest.approx(want, rel=0.2), part
            checked += 1
    assert checked >= 2


@pytest.mark.parametrize("name", A2A_GENERATORS)
@pytest.mark.parametrize("changes", [{}, {"use_spectralmasknet": False}, {"waveunet_before_spectralmasknet": False}])
def test_identity_start(name, changes):
    model = build(name, identity_start=True, **changes)
    wav, *ssl = inputs(model, 5000, batch=2)
    start = torch.tanh(wav).repeat_interleave(model.output_rate // model.input_rate, dim=-1)
    torch.testing.assert_close(model(wav, *ssl), start, atol=1e-5, rtol=0)
    assert (build(name, **changes)(wav, *ssl) - start).abs().mean() > 0.01
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):  # what was silenced at first learns all the same, and all that feeds it then
        optimizer.zero_grad()
        (model(wav, *ssl) - 0.5 * start).square().mean().backward()
        optimizer.step()
    silent = [part for part, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("changes, named", [({"use_skip_connect": False}, "use_skip_connect"),
                                            ({"waveunet_input": "hifi"}, "waveunet_input"),
                                            ({"norm_type": "spectral"}, "norm_type")])  # fmt: skip
def test_identity_start_where_there_is_no_way_through(changes, named):
    with pytest.raises(UserError, match=named):
        build("a2a_hifi++_gen", identity_start=True, **changes)


@pytest.mark.parametrize("net", ["use_waveunet", "use_spectralmasknet"])
@pytest.mark.parametrize("name", ["hifi++_gen", "a2a_hifi++_gen"])
def test_both_skip_connections_are_there_without_their_net(name, net):
    """As in published checkpoints of such networks, which therefore load."""
    whole, part = build(name), build(name, **{net: False})
    skips = {key for key in whole.state_dict() if "skip_connect" in key}
    assert len(skips) == 6 and skips <= part.state_dict().keys()
    unused = part.waveunet_skip_connect if net == "use_waveunet" else part.spectralmasknet_skip_connect
    assert not any(p.requires_grad for p in unused.parameters())


@pytest.mark.parametrize("name", ["hifi++_gen", "a2a_hifi++_gen", "finally_gen"])
def test_time_padding_matters_only_off_the_powers_of_two(name):
    multiple, published = build(name).eval(), build(name, time_padding="power_of_two").eval()
    published.load_state_dict(multiple.state_dict())
    frames = 1 if multiple.input_kind == "mel" else 256
    with torch.no_grad():
        for count, same in {32: True, 64: True, 40: False}.items():
            x = inputs(multiple, count * frames)
            assert torch.equal(multiple(*x), published(*x)) == same
    assert multiple.spectralunet.padded_frames(313) == 320
    assert published.spectralunet.padded_frames(313) == 512
    assert published.spectralunet.padded_frames(1) == 16


def test_features_stay_aligned_whatever_the_length():
    """A clip and the same clip cut a few samples shorter read the same feature at the same time."""
    model = build("finally_gen")
    ssl = torch.arange(25.0).expand(1, 24, 25)
    whole = model.align(ssl, 8192, 32)
    torch.testing.assert_close(whole, F.interpolate(ssl, size=32, mode="nearest"))
    cut = model.align(ssl, 5110, 20)  # padded to 5120 samples: all 20 frames hold the clip
    torch.testing.assert_close(cut, F.interpolate(ssl, size=20, mode="nearest"))
    padded = model.align(ssl, 4200, 20)  # padded to 5120: the last 3 frames are padding
    torch.testing.assert_close(padded[..., :17], F.interpolate(ssl, size=17, mode="nearest"))
    assert (padded[..., 17:] == padded[..., 16:17]).all()


def test_the_complex_mask_starts_as_the_identity_but_for_the_constant_part():
    model = models_registry["complex_mask_gen"](**SMALL["complex_mask_gen"])
    wav = 0.1 * torch.randn(2, 1, 5000)
    spectrum = stft(wav[:, 0], 1024, 256, center=True)
    spectrum[:, 0] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(wav)[:, 0], istft(spectrum, 1024, 256, 5000), atol=1e-6, rtol=1e-5)


def test_the_complex_mask_cannot_more_than_double_a_bin():
    model = build("complex_mask_gen")
    torch.nn.init.normal_(model.last.bias, std=100.0)
    wav = torch.randn(1, 1, 5000)
    mask = model.mask(torch.view_as_real(stft(wav[:, 0], 1024, 256, center=True).transpose(1, 2)[..., 1:]))
    assert mask.shape == (1, 20, 512, 2)
    assert 1.9 < mask.square().sum(-1).sqrt().max() <= 2 + 1e-6


@pytest.mark.parametrize("n_fft", [1024, 512])
def test_the_complex_mask_looks_ahead_as_far_as_its_blocks_say(n_fft):
    """Two of its four blocks see 1 and 2 frames to either side, the others 2 and 4 frames back, and what they see are
    means of up to 4 frames. The windows are seen as a whole, and those with a sample in them begin or end up to a
    window, less one sample, from it."""
    model = build("complex_mask_gen", n_fft=n_fft).eval()
    wav = torch.randn(1, 1, 20480, requires_grad=True)
    middle, hop = 10240, n_fft // 4
    ahead, back = (1 + 2) * hop + n_fft, (3 + 2 + 4 + 3) * hop
    (gradient,) = torch.autograd.grad(model(wav)[0, 0, middle].square(), wav)
    touched = gradient[0, 0].nonzero()[:, 0]
    assert middle + ahead - n_fft // 2 < touched.max() < middle + ahead
    assert middle - back - n_fft < touched.min() < middle - back
    assert (model.reach_back, model.reach_ahead) == (back + n_fft // 2, 3 * hop + n_fft // 2)
    assert model.alignment % hop == 0


@pytest.mark.parametrize("frames", [1, 3, 40])
def test_means_of_the_last_frames_that_there_are(frames):
    x = torch.rand(2, frames, 5)
    for count, means in zip((2, 4, 16), means_of_last(x, [2, 4, 16]), strict=True):
        expected = [x[:, max(0, k + 1 - count) : k + 1].mean(1) for k in range(frames)]
        torch.testing.assert_close(means, torch.stack(expected, 1))
    assert means_of_last(x, []) == []


@pytest.mark.parametrize("changes, named", [({"patch": 3}, "patch=3 with 3 layers"), ({"channels": []}, "0 layers"),
                                            ({"channels": [4] * 9}, "9 layers"), ({"dilations": []}, "dilations"),
                                            ({"dilations": [1, 0]}, "dilations"), ({"width": 0}, "width=0"),
                                            ({"channels": [4, 0, 4]}, "channels=[4, 0, 4]"),
                                            ({"hidden": -1}, "hidden=-1"), ({"blocks_ahead": 5}, "blocks_ahead=5"),
                                            ({"blocks_ahead": -1}, "blocks_ahead=-1"),
                                            ({"means": [3]}, "means=[3]"), ({"means": [4, 2]}, "rising"),
                                            ({"means": [1]}, "powers of two"), ({"n_fft": 1000}, "n_fft=1000"),
                                            ({"n_fft": 0}, "n_fft=0"),
                                            ({"n_fft": 128, "patch": 32}, "must divide 64")])  # fmt: skip
def test_wrong_arguments_of_the_complex_mask(changes, named):
    with pytest.raises(UserError, match=rf"^complex_mask_gen: .*{re.escape(named)}"):
        build("complex_mask_gen", **changes)


def test_mel_interpolation_weighs_neighbouring_bands():
    matrix = mel_interpolation()
    assert matrix.shape == (513, 80)
    inner = matrix[40:480].sum(1)
    torch.testing.assert_close(inner, torch.ones_like(inner))
    assert ((matrix > 0).sum(1) <= 2).all()


@pytest.mark.parametrize("name", GENERATORS)
def test_output_is_float32_under_autocast(name):
    model = build(name)
    x = inputs(model, 2048 if model.input_kind != "mel" else 8)
    with torch.no_grad():
        exact = model(*x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(*x)
    assert low.dtype == torch.float32
    assert (low - exact).abs().max() < 0.05


def test_unused_output_convolution_is_frozen():
    assert not any(p.requires_grad for p in build("finally_gen/48k").conv_post.parameters())
    assert all(p.requires_grad for p in build("finally_gen").parameters())


@pytest.mark.parametrize("name", [*GENERATORS, *DISCRIMINATORS])
def test_wrong_shapes_are_one_line_errors(name):
    model = build(name)
    right = inputs(model, 100) if name in GENERATORS else (torch.zeros(1, 1, 100),)
    for wrong in (
        right[0][0],
        right[0].squeeze(1).unsqueeze(0).unsqueeze(0),
        right[0][..., :0],
        right[0].repeat(1, 2, 1),
    ):
        with pytest.raises(UserError, match=r"takes .*\[B, (1|80), (T|F)\].* not \[") as error:
            model(wrong, *right[1:])
        assert "\n" not in str(error.value)


def test_wrong_features_are_one_line_errors():
    model = build("finally_gen")
    with pytest.raises(UserError, match=r"ssl features \[B, 24, N\].* not \[1, 23, 5\]"):
        model(torch.zeros(1, 1, 2000), torch.zeros(1, 23, 5))


def test_unknown_arguments_name_the_nearest():
    with pytest.raises(UserError, match="did you mean 'upsample_rates'"):
        models_registry["hifigan_gen"](upsample_rate=[8])


@pytest.mark.parametrize("name", ["hifigan_gen", "hifi++_gen", "a2a_hifi++_gen", "complex_mask_gen", "finally_gen"])
def test_an_output_does_not_depend_on_where_a_clip_begins_on_the_alignment(name):
    """Cut a clip at a multiple of `alignment`: away from the cut, the output is that of the whole clip."""
    model = build(name)
    step = model.alignment * -(-4096 // model.alignment)  # far enough to be out of the cut's reach
    hop = 256 if model.input_kind == "mel" else 1
    clip = inputs(model, 6 * step // hop)
    cut = [clip[0][..., 2 * step // hop :]]
    if len(clip) > 1:
        frames = clip[1].shape[-1]
        clip[1][...] = 0.1  # its frames need not fall on the cut
        cut.append(clip[1][..., : -(-frames * 4 // 6)])
    with torch.no_grad():
        whole, part = model(*clip), model(*cut)
    factor = model.output_rate // model.input_rate
    last = slice(3 * step * factor, 4 * step * factor)
    difference = part[..., last] - whole[..., 2 * step * factor :][..., last]
    assert difference.square().mean() < 1e-6 * whole.square().mean()


def test_a_generator_must_say_what_it_takes_and_its_alignment():
    with pytest.raises(TypeError, match=r"Mine\.input_kind: must be one of mel, wav, wav\+ssl"):
        type("Mine", (Generator,), {"alignment": 1})
    with pytest.raises(TypeError, match=r"Mine\.alignment: is needed"):
        type("Mine", (Generator,), {"input_kind": "wav"})
    assert type("Mine", (Generator,), {"input_kind": "wav", "alignment": 1}).output_rate == 16000
