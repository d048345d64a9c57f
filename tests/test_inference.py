"""scripts/inference.py: any validation set through a checkpoint, into a folder that appears whole, with its metrics."""

import importlib.util

import numpy as np
import pytest
import soundfile as sf
import torch

import finallyse
from finallyse.audio.torchaudio_shim import torchaudio  # noqa: F401  transformers imports torchaudio
from finallyse.errors import UserError
from finallyse.metrics import Utterance, metrics_registry
from finallyse.models import models_registry
from finallyse.models.checkpoint import save_checkpoint
from support import training

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def resources(tmp_path_factory):
    return training.prepare_resources(tmp_path_factory.mktemp("resources"))


@pytest.fixture(scope="module")
def inference(root):
    spec = importlib.util.spec_from_file_location("inference_script", root / "scripts" / "inference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def trained(network, resources, results):
    """The experiment file of a network of the demo's size, and its checkpoint (random weights) under `results`."""
    settings = training.experiment(network, resources, results)
    torch.manual_seed(0)
    generator = models_registry[settings["generator"]["name"]](**settings["generator"]["args"])
    path = results / f"{network}.ckpt"
    state = generator.state_dict()
    save_checkpoint(path, network=network, config=settings, step=1, generator=state, discriminators={})
    return training.write_yaml(settings, results / f"{network}.yaml")


@pytest.mark.parametrize("network", ["hifigan", "hifipp_denoise", "finally_stage3"])
def test_validation_sets(network, resources, tmp_path, inference, capsys):
    config = trained(network, resources, tmp_path)
    inference([f"exp.config_path={config}", f"exp.run_name={network}", "metrics=[si_sdr]"])
    folder = tmp_path / "enhanced" / network
    names = {role.name: sorted(path.name for path in role.iterdir()) for role in folder.iterdir()}
    roles = ["enhanced", "reference"] if network == "hifigan" else ["enhanced", "noisy", "reference"]
    assert sorted(names) == roles and len({tuple(files) for files in names.values()}) == 1

    name = names["enhanced"][0]
    read = {role: sf.read(folder / role / name, dtype="float32") for role in roles}
    rate = 48000 if network == "finally_stage3" else 16000
    assert read["enhanced"][1] == read["reference"][1] == rate
    assert sf.info(folder / "enhanced" / name).subtype == "FLOAT"
    source = read["reference"] if network == "hifigan" else read["noisy"]
    expected = finallyse.load(tmp_path / f"{network}.ckpt", device="cpu").enhance(*source, rate)
    length = len(read["enhanced"][0])
    assert abs(len(expected) - length) <= 256
    # a manifest knows the peak of a recording to one 16-bit step, `enhance` the one that the file has
    np.testing.assert_allclose(read["enhanced"][0], expected[:length], atol=2e-4)

    scores = [
        metrics_registry["si_sdr"]().score(
            Utterance(*sf.read(folder / "enhanced" / file), *sf.read(folder / "reference" / file))
        )["si_sdr"]
        for file in names["enhanced"]
    ]
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split()[:2] == ["si_sdr", f"{np.mean(scores):.3f}"]


def test_folder_of_recordings(resources, tmp_path, inference, speech, capsys):
    config = trained("hifipp_denoise", resources, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.flac").write_bytes(speech[0].read_bytes())
    stale = tmp_path / "enhanced" / "hifipp_denoise" / "enhanced" / "old.wav"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of another run")
    dataset = [
        "data.validation.name=finally_dataset",
        "~data.validation.args",
        f"+data.validation.args.folder={tmp_path}/mine",
    ]
    inference([f"exp.config_path={config}", "exp.run_name=hifipp_denoise", *dataset, "metrics=[]"])
    files = sorted(
        path.relative_to(tmp_path / "enhanced").as_posix() for path in (tmp_path / "enhanced").rglob("*.wav")
    )
    assert files == ["hifipp_denoise/enhanced/x.wav", "hifipp_denoise/noisy/x.wav"]


def test_mistakes(resources, tmp_path, inference):
    config = trained("hifipp_denoise", resources, tmp_path)
    with pytest.raises(UserError, match=r"other\.ckpt: no such checkpoint"):
        inference([f"exp.config_path={config}", "exp.run_name=other"])
    vocoder = trained("hifigan", resources, tmp_path)
    with pytest.raises(UserError, match=r"contains a a2a_hifi\+\+_gen, the experiment is for hifigan_gen"):
        inference([f"exp.config_path={vocoder}", "exp.run_name=hifipp_denoise"])
    assert not (tmp_path / "enhanced").exists()
