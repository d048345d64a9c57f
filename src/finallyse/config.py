"""Loading of the configuration: files over the files that they extend, overrides over files, defaults filled in.

:mod:`finallyse.options` declares the options, :mod:`finallyse.schema` validates them.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finallyse.compare import compared_systems
from finallyse.errors import UserError, nearest
from finallyse.options import Compared, Experiment, Network, Pipeline, Sweep, defaults, from_dict
from finallyse.project import PROJECT, project_file, with_project_files
from finallyse.schema import (
    MISSING,
    build_schema,
    check_keys,
    check_required,
    fill_arguments,
    read_schema,
    validate,
)
from finallyse.sweep import nested, read_sweep

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


PIPELINE = Path("config/config.yaml")
PLACES = ("run_name", "config_path", "results", "resources")  # options of `exp` that the workflow sets
MODULE = "config of the module"
WORDS = {"true": True, "false": False, "null": None}
# An interpolation of an experiment's option, in `common` or an override, is resolved with the experiment: until then it
# begins with a character that no text has.
_OF_EXPERIMENTS = {f.name for f in dataclasses.fields(Experiment)} - {f.name for f in dataclasses.fields(Pipeline)}
INTERPOLATION = rf"\$\{{(?=(?:{'|'.join(sorted(_OF_EXPERIMENTS))})[.}}])"
DEFERRED = "\ue000"
PLAIN = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
DEEPEST = 20  # interpolations that lead to one another; more are a circle, which OmegaConf tells
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Layer(NamedTuple):
    """Options from one place, unresolved: a file, or a part of one."""

    source: str
    values: dict


def read_layers(path: str | Path) -> list[Layer]:
    """A config file after all the files that its `extends` names: later layers over earlier ones.

    `extends` holds a path or a list of them, relative to the folder of the file. A file that several others extend
    counts once, at its first place.
    """
    layers: dict[Path, Layer] = {}

    def read(path: Path, chain: tuple[Path, ...]) -> None:
        key = path.resolve()
        if key in chain:
            circle = " extends ".join(map(str, [*chain[chain.index(key) :], key]))
            raise UserError(f"{path}: extends itself: {circle}")
        if key in layers:
            return
        values = _read_file(path, chain)
        for base in _bases(values, path):
            read(path.parent / base, (*chain, key))
        layers[key] = Layer(str(path), values)

    read(Path(path), ())
    return list(layers.values())


def _bases(values: dict, source: str | Path) -> list[str]:
    """Take the files to start from out of `values`."""
    bases = values.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise UserError(f"{source}: extends: must be a path or a list of paths, got {bases!r}")
    return bases


def _read_file(path: Path, extended_by: Sequence[Path] = ()) -> dict:
    if not path.is_file():
        asked = f", which {extended_by[-1]} extends" if extended_by else ""
        raise UserError(f"{path}: no such config file{asked}")
    status = path.stat()
    return dict(_parsed(path, status.st_mtime_ns, status.st_size))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML as OmegaConf reads it: 1e-4 is a number, dates are texts, a key that stands twice is an error.

    With libyaml, where PyYAML has it: OmegaConf's own loader takes most of the time of a plan.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """The mapping; ConstructorError for a key that stands twice."""
        keys = set()
        for key, _ in node.value:
            if key.tag == yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG and key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {key.value}", key.start_mark)
            keys.add(key.value if isinstance(key.value, str) else None)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(?:\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, mtime_ns: int, size: int) -> dict:
    """The contents of a file, which many others may extend; the last two arguments tell its versions apart."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict | None):
        raise UserError(f"{path}: must hold keys and values, found a list or a single value")
    return loaded or {}


def read_yaml(path: str | Path) -> dict:
    """A config file over the files that it extends, as a plain dict, interpolations unresolved."""
    return merge(*(layer.values for layer in read_layers(path)))


def merge(*layers: dict) -> dict:
    """Deep merge of plain dicts into a new one, later ones win; lists are replaced whole."""
    merged: dict = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _resolve(config: dict, source: str) -> dict:
    """`config` with its interpolations resolved, as OmegaConf does it."""
    try:
        return _resolve_plain(config, config)
    except _NotPlain:
        pass
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from None


class _NotPlain(Exception):
    """An interpolation that needs OmegaConf, or that it refuses."""


def _resolve_plain(value: Any, config: dict, depth: int = 0) -> Any:
    """`value` with every `${a.b}` replaced; _NotPlain for other interpolations. OmegaConf takes 50 ms an experiment."""
    if isinstance(value, dict):
        return {key: _resolve_plain(inner, config, depth) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolve_plain(inner, config, depth) for inner in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    if depth > DEEPEST or "$" in PLAIN.sub("", value):
        raise _NotPlain
    found = [_resolve_plain(_at(config, path), config, depth + 1) for path in PLAIN.findall(value)]
    if PLAIN.fullmatch(value):
        return found[0]
    if not all(isinstance(inner, str) for inner in found):
        raise _NotPlain
    texts = iter(found)
    return PLAIN.sub(lambda _: next(texts), value)


def _at(config: dict, dotted: str) -> Any:
    inside: Any = config
    for key in dotted.split("."):
        if not isinstance(inside, dict) or key not in inside:
            raise _NotPlain
        inside = inside[key]
    if inside == MISSING:
        raise _NotPlain
    return inside


def _swap(value: Any, pattern: str, replacement: str) -> Any:
    """`value` with `pattern` replaced in all its strings."""
    if isinstance(value, dict):
        return {key: _swap(inner, pattern, replacement) for key, inner in value.items()}
    if isinstance(value, list):
        return [_swap(inner, pattern, replacement) for inner in value]
    return re.sub(pattern, lambda _: replacement, value) if isinstance(value, str) else value


def _only_files_extend(values: dict, source: str) -> None:
    if "extends" in values:
        raise UserError(f"{source}: extends: belongs at the top of a config file, where it names files to start from")


def complete_experiment(config: dict, source: str, schema: dict) -> dict:
    """`config` over the defaults: resolved, without the parts set to null, with every argument's default, checked."""
    _only_files_extend(config, source)
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


def experiment_layers(path: str | Path, schema: dict) -> list[Layer]:
    """The layers of an experiment file, each checked."""
    layers = read_layers(path)
    for layer in layers:
        validate(layer.values, schema["$defs"]["experiment"], schema, layer.source)
    return layers


def load_experiment(arguments: Sequence[str], schema: dict | None = None) -> Experiment:
    """The experiment that `exp.config_path=FILE key=value ...` describes, checked and resolved.

    The overrides follow Hydra's override grammar, but for FILE, which is any path; options of the schema and arguments
    of the parts chosen in the file need no `+`. `schema` defaults to the one generated from the code.
    """
    option_of_file = "exp.config_path="
    paths = [argument.removeprefix(option_of_file) for argument in arguments if argument.startswith(option_of_file)]
    overrides = [argument for argument in arguments if not argument.startswith(option_of_file)]
    if not paths:
        raise UserError(
            "exp.config_path is required, e.g. exp.config_path=config/experiments/hifigan.yaml exp.run_name=train"
        )
    path = paths[-1]
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":  # quoted as the grammar would have it
        path = path[1:-1]

    schema = schema or build_schema()
    values = [layer.values for layer in experiment_layers(path, schema)]
    full = override_experiment(merge(*values, {"exp": {"config_path": path}}), overrides, path, schema)
    return from_dict(Experiment, full)


def override_experiment(config: dict, arguments: Sequence[str], source: str, schema: dict) -> dict:
    """The complete experiment (`complete_experiment`) of `config` changed by overrides in Hydra's grammar."""
    overrides = parse_overrides(arguments)
    if not overrides:
        return complete_experiment(config, source, schema)
    config = merge(defaults(Experiment), config)
    given = {override.key_or_group: override for override in overrides}
    for key in ("generator.name", "data.train.name", "data.validation.name"):
        if key in given:  # the arguments offered for override below are those of the part chosen here
            section = config
            for step in key.split(".")[:-1]:
                section = section[step]
            section["name"] = given[key].value()
    fill_arguments(config, schema["$defs"]["experiment"], schema, required=True)
    for override in overrides:
        if override.is_add() or override.is_force_add() or override.is_delete():
            continue
        check_keys(config, override.key_or_group, "command line")
    return complete_experiment(_compose(config, list(arguments)), f"{source} with the command line", schema)


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """`key=value` arguments in Hydra's override grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_overrides(list(arguments))
    except HydraException as error:
        raise UserError(
            f"command line: {' '.join(str(error).split())}. A value with other than letters, digits and -_./:+ needs "
            "quotes that the shell leaves there: \"key='value'\""
        ) from None


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


def pipeline_layers(files: Sequence[str | Path | dict], overrides: dict, schema: dict) -> list[Layer]:
    """The layers of the pipeline's config: its files, later over earlier, and `overrides`; each checked.

    Among the files may be the options that another workflow gives this one as its module.
    """
    _only_files_extend(overrides, "--config")
    layers = []
    for file in files:
        layers += read_layers(file) if isinstance(file, str | Path) else _layers_of_module(file)
    layers.append(Layer("--config", _typed(overrides)))
    for layer in layers:
        validate(layer.values, schema["$defs"]["pipeline"], schema, layer.source)
        for key in {"results", "resources"} & layer.values.keys():
            layer.values[key] = layer.values[key].rstrip("/")
    return layers


def _layers_of_module(config: dict) -> list[Layer]:
    """Options of a module over the files that their `extends` names, relative to the working folder."""
    values = _typed(config)  # Snakemake reads 1e-4 as text
    bases = _bases(values, MODULE)
    return [*(layer for base in bases for layer in read_layers(base)), Layer(MODULE, values)]


def _typed(value: Any) -> Any:
    """Truth values, null and numbers of the command line, which Snakemake leaves as text."""
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if value.lower() in WORDS:
        return WORDS[value.lower()]
    if not NUMBER.fullmatch(value):
        return value
    return float(value) if set(value) & set(".eE") else int(value)


def load_pipeline(files: Sequence[str | Path | dict], overrides: dict, schema: dict, project: Path = PROJECT) -> dict:
    """The pipeline's config from its files, later over earlier, and `overrides` (`--config key=value`): a plain dict.

    Checks everything, each experiment included. `["networks"]` of the result also holds the networks of the sweeps,
    `["targets"]` the names of those to train, `["experiments"]` the complete experiments of these and of the networks
    that they start from. Files that come with the project are those of `project` where the working folder has none.
    """
    layers = pipeline_layers(files, overrides, schema)
    config = merge(defaults(Pipeline), *(layer.values for layer in layers))
    source = "config" if not files else MODULE if isinstance(files[-1], dict) else str(files[-1])
    config = _resolve(_swap(config, INTERPOLATION, DEFERRED), source)
    config = with_project_files(_swap(config, DEFERRED, "${"), project)
    for key, cls in (("networks", Network), ("sweep", Sweep), ("compare", Compared)):
        config[key] = {name: merge(defaults(cls), entry) for name, entry in config[key].items() if entry is not None}
    validate(config, schema["$defs"]["pipeline"], schema, "config")
    compared_systems(config)  # for its checks
    _expand_sweeps(config, schema)
    config["targets"] = _targets(config)
    config["compare"] = {
        name: system for name, system in config["compare"].items() if system["network"] in config["targets"]
    }

    experiments: dict[str, dict] = {}
    of_files: dict[str, dict] = {}
    checkpoints = network_checkpoints(config)
    waiting = collections.deque(config["targets"])
    while waiting:
        name = waiting.popleft()
        if name not in experiments:
            experiment, source = network_experiment(config, name, schema, project, of_files)
            experiments[name] = complete_experiment(experiment, source, schema)
            waiting += [checkpoints[start] for start in starts(experiments[name]) if start in checkpoints]
    config["networks"] = {name: network for name, network in config["networks"].items() if name in experiments}
    config["experiments"] = {name: experiments[name] for name in config["networks"]}
    for name, network in config["networks"].items():
        network["reaches"] = {column: value for column, value in network["reaches"].items() if value is not None}
        _check_goals(name, network, experiments[name], config["metrics"])
    return config


def _expand_sweeps(config: dict, schema: dict) -> None:
    """Add the networks of each sweep to `config["networks"]`: the base's settings, but for its goals."""
    networks = config["networks"]
    taken = dict.fromkeys(networks, "a network") | dict.fromkeys(config["sweep"], "a sweep")
    for name, entry in config["sweep"].items():
        sweep = read_sweep(name, entry)
        if name in networks:
            raise UserError(f"config: sweep.{name}: is also the name of a network; give the sweep another name")
        if sweep.base not in networks or (sweep.base in taken and taken[sweep.base] != "a network"):
            raise UserError(f"config: sweep.{name}.base: no network {sweep.base!r}; {nearest(sweep.base, networks)}")
        for option, values in sweep.grid.items():
            where = f"config: sweep.{name}.grid"
            if option.removeprefix("exp.") in PLACES or option == "exp":
                raise UserError(f"{where}: {option}: is set by the workflow and cannot be varied")
            for value in values:
                layer = nested({option: value})
                _only_files_extend(layer, where)
                validate(layer, schema["$defs"]["experiment"], schema, where)
        base = networks[sweep.base]
        for member, values in sweep.networks.items():
            if member in taken:
                raise UserError(
                    f"config: sweep.{name}: its network {member} has the name of {taken[member]}; rename one"
                )
            taken[member] = f"one of the sweep {name}"
            override = merge(base["override"], nested(values))
            networks[member] = {**base, "override": override, "improves": [], "reaches": {}}


def _targets(config: dict) -> list[str]:
    """The networks to train: those of `only`, or all."""
    members = {name: read_sweep(name, entry).networks for name, entry in config["sweep"].items()}
    known = {**{name: [name] for name in config["networks"]}, **members}
    for name in config["only"]:
        if name not in known:
            raise UserError(f"config: only: no network or sweep {name!r}; {nearest(name, known)}")
    kept = {network for name in config["only"] for network in known[name]}
    return [name for name in config["networks"] if name in kept or not kept]


def starts(experiment: dict) -> list[str]:
    """The checkpoints that a network starts from."""
    return [path for part in ("generator", "discriminators") if (path := experiment[part]["init_from"])]


def network_checkpoints(config: dict) -> dict[str, str]:
    """The path of each checkpoint that the networks of the pipeline's `config` have or get -> the network."""
    return {f"{config['results']}/{name}{kind}.ckpt": name for name in config["networks"] for kind in ("", ".best")}


def network_experiment(
    config: dict, name: str, schema: dict, project: Path = PROJECT, of_files: dict[str, dict] | None = None
) -> tuple[dict, str]:
    """A network's experiment in the pipeline's `config`, not yet complete, and its name in messages.

    of_files: experiment files that have been read, by path; those read here are added.
    """
    network = config["networks"][name]
    path = network["experiment"]
    if not path:
        raise UserError(f"config: networks.{name}.experiment is required: the experiment file of this network")
    of_files = {} if of_files is None else of_files
    if path not in of_files:
        of_files[path] = with_project_files(
            merge(*(layer.values for layer in experiment_layers(path, schema))), project
        )
    run = {"run_name": name, **{key: config[key] for key in ("results", "resources", "seed")}}
    return merge(of_files[path], {"exp": run}, config["common"], network["override"]), f"networks.{name} ({path})"


def paths_below(config: Any, prefix: str) -> list[str]:
    """Every string in an experiment that starts with `prefix`, once, in order of appearance."""
    return list(dict.fromkeys(text for text in _texts(config) if text.startswith(prefix)))


def _texts(config: Any) -> Iterator[str]:
    """Every string in an experiment, keys left out, in order of appearance."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict | list):
        for inner in config.values() if isinstance(config, dict) else config:
            yield from _texts(inner)


def read_config(arguments: Sequence[str]) -> dict:
    """The pipeline's config for files and `key=value` pairs, over config/config.yaml, as Snakemake is given them.

    Raises UserError where the workflow does not run and for what the schema does not know.
    """
    files, overrides = [], {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if separator and not Path(argument).is_file():
            overrides[key] = yaml.safe_load(value)
        else:
            files.append(argument)
    return load_pipeline(project_files(files), overrides, read_schema(project_file("config/schema.json")))


def project_files(files: Sequence[str | Path]) -> list[str | Path]:
    """config/config.yaml of the working folder, or of the project if Snakemake ran here, and the `files` over it.

    As in the workflow, a config/config.yaml in a folder other than the project's stands over the project's.
    """
    of_project = PROJECT / PIPELINE
    in_project = Path("workflow/rules").is_dir() or not of_project.is_file()
    in_project |= PIPELINE.is_file() and of_project.is_file() and PIPELINE.samefile(of_project)
    if not PIPELINE.is_file() and (in_project or not Path(".snakemake").is_dir()):
        raise UserError(
            f"{PIPELINE}: not found in {Path.cwd()}; run finallyse in the project's folder, or where its workflow ran"
        )
    base = [] if in_project else [of_project]
    return [*base, *([PIPELINE] if PIPELINE.is_file() else []), *files]
