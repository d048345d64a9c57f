"""Losses: their definitions, PESQ against torch-pesq and ITU's score, silence, any length, and one-line errors."""

import importlib.util
import warnings

import numpy as np
import pytest
import torch

import finallyse.audio.torchaudio_shim  # noqa: F401  before torch_pesq, which imports torchaudio
from finallyse.audio.mel import LogMel
from finallyse.config import read_yaml
from finallyse.errors import UserError
from finallyse.losses import losses_registry
from finallyse.losses.resampling import to_16k
from finallyse.models.wavlm import WavLM
from support.networks import make_wavlm


def noisy(wav, amount, seed=0):
    return wav + amount * torch.randn(wav.shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip(speech_16k):
    return torch.from_numpy(speech_16k)[None, None]


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavlm") / "small"
    make_wavlm(folder)
    return WavLM(folder)


def test_adversarial_losses_are_least_squares_summed_over_discriminators():
    real, fake = [torch.randn(2, 9), torch.randn(2, 1, 3, 4)], [torch.randn(2, 9), torch.randn(2, 1, 3, 4)]
    generator = losses_registry["gen_loss"]()(logits_fake=fake)
    torch.testing.assert_close(generator, sum(((1 - x) ** 2).mean() for x in fake))
    discriminator = losses_registry["disc_loss"]()(logits_real=real, logits_fake=fake)
    want = sum(((1 - r) ** 2).mean() + (f**2).mean() for r, f in zip(real, fake, strict=True))
    torch.testing.assert_close(discriminator, want)


def test_feature_loss_and_its_relative_form():
    real = [[torch.randn(2, 4, 9, requires_grad=True)], [torch.randn(2, 3, 5), torch.randn(2, 3, 2)]]
    fake = [[torch.randn_like(x).requires_grad_() for x in maps] for maps in real]
    pairs = [(r, f) for rs, fs in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True)]
    loss = losses_registry["feature_loss"]()(fmaps_real=real, fmaps_fake=fake)
    torch.testing.assert_close(loss, sum((r - f).abs().mean() for r, f in pairs))
    loss.backward()
    assert real[0][0].grad is None and fake[0][0].grad.abs().sum() > 0
    relative = losses_registry["feature_loss"](relative=True)(fmaps_real=real, fmaps_fake=fake)
    torch.testing.assert_close(relative, sum((r - f).abs().mean() / r.abs().mean() for r, f in pairs))
    for form in ({}, {"relative": True}):
        whole, mean = (
            losses_registry["feature_loss"](**form, reduction=reduction)(fmaps_real=real, fmaps_fake=fake)
            for reduction in ("sum", "mean")
        )
        torch.testing.assert_close(mean, whole / 3)


def test_l1_wav_loss(clip):
    loss = losses_registry["l1_wav_loss"]()
    torch.testing.assert_close(loss(wav=clip, wav_hat=0.5 * clip), 0.5 * clip.abs().mean())


def test_level_loss(clip):
    loss = losses_registry["level_loss"]()
    pair = torch.cat([clip, clip])
    gains = torch.tensor([0.5, 1.0]).view(2, 1, 1)
    value = loss(wav=pair, wav_hat=gains * pair)
    assert value.item() == pytest.approx(20 * np.log10(2) / 2, rel=1e-3)
    silent = torch.zeros_like(clip, requires_grad=True)
    loss(wav=clip, wav_hat=silent).backward()
    assert silent.grad.isfinite().all()
    assert loss(wav=silent, wav_hat=silent) == 0


def test_snr_loss(clip):
    loss = losses_registry["snr_loss"](max_snr_db=20.0)
    for gain, level in ((0.5, 1.0), (0.5, 0.1), (0.0, 1.0)):  # errors of 25 % and 100 % of the power, at any level
        want = 10 * np.log10((1 - gain) ** 2 + 0.01)
        assert loss(wav=level * clip, wav_hat=gain * level * clip).item() == pytest.approx(want, abs=0.02)
    assert loss(wav=clip, wav_hat=clip).item() == pytest.approx(-20)
    pair = torch.cat([clip, 0.1 * clip])
    assert loss(wav=pair, wav_hat=0.5 * pair).item() == pytest.approx(10 * np.log10(0.26), abs=0.1)
    silent = torch.zeros_like(clip, requires_grad=True)
    loss(wav=silent.detach(), wav_hat=silent).backward()
    assert silent.grad.isfinite().all()


def test_a_relative_stft_loss_depends_on_no_common_gain(clip):
    hat = noisy(clip, 0.01)
    relative, absolute = losses_registry["stft_loss"](relative=True), losses_registry["stft_loss"]()
    assert relative(wav=0.1 * clip, wav_hat=0.1 * hat).item() == pytest.approx(
        relative(wav=clip, wav_hat=hat).item(), rel=0.01
    )
    gain = clip.square().mean().rsqrt()
    torch.testing.assert_close(
        relative(wav=clip, wav_hat=hat), absolute(wav=gain * clip, wav_hat=gain * hat), rtol=1e-3, atol=0
    )
    silent = torch.zeros_like(clip, requires_grad=True)
    relative(wav=silent.detach(), wav_hat=silent).backward()
    assert silent.grad.isfinite().all()


def test_stft_loss_is_its_definition(clip):
    """Against SciPy's transform."""
    import scipy.signal

    hat = noisy(clip, 0.01)
    n_fft, c, weight = 512, 0.4, 0.25
    pair = []
    for wav in (clip, hat):
        padded = np.pad(wav[0, 0].double().numpy(), n_fft // 2, mode="reflect")
        window = scipy.signal.windows.hann(n_fft, sym=False)
        frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[:: n_fft // 4]
        spectrum = np.fft.rfft(frames * window) / np.sqrt((window**2).sum())
        power = np.abs(spectrum) ** 2 + 1e-8
        pair.append((spectrum * power ** ((c - 1) / 2), power ** (c / 2)))
    (want, want_size), (got, got_size) = pair
    value = weight * np.mean(np.abs(got - want) ** 2) + (1 - weight) * np.mean((got_size - want_size) ** 2)
    loss = losses_registry["stft_loss"](n_ffts=[n_fft], compression=c, complex_weight=weight)
    assert loss(wav=clip, wav_hat=hat).item() == pytest.approx(value, rel=1e-4)
    both = losses_registry["stft_loss"](n_ffts=[n_fft, 128], compression=c, complex_weight=weight)
    other = losses_registry["stft_loss"](n_ffts=[128], compression=c, complex_weight=weight)
    torch.testing.assert_close(
        both(wav=clip, wav_hat=hat), (loss(wav=clip, wav_hat=hat) + other(wav=clip, wav_hat=hat)) / 2
    )


def test_stft_loss_on_silence_and_with_wrong_arguments(clip):
    hat = torch.zeros_like(clip, requires_grad=True)
    loss = losses_registry["stft_loss"]()
    loss(wav=clip, wav_hat=hat).backward()
    assert hat.grad.isfinite().all()
    assert loss(wav=clip, wav_hat=clip) == 0
    for wrong, named in (({"compression": 0.0}, "compression"), ({"n_ffts": [510]}, "n_ffts")):
        with pytest.raises(UserError, match=named):
            losses_registry["stft_loss"](**wrong)


def test_log_stft_loss_is_its_definition_and_depends_on_no_common_gain(clip):
    """Against SciPy's transform: mean |log magnitude| in nepers, of clips whose target has a root mean square of 1."""
    import scipy.signal

    hat = noisy(clip, 0.01)
    gain = clip.square().mean().rsqrt()
    powers = []
    for wav in (gain * clip, gain * hat):
        padded = np.pad(wav[0, 0].double().numpy(), 256, mode="reflect")
        window = scipy.signal.windows.hann(512, sym=False)
        frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::128]
        powers.append(np.abs(np.fft.rfft(frames * window)) ** 2 / (window**2).sum())
    want, got = (np.log(power + 1e-4) / 2 for power in powers)
    loss = losses_registry["log_stft_loss"](floor_db=-40)
    value = loss(wav=clip, wav_hat=hat).item()
    assert value == pytest.approx(np.abs(got - want).mean(), rel=1e-4)
    assert loss(wav=0.1 * clip, wav_hat=0.1 * hat).item() == pytest.approx(value, rel=0.01)


def test_log_stft_loss_hears_noise_between_words(clip):
    """Noise of -40 dB: in a pause it counts more than within speech; for the ratio of signal to noise, the same."""
    speech = torch.cat([clip, torch.zeros_like(clip)], -1)
    hiss = 0.01 * clip.square().mean().sqrt() * torch.randn_like(clip)
    in_pause = torch.cat([clip, hiss], -1)
    in_speech = torch.cat([clip + hiss, torch.zeros_like(clip)], -1)
    log, snr = losses_registry["log_stft_loss"](), losses_registry["snr_loss"]()
    assert log(wav=speech, wav_hat=in_pause) > 2 * log(wav=speech, wav_hat=in_speech)
    assert snr(wav=speech, wav_hat=in_pause).item() == pytest.approx(snr(wav=speech, wav_hat=in_speech).item(), abs=0.2)


def test_log_stft_loss_on_silence_and_with_wrong_arguments(clip):
    loss = losses_registry["log_stft_loss"]()
    for want in (clip, torch.zeros_like(clip)):
        hat = torch.zeros_like(clip, requires_grad=True)
        loss(wav=want, wav_hat=hat).backward()
        assert hat.grad.isfinite().all()
    assert loss(wav=clip, wav_hat=clip) == 0
    for wrong, named in (
        ({"n_fft": 510}, "n_fft=510"),
        ({"floor_db": 0.0}, "floor_db=0.0"),
        ({"floor_db": -200}, "-200"),
    ):
        with pytest.raises(UserError, match=named):
            losses_registry["log_stft_loss"](**wrong)


def test_l1_mel_loss(clip):
    hat = noisy(clip, 0.01)
    mel = LogMel(fmax=None)
    want = (mel(hat) - mel(clip)).abs().mean()
    loss = losses_registry["l1_mel_loss"]()
    assert loss.needs == ("wav", "wav_hat", "sample_rate")
    torch.testing.assert_close(loss(wav=clip, wav_hat=hat, sample_rate=16000), want)
    ready = losses_registry["l1_mel_loss"](target="mel_for_loss")
    assert ready.needs == ("mel_for_loss", "wav_hat", "sample_rate")
    torch.testing.assert_close(ready(mel_for_loss=mel(clip), wav_hat=hat, sample_rate=16000), want)
    with pytest.raises(UserError, match="differ in length"):
        loss(wav=clip, wav_hat=hat[..., :-512], sample_rate=16000)


@pytest.mark.parametrize("rate", [16000, 48000])
def test_lmos_is_its_definition(wavlm, clip, rate):
    wav = clip[..., : rate // 4]
    hat = noisy(wav, 0.01).requires_grad_()
    window = torch.hann_window(1024)

    def definition(*pair):
        low = [to_16k(x, rate)[:, 0] for x in pair]
        assert low[0].shape == (1, 4000)
        features = (wavlm.conv_features(low[0]) - wavlm.conv_features(low[1])).square().mean()
        magnitudes = [torch.stft(x[:, 0], 1024, 256, window=window, return_complex=True).abs() for x in pair]
        return 100 * features + (magnitudes[0] - magnitudes[1]).abs().mean()

    deviation, mean = (wav.var(correction=0) + 1e-7).sqrt(), wav.mean()  # of the target, for both
    loss = losses_registry["lmos"]()(wav=wav, wav_hat=hat, sample_rate=rate, wavlm=wavlm)
    torch.testing.assert_close(
        loss, definition((wav - mean) / deviation, (hat - mean) / deviation), rtol=1e-4, atol=1e-4
    )
    loss.backward()
    assert hat.grad.isfinite().all() and hat.grad.abs().sum() > 0
    raw = losses_registry["lmos"](features="raw")(wav=wav, wav_hat=hat, sample_rate=rate, wavlm=wavlm)
    assert raw != loss
    plain = losses_registry["lmos"](normalise="none")(wav=wav, wav_hat=hat, sample_rate=rate, wavlm=wavlm)
    torch.testing.assert_close(plain, definition(wav, hat), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalise", ["target", "none"])
def test_lmos_hears_the_level_through_wavlm(wavlm, clip, normalise):
    """A clean clip costs the more the further it is from the target's level, in the feature term, too."""
    with_features, without = (losses_registry["lmos"](feature_weight=w, normalise=normalise) for w in (100.0, 0.0))
    costs = []
    for decibels in (0, -1, -3, -6, -20, -40):
        inputs = dict(wav=clip, wav_hat=10 ** (decibels / 20) * clip, sample_rate=16000, wavlm=wavlm)
        costs.append((with_features(**inputs) - without(**inputs)).item())
    assert costs[0] == 0 and costs == sorted(costs)
    noise = dict(wav=clip, wav_hat=noisy(clip, 0.01), sample_rate=16000, wavlm=wavlm)
    assert costs[4] > 0.01 * (with_features(**noise) - without(**noise)).item()


def test_lmos_leaves_audio_as_it_is_for_a_wavlm_that_takes_it_so(tmp_path, clip):
    make_wavlm(tmp_path / "plain", normalize=False)
    inputs = dict(wav=clip, wav_hat=noisy(clip, 0.01), sample_rate=16000, wavlm=WavLM(tmp_path / "plain"))
    target, none = (losses_registry["lmos"](normalise=normalise)(**inputs) for normalise in ("target", "none"))
    assert target == none


def test_losses_say_whether_they_see_the_level(wavlm, clip):
    """At half its level a loss that sees it is as far from its least value as for another sound; a blind one is not."""
    for name in ("l1_mel_loss", "lmos", "pesq"):
        loss = losses_registry[name]()
        given = {"wav": clip, "sample_rate": 16000, "wavlm": wavlm}
        values = []
        for hat in (clip, 0.5 * clip):
            values.append(float(loss(**{need: (given | {"wav_hat": hat})[need] for need in loss.needs})))
        assert loss.sees_level == (values[1] - values[0] > 1e-2), name
    told = {name: losses_registry[name].sees_level for name in ("gen_loss", "disc_loss", "feature_loss", "utmos")}
    assert told == {"gen_loss": False, "disc_loss": False, "feature_loss": True, "utmos": False}


@pytest.mark.parametrize("samples, amount", [(8192, 0.001), (8192, 0.1), (9001, 0.01)])
def test_pesq_equals_torch_pesq(root, clip, samples, amount):
    import torch_pesq

    wav = clip[..., 8000 : 8000 + samples]
    hat = noisy(wav, amount)
    reference = torch_pesq.PesqLoss(1.0, sample_rate=16000).double()  # in float32 its recursion loses three digits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        symmetric, asymmetric = reference.raw(wav[0].double(), hat[0].double())
    want = (0.1 * symmetric + 0.0309 * asymmetric).item()
    loss = losses_registry["pesq"]()
    assert loss(wav=wav, wav_hat=hat, sample_rate=16000).item() == pytest.approx(want, rel=5e-6)
    # what stage 3's recipe minimises is the published 2 times torch-pesq's loss with its factor of 0.5
    recipe = read_yaml(root / "config" / "experiments" / "finally_stage3.yaml")
    assert recipe["losses"]["generator"]["pesq"]["weight"] * want == pytest.approx(2 * 0.5 * want)
    mos = 0.999 + 4 / (1 + np.exp(-1.3669 * (4.5 - want) + 3.8224))
    assert loss.mos(wav, hat, 16000).item() == pytest.approx(mos, rel=5e-6)


def test_pesq_loss_falls_as_quality_rises_and_ranks_as_itu_does(root, speech):
    spec = importlib.util.spec_from_file_location("benchmarks_losses", root / "benchmarks" / "losses.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    scores = benchmark.score(benchmark.degraded_clips(speech[0].parent, count=3, seconds=2.0))
    assert len(scores) >= 40
    assert benchmark.rank_correlation(scores) > 0.97
    for kind, strengths in benchmark.STRENGTHS.items():
        means = [np.mean([loss for k, s, loss, _ in scores if (k, s) == (kind, strength)]) for strength in strengths]
        assert means == sorted(means), f"{kind}: the loss must rise with the degradation, {means}"


def test_a_step_down_the_pesq_loss_improves_itu_pesq(clip):
    import pesq

    wav = clip[..., :32000]
    hat = noisy(wav, 0.01).requires_grad_()
    loss = losses_registry["pesq"]()
    before = pesq.pesq(16000, wav.flatten().numpy(), hat.detach().flatten().numpy(), "wb")
    optimizer = torch.optim.Adam([hat], lr=5e-4)
    for _ in range(10):
        optimizer.zero_grad()
        loss(wav=wav, wav_hat=hat, sample_rate=16000).backward()
        optimizer.step()
    assert pesq.pesq(16000, wav.flatten().numpy(), hat.detach().flatten().numpy(), "wb") > before + 0.1


def test_pesq_gradient_is_that_of_finite_differences(clip):
    wav = clip[..., 8000:16000].double()
    hat = noisy(wav, 0.02).requires_grad_()
    loss = losses_registry["pesq"]()
    loss(wav=wav, wav_hat=hat, sample_rate=16000).backward()
    direction = 1e-3 * noisy(torch.zeros_like(wav), 1.0, seed=1)
    with torch.no_grad():
        ends = [loss(wav=wav, wav_hat=hat + sign * direction, sample_rate=16000) for sign in (-1, 1)]
    assert ((ends[1] - ends[0]) / 2).item() == pytest.approx((hat.grad * direction).sum().item(), rel=0.05, abs=2e-4)


@pytest.mark.parametrize("name", ["l1_mel_loss", "pesq", "lmos"])
@pytest.mark.parametrize("rate, samples", [(16000, 1), (16000, 700), (48000, 1), (16000, 8192)])
def test_finite_on_silence_and_on_any_length(wavlm, name, rate, samples):
    loss = losses_registry[name]()
    sound = 0.1 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(0))
    for wav in (torch.zeros_like(sound), sound):
        for hat in (torch.zeros_like(sound), sound.clone(), noisy(sound, 0.1)):
            hat.requires_grad_()
            given = {"wav": wav, "wav_hat": hat, "sample_rate": rate, "wavlm": wavlm}
            value = loss(**{need: given[need] for need in loss.needs})
            value.backward()
            assert value.isfinite() and hat.grad.isfinite().all()


@pytest.mark.parametrize("name", ["l1_mel_loss", "pesq", "lmos"])
def test_float32_under_autocast(wavlm, clip, name):
    loss = losses_registry[name]()
    given = {"wav": clip, "wav_hat": noisy(clip, 0.01), "sample_rate": 16000, "wavlm": wavlm}
    given = {need: given[need] for need in loss.needs}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = loss(**given)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, loss(**given))


def test_pesq_of_different_shapes_is_a_one_line_error():
    with pytest.raises(UserError, match=r"one shape, not \[1, 1, 100\] and \[1, 1, 99\]"):
        losses_registry["pesq"]()(wav=torch.zeros(1, 1, 100), wav_hat=torch.zeros(1, 1, 99), sample_rate=16000)
