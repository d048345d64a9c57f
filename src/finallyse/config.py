"""Loading of the configuration: files over the files that they extend, overrides over files, defaults filled in.

:mod:`finallyse.options` declares the options, :mod:`finallyse.schema` validates them.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from finallyse import plugins
from finallyse.compare import compared_systems
from finallyse.errors import UserError, nearest
from finallyse.options import Compared, Experiment, Network, Pipeline, Sweep, defaults, from_dict
from finallyse.progress import data_size
from finallyse.project import PROJECT, project_file, with_project_files
from finallyse.schema import (
    MISSING,
    build_schema,
    check_config,
    check_keys,
    check_required,
    current_schema,
    fill_arguments,
    read_schema,
)
from finallyse.sweep import nested, read_sweep

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


PIPELINE = Path("config/config.yaml")
LARGEST_BYTES, MOST_VALUES = 4_000_000, 100_000  # of a config file
# Options of the pipeline whose values are recorded in experiments, and so in checkpoints.
RECORDED = {"results", "resources", "seed", "common", "networks"}
PLACES = ("run_name", "config_path", "results", "resources")  # options of `exp` that the workflow sets
MODULE = "config of the module"
WORDS = {"true": True, "false": False, "null": None}
# An interpolation of an experiment's option, in `common` or an override, is resolved with the experiment: until then it
# begins with a character that no text has.
_OF_EXPERIMENTS = {f.name for f in dataclasses.fields(Experiment)} - {f.name for f in dataclasses.fields(Pipeline)}
INTERPOLATION = rf"\$\{{(?=(?:{'|'.join(sorted(_OF_EXPERIMENTS))})[.}}])"
DEFERRED = "\ue000"
LONGEST_NUMBER = 100  # characters; of more, Python may refuse to make a number
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
        key = Path(os.path.realpath(path))  # unlike `resolve`, of circles of links, too
        if key in chain:
            circle = " extends ".join(map(str, [*chain[chain.index(key) :], key]))
            raise UserError(f"{path}: extends itself: {circle}")
        if key in layers:
            return
        values = read_file(path, chain)
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


def read_file(path: str | Path, extended_by: Sequence[Path] = ()) -> dict:
    """The keys and values of one YAML file, interpolations unresolved.

    Raises UserError with file, line and column for what is not YAML, for a key that is there twice, for what refers to
    itself, and for more than any configuration holds.
    """
    path = Path(path)
    if not path.is_file():
        asked = f", which {extended_by[-1]} extends" if extended_by else ""
        raise UserError(f"{path}: no such config file{asked}")
    status = path.stat()
    return copy.deepcopy(_parsed(path, status.st_mtime_ns, status.st_size))


QUICK = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML has it


class _Loader(QUICK):
    """YAML as OmegaConf reads it, whose own loader takes most of a plan's time: 1e-4 is a number, a date a text."""


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
    with path.open("rb") as file:
        data = file.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise UserError(f"{path}: larger than {data_size(LARGEST_BYTES)}; this is no config file")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line, column = _place(data, error.start)
        raise UserError(
            f"{path}, line {line}, column {column}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    check_yaml(text, str(path))
    try:
        loaded = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        raise _misread(error, str(path)) from None
    except (yaml.YAMLError, ValueError) as error:  # a tag without a value here, or a number without end
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict | None):
        raise UserError(f"{path}: must hold keys and values, found a list or a single value")
    return loaded or {}


def yaml_value(text: str, source: str) -> Any:
    """The value of a YAML `text` of the command line. Raises UserError, with `source`, if it is none."""
    check_yaml(text, source)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a tag without a value here, or a number without end
        raise UserError(f"{source}: {' '.join(str(error).split())}") from None


def check_yaml(text: str, source: str) -> None:
    """Raise a UserError with line and column for the first thing in a YAML `text` that cannot be read."""
    try:
        root = yaml.compose(text, Loader=QUICK)
    except (yaml.YAMLError, RecursionError):
        root = None
    try:
        root = root or yaml.compose(text, Loader=yaml.SafeLoader)  # which tells better what is wrong
    except yaml.reader.ReaderError as error:
        line, column = _place(text, error.position)
        raise UserError(
            f"{source}, line {line}, column {column}: the character U+{error.character:04X} is not allowed in YAML"
        ) from None
    except yaml.MarkedYAMLError as error:
        raise _misread(error, source) from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply for a config") from None
    if root is not None:
        _count_values(root, source, {}, set())


def _count_values(node: yaml.Node, source: str, counted: dict[int, int], inside: set[int]) -> int:
    """The number of values in `node`, each anchor counted wherever it is used; UserError for too many of them."""
    if id(node) in inside:
        raise UserError(f"{source}{_at(node.start_mark)}: refers to itself")
    if id(node) in counted:
        return counted[id(node)]
    inside.add(id(node))
    children = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    first = seen[key.value].start_mark.line + 1
                    raise UserError(f"{source}{_at(key.start_mark)}: {key.value}: given before, in line {first}")
                seen[key.value] = key
            children += [key, value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1 + sum(_count_values(child, source, counted, inside) for child in children)
    if total > MOST_VALUES:
        raise UserError(f"{source}{_at(node.start_mark)}: more than {MOST_VALUES} values; this is no config file")
    inside.discard(id(node))
    counted[id(node)] = total
    return total


def _misread(error: yaml.MarkedYAMLError, source: str) -> UserError:
    what = " ".join(str(error.problem or error.context).split())
    if "'\\t'" in what:
        what += "; YAML is indented with spaces, not with tabs"
    return UserError(f"{source}{_at(error.problem_mark or error.context_mark)}: {what}")


def _at(mark: yaml.Mark | None) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _place(text: str | bytes, position: int) -> tuple[int, int]:
    """Line and column of a position in `text`, counted from 1."""
    before = text[:position]
    newline = b"\n" if isinstance(text, bytes) else "\n"
    return before.count(newline) + 1, position - (before.rfind(newline) + 1) + 1


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


def _resolve(config: dict, source: str, recorded: Collection[str] | None = None) -> dict:
    """`config` with its interpolations resolved as OmegaConf does it, and the home folder for a `~` that begins a path.

    recorded: the keys whose values end in checkpoints, which must not show environment variables; None: all of them.
    """
    try:
        plain = _resolve_plain(config, config)
    except _NotPlain:
        pass
    else:
        return {key: _at_home(value, source, str(key)) for key, value in plain.items()}
    try:
        whole, resolved = OmegaConf.create(config), {}
        for key in whole:
            with _environment(hidden=recorded is None or key in recorded):
                value = whole[key]
                plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            resolved[key] = _at_home(plain, source, str(key))
        return resolved
    except OmegaConfBaseException as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{source}: {reason.removeprefix('UserError raised while resolving interpolation: ')}"
        ) from None
    except RecursionError:
        raise UserError(f"{source}: an interpolation refers to itself") from None


@contextlib.contextmanager
def _environment(hidden: bool) -> Iterator[None]:
    """Within the block, `${oc.env:NAME}` is refused if `hidden`."""

    def refuse(name: str, *_default: str) -> None:
        raise UserError(
            f"${{oc.env:{name}}} would be stored in the checkpoint; write the value itself, or give it on the command "
            f'line: key="${name}"'
        )

    OmegaConf.register_new_resolver("oc.env", refuse if hidden else oc.env, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _at_home(value: Any, source: str, key: str) -> Any:
    """`value` with the home folder in place of a `~` that begins a path, in all its strings."""
    if isinstance(value, dict):
        return {name: _at_home(inner, source, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [_at_home(inner, source, f"{key}.{index}") for index, inner in enumerate(value)]
    if not (isinstance(value, str) and (value == "~" or re.match(r"~[^/\s]*/", value))):
        return value
    path = os.path.expanduser(value)  # noqa: PTH111  it keeps a / at the end
    if path.startswith("~"):
        raise UserError(f"{source}: {key}: {value!r}: there is no such user; write the path in full")
    return path


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
    found = [_resolve_plain(_value_at(config, path), config, depth + 1) for path in PLAIN.findall(value)]
    if PLAIN.fullmatch(value):
        return found[0]
    if not all(isinstance(inner, str) for inner in found):
        raise _NotPlain
    texts = iter(found)
    return PLAIN.sub(lambda _: next(texts), value)


def _value_at(config: dict, dotted: str) -> Any:
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


def _of_experiments(config: dict, pattern: str, replacement: str) -> dict:
    """The pipeline's `config` with `pattern` replaced in what goes into experiments: `common` and overrides."""
    swapped = config | {"common": _swap(config["common"], pattern, replacement)}
    if isinstance(config["networks"], dict):  # otherwise an interpolation
        swapped["networks"] = {
            name: network | {"override": _swap(network["override"], pattern, replacement)}
            if isinstance(network, dict) and "override" in network
            else network
            for name, network in config["networks"].items()
        }
    return swapped


def _only_files_extend(values: dict, source: str) -> None:
    if "extends" in values:
        raise UserError(f"{source}: extends: belongs at the top of a config file, where it names files to start from")


def _check_given(value: Any, source: str, key: str = "", argument: bool = False) -> None:
    """Raise a UserError for the first MISSING value, except arguments: `check_required` has more to say about those."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_given(inner, source, f"{key}.{name}".lstrip("."), argument=key.endswith(".args"))
    elif value == MISSING and not argument:
        raise UserError(f"{source}: {key} is required")


def complete_experiment(config: dict, source: str, schema: dict) -> dict:
    """`config` over the defaults: resolved, without the parts set to null, with every argument's default, checked."""
    _only_files_extend(config, source)
    full = _resolve(merge(defaults(Experiment), config), source)
    _check_given(full, source)
    check_config(full, "experiment", schema, source, MISSING)
    for parts in (full["losses"]["generator"], full["losses"]["discriminator"], full["discriminators"]["parts"]):
        for name in [name for name, part in parts.items() if part is None]:
            del parts[name]
    fill_arguments(full, schema["$defs"]["experiment"], schema)
    check_required(full, schema["$defs"]["experiment"], schema, source)
    if any(MISSING in text for text in _texts(full)):  # was let pass above
        check_config(full, "experiment", schema, source)
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
    full["plugins"], full["metric_plugins"] = _plugins_of(full)
    return full


def _plugins_of(full: dict) -> tuple[list[str], list[str]]:
    """Of the plugins of a complete experiment those that define the network, and those that only measure it."""
    losses, data = full["losses"], full["data"]
    degradations = (data[kind]["args"].get("augmentations") or [] for kind in ("train", "validation"))
    parts = {
        "trainer": [full["trainer"]],
        "network": [full["generator"]["name"], *full["discriminators"]["parts"]],
        "loss": [*losses["generator"], *losses["discriminator"]],
        "dataset": [data["train"]["name"], data["validation"]["name"]],
        "augmentation": [part["name"] for chain in degradations for part in chain],
    }
    named = [*full["plugins"], *full["metric_plugins"]]
    defining = plugins.needed(named, parts)
    measuring = plugins.needed(named, {"metric": full["metrics"]})
    return defining, [name for name in measuring if name not in defining]


def experiment_layers(path: str | Path, schema: dict) -> list[Layer]:
    """The layers of an experiment file, each checked."""
    layers = read_layers(path)
    load_plugins(layers)
    schema = current_schema(schema)
    for layer in layers:
        check_config(layer.values, "experiment", schema, layer.source, "${")
    return layers


def load_plugins(layers: Sequence[Layer]) -> None:
    """Load the plugins that layers of an experiment or the pipeline name, and those of its networks' experiments."""
    for layer in layers:
        for key in ("plugins", "metric_plugins"):
            named = layer.values.get(key) or []
            if isinstance(named, list) and all(isinstance(name, str) for name in named):  # otherwise the check tells
                plugins.load(named)
        networks = layer.values.get("networks")
        for network in networks.values() if isinstance(networks, dict) else ():
            path = network.get("experiment") if isinstance(network, dict) else None
            if isinstance(path, str) and project_file(path).is_file():
                load_plugins(read_layers(project_file(path)))


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

    for override in parse_overrides(overrides):
        if override.key_or_group == "plugins":
            load_plugins([Layer("command line", {"plugins": override.value()})])
    schema = schema or build_schema()
    values = [layer.values for layer in experiment_layers(path, schema)]
    schema = current_schema(schema)
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
        overrides = OverridesParser.create().parse_overrides(list(arguments))
    except (HydraException, ValueError) as error:  # ValueError: a number without end
        raise UserError(
            f"command line: {' '.join(str(error).split())}. A value with other than letters, digits and -_./:+ needs "
            "quotes that the shell leaves there: \"key='value'\""
        ) from None
    for argument, override in zip(arguments, overrides, strict=True):
        if not override.key_or_group:
            raise UserError(f"command line: {argument}: names no option before the =")
        if override.is_sweep_override():
            raise UserError(f"command line: {argument}: gives several values; give one, or a list in brackets: [a,b]")
    return overrides


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
    load_plugins(layers)
    schema = current_schema(schema)
    for layer in layers:
        check_config(layer.values, "pipeline", schema, layer.source, "${")
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
    if not NUMBER.fullmatch(value) or len(value) > LONGEST_NUMBER:
        return value
    return float(value) if set(value) & set(".eE") else int(value)


def load_pipeline(files: Sequence[str | Path | dict], overrides: dict, schema: dict, project: Path = PROJECT) -> dict:
    """The pipeline's config from its files, later over earlier, and `overrides` (`--config key=value`): a plain dict.

    Checks everything, each experiment included. `["networks"]` of the result also holds the networks of the sweeps,
    `["targets"]` the names of those to train, `["experiments"]` the complete experiments of these and of the networks
    that they start from. Files that come with the project are those of `project` where the working folder has none.
    """
    layers = pipeline_layers(files, overrides, schema)
    schema = current_schema(schema)
    config = merge(defaults(Pipeline), *(layer.values for layer in layers))
    source = "config" if not files else MODULE if isinstance(files[-1], dict) else str(files[-1])
    config = _resolve(_of_experiments(config, INTERPOLATION, DEFERRED), source, RECORDED)
    check_config(config, "pipeline", schema, "config", DEFERRED)
    for key, cls in (("networks", Network), ("sweep", Sweep), ("compare", Compared)):
        config[key] = {name: merge(defaults(cls), entry) for name, entry in config[key].items() if entry is not None}
    config["corpora"] = {name: setting for name, setting in config["corpora"].items() if setting is not None}
    config = with_project_files(_of_experiments(config, DEFERRED, "${"), project)
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
            if experiments[name]["train"]["debug"]:
                raise UserError(
                    f"{source}: train.debug: a debug run makes no checkpoint for the workflow; start it by itself: "
                    f"python scripts/train.py exp.config_path={config['results']}/configs/{name}.yaml train.debug=fast"
                )
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
                check_config(layer, "experiment", schema, where, "${")
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
    experiment = merge(of_files[path], {"exp": run}, config["common"], network["override"])
    experiment["plugins"] = list(dict.fromkeys([*config["plugins"], *experiment.get("plugins", [])]))
    return experiment, f"networks.{name} ({path})"


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
        if separator and not os.path.isfile(argument):  # noqa: PTH113  also for what can be no name of a file
            overrides[key] = yaml_value(value, f"{key}={value}")
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
