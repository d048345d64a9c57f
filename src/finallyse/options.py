"""The configuration options, with types, defaults and help.

They are set in two kinds of YAML file:

- an *experiment* (config/experiments/*.yaml) defines how one network is trained: :class:`Experiment`;
- the *pipeline* (config/config.yaml, overlaid by e.g. config/demo.yaml) defines which experiments make up a run and
  where files go: :class:`Pipeline`.

Options are declared only in the dataclasses below. config/schema.json and the tables of config/README.md are generated
from them and from the registries (`make schema`).
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

T = TypeVar("T")
CorpusKind = Literal["speech", "pairs", "noise", "response"]

# Names and folders become parts of paths, of Snakemake's patterns and of commands, which not everything that submits
# them to a cluster quotes. `x-pattern` is the error message.
NAME = {
    "pattern": r"^(?!.*\.\.)\w[\w.+-]*$(?!\n)",
    "x-pattern": "is not fit for a name of files: letters, digits and _ . + - are, without - at the beginning and ..",
}
TITLE = {
    "pattern": r"^(?!-)(?!.*\.\.)[^$`'\"{}/\\\x00-\x1f\x7f]+$(?!\n)",
    "x-pattern": "is not fit for a name: $ ` ' \" { } / \\, line breaks, .. and a - at the beginning are not allowed",
}
FOLDER = {
    "pattern": r"^(?!-)(?!(.*/)?\.\.(/|$))[^$`'\"{}\\\x00-\x1f\x7f]+$(?!\n)",
    "x-pattern": "is not fit for a folder: $ ` ' \" { } \\, line breaks, a - at the beginning and .. are not allowed; "
    "give the absolute path, or a link",
}


def option(default: Any, help: str, *, defines: bool = True, **constraints: Any) -> Any:
    """A documented option.

    Args:
        default: the default value, or a dataclass of nested options.
        help: description, with the unit.
        defines: whether the value defines the result of a training. One that does not controls where and how fast a
            run happens, how it is monitored, or when it ends or saves: after a change, the training continues.
        constraints: JSON-schema keywords, e.g. `minimum=1`.
    """
    metadata = {"help": help, "constraints": constraints, "defines": defines}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# ---------------------------------------------------------------------------------------------------------------------
# An experiment: one trained network


@dataclasses.dataclass(frozen=True)
class Part:
    """A part selected by name from a registry."""

    name: str | None = option(None, "the part's name in its registry")
    args: dict = option({}, "arguments of its constructor")


@dataclasses.dataclass(frozen=True)
class Wandb:
    """Logging to Weights & Biases."""

    mode: Literal["disabled", "offline", "online"] = option(
        "disabled", "`offline` writes under the state folder and needs no key"
    )
    project: str = option("finallyse", "project of the run")
    entity: str | None = option(None, "team or user; null: the default of your account")


@dataclasses.dataclass(frozen=True)
class Exp:
    """Where a run reads and writes, and the device it runs on."""

    config_path: str | None = option(None, "the experiment file (command line only)", defines=False)
    run_name: str = option(
        "train", "name of the checkpoint `<results>/<run_name>.ckpt` and of the state folder", defines=False, **NAME
    )
    results: str = option("results", "folder of results", defines=False, **FOLDER)
    resources: str = option("resources", "folder of downloads and prepared data", defines=False, **FOLDER)
    seed: int = option(1234, "seed of weights, data order, segments and degradations", minimum=0)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "`auto` uses a GPU if available", defines=False)
    deterministic: bool = option(
        False, "deterministic algorithms on a GPU (slower); a CPU run is always deterministic", defines=False
    )
    threads: int | None = option(None, "CPU threads of PyTorch; null: PyTorch's default", minimum=1, defines=False)
    wandb: Wandb = option(Wandb, "logging to Weights & Biases", defines=False)
    tensorboard: bool = option(False, "also write TensorBoard events under the state folder", defines=False)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer."""

    name: Literal["adamw", "muon"] = option(
        "adamw", "`muon`: orthogonalised updates for matrices and kernels of convolutions, AdamW for the rest"
    )
    lr: float = option(2e-4, "learning rate", exclusiveMinimum=0)
    betas: list[float] = option([0.8, 0.99], "decay rates of AdamW's moments", minItems=2, maxItems=2)
    momentum: float = option(0.95, "decay rate of Muon's momentum", minimum=0, exclusiveMaximum=1)
    weight_decay: float = option(0.01, "decoupled weight decay", minimum=0)


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """Exponential decay of the learning rate, after a linear warm-up."""

    gamma: float = option(0.999, "factor of each decay", exclusiveMinimum=0, maximum=1)
    every: int | Literal["epoch"] = option("epoch", "decay once per epoch, or every this many steps")
    warmup_steps: int = option(0, "steps over which the learning rate rises from lr/warmup_steps to lr", minimum=0)


@dataclasses.dataclass(frozen=True)
class Generator(Part):
    """The network that is trained."""

    init_from: str | None = option(None, "checkpoint to initialise the generator from")
    train_only: list[str] = option([], "train only parameters whose names start with one of these prefixes; empty: all")
    optimizer: Optimizer = option(Optimizer, "optimizer of the generator")
    scheduler: Scheduler = option(Scheduler, "schedule of the generator's learning rate")
    ema_decay: float | None = option(
        None,
        "exponential moving average of the weights over 1 / (1 - ema_decay) steps, over fewer at first; the checkpoint "
        "then contains the average",
        minimum=0,
        exclusiveMaximum=1,
    )


@dataclasses.dataclass(frozen=True)
class Discriminators:
    """The discriminators, trained against the generator by one optimizer."""

    parts: dict = option({}, "registry name -> {args}; empty: no adversarial training")
    init_from: str | None = option(None, "checkpoint to initialise the discriminators from; null: random weights")
    updates_per_step: int = option(1, "discriminator updates per generator update", minimum=1)
    optimizer: Optimizer = option(Optimizer, "optimizer of all discriminators together")
    scheduler: Scheduler = option(Scheduler, "schedule of the discriminators' learning rate")


@dataclasses.dataclass(frozen=True)
class Losses:
    """The losses to minimise: registry name -> {weight, args}; null removes a loss of an overlaid file."""

    generator: dict = option({}, "losses of the generator")
    discriminator: dict = option({}, "losses of the discriminators")


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and validation data."""

    train: Part = option(Part, "dataset of training items")
    validation: Part = option(Part, "dataset of validation items", defines=False)
    batch_size: int = option(32, "items per step, over all GPUs together", minimum=1)
    sub_batch_size: int | None = option(
        None, "items per microbatch, into which a batch is split to save memory; same result", minimum=1, defines=False
    )
    num_workers: int = option(4, "loader processes per GPU; 0: in the training process", minimum=0, defines=False)


@dataclasses.dataclass(frozen=True)
class Clip:
    """Clipping of the generator's and discriminators' gradient norm."""

    mode: Literal["none", "norm", "quantile"] = option("none", "`quantile`: of the norms seen so far (AutoClip)")
    norm: float = option(1.0, "largest norm in mode `norm`", exclusiveMinimum=0)
    quantile: float = option(0.9, "quantile of the history in mode `quantile`", exclusiveMinimum=0, maximum=1)
    window: int = option(1000, "number of past norms in the history", minimum=2)


@dataclasses.dataclass(frozen=True)
class Train:
    """The training loop."""

    steps: int = option(80_000, "generator updates", minimum=1, defines=False)
    log_step: int = option(
        100, "steps between progress lines (only these steps wait for the GPU)", minimum=1, defines=False
    )
    balance_step: int | None = option(
        1_000,
        "steps between logs of each loss's gradient at the waveform (docs/training.md), each costing a fifth to a "
        "third of a step: 0.02 to 0.03 % at 1000; null: never",
        minimum=1,
        defines=False,
    )
    val_step: int | None = option(5_000, "steps between validations; null: only at the end", minimum=1, defines=False)
    val_items: int | None = option(64, "validation items measured during training; null: all", minimum=1, defines=False)
    best: str | None = option(
        None,
        "a number reported by `metrics`: also keep the weights of its best validation, in `<run_name>.best.ckpt`",
        defines=False,
    )
    checkpoint_step: int = option(1_000, "steps between saves of the resume state", minimum=1, defines=False)
    checkpoint_minutes: float = option(
        15.0, "maximum minutes between saves of the resume state", exclusiveMinimum=0, defines=False
    )
    keep: int = option(2, "resume states kept", minimum=2, defines=False)
    stop_after: float | None = option(
        None,
        "minutes after which to save, stop and ask for a restart (exit status 75)",
        exclusiveMinimum=0,
        defines=False,
    )
    precision: Literal["fp32", "bf16"] = option("fp32", "`bf16`: autocast; spectral operations and losses stay in fp32")
    tf32: bool = option(True, "TensorFloat-32 matrix products on a GPU")
    compile: bool = option(
        False, "torch.compile the generator and the discriminators; costs minutes at every start", defines=False
    )
    clip: Clip = option(Clip, "gradient clipping")
    on_nonfinite: Literal["stop", "skip"] = option(
        "stop", "what to do on a NaN or infinite loss or gradient", defines=False
    )
    max_skips: int = option(10, "number of skipped steps after which the run stops anyway", minimum=0, defines=False)
    debug: Literal["overfit", "fast", "profile"] | None = option(
        None,
        "a short run beside the real one, under `<results>/debug` (scripts/train.py only): `overfit` the first batch, "
        "`fast`: three steps and everything around them, `profile` ten steps",
        defines=False,
    )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """How one network is trained (config/experiments/*.yaml)."""

    exp: Exp = option(Exp, "folders, device, seed and logging")
    trainer: str | None = option(None, "name of the trainer")
    generator: Generator = option(Generator, "the network")
    discriminators: Discriminators = option(Discriminators, "the discriminators")
    wavlm: str | None = option(None, "folder of WavLM, for networks and losses that use it")
    losses: Losses = option(Losses, "the losses")
    data: Data = option(Data, "the data")
    train: Train = option(Train, "the training loop")
    metrics: list[str] = option([], "metrics of the validations during training", defines=False)
    plugins: list[str] = option(
        [], "Python files (or entry points) with parts of your own; the files that define the network's parts define it"
    )
    metric_plugins: list[str] = option(
        [], "those of `plugins` that only have metrics; set by the package", defines=False
    )


# ---------------------------------------------------------------------------------------------------------------------
# The pipeline: experiments, corpora, folders


@dataclasses.dataclass(frozen=True)
class Network:
    """One trained network of the workflow, `results/<network>.ckpt`."""

    experiment: str | None = option(None, "its experiment file")
    override: dict = option({}, "experiment options to override, as in the file")
    gpus: int = option(1, "GPUs of the training job; the result does not depend on it", minimum=1)
    threads: int = option(8, "CPU cores of the training job", minimum=1)
    mem_gb: float = option(32, "memory of the training job in GB", exclusiveMinimum=0)
    hours: float = option(
        48, "time limit of one training job in hours; it saves before the limit and is continued", exclusiveMinimum=0
    )
    improves: list[str] = option(
        [],
        "metrics in which the network must beat its input, by the mean of the paired differences (whether their 95 % "
        "interval excludes 0 is also reported); checked by target `learn`",
    )
    reaches: dict = option(
        {},
        "metric -> value that the mean over the validation set must reach, for vocoders, which have no input; checked "
        "by target `learn`; null removes one of an overlaid file",
    )


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Networks that differ from another one in some options: one for each combination of their values."""

    base: str | None = option(
        None, "the network of `networks` that is varied; `only` can leave it out of what is trained"
    )
    grid: dict = option(
        {},
        "option of the experiment, dotted -> list of its values; null removes one of an overlaid file; several values "
        "of `exp.seed` count as repetitions",
    )


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Source of a corpus or a weight file, if different from resources/datasets.yaml; or a corpus of one's own."""

    kind: CorpusKind | None = option(
        None,
        "what a corpus of your own has, which needs a new name; `pairs`: clean and noisy speech, `response`: impulse "
        "responses; null: a corpus or weight of resources/datasets.yaml",
    )
    base_url: str | None = option(None, "replaces the published base URL (`https://`, `file://`)")
    verify: Literal["published", "lock"] = option(
        "published", "`lock`: the contents differ from the published ones; record their own checksums"
    )
    folder: str | None = option(
        None,
        "a local folder of audio files: of your own corpus, or to use instead of a download; of pairs in its folders "
        "`clean` and `noisy`",
    )
    clean: str | None = option(None, "your own pairs: the folder of the clean recordings, instead of `folder`")
    noisy: str | None = option(None, "your own pairs: the folder of the noisy recordings, with the same names")
    validation: float | str | None = option(
        None,
        "your own corpus: the share of its recordings to validate with, or another folder of them (of pairs with "
        "`clean` and `noisy` in it); null: its folder `validation`, otherwise 0.1",
        exclusiveMinimum=0,
        exclusiveMaximum=1,
    )
    test: float | str | None = option(
        None,
        "your own corpus: the same for tests; null: its folder `test`, otherwise none",
        exclusiveMinimum=0,
        exclusiveMaximum=1,
    )
    min_bak: float = option(
        1.0,
        "leave out recordings whose DNSMOS BAK (background, from 1 to 5) is below this, listed in `dropped.csv`; 1: "
        "not measured (it takes half a second per recording and core)",
        minimum=1,
        maximum=5,
    )
    accept_cut: bool = option(
        False, "take what there is of recordings that are cut short or damaged, instead of leaving them out"
    )


@dataclasses.dataclass
class Compared:
    """Another system's enhanced versions of a network's validation items."""

    folder: str | None = option(
        None, "folder of its files, matched by name with the network's validation items; any format and rate"
    )
    results: str | None = option(
        None,
        "instead of `folder`: another folder of results, whose network of the same name is the system, or "
        "`FOLDER:NETWORK` for one of another name; the report shows its training's curves as well",
    )
    network: str | None = option(None, "the network beside which the report shows the system")


@dataclasses.dataclass
class Rooms:
    """The corpus `simulated-rooms`: impulse responses of random rooms."""

    count: int = option(400, "number of rooms", minimum=2)
    rt60_s: list[float] = option([0.1, 0.8], "least and greatest reverberation time, s", minItems=2, maxItems=2)
    rate: int = option(16000, "sample rate of the simulation, Hz", minimum=8000)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The whole workflow (config/config.yaml and overlays)."""

    results: str = option("results", "folder of results", **FOLDER)
    resources: str = option("resources", "folder of downloads and prepared data", **FOLDER)
    demo_speech: str | None = option(None, "recordings to build the demo's corpora from; null: the embedded ones")
    example: str | None = option(
        None, "a recording to enhance with the network that comes with the package, as `<results>/example.wav`"
    )
    allow_cpu: bool = option(False, "train even if no GPU is visible")
    preflight: bool = option(
        True,
        "before anything starts, build the networks to be trained and make a step without data (`finallyse check`)",
    )
    container: str | None = option(
        None, "image of every rule for `--sdm apptainer`, built from Containerfile: a .sif file or docker://..."
    )
    seed: int = option(1234, "seed of splits and experiments", minimum=0)
    networks: dict = option({}, "network name -> experiment; null removes one of an overlaid file")
    sweep: dict = option(
        {},
        "name -> a network and the options in which it is varied; each combination is a network, and the name a target "
        "that trains and measures all of them; null removes one of an overlaid file",
    )
    only: list[str] = option(
        [],
        "networks and sweeps to train and to report, empty: all; others are trained only if these start from their "
        "checkpoints",
    )
    common: dict = option({}, "options to override in every experiment, as in the experiment files")
    corpora: dict = option(
        {}, "corpus or weight -> its source; a new name: a corpus of your own; null removes one of an overlaid file"
    )
    rooms: Rooms = option(Rooms, "the simulated rooms")
    prepare_jobs: int = option(8, "processes that prepare one corpus", minimum=1)
    evaluate_jobs: int = option(4, "processes that measure one network's files", minimum=1)
    progress_minutes: float | None = option(
        1.0,
        "minutes after which Snakemake's output tells again how far the running trainings are; null: never",
        exclusiveMinimum=0,
        defines=False,
    )
    metrics: list[str] = option([], "metrics of the report")
    plugins: list[str] = option([], "Python files (or entry points) with parts of your own, for all networks")
    compare: dict = option(
        {},
        "name of another system, or of an earlier run -> its enhanced files, measured and shown in the report beside a "
        "network's; null removes one of an overlaid file",
        defines=False,
    )


@functools.lru_cache(maxsize=10_000)
def defines_run(key: str) -> bool:
    """Whether the value at the dotted `key` of an experiment defines the result of its training.

    Keys without a declared option do, such as an argument of a part or an option of an older version.
    """
    cls: Any = Experiment
    for name in key.split("."):
        field = {field.name: field for field in dataclasses.fields(cls)}.get(name)
        if field is None:
            return True
        if not field.metadata["defines"]:
            return False
        cls = field.default_factory  # the dataclass of a section
        if not dataclasses.is_dataclass(cls):
            return True
    return True


def defaults(cls: type) -> dict:
    """The default values of a dataclass of options as a plain dict."""
    return dataclasses.asdict(cls())


def from_dict(cls: type[T], values: T | Mapping) -> T:
    """Nested dicts as an instance of the dataclass `cls`, the inverse of `dataclasses.asdict`; an instance as it is.

    Values are not checked: `finallyse.schema` does that. Keys without a field, from a newer or older version, are left
    out.
    """
    if isinstance(values, cls):
        return values
    hints = _hints(cls)
    known = {name: value for name, value in values.items() if name in hints}
    nested = {name for name in known if dataclasses.is_dataclass(hints[name])}
    return cls(**known | {name: from_dict(hints[name], known[name]) for name in nested})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields; evaluating the annotations anew takes most of the time of `from_dict`."""
    return typing.get_type_hints(cls)
