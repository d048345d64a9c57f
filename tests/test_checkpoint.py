"""Checkpoint files: round trip, atomic, strict, and one-line errors."""

import errno

import pytest
import torch

from finallyse.errors import UserError
from finallyse.models import models_registry
from finallyse.models.checkpoint import load_checkpoint, save_checkpoint
from finallyse.models.tensors import load_strictly

SMALL = {"resblock": "2", "upsample_initial_channel": 16, "resblock_dilation_sizes": [[1, 2], [1], [3]]}
CONFIG = {"generator": {"name": "hifigan_gen", "args": SMALL}, "train": {"steps": 3}}


def save(path, model, **changes):
    values = dict(network="hifigan", config=CONFIG, step=3, generator=model.state_dict(), discriminators={})
    save_checkpoint(path, **(values | changes))


def test_round_trip(tmp_path):
    generator = models_registry["hifigan_gen"](**SMALL)
    disc = models_registry["mpd"](periods=[2], widths=[4, 8])
    save(tmp_path / "a" / "x.ckpt", generator, discriminators={"mpd": disc.state_dict()})
    checkpoint = load_checkpoint(tmp_path / "a" / "x.ckpt")
    assert (checkpoint.network, checkpoint.step, checkpoint.config) == ("hifigan", 3, CONFIG)
    load_strictly(models_registry["mpd"](periods=[2], widths=[4, 8]), checkpoint.discriminators["mpd"], "x")
    rebuilt = checkpoint.build_generator()
    assert not rebuilt.training
    mel = torch.randn(1, 80, 3)
    torch.testing.assert_close(rebuilt(mel), generator.eval()(mel), rtol=0, atol=0)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x.ckpt"]


AT_PEAK = {"peak": 0.95}


@pytest.mark.parametrize(
    ("data", "level"),
    [
        ({"name": "voicebank", "args": {"manifest": "a.csv"}}, AT_PEAK),
        ({"name": "vctk", "args": {"manifest": "a.csv", "input_freq": 1000, "peak": 0.5}}, {"peak": 0.5}),
        ({"name": "mel_dataset", "args": {"manifest": "a.csv", "segment": 8192}}, AT_PEAK),
        ({"name": "mel_dataset", "args": {"manifest": "a.csv", "mels_folder": "mels"}}, None),
        ({"name": "augmented_libritts-r", "args": {"manifest": "a.csv", "augmentations": []}}, None),
        ({"name": "of another project", "args": {"peak": 0.5}}, None),
        ({"name": None, "args": {}}, AT_PEAK),  # of a published hifigan_gen
    ],
)
def test_the_level_is_that_of_the_training_data(tmp_path, data, level):
    config = CONFIG | {"data": {"train": data}}
    save(tmp_path / "x.ckpt", models_registry["hifigan_gen"](**SMALL), config=config)
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert content["level"] == load_checkpoint(tmp_path / "x.ckpt").level == level
    del content["level"]  # as before checkpoints recorded it
    torch.save(content, tmp_path / "old.ckpt")
    assert load_checkpoint(tmp_path / "old.ckpt").level == level
    torch.save(content | {"level": {"peak": 0.1}}, tmp_path / "other.ckpt")  # what is recorded counts
    assert load_checkpoint(tmp_path / "other.ckpt").level == {"peak": 0.1}


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    generator = models_registry["hifigan_gen"](**SMALL)
    save(tmp_path / "x.ckpt", generator)

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match=r"x\.ckpt: could not be written.*No space"):
        save(tmp_path / "x.ckpt", generator, step=4)
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]
    assert load_checkpoint(tmp_path / "x.ckpt").step == 3


def test_a_config_that_is_not_plain_is_refused(tmp_path):
    with pytest.raises(TypeError):
        save(tmp_path / "x.ckpt", models_registry["hifigan_gen"](**SMALL), config={"path": tmp_path})


def test_unreadable_files_are_one_line_errors(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt")
    save(tmp_path / "x.ckpt", models_registry["hifigan_gen"](**SMALL))
    data = (tmp_path / "x.ckpt").read_bytes()
    for name, content in {"cut": data[: len(data) // 2], "text": b"hello", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not readable as a checkpoint") as error:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save({"generator": {}}, tmp_path / "other")
    with pytest.raises(UserError, match="finallyse convert"):
        load_checkpoint(tmp_path / "other")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    torch.save(content | {"format_version": 99}, tmp_path / "newer")
    with pytest.raises(UserError, match="update the package"):
        load_checkpoint(tmp_path / "newer")
    del content["step"]
    torch.save(content, tmp_path / "damaged")
    with pytest.raises(UserError, match="without step"):
        load_checkpoint(tmp_path / "damaged")


def test_strict_loading_lists_every_difference(tmp_path):
    generator = models_registry["hifigan_gen"](**SMALL)
    state = generator.state_dict()
    state["extra"] = state.pop("conv_pre.bias")
    state["conv_post.bias"] = torch.zeros(2)
    save(tmp_path / "x.ckpt", generator, generator=state)
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / "x.ckpt").build_generator()
    for part in ("missing conv_pre.bias [16]", "left over extra [16]", "conv_post.bias has shape [2] instead of [1]"):
        assert part in str(error.value)
