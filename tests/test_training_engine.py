"""The six trainers under the engine: resuming, stages, microbatches, bad steps, what is written."""

from __future__ import annotations

import csv
import importlib
import logging
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from finallyse.audio.io import read
from finallyse.audio.mel import LogMel
from finallyse.datasets.degraded import AugmentedLibriTTS
from finallyse.errors import TemporaryError, UserError
from finallyse.hardware import processor
from finallyse.models.checkpoint import load_checkpoint
from finallyse.training import debugging
from finallyse.training.batches import Batch, collate
from finallyse.training.criteria import Criteria
from finallyse.training.distributed import Group
from finallyse.training.engine import TRY_AGAIN, Run, train
from finallyse.training.sampling import Order
from finallyse.training.state import StateFolder
from finallyse.training.trainers import BaseTrainer
from finallyse.training.validation import Best, InTraining
from support.speech import read_speech
from support.training import (
    CLIPS,
    ONE_OF_EACH_TRAINER,
    assert_same_bits,
    checkpoint,
    experiment,
    history,
    prepare_resources,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def resources(tmp_path_factory) -> Path:
    return prepare_resources(tmp_path_factory.mktemp("resources"))


# ---------------------------------------------------------------------------------------------------------- resuming


class Interrupted(BaseException):
    """Stands for a kill: nothing of ours may catch it."""


def after_step(monkeypatch, step: int, do) -> None:
    """Call `do` when `step` has been made and nothing about it has been written yet."""
    original = Run.after

    def after(self, made, *arguments):
        if made == step:
            do()
        original(self, made, *arguments)

    monkeypatch.setattr(Run, "after", after)


def die() -> None:
    raise Interrupted


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("network", ONE_OF_EACH_TRAINER)
def test_a_killed_run_ends_as_one_never_killed(network, resources, tmp_path, monkeypatch):
    options = {"train__steps": 4, "train__checkpoint_step": 2, "train__clip__mode": "quantile"}
    options |= {"generator__ema_decay": 0.9, "data__num_workers": 2 if network == "hifigan" else 0}
    options |= {"generator__optimizer__name": "adamw" if network == "hifigan" else "muon"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(experiment(network, resources, whole, **options)) == 0
    for kill in (1, 4):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            after_step(patch, kill, die)
            train(experiment(network, resources, broken, **options))
    assert train(experiment(network, resources, broken, **options)) == 0
    assert_same_bits(checkpoint(whole, network), checkpoint(broken, network))
    assert history(whole, network) == history(broken, network)
    assert [row["step"] for row in history(broken, network)] == [1, 2, 3, 4]
    written = load_checkpoint(broken / f"{network}.ckpt")
    assert written.devices == {processor(): 4}
    assert written.level == (None if network.startswith("finally") else {"peak": 0.95})


@pytest.fixture(scope="module")
def finished(resources, tmp_path_factory) -> Path:
    """Results of a run of four steps of stage 1, saved after each two."""
    results = tmp_path_factory.mktemp("finished")
    assert train(stage1(resources, results)) == 0
    return results


def stage1(resources: Path, results: Path, **changes) -> dict:
    small = {"train__steps": 4, "train__checkpoint_step": 2, "train__log_step": 2}
    return experiment("finally_stage1", resources, results, **(small | changes))


def test_sigterm_saves_and_asks_for_another_start(resources, finished, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        after_step(patch, 3, terminate)
        handler = signal.getsignal(signal.SIGTERM)
        assert train(stage1(resources, tmp_path)) == TRY_AGAIN
        assert signal.getsignal(signal.SIGTERM) == handler
    assert (tmp_path / "state/finally_stage1/step-00000003.json").is_file()
    assert not (tmp_path / "finally_stage1.ckpt").exists()
    assert train(stage1(resources, tmp_path)) == 0
    assert_same_bits(checkpoint(tmp_path, "finally_stage1"), checkpoint(finished, "finally_stage1"))


def test_a_time_limit_stops_after_a_step_at_least_and_is_continued(resources, finished, tmp_path):
    limited = stage1(resources, tmp_path, train__stop_after=1e-9)
    assert [train(limited) for _ in range(4)] == [TRY_AGAIN] * 3 + [0]
    assert_same_bits(checkpoint(tmp_path, "finally_stage1"), checkpoint(finished, "finally_stage1"))


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_out_of_memory() -> None:
    raise MemoryError


def refuse() -> None:
    raise UserError("clip.wav: cannot be read")


@pytest.mark.parametrize(
    ("workers", "do", "error", "message"),
    [
        (1, kill_this_process, TemporaryError, "a loader process has died; if for want of memory, lower data.num_work"),
        (1, run_out_of_memory, TemporaryError, "out of memory while loading an item"),
        (1, refuse, UserError, "clip.wav: cannot be read"),
    ],
)
def test_what_was_trained_before_a_batch_that_cannot_be_loaded_is_kept(
    workers, do, error, message, resources, finished, tmp_path, monkeypatch
):
    settings = stage1(resources, tmp_path, data__num_workers=workers, train__checkpoint_step=100)
    bad, whole = Order(len(CLIPS["train"]), 2, settings["exp"]["seed"]).at(3)[0], AugmentedLibriTTS.__getitem__

    def item(self, key):
        if key == bad:
            time.sleep(0.5)  # until the batches before have left the process
            do()
        return whole(self, key)

    list(torch.utils.data.DataLoader([0], num_workers=1))  # another one: PyTorch has set its handler of SIGCHLD
    handlers = []
    with monkeypatch.context() as patch, pytest.raises(error, match=message) as failure:
        patch.setattr(AugmentedLibriTTS, "__getitem__", item)
        after_step(patch, 1, lambda: handlers.append(signal.getsignal(signal.SIGCHLD)))
        train(settings)
    assert handlers == [signal.SIG_DFL]  # PyTorch's raises in the middle of a step
    assert isinstance(failure.value, TemporaryError) == (error is TemporaryError)  # whether it is tried again
    assert list((tmp_path / "state/finally_stage1").glob("step-0000000[23].json"))
    assert train(settings) == 0
    assert_same_bits(checkpoint(tmp_path, "finally_stage1"), checkpoint(finished, "finally_stage1"))


def test_a_lost_checkpoint_is_written_from_the_last_state(resources, tmp_path, monkeypatch):
    train(stage1(resources, tmp_path, train__steps=1))
    before = checkpoint(tmp_path, "finally_stage1")
    (tmp_path / "finally_stage1.ckpt").unlink()
    monkeypatch.setattr(BaseTrainer, "begin", die)
    assert train(stage1(resources, tmp_path, train__steps=1)) == 0
    assert_same_bits(before, checkpoint(tmp_path, "finally_stage1"))


def test_a_truncated_state_falls_back_and_ends_the_same(resources, finished, tmp_path, caplog):
    train(stage1(resources, tmp_path, train__steps=3))
    newest = tmp_path / "state/finally_stage1/step-00000003.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    assert train(stage1(resources, tmp_path)) == 0
    assert "damaged (5000 bytes" in caplog.text
    assert_same_bits(checkpoint(tmp_path, "finally_stage1"), checkpoint(finished, "finally_stage1"))
    assert history(tmp_path, "finally_stage1") == history(finished, "finally_stage1")


def test_a_changed_recipe_starts_anew_says_why_and_returns(resources, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(stage1(resources, tmp_path, train__steps=1))
    train(stage1(resources, tmp_path, train__steps=1, generator__optimizer__lr=1e-5))
    assert "generator.optimizer.lr: 0.0002 -> 1e-05" in caplog.text
    assert [row["lr_generator"] for row in history(tmp_path, "finally_stage1")] == [1e-5]
    train(stage1(resources, tmp_path, train__steps=2))
    assert [row["lr_generator"] for row in history(tmp_path, "finally_stage1")] == [2e-4, 2e-4]
    assert "continuing after step 1 of 2" in caplog.text


@pytest.mark.parametrize("state", ["kept", "deleted"])
def test_logging_and_validation_do_not_train_a_finished_network_or_the_next_again(
    resources, tmp_path, monkeypatch, caplog, state
):
    caplog.set_level(logging.INFO)
    start = str(tmp_path / "finally_stage1.ckpt")
    first = {"train__steps": 1}
    second = {"train__steps": 1, "generator__init_from": start, "generator__optimizer__lr": 1e-5}
    assert train(stage1(resources, tmp_path, **first)) == 0
    assert train(experiment("finally_stage2", resources, tmp_path, **second)) == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    if state == "deleted":
        shutil.rmtree(tmp_path / "state")
    monkeypatch.setattr(BaseTrainer, "begin", die)
    other = {"train__log_step": 7, "train__val_items": 3, "metrics": [], "exp__tensorboard": True}
    assert train(stage1(resources, tmp_path, **(first | other))) == 0
    assert train(experiment("finally_stage2", resources, tmp_path, **(second | other))) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("*.ckpt")} == before
    told = "finished after 1 steps, nothing to do" if state == "deleted" else "continuing after step 1 of 1"
    assert caplog.text.count(told) == 2


def test_a_changed_recipe_without_states_keeps_the_checkpoint(resources, tmp_path, monkeypatch):
    short = {"train__steps": 1}
    train(stage1(resources, tmp_path, **short))
    before = checkpoint(tmp_path, "finally_stage1")
    shutil.rmtree(tmp_path / "state")
    train(stage1(resources, tmp_path, **short, generator__optimizer__lr=1e-5))
    monkeypatch.setattr(BaseTrainer, "begin", die)
    train(stage1(resources, tmp_path, **short))
    assert_same_bits(before, checkpoint(tmp_path, "finally_stage1"))


def test_a_start_that_fails_leaves_the_state_of_the_other_recipe(resources, tmp_path):
    train(stage1(resources, tmp_path, train__steps=1))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    wrong = stage1(resources, tmp_path, train__steps=1, generator__init_from="no/where.ckpt")
    with pytest.raises(UserError, match="no such checkpoint"):
        train(wrong)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


# ------------------------------------------------------------------------------------------------- stages hand over


def test_stages_hand_over(resources, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    one_step = {"train__steps": 1}
    assert train(experiment("finally_stage1", resources, tmp_path, **one_step)) == 0
    weights = {"finally_stage1": checkpoint(tmp_path, "finally_stage1")}
    for network, before in (
        ("finally_stage2", "finally_stage1"),
        ("finally_stage3_pretrain", "finally_stage2"),
        ("finally_stage3", "finally_stage3_pretrain"),
    ):
        start = str(tmp_path / f"{before}.ckpt")
        # so small a step that what was taken over can be told from what was drawn anew
        options = one_step | {"generator__init_from": start, "generator__optimizer__lr": 1e-9}
        caplog.clear()
        assert train(experiment(network, resources, tmp_path, **options)) == 0
        weights[network] = checkpoint(tmp_path, network)
        assert f"from {start}" in caplog.text
        shared = weights[network].keys() & weights[before].keys()
        for name in (name for name in shared if name.startswith("generator.")):
            torch.testing.assert_close(weights[network][name], weights[before][name], atol=1e-6, rtol=0)
        if network == "finally_stage3_pretrain":
            head = [name for name in weights[network] if "upsamplewaveunet" in name]
            assert head and not any("upsamplewaveunet" in name for name in weights[before])
            assert "new: upsamplewaveunet.*" in caplog.text and "frozen: " in caplog.text
            assert all(torch.equal(weights[network][name], weights[before][name]) for name in shared)
    assert any(name.startswith("ms-stft_disc.") for name in weights["finally_stage2"])


def test_a_stage_that_does_not_fit_is_an_error(resources, tmp_path):
    train(experiment("finally_stage1", resources, tmp_path, train__steps=1))
    start = {"generator__init_from": str(tmp_path / "finally_stage1.ckpt"), "train__steps": 1}
    with pytest.raises(UserError, match=r"finally_stage1\.ckpt: missing upsamplewaveunet"):
        train(experiment("finally_stage3", resources, tmp_path, **start))
    wider = experiment("finally_stage2", resources, tmp_path, **start)
    wider["generator"]["args"]["waveunet_block_widths"] = [8, 12, 16, 32]
    with pytest.raises(UserError, match=r"has shape .* instead of "):
        train(wider)
    with pytest.raises(UserError, match="no such checkpoint"):
        train(experiment("finally_stage2", resources, tmp_path, **(start | {"generator__init_from": "nowhere.ckpt"})))


def test_discriminators_are_fresh_unless_configured(resources, tmp_path):
    first = experiment("finally_stage2", resources, tmp_path, train__steps=2)
    assert train(first) == 0
    trained = checkpoint(tmp_path, "finally_stage2")
    start = str(tmp_path / "finally_stage2.ckpt")
    still = {"train__steps": 1, "exp__run_name": "next", "discriminators__optimizer__lr": 1e-12}
    kept = still | {"discriminators__init_from": start}
    for options, same in ((still, False), (kept, True)):
        assert train(experiment("finally_stage2", resources, tmp_path, **options)) == 0
        weights = checkpoint(tmp_path, "next")
        name = next(n for n in weights if n.startswith("ms-stft_disc") and n.endswith("original1"))
        assert torch.allclose(weights[name], trained[name], atol=1e-9) == same


# ------------------------------------------------------------------------------------------------ the mathematics


@pytest.mark.parametrize("network", ONE_OF_EACH_TRAINER)
def test_microbatches_give_the_result_of_the_whole(network, resources, tmp_path):
    rows = []
    for size in (None, 2):
        options = {"data__batch_size": 3, "data__sub_batch_size": size, "train__steps": 2}
        assert train(experiment(network, resources, tmp_path / str(size), **options)) == 0
        rows.append(history(tmp_path / str(size), network))
    for whole, split in zip(*rows, strict=True):
        assert whole.keys() == split.keys()
        for key in whole:  # a gradient through magnitudes near zero holds fewer digits than the losses
            assert whole[key] == pytest.approx(split[key], rel=1e-3 if key.startswith("grad") else 2e-5), key


def test_wavlm_runs_once_per_batch(resources, tmp_path, monkeypatch):
    from finallyse.models.wavlm import Transformer

    calls = []
    original = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, x: calls.append(x.shape[0]) or original(self, x))
    monkeypatch.setattr(
        "finallyse.training.validation.Validation.run", lambda *_: {"step": 1, "items": 0, "seconds": 0}
    )
    options = {"data__batch_size": 4, "data__sub_batch_size": 2, "train__steps": 3}
    assert train(experiment("finally_stage2", resources, tmp_path, **options)) == 0
    assert calls == [4, 4, 4]


def test_the_frames_of_a_segment_are_those_of_its_place_in_the_context(resources):
    settings = experiment("finally_stage1", resources, Path("unused"))
    keys = {"wav", "input_wav", "context_wav", "start"}
    trainer = _trainer(settings, keys)
    context = 0.1 * torch.randn(2, 65536)
    starts = torch.tensor([0, 320 * 179])
    segment = torch.stack([wav[start : start + 8192] for wav, start in zip(context, starts, strict=True)])
    batch = Batch({"input_wav": segment.unsqueeze(1), "context_wav": context, "start": starts}, ["a", "b"])
    features, whole = trainer.ssl_features(batch), trainer.wavlm.last_hidden_state(context)
    assert features.shape[-1] == 25 and whole.shape[-1] == 204
    assert torch.equal(features[0], whole[0, :, :25]) and torch.equal(features[1], whole[1, :, 179:])


@pytest.mark.parametrize("network", ["hifigan", "hifipp_denoise", "finally_stage3"])
def test_long_recordings_are_validated_in_windows(network, resources):
    trainer = _trainer(experiment(network, resources, Path("unused")), {"wav", "input_wav", "mel"})
    wav = torch.from_numpy(read_speech(16000, 50.0))
    item = {"name": "long", "wav": wav, "mel": LogMel()(wav[None])[0]} | (
        {} if network == "hifigan" else {"input_wav": wav}
    )
    lengths = []
    synthesize = trainer.synthesize_wavs

    def seen(batch):
        lengths.append(batch["mel" if network == "hifigan" else "input_wav"].shape[-1])
        return synthesize(batch)

    with trainer.inference():
        whole = synthesize(collate([item]))[0, 0].numpy()
        trainer.synthesize_wavs = seen
        windowed = InTraining(trainer, item).output()
    assert len(lengths) >= 3 and max(lengths) <= 20.48 * (62.5 if network == "hifigan" else 16000) + 4096
    assert windowed.shape == whole.shape
    tolerance = 1e-2 if network == "finally_stage3" else 1e-4  # WavLM hears 40 s at once, not everything
    assert np.square(windowed - whole).mean() < tolerance**2 * np.square(whole).mean()


def _trainer(settings: dict, keys: set[str]) -> BaseTrainer:
    from finallyse.training import trainers_registry

    return trainers_registry[settings["trainer"]](settings, Group(torch.device("cpu")), keys)


def test_bf16_stays_close_to_fp32(resources, tmp_path):
    rows = {}
    for precision in ("fp32", "bf16"):
        options = {"train__precision": precision, "train__steps": 2}
        assert train(experiment("finally_stage2", resources, tmp_path / precision, **options)) == 0
        rows[precision] = history(tmp_path / precision, "finally_stage2")
    for one, other in zip(rows["fp32"], rows["bf16"], strict=True):
        assert one["generator"] == pytest.approx(other["generator"], rel=0.05)
        assert one["discriminator"] == pytest.approx(other["discriminator"], rel=0.01)


COMPILERS = [
    "aot_eager",  # traces and differentiates the networks, but generates no code
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="generates code for minutes; done on a GPU"),
    ),
]


@pytest.mark.parametrize("backend", COMPILERS)
def test_compiled_networks_train_as_they_are(backend, resources, tmp_path, monkeypatch):
    compile_ = torch.nn.Module.compile
    compiled_networks = []

    def compile_with_backend(network, **options):
        compiled_networks.append(network)
        compile_(network, backend=backend, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_with_backend)
    losses, curves, balances = ("l1_mel_loss", "gen_loss", "feature_loss", "disc_loss"), [], []
    for compiled in (False, True):
        options = {"train__steps": 3, "train__val_step": 1, "train__compile": compiled, "train__balance_step": 2}
        assert train(experiment("hifipp_bwe1", resources, tmp_path / str(compiled), **options)) == 0
        rows = history(tmp_path / str(compiled), "hifipp_bwe1")
        curves.append([[row[loss] for loss in losses] for row in rows])
        balances.append(list(balance_of(rows[0]).values()))
    assert len(compiled_networks) == 2  # generator and discriminator
    np.testing.assert_allclose(*curves, rtol=1e-4)
    np.testing.assert_allclose(*balances, rtol=1e-3)
    assert len(balances[0]) == 3


def test_the_checkpoint_holds_the_average_where_one_is_kept(resources, tmp_path):
    """Of one step: the first weights count 0.1 (warm-up) or 0 (decay 0), the trained ones the rest."""
    weights = {}
    for name, options in {
        "start": {"generator__optimizer__lr": 1e-12},
        "trained": {},
        "decay 0": {"generator__ema_decay": 0.0},
        "average": {"generator__ema_decay": 0.999},
    }.items():
        assert train(experiment("finally_stage1", resources, tmp_path / name, train__steps=1, **options)) == 0
        weights[name] = checkpoint(tmp_path / name, "finally_stage1")
    assert_same_bits(weights["trained"], weights["decay 0"])
    for key, value in weights["average"].items():
        want = 0.1 * weights["start"][key] + 0.9 * weights["trained"][key]
        torch.testing.assert_close(value, want, atol=1e-6, rtol=1e-4)


def test_an_average_that_is_longer_than_the_run_is_told_of(resources, tmp_path, caplog):
    assert train(experiment("finally_stage1", resources, tmp_path, train__steps=1, generator__ema_decay=0.999)) == 0
    assert "generator.ema_decay=0.999 averages over 1000 steps, the run has only train.steps=1" in caplog.text


# ---------------------------------------------------------------------------------------- the balance of the losses


def balance_of(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key.startswith("grad_wav_")}


def utmos_of_noise(monkeypatch) -> None:
    """The UTMOS loss with a small network in place of the published one: it draws from torch's random state."""
    from finallyse.models.utmosv2 import UTMOSv2

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    small |= {"conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 2}
    stages = [("conv", 1, 2, 1, 8), ("fused", 1, 2, 2, 8)]
    network = UTMOSv2(windows=(512, 256), bands=32, n_fft=512, hop=256, stages=stages, stem=8, head=8, wav2vec2=small)
    monkeypatch.setattr("finallyse.models.utmosv2.load_utmosv2", lambda weights: network)


@pytest.mark.parametrize("network", ONE_OF_EACH_TRAINER)
def test_watching_the_balance_changes_no_bit(network, resources, tmp_path, monkeypatch):
    utmos_of_noise(monkeypatch)
    runs = {}
    for every in (None, 2):
        options = {"train__balance_step": every, "train__steps": 3, "train__log_step": 3, "generator__ema_decay": 0.9}
        options |= {"data__batch_size": 3, "data__sub_batch_size": 2}
        settings = experiment(network, resources, tmp_path / str(every), **options)
        if network == "finally_stage3":
            settings["losses"]["generator"]["utmos"] = {"weight": 2.0, "args": {"weights": "random"}}
        assert train(settings) == 0
        runs[every] = history(tmp_path / str(every), network), checkpoint(tmp_path / str(every), network)
    assert_same_bits(runs[None][1], runs[2][1])
    watched = runs[2][0]
    assert [bool(balance_of(row)) for row in watched] == [True, True, False]  # step 1, and every second
    assert set(balance_of(watched[0])) == {f"grad_wav_{name}" for name in settings["losses"]["generator"]}
    assert all(value > 0 for row in watched for value in balance_of(row).values())
    assert [{k: v for k, v in row.items() if not k.startswith("grad_wav_")} for row in watched] == runs[None][0]


@pytest.mark.parametrize("size", [None, 2, 1])
@pytest.mark.parametrize("network", ["hifipp_denoise", "finally_stage2"])
def test_the_balance_is_that_of_gradients_taken_one_by_one(network, size, resources):
    """Against each loss's own forward and backward pass from a leaf, for the whole batch."""
    settings = experiment(network, resources, Path("unused"), train__balance_step=1, data__sub_batch_size=size)
    trainer = _trainer(settings, {"wav", "input_wav"})
    torch.manual_seed(3)
    clips = 0.1 * torch.randn(2, 3, 1, 4096)
    batch = Batch({"wav": clips[0], "input_wav": clips[1]}, ["a", "b", "c"], share=0.75)  # of a batch of four
    trainer.begin(0, 0)
    trainer.discriminator_norms.advance()
    if network.startswith("finally"):
        batch["ssl"] = trainer.ssl_features(batch)
    wav_hat = trainer.synthesize_wavs(batch).detach().requires_grad_()
    expected = {}
    for name, part in settings["losses"]["generator"].items():
        logits, maps = trainer.discriminate(wav_hat)
        logits_real, maps_real = trainer.discriminate(batch["wav"])
        given = {"wav": batch["wav"], "wav_hat": wav_hat, "sample_rate": trainer.output_rate, "wavlm": trainer.wavlm}
        given |= {"logits_real": logits_real, "logits_fake": logits, "fmaps_real": maps_real, "fmaps_fake": maps}
        loss = trainer.generator_criteria.losses[name]
        value = 0.75 * part["weight"] * loss(**{need: given[need] for need in loss.needs})
        (gradient,) = torch.autograd.grad(value, wav_hat)
        expected[f"grad_wav_{name}"] = gradient.double().pow(2).sum().sqrt().item()
    told = trainer.update_generator(batch.split(size))
    assert {key: told[key].item() for key in expected} == pytest.approx(expected, rel=1e-3)
    assert len(expected) == 3


def test_the_balance_counts_the_waveforms_of_all_processes(resources):
    """Two processes with a share each tell the norm of the whole batch; `Group.sum` adds what the other holds."""
    settings = experiment("hifipp_denoise", resources, Path("unused"), train__balance_step=1)
    told, squares = {}, {}
    for part in ("whole", "first", "second"):
        trainer = _trainer(settings, {"wav", "input_wav"})
        clips = 0.1 * torch.randn(2, 4, 1, 4096, generator=torch.Generator().manual_seed(3))
        kept = {"whole": slice(None), "first": slice(0, 3), "second": slice(3, 4)}[part]
        batch = Batch({"wav": clips[0, kept], "input_wav": clips[1, kept]}, list("abcd")[kept])
        batch.share = len(batch) / 4
        if part == "second":
            others = squares["first"]
            trainer.group.sum = lambda values, others=others: values + others if len(values) == len(others) else values
        else:
            trainer.group.sum = lambda values, part=part: (
                squares.setdefault(part, values) if len(values) == 3 else values
            )
        trainer.begin(0, 0)
        trainer.discriminator_norms.advance()
        told[part] = balance_of({key: value.item() for key, value in trainer.update_generator([batch]).items()})
    assert told["second"] == pytest.approx(told["whole"], rel=1e-3) and len(told["whole"]) == 3
    assert told["first"] != pytest.approx(told["whole"], rel=1e-3)


def test_the_profiler_sees_the_kinds_of_work_of_a_step(root, resources, monkeypatch):
    """Forward operations by the trainers' ranges, backward ones by the forward ones that they belong to."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    benchmark = importlib.import_module("train")
    settings = experiment("finally_stage2", resources, Path("unused"), train__balance_step=1)
    trainer = _trainer(settings, {"wav", "input_wav"})
    clips = 0.1 * torch.randn(2, 2, 1, 4096)

    def step() -> None:
        trainer.begin(0, 0)
        trainer.train_step(Batch({"wav": clips[0], "input_wav": clips[1]}, ["a", "b"]))

    seconds = benchmark.seconds_by_kind(step, torch.device("cpu"))
    assert seconds.keys() == {*benchmark.KINDS, "other"} and min(seconds.values()) > 0
    assert seconds["other"] < 0.5 * sum(seconds.values())


def test_the_balance_is_told(resources, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    told = {}
    noted = lambda self, step, values: told.setdefault(step, {}).update(values)  # noqa: E731
    monkeypatch.setattr("finallyse.training.log.Writers.scalars", noted)
    options = {"train__steps": 6, "train__log_step": 3, "train__balance_step": 2}
    assert train(experiment("hifipp_denoise", resources, tmp_path, **options)) == 0
    rows = history(tmp_path, "hifipp_denoise")
    assert [row["step"] for row in rows if balance_of(row)] == [1, 2, 4, 6]
    for step, of in ((3, 2), (6, 6)):
        for key, value in balance_of(rows[of - 1]).items():
            assert told[step][f"train/{key}"] == pytest.approx(value)
    assert "grad_wav" not in caplog.text and "grad_norm_generator" in caplog.text


def test_the_balance_resumes_with_the_history(resources, tmp_path, monkeypatch):
    """A run that is told to watch half way, killed and resumed: earlier rows stay, no value is doubled or lost."""
    assert train(stage1(resources, tmp_path, train__steps=2)) == 0
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        after_step(patch, 6, die)
        train(stage1(resources, tmp_path, train__steps=6, train__balance_step=2))
    assert train(stage1(resources, tmp_path, train__steps=6, train__balance_step=2)) == 0
    rows = history(tmp_path, "finally_stage1")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if balance_of(row)] == [4, 6]
    assert train(stage1(resources, tmp_path / "whole", train__steps=6, train__balance_step=2)) == 0
    whole = history(tmp_path / "whole", "finally_stage1")
    assert rows[2:] == whole[2:]


# ------------------------------------------------------------------------------------------- the best validation


def measured_as(monkeypatch, values: dict[int, float | None], column: str = "si_sdr") -> None:
    """Validations that give these numbers, by step."""
    from finallyse.training.validation import Validation

    def run(self, step, trainer, writers):
        row = {"step": step, column: values[step], "items": 1, "seconds": 0.0}
        return {key: value for key, value in row.items() if value is not None}

    monkeypatch.setattr(Validation, "run", run)


def watched(resources: Path, results: Path, **changes) -> dict:
    """A run of five steps that validates after each and keeps the best by SI-SDR."""
    options = {"train__steps": 5, "train__val_step": 1, "train__best": "si_sdr", "train__checkpoint_step": 5}
    return stage1(resources, results, **(options | changes))


CURVE = {1: 1.0, 2: -1.0, 3: 2.5, 4: 2.5, 5: 2.0}  # the first of two equals is kept: step 3


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_best_weights_are_kept_as_they_were_validated(ema_decay, resources, tmp_path, monkeypatch):
    options = {"generator__ema_decay": ema_decay}
    assert train(stage1(resources, tmp_path / "short", train__steps=3, **options)) == 0
    measured_as(monkeypatch, CURVE)
    assert train(watched(resources, tmp_path, **options)) == 0
    assert_same_bits(checkpoint(tmp_path, "finally_stage1.best"), checkpoint(tmp_path / "short", "finally_stage1"))
    best = load_checkpoint(tmp_path / "finally_stage1.best.ckpt")
    assert (best.step, best.devices) == (3, {processor(): 3})
    best.build_generator()
    last = checkpoint(tmp_path, "finally_stage1")
    assert any(
        not torch.equal(value, last[name]) for name, value in checkpoint(tmp_path, "finally_stage1.best").items()
    )
    start = str(tmp_path / "finally_stage1.best.ckpt")
    following = {"generator__init_from": start, "train__steps": 1, "generator__optimizer__lr": 1e-12}
    measured_as(monkeypatch, {1: None})
    assert train(experiment("finally_stage2", resources, tmp_path, **following)) == 0
    begun = checkpoint(tmp_path, "finally_stage2")
    for name, value in checkpoint(tmp_path, "finally_stage1.best").items():
        torch.testing.assert_close(begun[name], value, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("column", "values", "step"),
    [
        ("lsd", {1: 3.0, 2: 1.0, 3: 2.0}, 2),
        ("level", {1: -2.0, 2: 3.0, 3: 1.5}, 3),
        ("level", {1: 0.1, 2: -9, 3: 9}, 1),
    ],
)
def test_best_is_what_the_metric_calls_better(column, values, step, resources, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    measured_as(monkeypatch, values, column)
    assert train(watched(resources, tmp_path, train__steps=3, train__best=column, metrics=[column])) == 0
    assert load_checkpoint(tmp_path / "finally_stage1.best.ckpt").step == step
    assert f"(best {values[step]:.4g} at {step})" in caplog.text.split("validation after step 3", 1)[1]


def test_the_last_step_is_validated_so_there_is_a_best(resources, tmp_path):
    settings = watched(resources, tmp_path, train__steps=2, train__val_step=None)
    assert train(settings) == 0
    assert_same_bits(checkpoint(tmp_path, "finally_stage1.best"), checkpoint(tmp_path, "finally_stage1"))
    with (tmp_path / "state/finally_stage1/validation.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["step"] == "2" and np.isfinite(float(row["si_sdr"]))


def test_a_number_that_no_validation_gives_leaves_no_best(resources, tmp_path, monkeypatch, caplog):
    measured_as(monkeypatch, dict.fromkeys(CURVE))
    assert train(watched(resources, tmp_path)) == 0
    assert not (tmp_path / "finally_stage1.best.ckpt").exists()
    assert "finally_stage1.best.ckpt: no validation has measured train.best=si_sdr" in caplog.text


@pytest.fixture(scope="module")
def best_of_a_whole_run(resources, tmp_path_factory) -> dict:
    """The best weights of `watched`, never killed, on CURVE."""
    results = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        measured_as(patch, CURVE)
        assert train(watched(resources, results)) == 0
    return checkpoint(results, "finally_stage1.best")


def killed_before_the_validation(patch) -> None:
    after_step(patch, 3, die)


def killed_before_the_state(patch) -> None:
    original = StateFolder.save
    patch.setattr(StateFolder, "save", lambda self, step, state: die() if step == 3 else original(self, step, state))


def killed_before_the_file(patch) -> None:
    patch.setattr(Best, "write", lambda self: die() if self.step == 3 else None)


def killed_after_the_best(patch) -> None:
    after_step(patch, 5, die)


@pytest.mark.parametrize(
    "kill", [killed_before_the_validation, killed_before_the_state, killed_before_the_file, killed_after_the_best]
)
def test_a_killed_run_has_the_best_of_one_never_killed(kill, resources, best_of_a_whole_run, tmp_path, monkeypatch):
    measured_as(monkeypatch, CURVE)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        kill(patch)
        train(watched(resources, tmp_path))
    assert train(watched(resources, tmp_path)) == 0
    assert_same_bits(checkpoint(tmp_path, "finally_stage1.best"), best_of_a_whole_run)
    assert load_checkpoint(tmp_path / "finally_stage1.best.ckpt").devices == {processor(): 3}


def test_the_best_file_follows_the_state_that_is_resumed(resources, best_of_a_whole_run, tmp_path, monkeypatch, caplog):
    measured_as(monkeypatch, CURVE)
    best, settings = tmp_path / "finally_stage1.best.ckpt", watched(resources, tmp_path)
    assert train(settings) == 0
    written = best.stat().st_mtime_ns
    assert train(settings) == 0
    assert best.stat().st_mtime_ns == written  # another stage may start from it: the same file is not written twice
    for damage in (best.unlink, lambda: best.write_bytes(best.read_bytes()[:1000])):
        damage()
        assert train(settings) == 0
        assert_same_bits(checkpoint(tmp_path, "finally_stage1.best"), best_of_a_whole_run)
    assert "it will be rewritten from the state" in caplog.text
    # checkpoint and state of step 5 are lost: the file, newer than the state of step 3, is made anew by what follows
    (tmp_path / "state/finally_stage1/step-00000005.pt").unlink()
    (tmp_path / "finally_stage1.ckpt").unlink()
    measured_as(monkeypatch, CURVE | {4: 1.0, 5: 3.0})
    assert train(settings) == 0
    assert load_checkpoint(best).step == 5
    (tmp_path / "state/finally_stage1/step-00000005.pt").unlink()
    (tmp_path / "finally_stage1.ckpt").unlink()
    measured_as(monkeypatch, CURVE)
    assert train(settings) == 0
    assert_same_bits(checkpoint(tmp_path, "finally_stage1.best"), best_of_a_whole_run)


def test_another_metric_begins_another_best(resources, tmp_path, monkeypatch):
    measured_as(monkeypatch, CURVE)
    assert train(watched(resources, tmp_path, train__steps=4)) == 0
    measured_as(monkeypatch, {5: 0.2}, "stoi")
    assert train(watched(resources, tmp_path, train__best="stoi", metrics=["stoi"])) == 0  # the same run, continued
    assert load_checkpoint(tmp_path / "finally_stage1.best.ckpt").step == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__best": "wb_pesq"}, r"train\.best=wb_pesq: not among the numbers of `metrics` \(si_sdr\)"),
        ({"train__best": "si_sdr", "metrics": []}, r"train\.best=si_sdr: not among .* \(none\)"),
        ({"train__best": "wv-mos", "metrics": ["wv-mos"]}, r"train\.best=wv-mos: .*missing: needs .*wav2vec2\.ckpt"),
    ],
)
def test_a_best_that_is_not_measured_is_refused_before_the_first_step(
    changes, message, resources, tmp_path, monkeypatch
):
    monkeypatch.setattr(BaseTrainer, "begin", die)
    with pytest.raises(UserError, match=message):
        train(stage1(resources, tmp_path, **changes))


def test_a_best_that_needs_a_reference_is_refused_without_one(resources, tmp_path, monkeypatch):
    monkeypatch.setattr(BaseTrainer, "begin", die)
    settings = stage1(resources, tmp_path, train__best="si_sdr")
    folder = str(resources / "prepared" / "vctk" / "16000" / "wav")
    settings["data"]["validation"] = {"name": "finally_dataset", "args": {"folder": folder}}
    with pytest.raises(UserError, match=r"train\.best=si_sdr: needs a reference, which data\.validation does not have"):
        train(settings)


# ---------------------------------------------------------------------------------------------------- bad steps


def spoil(monkeypatch, *steps: int) -> None:
    """Make the generator's first loss NaN at these steps (counted from 1)."""
    original, made = Criteria.forward, []

    def forward(self, inputs):
        total, values, terms = original(self, inputs)
        if self.kind == "generator":
            made.append(0)
            if len(made) in steps:
                total, values[0] = total * float("nan"), float("nan")
        return total, values, terms

    monkeypatch.setattr(Criteria, "forward", forward)


def test_a_loss_that_is_not_finite_stops_before_the_update(resources, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, 4)
        with pytest.raises(UserError) as error:
            train(stage1(resources, tmp_path))
    message = str(error.value)
    assert "step 4: not finite: generator, lmos, gradient of the generator" in message
    assert "step-00000002.pt" in message and message.count("\n") == 0
    names = [name for name in ("alpha_01", "joe_01", "kumo_04", "nezumi_01", "tebukuro_04") if name in message]
    assert 1 <= len(names) <= 2
    assert history(tmp_path, "finally_stage1")[:3] == history(finished, "finally_stage1")[:3]
    assert train(stage1(resources, tmp_path)) == 0  # from the last good state
    assert_same_bits(checkpoint(tmp_path, "finally_stage1"), checkpoint(finished, "finally_stage1"))


def test_bad_steps_are_skipped_within_a_bound(resources, tmp_path, monkeypatch, caplog):
    options = {"train__on_nonfinite": "skip", "train__max_skips": 2}
    with monkeypatch.context() as patch:
        spoil(patch, 2, 3)
        assert train(stage1(resources, tmp_path / "few", **options)) == 0
    assert "step 2: not finite" in caplog.text and "2 of at most 2" in caplog.text
    assert all(torch.isfinite(value).all() for value in checkpoint(tmp_path / "few", "finally_stage1").values())
    with monkeypatch.context() as patch:
        spoil(patch, 1, 2, 3)
        with pytest.raises(UserError, match=r"step 3: not finite.*2 steps were skipped before"):
            train(stage1(resources, tmp_path / "many", **options))


# ------------------------------------------------------------------------------------------------ what is written


def test_what_a_run_writes(resources, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    settings = experiment(
        "hifipp_denoise",
        resources,
        tmp_path,
        train__steps=4,
        train__log_step=2,
        train__val_step=2,
        exp__tensorboard=True,
    )
    settings["exp"]["wandb"]["mode"] = "offline"
    home_before = set(Path.home().iterdir())
    assert train(settings) == 0
    assert set(Path.home().iterdir()) == home_before
    rows = history(tmp_path, "hifipp_denoise")
    losses = {"generator", "l1_mel_loss", "gen_loss", "feature_loss", "discriminator", "disc_loss"}
    rates = {"lr_generator", "lr_discriminator", "grad_norm_generator", "grad_norm_discriminator"}
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[0].keys() == losses | rates | {"step"}
    assert rows[0]["generator"] == pytest.approx(
        45 * rows[0]["l1_mel_loss"] + rows[0]["gen_loss"] + 2 * rows[0]["feature_loss"], rel=1e-5
    )
    folder = tmp_path / "state" / "hifipp_denoise"
    with (folder / "validation.csv").open(newline="") as file:
        validations = list(csv.DictReader(file))
    assert [row["step"] for row in validations] == ["2", "4"] and np.isfinite(float(validations[0]["si_sdr"]))
    (samples,) = (folder / "samples").iterdir()
    assert sorted(path.name for path in samples.iterdir()) == [
        "input.wav",
        "output-00000002.wav",
        "output-00000004.wav",
        "target.wav",
    ]
    assert len({len(read(path)[0]) for path in samples.iterdir()}) == 1
    lines = [line for line in caplog.text.splitlines() if " it/s | ETA " in line]
    assert len(lines) == 2 and "step 2/4 50.0%" in lines[0] and "lr_generator 0.0002" in lines[0]
    assert list((folder / "wandb").rglob("*.wandb")) and list((folder / "tensorboard").iterdir())


def test_wandb_continues_under_its_id(resources, tmp_path, monkeypatch):
    settings = stage1(resources, tmp_path)
    settings["exp"]["wandb"]["mode"] = "offline"
    with monkeypatch.context() as patch:
        after_step(patch, 2, terminate)
        assert train(settings) == TRY_AGAIN
    (first,) = (tmp_path / "state/finally_stage1/wandb/wandb").glob("offline-run-*")
    assert train(settings) == 0
    runs = list((tmp_path / "state/finally_stage1/wandb/wandb").glob("offline-run-*"))
    # offline-run-<time>-<id>, and a number behind it where two begin in one second
    assert len(runs) == 2 and len({path.name.split("-")[3] for path in (*runs, first)}) == 1


def test_wandb_that_cannot_start_names_the_option(resources, tmp_path, monkeypatch):
    settings = stage1(resources, tmp_path)
    settings["exp"]["wandb"]["mode"] = "online"

    def refused(**_):
        raise OSError("no key\nis set.")

    monkeypatch.setattr("wandb.init", refused)
    with pytest.raises(UserError, match=r"^exp\.wandb\.mode=online: no key is set; or use exp\.wandb\.mode=offline"):
        train(settings)


# ------------------------------------------------------------------------------------------ mistakes told at once


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_cuda_is_told_in_one_line(resources, tmp_path):
    with pytest.raises(UserError, match=r"exp\.device=cuda.*use exp\.device=auto"):
        train(stage1(resources, tmp_path, exp__device="cuda"))


def without_wavlm(settings: dict) -> None:
    settings["wavlm"] = None


def without_discriminators(settings: dict) -> None:
    settings["discriminators"]["parts"] = {}


def without_their_loss(settings: dict) -> None:
    settings["losses"]["discriminator"] = {}


def without_level(settings: dict) -> None:
    settings["losses"]["generator"] = {"lmos": {"weight": 0}, "gen_loss": {"weight": 5}, "pesq": {"weight": 2}}


def without_losses(settings: dict) -> None:
    settings["losses"]["generator"] = {}


def wrong_prefix(settings: dict) -> None:
    settings["generator"]["train_only"] = ["head"]


def wrong_data(settings: dict) -> None:
    settings["data"]["train"] = settings["data"]["validation"]
    settings["data"]["train"]["args"]["target_manifest"] = None


def stage1_trainer(settings: dict) -> None:
    settings["trainer"] = "finally_stage1_trainer"


@pytest.mark.parametrize(
    "mistake,message",
    [
        (without_wavlm, "takes WavLM's features; set `wavlm`"),
        (without_discriminators, r"losses\.generator\.gen_loss needs 'logits_fake': there are no discriminators"),
        (without_their_loss, r"discriminators\.parts without losses\.discriminator"),
        (
            without_level,
            r"losses\.generator: no loss .* depends on the level.*lmos, gen_loss, pesq\); add one",
        ),
        (without_losses, r"losses\.generator: no loss .* depends on the level.*\(losses: none\)"),
        (wrong_prefix, "no parameter begins with 'head'; the parts are "),
        (wrong_data, "targets at 16000 Hz; the generator's output has 48000 Hz"),
        (stage1_trainer, r"no adversarial training; remove discriminators\.parts"),
    ],
)
def test_parts_that_do_not_fit_are_told_before_the_first_step(mistake, message, resources, tmp_path):
    settings = experiment("finally_stage3", resources, tmp_path)
    mistake(settings)
    with pytest.raises(UserError, match=message):
        train(settings)


# ---------------------------------------------------------------------------------------------------------- debug runs


@pytest.mark.parametrize("kind", ["overfit", "fast", "profile"])
def test_debug_runs_stay_beside_the_real_one(kind, resources, tmp_path, caplog, monkeypatch):
    for name, steps in {"OVERFIT_STEPS": 12, "UNPROFILED": 1, "PROFILED": 1}.items():
        monkeypatch.setattr(debugging, name, steps)
    settings = experiment("hifigan", resources, tmp_path, train__debug=kind, generator__optimizer__lr=1e-3)
    for _ in range(2):  # the second begins anew
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert train(settings) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["debug"]
    folder = tmp_path / "debug" / kind / "state" / settings["exp"]["run_name"]
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert len(rows) == {"overfit": 12, "fast": 3, "profile": 3}[kind]
    assert f"{kind}: " in caplog.text
    if kind == "overfit":
        assert len({row["items"] for row in rows if "items" in row}) <= 1
        assert float(rows[-1]["l1_mel_loss"]) < float(rows[0]["l1_mel_loss"])
    if kind == "profile":
        assert "generator" in (folder / "profile.txt").read_text() and (folder / "trace.json").stat().st_size > 1000
