"""The configuration: what can be said in it, its defaults, and how it is put together.

Two kinds of file are read, both YAML held by OmegaConf:

- an *experiment* (config/experiments/*.yaml) says how one network is trained: :class:`Experiment`;
- the *pipeline* (config/config.yaml, overlaid by e.g. config/demo.yaml) says which experiments make up a run and
  where things lie: :class:`Pipeline`.

The dataclasses below are the one place where options are declared. config/schema.json and the tables of
config/README.md are generated from them and from the registries (`make schema`); :mod:`finallyse.schema` checks files
against that schema before anything runs.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finallyse.errors import UserError


def option(default: Any, help: str, **constraints: Any) -> Any:
    """A documented option. `constraints` are JSON-schema keywords, e.g. `minimum=1`."""
    metadata = {"help": help, "constraints": constraints}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# ---------------------------------------------------------------------------------------------------------------------
# An experiment: one trained network


@dataclasses.dataclass
class Part:
    """A part chosen by name from a registry."""

    name: str | None = option(None, "the part's name in its registry")
    args: dict = option({}, "arguments of its constructor")


@dataclasses.dataclass
class Wandb:
    """Logging to Weights & Biases."""

    mode: Literal["disabled", "offline", "online"] = option(
        "disabled", "`offline` writes under the state folder and needs no key"
    )
    project: str = option("finallyse", "project of the run")
    entity: str | None = option(None, "team or user; null: the default of your account")


@dataclasses.dataclass
class Exp:
    """Where a run reads and writes, and on what it runs."""

    config_path: str | None = option(None, "the experiment file (command line only)")
    run_name: str = option("train", "names the checkpoint `<results>/<run_name>.ckpt` and the state folder")
    results: str = option("results", "folder of results")
    resources: str = option("resources", "folder of downloads and prepared data")
    seed: int = option(1234, "seed of weights, data order, segments and degradations", minimum=0)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "`auto` takes a GPU where there is one")
    deterministic: bool = option(False, "deterministic algorithms on a GPU (slower); a CPU run always is")
    threads: int | None = option(None, "CPU threads of PyTorch; null: its own default", minimum=1)
    wandb: Wandb = option(Wandb, "logging to Weights & Biases")
    tensorboard: bool = option(False, "also write TensorBoard events under the state folder")


@dataclasses.dataclass
class Optimizer:
    """AdamW."""

    lr: float = option(2e-4, "learning rate", exclusiveMinimum=0)
    betas: list[float] = option([0.8, 0.99], "decay rates of the moments", minItems=2, maxItems=2)
    weight_decay: float = option(0.01, "decoupled weight decay", minimum=0)


@dataclasses.dataclass
class Scheduler:
    """Exponential decay of the learning rate, after a linear warm-up."""

    gamma: float = option(0.999, "factor of each decay", exclusiveMinimum=0, maximum=1)
    every: int | Literal["epoch"] = option("epoch", "decay once an epoch, or every so many steps")
    warmup_steps: int = option(0, "steps over which the learning rate rises from lr/warmup_steps to lr", minimum=0)


@dataclasses.dataclass
class Generator(Part):
    """The network that is trained."""

    init_from: str | None = option(None, "checkpoint whose generator this one starts from")
    train_only: list[str] = option([], "train only parameters whose name begins so; empty: all")
    optimizer: Optimizer = option(Optimizer, "of the generator")
    scheduler: Scheduler = option(Scheduler, "of the generator's learning rate")
    ema_decay: float | None = option(
        None,
        "exponential moving average of the weights over 1 / (1 - ema_decay) steps, over fewer at first; the checkpoint "
        "then holds the average",
        minimum=0,
        exclusiveMaximum=1,
    )


@dataclasses.dataclass
class Discriminators:
    """The discriminators, trained against the generator by one optimizer."""

    parts: dict = option({}, "registry name -> {args}; empty: no adversarial training")
    init_from: str | None = option(None, "checkpoint to take discriminators from; null: start fresh")
    updates_per_step: int = option(1, "discriminator updates for each generator update", minimum=1)
    optimizer: Optimizer = option(Optimizer, "of all discriminators together")
    scheduler: Scheduler = option(Scheduler, "of the discriminators' learning rate")


@dataclasses.dataclass
class Losses:
    """What is minimised: registry name -> {weight, args}; null removes a loss that an overlaid file has."""

    generator: dict = option({}, "losses of the generator")
    discriminator: dict = option({}, "losses of the discriminators")


@dataclasses.dataclass
class Data:
    """What is trained on."""

    train: Part = option(Part, "dataset of training items")
    validation: Part = option(Part, "dataset of validation items")
    batch_size: int = option(32, "items of one step, over all GPUs together", minimum=1)
    sub_batch_size: int | None = option(
        None, "split each batch into pieces of so many items to save memory; same result", minimum=1
    )
    num_workers: int = option(4, "loader processes per GPU; 0: in the training process", minimum=0)


@dataclasses.dataclass
class Clip:
    """Clipping of the generator's and discriminators' gradient norm."""

    mode: Literal["none", "norm", "quantile"] = option("none", "`quantile`: of the norms seen so far (AutoClip)")
    norm: float = option(1.0, "largest norm in mode `norm`", exclusiveMinimum=0)
    quantile: float = option(0.9, "quantile of the history in mode `quantile`", exclusiveMinimum=0, maximum=1)
    window: int = option(1000, "number of past norms in the history", minimum=2)


@dataclasses.dataclass
class Train:
    """The loop."""

    steps: int = option(80_000, "generator updates", minimum=1)
    log_step: int = option(100, "steps between progress lines (the only ones that wait for the GPU)", minimum=1)
    balance_step: int | None = option(
        1_000,
        "steps between logs of each loss's gradient at the waveform (docs/training.md), which cost a fifth to a third "
        "of a step: 0.03 % at 1000; null: never",
        minimum=1,
    )
    val_step: int | None = option(5_000, "steps between validations; null: only at the end", minimum=1)
    val_items: int | None = option(64, "validation items measured while training; null: all", minimum=1)
    best: str | None = option(
        None, "one of the numbers of `metrics`: keep the weights of its best validation in `<run_name>.best.ckpt` too"
    )
    checkpoint_step: int = option(1_000, "steps between saves of the resume state", minimum=1)
    checkpoint_minutes: float = option(15.0, "minutes after which the state is saved at the latest", exclusiveMinimum=0)
    keep: int = option(2, "resume states kept", minimum=2)
    stop_after: float | None = option(
        None, "minutes after which to save, stop and ask for a restart (exit status 75)", exclusiveMinimum=0
    )
    precision: Literal["fp32", "bf16"] = option("fp32", "`bf16`: autocast; spectral operations and losses stay in fp32")
    tf32: bool = option(True, "TensorFloat-32 matrix products on a GPU")
    compile: bool = option(False, "torch.compile the generator and the discriminators; costs minutes at every start")
    clip: Clip = option(Clip, "gradient clipping")
    on_nonfinite: Literal["stop", "skip"] = option("stop", "what to do at a NaN or infinite loss or gradient")
    max_skips: int = option(10, "skipped steps after which the run stops all the same", minimum=0)


@dataclasses.dataclass
class Experiment:
    """How one network is trained (config/experiments/*.yaml)."""

    exp: Exp = option(Exp, "where and on what")
    trainer: str | None = option(None, "name of the trainer")
    generator: Generator = option(Generator, "the network")
    discriminators: Discriminators = option(Discriminators, "the discriminators")
    wavlm: str | None = option(None, "folder of WavLM, for networks and losses that use it")
    losses: Losses = option(Losses, "the losses")
    data: Data = option(Data, "the data")
    train: Train = option(Train, "the loop")
    metrics: list[str] = option([], "metrics of the validations during training")


# ---------------------------------------------------------------------------------------------------------------------
# The pipeline: experiments, corpora, places


@dataclasses.dataclass
class Network:
    """One trained network of the workflow, `results/<network>.ckpt`."""

    experiment: str | None = option(None, "its experiment file")
    override: dict = option({}, "options of the experiment to change, as in the file")
    gpus: int = option(1, "GPUs of the training job; the result does not depend on it", minimum=1)
    threads: int = option(8, "CPU cores of the training job", minimum=1)
    mem_gb: float = option(32, "memory of the training job in GB", exclusiveMinimum=0)
    hours: float = option(48, "time limit of one training job, which saves before and is continued", exclusiveMinimum=0)
    improves: list[str] = option(
        [],
        "metrics in which the network must beat its input, by the mean of the paired differences (whether their 95 % "
        "interval excludes 0 is told beside it); checked by target `learn`",
    )
    reaches: dict = option(
        {},
        "metric -> number that the mean over the validation set must reach, for vocoders, which have no input; checked "
        "by target `learn`; null removes one that an overlaid file has",
    )


@dataclasses.dataclass
class Corpus:
    """Where a corpus or a weight file comes from, where that is not what resources/datasets.yaml says."""

    base_url: str | None = option(None, "replaces the published base URL (`https://`, `file://`)")
    verify: Literal["published", "lock"] = option(
        "published", "`lock`: the contents differ from the published ones; record checksums of their own"
    )
    folder: str | None = option(None, "a local folder of audio files to use instead of any download")


@dataclasses.dataclass
class Pipeline:
    """The whole workflow (config/config.yaml and overlays)."""

    results: str = option("results", "folder of results")
    resources: str = option("resources", "folder of downloads and prepared data")
    demo_speech: str | None = option(None, "recordings to build the demo's corpora from; null: the embedded ones")
    allow_cpu: bool = option(False, "train although no GPU is visible")
    container: str | None = option(
        None, "image of every rule for `--sdm apptainer`, built from Containerfile: a .sif file or docker://..."
    )
    seed: int = option(1234, "seed of splits and experiments", minimum=0)
    networks: dict = option({}, "network name -> experiment; null removes one that an overlaid file has")
    common: dict = option({}, "options of every experiment to change, as in the experiment files")
    corpora: dict = option({}, "corpus or weight -> where to get it from")
    prepare_jobs: int = option(8, "processes that prepare one corpus", minimum=1)
    evaluate_jobs: int = option(4, "processes that measure one network's files", minimum=1)
    metrics: list[str] = option([], "metrics of the report")


# ---------------------------------------------------------------------------------------------------------------------
# Putting it together


def defaults(cls: type) -> dict:
    """The default values of a dataclass of options as a plain dict."""
    return dataclasses.asdict(cls())


def read_yaml(path: str | Path) -> dict:
    """A YAML file as a plain dict, interpolations unresolved."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # YAML scanner, OmegaConf grammar: all of them mean that the file cannot be read
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{path}: must hold keys and values, found a list or a single value")
    return OmegaConf.to_container(loaded, resolve=False)


def merge(*layers: dict) -> dict:
    """Deep merge of plain dicts into a new one, later ones win; lists are replaced whole."""
    merged: dict = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _resolve(config: dict, source: str) -> dict:
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from None


def complete_experiment(config: dict, source: str, schema: dict) -> dict:
    """`config` over the defaults: resolved, without the parts set to null, with every argument's default, checked."""
    from finallyse.schema import check_required, fill_arguments, validate

    full = _resolve(merge(defaults(Experiment), config), source)
    for parts in (full["losses"]["generator"], full["losses"]["discriminator"], full["discriminators"]["parts"]):
        for name in [name for name, part in parts.items() if part is None]:
            del parts[name]
    fill_arguments(full, schema["$defs"]["experiment"], schema)
    check_required(full, schema["$defs"]["experiment"], schema, source)
    validate(full, schema["$defs"]["experiment"], schema, source)
    required = {
        "trainer": full["trainer"],
        "generator.name": full["generator"]["name"],
        "data.train.name": full["data"]["train"]["name"],
        "data.validation.name": full["data"]["validation"]["name"],
        "losses.generator": full["losses"]["generator"],
    }
    for key, value in required.items():
        if not value:
            raise UserError(f"{source}: {key} is required")
    return full


def load_experiment(arguments: Sequence[str], schema: dict | None = None) -> DictConfig:
    """The experiment that `exp.config_path=FILE key=value ...` describes: checked, resolved, read-only.

    The overrides follow Hydra's override grammar, but for FILE, which is any path; options of the schema and arguments
    of the parts chosen in the file need no `+`. `schema` defaults to the one generated from the code.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from finallyse.schema import build_schema, check_keys, fill_arguments, validate

    option_of_file = "exp.config_path="
    paths = [argument.removeprefix(option_of_file) for argument in arguments if argument.startswith(option_of_file)]
    arguments = [argument for argument in arguments if not argument.startswith(option_of_file)]
    try:
        overrides = OverridesParser.create().parse_overrides(arguments)
    except HydraException as error:
        raise UserError(
            f"command line: {' '.join(str(error).split())}. A value with other than letters, digits and -_./:+ needs "
            "quotes that the shell leaves there: \"key='value'\""
        ) from None
    given = {override.key_or_group: override for override in overrides}
    if not paths:
        raise UserError(
            "exp.config_path is required, e.g. exp.config_path=config/experiments/hifigan.yaml exp.run_name=train"
        )
    path = paths[-1]
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":  # quoted as the grammar would have it
        path = path[1:-1]

    schema = schema or build_schema()
    experiment_schema = schema["$defs"]["experiment"]
    config = read_yaml(path)
    validate(config, experiment_schema, schema, path)
    config = merge(defaults(Experiment), config)
    for key in ("generator.name", "data.train.name", "data.validation.name"):
        if key in given:  # the arguments offered for override below are those of the part chosen here
            section = config
            for step in key.split(".")[:-1]:
                section = section[step]
            section["name"] = given[key].value()
    fill_arguments(config, experiment_schema, schema, required=True)
    for override in overrides:
        if override.is_add() or override.is_force_add() or override.is_delete():
            continue
        check_keys(config, override.key_or_group, "command line")
    config = _compose(config, arguments)
    config["exp"]["config_path"] = path
    full = complete_experiment(config, f"{path} with the command line" if overrides else path, schema)
    experiment = OmegaConf.create(full)
    OmegaConf.set_readonly(experiment, True)
    return experiment


def _compose(config: dict, arguments: list[str]) -> dict:
    """Apply Hydra overrides to a plain dict."""
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException

    ConfigStore.instance().store(name="experiment", node=config)
    try:
        with initialize(version_base="1.3", config_path=None):
            composed = compose(config_name="experiment", overrides=arguments)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"command line: {' '.join(str(error).split())}") from None
    return OmegaConf.to_container(composed, resolve=False)


def has_input(experiment: dict) -> bool:
    """Whether the network's input is a recording that can be measured like its output; a vocoder's is a spectrogram."""
    return experiment["data"]["validation"]["name"] != "mel_dataset"


def _check_goals(name: str, network: dict, experiment: dict, measured: Sequence[str]) -> None:
    """Raise a UserError for a metric in `improves` or `reaches` that the pipeline does not measure or cannot judge."""
    from finallyse.metrics import metric_of, metrics_registry

    columns = [column for metric in measured for column in metrics_registry[metric].columns]
    for key in ("improves", "reaches"):
        for column in network[key]:
            metric = metric_of(column)
            if column not in columns:
                raise UserError(
                    f"config: networks.{name}.{key}: {column} is not measured; "
                    f"add {metric} to `metrics`, or leave it out"
                )
            if metrics_registry[metric].better == "zero":
                raise UserError(
                    f"config: networks.{name}.{key}: {column} is checked by itself wherever something else is "
                    "asked for; leave it out"
                )
    if network["improves"] and not has_input(experiment):
        raise UserError(
            f"config: networks.{name}.improves: a vocoder has no input to beat; ask for numbers in "
            f"networks.{name}.reaches"
        )


def load_pipeline(files: Sequence[str | Path], overrides: dict, schema: dict) -> dict:
    """The pipeline's config from its files, later over earlier, and `overrides` (`--config key=value`): a plain dict.

    Checks everything, each experiment included; `["experiments"]` of the result holds the complete experiments.
    """
    from finallyse.schema import validate

    pipeline_schema = schema["$defs"]["pipeline"]
    layers = []
    for path, layer in [*((str(path), read_yaml(path)) for path in files), ("--config", dict(overrides))]:
        validate(layer, pipeline_schema, schema, path)
        for key in {"results", "resources"} & layer.keys():
            layer[key] = layer[key].rstrip("/")
        layers.append(layer)
    config = _resolve(merge(defaults(Pipeline), *layers), str(files[-1]) if files else "config")
    config["networks"] = {name: network for name, network in config["networks"].items() if network is not None}
    validate(config, pipeline_schema, schema, "config")

    config["experiments"] = {}
    for name, network in config["networks"].items():
        network = config["networks"][name] = merge(defaults(Network), network)
        if not network["experiment"]:
            raise UserError(f"config: networks.{name}.experiment is required: the experiment file of this network")
        layer = read_yaml(network["experiment"])
        validate(layer, schema["$defs"]["experiment"], schema, network["experiment"])
        run = {
            "exp": {
                "run_name": name,
                "results": config["results"],
                "resources": config["resources"],
                "seed": config["seed"],
            }
        }
        config["experiments"][name] = complete_experiment(
            merge(layer, run, config["common"], network["override"]),
            f"networks.{name} ({network['experiment']})",
            schema,
        )
        network["reaches"] = {column: value for column, value in network["reaches"].items() if value is not None}
        _check_goals(name, network, config["experiments"][name], config["metrics"])
    return config
