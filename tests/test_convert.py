"""`finallyse convert`: published formats load, and every mismatch is listed. `finallyse models`: a correct table."""

import pytest
import torch
import yaml

from finallyse.cli import main
from finallyse.errors import UserError
from finallyse.models import models_registry
from finallyse.models.checkpoint import load_checkpoint
from finallyse.models.convert import convert, parse_arguments
from finallyse.models.norms import fold
from finallyse.models.table import rows
from support.networks import SMALL, UPSAMPLING

EXPERIMENT = {
    "trainer": "hifi++_trainer",
    "generator": {"name": "a2a_hifi++_gen", "args": SMALL["a2a_hifi++_gen"]},
    "losses": {"generator": {"l1_mel_loss": {"weight": 45}}},
    "data": {
        part: {"name": "vctk", "args": {"manifest": "a.csv", "segment": 8192, "input_freq": 1000}}
        for part in ("train", "validation")
    },
}


def build(name, **changes):
    torch.manual_seed(3)
    model = models_registry[name](**(SMALL[name] | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def as_published(state, spectral=False):
    """A state_dict with the keys of torch.nn.utils.weight_norm and spectral_norm."""
    names = {"original0": "weight_g", "original1": "weight_v", "original": "weight_orig"}
    names |= {"0._u": "weight_u", "0._v": "weight_v"}
    result = {}
    for key, value in state.items():
        layer, found, part = key.partition(".parametrizations.weight.")
        result[f"{layer}.{names[part]}" if found else key] = value
    return result


def outputs(model, *inputs):
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(model(*inputs))


def check_generator(path, model, *inputs):
    rebuilt = load_checkpoint(path).build_generator()
    torch.testing.assert_close(outputs(rebuilt, *inputs), outputs(model, *inputs), atol=1e-6, rtol=1e-6)


def test_hifigan_generator(tmp_path):
    model = build("hifigan_gen")
    torch.save({"generator": as_published(model.state_dict())}, tmp_path / "g_02500000")
    lines = convert(tmp_path / "g_02500000", tmp_path / "out.ckpt", ["hifigan_gen"], arguments=SMALL["hifigan_gen"])
    assert lines[0].startswith("hifigan_gen: ")
    check_generator(tmp_path / "out.ckpt", model, torch.randn(1, 80, 5))


def test_hifigan_discriminators_of_one_file(tmp_path):
    networks = {name: build(name) for name in ("mpd", "msd")}
    states = {name: as_published(model.state_dict()) for name, model in networks.items()}
    torch.save(states | {"optim_g": {}, "optim_d": {}, "steps": 2500000, "epoch": 3}, tmp_path / "do_02500000")
    experiment = tmp_path / "experiment.yaml"
    parts = {name: {"args": SMALL[name]} for name in networks}
    experiment.write_text(yaml.safe_dump(EXPERIMENT | {"discriminators": {"parts": parts}}))
    convert(tmp_path / "do_02500000", tmp_path / "out.ckpt", ["mpd", "msd"], experiment=experiment)
    checkpoint = load_checkpoint(tmp_path / "out.ckpt")
    assert checkpoint.step == 2500000 and checkpoint.discriminators.keys() == networks.keys()
    wav = torch.randn(1, 1, 500)
    for name, model in networks.items():
        copy = models_registry[name](**SMALL[name]).eval()
        copy.load_state_dict(checkpoint.discriminators[name])
        torch.testing.assert_close(outputs(copy, wav), outputs(model, wav))
    with pytest.raises(UserError, match="holds no generator, only mpd, msd"):
        checkpoint.build_generator()


def test_hifipp_release_is_a_bare_state_dict(tmp_path):
    model = build("a2a_hifi++_gen")
    torch.save(as_published(model.state_dict()), tmp_path / "release.pth")
    convert(tmp_path / "release.pth", tmp_path / "out.ckpt", ["a2a_hifi++_gen"], arguments=SMALL["a2a_hifi++_gen"])
    assert load_checkpoint(tmp_path / "out.ckpt").level == {"peak": 0.95}
    check_generator(tmp_path / "out.ckpt", model, torch.randn(1, 1, 3000))


@pytest.mark.parametrize("nested", [False, True])
def test_original_finally(tmp_path, nested):
    args = SMALL["finally_gen"] | UPSAMPLING
    model = build("finally_gen", **UPSAMPLING)
    state = {
        "module." + key.replace("pre_upsampler_processing", "pre_upsampler_proccessing"): value
        for key, value in model.state_dict().items()
    }
    torch.save({"state_dict": {"finally_gen": state} if nested else state, "epoch": 1}, tmp_path / "old.pth")
    convert(tmp_path / "old.pth", tmp_path / "out.ckpt", ["finally_gen"], arguments=args)
    assert load_checkpoint(tmp_path / "out.ckpt").level is None
    check_generator(tmp_path / "out.ckpt", model, torch.randn(1, 1, 2000), torch.randn(1, 24, 6))


def test_original_stft_discriminator_with_its_windows(tmp_path):
    model = build("ms-stft_disc")
    state = model.state_dict() | {f"discriminators.{i}.spec_transform.window": torch.zeros(9) for i in range(2)}
    torch.save({"state_dict": state}, tmp_path / "old.pth")
    convert(tmp_path / "old.pth", tmp_path / "out.ckpt", ["ms-stft_disc"], arguments=SMALL["ms-stft_disc"])
    assert load_checkpoint(tmp_path / "out.ckpt").discriminators["ms-stft_disc"].keys() == model.state_dict().keys()


def test_folded_weights(tmp_path):
    model = build("hifigan_gen")
    mel = torch.randn(1, 80, 5)
    want = outputs(model, mel)
    fold(model)
    torch.save({"generator": model.state_dict()}, tmp_path / "folded")
    convert(tmp_path / "folded", tmp_path / "out.ckpt", ["hifigan_gen"], arguments=SMALL["hifigan_gen"])
    torch.testing.assert_close(outputs(load_checkpoint(tmp_path / "out.ckpt").build_generator(), mel), want)


def test_experiment_gives_name_and_arguments(tmp_path):
    model = build("a2a_hifi++_gen")
    torch.save(model.state_dict(), tmp_path / "in.pth")
    experiment = tmp_path / "experiment.yaml"
    data = {"name": "vctk", "args": EXPERIMENT["data"]["train"]["args"] | {"peak": 0.5}}
    experiment.write_text(yaml.safe_dump(EXPERIMENT | {"data": EXPERIMENT["data"] | {"train": data}}))
    convert(tmp_path / "in.pth", tmp_path / "out.ckpt", ["a2a_hifi++_gen"], experiment=experiment)
    checkpoint = load_checkpoint(tmp_path / "out.ckpt")
    assert checkpoint.config["trainer"] == "hifi++_trainer" and checkpoint.level == {"peak": 0.5}
    check_generator(tmp_path / "out.ckpt", model, torch.randn(1, 1, 3000))
    with pytest.raises(UserError, match=r"its generator is a2a_hifi\+\+_gen, not hifi\+\+_gen"):
        convert(tmp_path / "in.pth", tmp_path / "other.ckpt", ["hifi++_gen"], experiment=experiment)


def test_every_misfit_is_listed_and_nothing_is_written(tmp_path):
    state = as_published(build("hifigan_gen").state_dict())
    state["surplus.weight_g"] = torch.zeros(2)
    del state["ups.0.bias"]
    state["conv_post.bias"] = torch.zeros(2)
    torch.save({"generator": state}, tmp_path / "g")
    with pytest.raises(UserError) as error:
        convert(tmp_path / "g", tmp_path / "out.ckpt", ["hifigan_gen"], arguments=SMALL["hifigan_gen"])
    for part in (
        "missing ups.0.bias",
        "left over surplus.parametrizations.weight.original0",
        "conv_post.bias has shape",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "out.ckpt").exists()


def test_command_line(tmp_path, capsys):
    model = build("hifigan_gen")
    torch.save({"generator": as_published(model.state_dict())}, tmp_path / "g")
    arguments = [
        f"--arg={key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in SMALL["hifigan_gen"].items()
    ]
    command = ["convert", str(tmp_path / "g"), str(tmp_path / "out.ckpt"), "--network", "hifigan_gen"]
    with pytest.raises(SystemExit) as stop:
        main([*command, *arguments])
    assert not stop.value.code and "out.ckpt written" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "out.ckpt").level == {"peak": 0.95}
    check_generator(tmp_path / "out.ckpt", model, torch.randn(1, 80, 5))
    (tmp_path / "out.ckpt").write_text("mine")
    with pytest.raises(SystemExit):
        main([*command, *arguments])
    assert capsys.readouterr().err == f"error: {tmp_path / 'out.ckpt'}: exists; give --force to replace it\n"
    assert (tmp_path / "out.ckpt").read_text() == "mine"
    with pytest.raises(SystemExit) as stop:
        main([*command, *arguments, "--force"])
    assert not stop.value.code and load_checkpoint(tmp_path / "out.ckpt").step == 0
    for wrong in ("a=[", "a: b: c=1", "upsample_initial_channel=!!python/name:os.system", "resblock=x", "ups=1"):
        with pytest.raises(SystemExit) as stop:
            main([*command, *arguments, "--force", f"--arg={wrong}"])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, wrong


def test_wrong_input_is_a_one_line_error(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        convert(tmp_path / "none", tmp_path / "out.ckpt", ["hifigan_gen"])
    torch.save({"weights": 3, "epoch": 1}, tmp_path / "x")
    with pytest.raises(UserError, match="no weights of hifigan_gen found; the file holds weights, epoch"):
        convert(tmp_path / "x", tmp_path / "out.ckpt", ["hifigan_gen"])
    with pytest.raises(UserError, match="unknown network 'hifigan'"):
        convert(tmp_path / "x", tmp_path / "out.ckpt", ["hifigan"])
    with pytest.raises(UserError, match="one generator, or discriminators"):
        convert(tmp_path / "x", tmp_path / "out.ckpt", ["hifigan_gen", "mpd"])
    with pytest.raises(UserError, match="write name=value"):
        parse_arguments(["upsample_initial_channel"])
    assert parse_arguments(["a=[1, 2]", "b=false", "c=x=y"]) == {"a": [1, 2], "b": False, "c": "x=y"}


def test_table_of_networks():
    table = {row.name: row for row in rows()}
    parameters = {
        "complex_mask_gen": 701_832,
        "hifigan_gen": 13_926_017,
        "mpd": 41_092_165,
        "msd": 29_610_627,
        "hifi++_gen": 1_699_633,
        "a2a_hifi++_gen": 1_699_713,
        "finally_gen": 76_968_563,
        "finally_gen use_upsamplewaveunet=true": 80_814_196,
        "ms-stft_disc": 1_864_965,
    }
    assert {name: row.parameters for name, row in table.items()} == parameters
    assert all(row.paper.startswith("arXiv") and row.macs_per_second > 1e8 for row in table.values())
    assert table["hifigan_gen"].gives == "wav [B, 1, 256 F], 16 kHz"
    assert table["finally_gen use_upsamplewaveunet=true"].gives == "wav [B, 1, 3 T], 48 kHz"
    assert table["msd"].gives == "3 x (logits, 8 feature maps)"
