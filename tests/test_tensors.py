"""Files of tensors: whatever is put in their place, every loader refuses it in one line and runs nothing of it."""

from __future__ import annotations

import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finallyse.errors import UserError
from finallyse.inference.pack import KEY, packed_wavlm
from finallyse.metrics import guards
from finallyse.metrics.networks import read_wav2vec2_mos
from finallyse.models import models_registry
from finallyse.models.checkpoint import load_checkpoint, save_checkpoint
from finallyse.models.convert import convert
from finallyse.models.tensors import DTYPES, bounded_by, load_strictly, load_tensors
from finallyse.models.utmosv2 import load_utmosv2
from finallyse.models.wavlm import WavLM
from finallyse.training.state import StateFolder
from support.networks import SMALL, UPSAMPLING

# --- what may stand in place of a file --------------------------------------------------------------------------------


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def as_pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Code(mark)}))


def with_code(path: Path, mark: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": Code(mark)}, path)


def in_the_old_format(path: Path, mark: Path) -> None:
    torch.save({"generator": Code(mark)}, path, _use_new_zipfile_serialization=False)


class Program(torch.nn.Module):
    """Writes a file when `torch.jit.load` reads it."""

    def __init__(self, mark: str):
        super().__init__()
        self.mark = mark

    @torch.jit.export
    def __getstate__(self):
        return self.mark, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.mark, self.training = state
        torch.from_file(self.mark, shared=True, size=4).fill_(1.0)

    def forward(self, x):
        return x


def torchscript(path: Path, mark: Path) -> None:
    torch.jit.script(Program(str(mark))).save(path)


def tar(path: Path, mark: Path) -> None:
    mark.with_name("data").write_bytes(b"x")
    with tarfile.open(path, "w") as archive:
        archive.add(mark.with_name("data"), "storages")


def flipped(path: Path, mark: Path) -> None:
    torch.save({"state_dict": {"a": torch.arange(4096.0)}}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(4096.0)[-1:].numpy().tobytes())] ^= 1
    path.write_bytes(data)


def without_data(path: Path, mark: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1).expand(1 << 40)}}, path)


def compressed(path: Path, mark: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1 << 20)}}, mark.with_name("whole"))
    whole = zipfile.ZipFile(mark.with_name("whole"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))


def web_page(path: Path, mark: Path) -> None:
    path.write_text("<html>404</html>")


KINDS = {
    as_pickle: "not readable",
    with_code: "which is neither a tensor nor a plain value, and is not run",
    in_the_old_format: "not readable",
    torchscript: "a TorchScript program, which is not run",
    tar: "a tar archive",
    flipped: "damaged .the checksum of .* differs.: copy or download it again",
    without_data: "without its data",
    compressed: "damaged .compressed",
    web_page: "not readable",
}

# --- who reads it -----------------------------------------------------------------------------------------------------


WAVLM = {
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "conv_bias": False,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "layer_norm_eps": 1e-5,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_buckets": 32,
    "max_bucket_distance": 80,
}


def as_wavlm(path: Path) -> None:
    path.with_name("config.json").write_text(json.dumps(WAVLM))
    WavLM(path.parent)


def as_voice_encoder(path: Path) -> None:
    class Spec:
        submodule_search_locations = (str(path.parent),)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guards.importlib.util, "find_spec", lambda _name: Spec)
        guards._voice_encoder.__wrapped__(torch.device("cpu"))


LOADERS = {
    "x.ckpt": load_checkpoint,
    "published.ckpt": lambda path: convert(path, path.with_name("out.ckpt"), ["hifigan_gen"]),
    "pytorch_model.bin": as_wavlm,
    "fold0_s42_best_model.pth": load_utmosv2,
    "wav2vec2.ckpt": read_wav2vec2_mos,
    "pretrained.pt": as_voice_encoder,
    "step-00000001.pt": StateFolder.read,
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_loader_refuses_every_kind_and_runs_nothing(tmp_path, make: Callable, name: str):
    path, mark = tmp_path / name, tmp_path / "mark"
    make(path, mark)
    if (make, name) == (with_code, "wav2vec2.ckpt"):  # of which objects of a training framework are a part
        assert read_wav2vec2_mos(path).keys() == {"a"}
    else:
        with pytest.raises(UserError, match=KINDS[make]) as error:
            LOADERS[name](path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert not mark.exists()


def test_published_files_of_before_zip_archives_are_read(tmp_path):
    weights = {"generator": {"a": torch.arange(5.0)}}
    torch.save(weights, tmp_path / "g", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(load_tensors(tmp_path / "g"), weights, rtol=0, atol=0)


def test_foreign_files_have_every_kind_of_tensor(tmp_path):
    """Also views of a common storage, parameters and empty ones."""
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "column": whole[:, 1], "parameter": torch.nn.Parameter(torch.ones(2))}
    tensors |= {str(dtype): torch.ones(3).to(dtype) for dtype in (*DTYPES.values(),)} | {"none": torch.zeros(0)}
    torch.save({"state_dict": tensors, "hyper_parameters": Code(tmp_path / "mark")}, tmp_path / "wav2vec2.ckpt")
    read = read_wav2vec2_mos(tmp_path / "wav2vec2.ckpt")
    assert read.keys() == tensors.keys() and not (tmp_path / "mark").exists()
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name], tensor.detach(), rtol=0, atol=0)


# --- checkpoints that were changed ------------------------------------------------------------------------------------

NAME = "hifigan_gen"


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict:
    """The contents of a whole checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "x.ckpt"
    generator = models_registry[NAME](**SMALL[NAME])
    config = {"generator": {"name": NAME, "args": SMALL[NAME]}, "exp": {"results": "results"}}
    save_checkpoint(path, network=NAME, config=config, step=1, generator=generator.state_dict(), discriminators={})
    load_checkpoint(path).build_generator()
    return load_tensors(path)


def changed(content: dict, dotted: str, value: object) -> dict:
    """A copy of `content` with another value."""
    key, _, rest = dotted.partition(".")
    return content | {key: changed(content.get(key, {}), rest, value) if rest else value}


CHANGES = {
    "format_version": [None, "1", [], 1.5],
    "package_version": [None, 1],
    "step": [None, "1", -1],
    "level": ["loud", {"peak": "high"}],
    "devices": [None, [], {"cpu": "one"}],
    "generator": [None, [], {"a": 1}],
    "discriminators": [None, [], {"mpd": None}, {"mpd": {"a": "b"}}],
    "config": [None, [], "x"],
    "config.generator": [None, [], {}],
    "config.generator.name": [None, 5, "mpd", "other", ["hifigan_gen"]],
    "config.generator.args": ["x", [1], {"other": 1}],
    "config.generator.args.upsample_initial_channel": [None, "32", -32, 0, 10**9, 32.0, float("nan")],
    "config.generator.args.resblock_kernel_sizes": [None, [], [0, 0], [-3, 5], ["3", "5"], [3] * 100_000],
    "config.generator.args.resblock_dilation_sizes": [None, [], [[1] * 100_000, [1]], [1, 2]],
    "config.generator.args.upsample_rates": [None, "8822", ["8", 8, 2, 2], [0, 8, 2, 2]],
    "config.data": [None, {"train": 5}],
    "config.exp": [None, {"results": None}],
    "card": [5],
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_checkpoint_that_was_changed_is_refused_in_one_line(tmp_path, content, key):
    for value in CHANGES[key]:
        path = tmp_path / "x.ckpt"
        torch.save(changed(content, key, value), path)
        with pytest.raises(UserError) as error:
            load_checkpoint(path).build_generator()
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("norm", [{}, {"norm_type": "spectral"}])
def test_the_bound_on_a_network_is_no_bound_on_its_own_weights(name, norm):
    arguments = SMALL[name] | (norm if "norm_type" in models_registry.defaults(name) else {})
    if name == "finally_gen":
        arguments |= UPSAMPLING
    state = models_registry[name](**arguments).state_dict()
    with bounded_by(state, "x.ckpt"):
        load_strictly(models_registry[name](**arguments), state, "x.ckpt")
    fewer = dict(list(state.items())[: len(state) // 8])
    with pytest.raises(UserError, match=r"^x\.ckpt: describes a larger network than it has weights of$"):  # noqa: SIM117
        with bounded_by({key: value[:1] for key, value in fewer.items()}, "x.ckpt"):
            models_registry[name](**arguments)


@pytest.mark.parametrize(
    "files",
    [
        None,
        [torch.zeros(3, dtype=torch.uint8)],
        {"config.json": "{}"},
        {"config.json": torch.zeros(3)},
        {"config.json": torch.zeros(2, 2, dtype=torch.uint8)},
        {"../../config.json": torch.zeros(2, dtype=torch.uint8)},
        {"config.json": torch.frombuffer(bytearray(b"[1]"), dtype=torch.uint8)},
        {"config.json": torch.frombuffer(bytearray(b"\xff"), dtype=torch.uint8)},
    ],
)
def test_a_packed_wavlm_that_was_changed_is_refused_in_one_line(tmp_path, content, files):
    torch.save(content | {KEY: files}, tmp_path / "x.ckpt")
    if files is None:
        assert packed_wavlm(tmp_path / "x.ckpt") is None
        return
    with pytest.raises(UserError) as error:
        packed_wavlm(tmp_path / "x.ckpt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv_stride", [0, 2]),
        ("conv_stride", [5]),
        ("conv_kernel", None),
        ("hidden_size", 10**7),
        ("hidden_size", "24"),
        ("num_hidden_layers", 10**6),
        ("num_attention_heads", 7),
        ("num_conv_pos_embedding_groups", 5),
        ("layer_norm_eps", None),
        ("model_type", "bert"),
    ],
)
def test_a_wavlm_that_was_changed_is_refused_in_one_line(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps(WAVLM | {key: value}))
    torch.save({"masked_spec_embed": torch.zeros(24)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        WavLM(tmp_path)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)
