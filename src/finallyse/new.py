"""`finallyse new`: a plugin with one class of a kind, which works as it is, and a test of what its kind promises."""

from __future__ import annotations

import importlib
import keyword
import re
from pathlib import Path

from finallyse import atomic
from finallyse.errors import UserError
from finallyse.registry import REGISTRIES

PARTS = {
    "loss": (
        '''\
"""The loss `NAME`.

    plugins: [NAME.py]
    losses.generator.NAME: {weight: 1}
"""

from __future__ import annotations

from torch import Tensor, nn

from finallyse.losses import losses_registry


@losses_registry.register("NAME")
class CLASS(nn.Module):
    """mean(|wav_hat - wav|^power) of waveforms [B, 1, T].

    Args:
        power: exponent of the differences.
    """

    label = "TITLE"  # in reports
    # also: sample_rate, wavlm, mel_for_loss, logits_real, logits_fake, fmaps_real, fmaps_fake
    needs = ("wav", "wav_hat")
    sees_level = True  # whether it depends on the level of wav_hat

    def __init__(self, power: float = 1.0):
        super().__init__()
        self.power = power

    def forward(self, wav: Tensor, wav_hat: Tensor) -> Tensor:
        return (wav_hat - wav).float().abs().pow(self.power).mean()
''',
        """\
def test_it_is_a_scalar_with_a_gradient():
    loss = losses_registry["NAME"]()
    wav, wav_hat = torch.randn(2, 1, 8192), torch.randn(2, 1, 8192, requires_grad=True)
    value = loss(wav=wav, wav_hat=wav_hat)
    value.backward()
    assert value.shape == () and value.dtype == torch.float32 and torch.isfinite(wav_hat.grad).all()
    assert loss(wav=wav, wav_hat=wav) < value
""",
        "from finallyse.losses import losses_registry",
    ),
    "network": (
        '''\
"""The network `NAME`, for the trainer hifi++_trainer.

    plugins: [NAME.py]
    generator: {name: NAME}
"""

from __future__ import annotations

from torch import Tensor, nn

from finallyse.models import models_registry
from finallyse.models.base import Generator


@models_registry.register("NAME")
class CLASS(Generator):
    """Residual convolutions: waveform [B, 1, T] -> [B, 1, T], 16 kHz.

    Args:
        channels: width of the convolutions.
        depth: number of them.
    """

    paper = "my own"
    input_kind = "wav"
    alignment = 1  # samples whose multiples are aligned with all strides

    def __init__(self, channels: int = 32, depth: int = 4):
        super().__init__()
        self.first = nn.Conv1d(1, channels, 7, padding=3)
        self.layers = nn.ModuleList(nn.Conv1d(channels, channels, 7, padding=3) for _ in range(depth))
        self.last = nn.Conv1d(channels, 1, 7, padding=3)

    def forward(self, wav: Tensor) -> Tensor:
        x = self.first(wav)
        for layer in self.layers:
            x = x + layer(x).relu()
        return wav + self.last(x)
''',
        """\
@pytest.mark.parametrize("length", [1, 4096, 5001])
def test_any_length_comes_back(length):
    network = models_registry["NAME"]()
    wav = torch.randn(2, 1, length)
    wav_hat = network(wav)
    wav_hat.square().mean().backward()
    assert wav_hat.shape == wav.shape and network.input_rate == network.output_rate == 16000
    assert all(parameter.grad is not None for parameter in network.parameters())
""",
        "from finallyse.models import models_registry",
    ),
    "dataset": (
        '''\
"""The dataset `NAME`.

    plugins: [NAME.py]
    data.train: {name: NAME, args: {manifest: ...}}
"""

from __future__ import annotations

from finallyse.datasets import datasets_registry
from finallyse.datasets.base import ManifestDataset, tensor


@datasets_registry.register("NAME")
class CLASS(ManifestDataset):
    """Recordings at half their level, to be brought back to it.

    Args:
        manifest: CSV of prepared speech, or a list of them.
        segment: samples per item; null: whole recordings.
        sample_rate: sample rate of the recordings, Hz.
        seed: seed of the segments.
    """

    def __init__(self, manifest: str | list[str], segment: int | None = 8192, sample_rate: int = 16000, seed: int = 0):
        super().__init__(manifest, sample_rate, segment, seed)

    def item(self, epoch: int, index: int) -> dict:
        path = self.manifest.path(index)
        start, frames = self.place(epoch, index)
        wav = self.read(path, start, frames, self.segment)
        return {"input_wav": tensor(0.5 * wav, path), "wav": tensor(wav, path), "name": self.manifest.name(index)}
''',
        """\
def test_items_depend_on_seed_epoch_and_index_only(tmp_path):
    wav = 0.5 * np.random.default_rng(0).standard_normal(32000).astype("float32").clip(-1, 1)
    sf.write(tmp_path / "a.wav", wav, 16000)
    (tmp_path / "train.csv").write_text("path,samples,rate\\na.wav,32000,16000\\n")
    first, second = (datasets_registry["NAME"](str(tmp_path / "train.csv")) for _ in range(2))
    item = first[(3, 0)]
    assert item["wav"].shape == item["input_wav"].shape == (8192,)
    assert torch.equal(item["wav"], second[(3, 0)]["wav"])
""",
        "import numpy as np\nimport soundfile as sf\n\nfrom finallyse.datasets import datasets_registry",
    ),
    "augmentation": (
        '''\
"""The augmentation `NAME`.

    plugins: [NAME.py]
    augmentations: [{name: NAME, probability: 0.5}] of a dataset
"""

from __future__ import annotations

import numpy as np

from finallyse.augmentations import Augmentation, augmentations_registry
from finallyse.augmentations.base import interval


@augmentations_registry.register("NAME")
class CLASS(Augmentation):
    """Quieter.

    Args:
        gain_db: [min, max] gain, dB.
    """

    name = "NAME"

    def __init__(self, gain_db: list[float] = (-12, -6)):
        self.gain_db = interval(gain_db, "NAME: gain_db", -60, 0)

    def draw(self, rng: np.random.Generator) -> dict:
        return {"gain_db": float(rng.uniform(*self.gain_db))}

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        return wav * np.float32(10 ** (params["gain_db"] / 20))
''',
        """\
def test_length_and_parameters_are_kept():
    augmentation = augmentations_registry["NAME"]()
    params = augmentation.draw(np.random.default_rng(0))
    assert params == augmentation.draw(np.random.default_rng(0))
    wav = np.random.default_rng(1).standard_normal(16000).astype("float32")
    degraded = augmentation.apply(wav, 16000, params)
    assert degraded.shape == wav.shape and degraded.dtype == np.float32 and not np.array_equal(degraded, wav)
""",
        "import numpy as np\n\nfrom finallyse.augmentations import augmentations_registry",
    ),
    "metric": (
        '''\
"""The metric `NAME`.

    plugins: [NAME.py]
    metrics: [NAME, ...] of the pipeline or of an experiment
"""

from __future__ import annotations

import numpy as np

from finallyse.metrics import Metric, Needs, Utterance, metrics_registry


@metrics_registry.register("NAME")
class CLASS(Metric):
    """Largest difference between output and reference."""

    needs = Needs(reference=True, rate=16000, paper="my own")
    columns = {"NAME": "TITLE"}  # its numbers, and their names in reports
    better = "lower"

    def score(self, utterance: Utterance) -> dict[str, float]:
        enhanced, reference = utterance.pair(self.needs.rate)
        return {"NAME": float(np.abs(enhanced - reference).max())}
''',
        """\
def test_it_scores_every_number_and_the_better_one_better():
    metric = metrics_registry["NAME"]()
    wav = np.random.default_rng(0).standard_normal(16000).astype("float32").clip(-1, 1)
    worse = wav + np.random.default_rng(1).standard_normal(16000).astype("float32")
    good, bad = (metric.score(Utterance(x, 16000, wav)) for x in (wav, worse))
    assert good.keys() == bad.keys() == metric.columns.keys()
    assert all(goodness(good[name], metric.better) > goodness(bad[name], metric.better) for name in good)
""",
        "import numpy as np\n\nfrom finallyse.metrics import Utterance, goodness, metrics_registry",
    ),
    "trainer": (
        '''\
"""The trainer `NAME`.

    plugins: [NAME.py]
    trainer: NAME
"""

from __future__ import annotations

from torch import Tensor

from finallyse.training import trainers_registry
from finallyse.training.batches import Batch
from finallyse.training.trainers import BaseTrainer


@trainers_registry.register("NAME")
class CLASS(BaseTrainer):
    """Waveform -> waveform; `train_step`, `update_generator` and `update_discriminators` can be changed as well."""

    adversarial = True  # whether it uses discriminators

    def synthesize_wavs(self, batch: Batch) -> Tensor:
        return self.generate(batch["input_wav"])
''',
        """\
def test_a_step_changes_the_weights():
    experiment = {
        "trainer": "NAME",
        "generator": {"name": "a2a_hifi++_gen"},
        "losses": {"generator": {"l1_wav_loss": {"weight": 1}}},
        "train": {"balance_step": None},
    }
    trainer = trainers_registry["NAME"](experiment, Group(torch.device("cpu")), {"wav", "input_wav"})
    before = {name: value.clone() for name, value in trainer.generator.named_parameters()}
    trainer.begin(0, 0)
    losses = trainer.train_step(Batch({"wav": torch.randn(1, 1, 8192), "input_wav": torch.randn(1, 1, 8192)}, ["a"]))
    assert torch.isfinite(losses["generator"])
    assert any(not torch.equal(before[name], value) for name, value in trainer.generator.named_parameters())
""",
        "from finallyse.training import trainers_registry\nfrom finallyse.training.batches import Batch\n"
        "from finallyse.training.distributed import Group",
    ),
}
REGISTERED_IN = {
    "loss": "losses",
    "network": "models",
    "dataset": "datasets",
    "augmentation": "augmentations",
    "metric": "metrics",
    "trainer": "training",
}
TEST = '''\
"""What every KIND promises: python -m pytest test_NAME.py."""

from pathlib import Path

IMPORTS

plugins.load([str(Path(__file__).with_name("NAME.py"))])


BODY'''


def write(kind: str, name: str, folder: str | Path, force: bool = False) -> list[Path]:
    """Write NAME.py and test_NAME.py into `folder`; returns their paths.

    Raises UserError for a name that is no Python identifier or is taken, and for files that exist, without `force`.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name}: the name must be of lower-case letters, digits and _, beginning with a letter")
    if keyword.iskeyword(name):
        raise UserError(f"{name}: is a word of Python's own; choose another name")
    importlib.import_module(f"finallyse.{REGISTERED_IN[kind]}")
    if name in REGISTRIES[kind]:
        raise UserError(f"{name}: the package has a {kind} of that name; choose another one")
    part, test, imports = PARTS[kind]
    third_party = sorted({"import torch", *re.findall(r"^import (?:numpy|soundfile).*$", imports, re.MULTILINE)})
    third_party += ["import pytest"] * ("pytest." in test)
    own = [line for line in imports.splitlines() if line.startswith("from finallyse")]
    used = [line for line in third_party if line.split()[-1] + "." in test]
    lines = "\n".join([*sorted(used), "", "from finallyse import plugins", *own])
    words = {"NAME": name, "CLASS": "".join(map(str.capitalize, name.split("_"))), "TITLE": name.replace("_", " ")}
    texts = {f"{name}.py": part, f"test_{name}.py": TEST.replace("IMPORTS", lines).replace("BODY", test)}
    paths = [Path(folder, file) for file in texts]
    for path in paths:
        if path.exists() and not force:
            raise UserError(f"{path}: exists; choose another name, or give --force to replace it")
    for path, text in zip(paths, texts.values(), strict=True):
        for word, value in {**words, "KIND": kind}.items():
            text = re.sub(rf"\b{word}\b", value, text) if word != "NAME" else text.replace(word, value)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as draft:
            draft.write_text(text)
    return paths
