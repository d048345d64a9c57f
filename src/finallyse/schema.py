"""The configuration's JSON schema: generated from the code, and what is filled in and looked up by it.

    python -m finallyse.schema          writes config/schema.json and the tables of config/README.md

The schema holds every option of :mod:`finallyse.options` and every argument of every registered part. The workflow
reads the generated file (so that a dry run need not import PyTorch); scripts/train.py builds it from the code.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from finallyse import options, plugins
from finallyse.checks import NULLABLE, argument_schema, dataclass_schema, object_schema, type_schema, validate
from finallyse.errors import UserError, nearest

DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXTENDS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "config files that this one starts from, relative to its folder; at the top of a file only",
}


# ---------------------------------------------------------------------------------------------------------------------
# Building it


def registries() -> dict[str, Mapping[str, type]]:
    """The registries of parts with arguments, by what a configuration calls them."""
    from finallyse.augmentations import augmentations_registry
    from finallyse.datasets import datasets_registry
    from finallyse.losses import losses_registry
    from finallyse.models import models_registry

    return {
        "Networks": models_registry,
        "Losses": losses_registry,
        "Datasets": datasets_registry,
        "Augmentations": augmentations_registry,
    }


def build_schema() -> dict:
    """The schema of both kinds of file, under `$defs`: `pipeline` and `experiment`."""
    from finallyse.augmentations import augmentations_registry
    from finallyse.datasets import datasets_registry
    from finallyse.losses import losses_registry
    from finallyse.metrics import metrics_registry
    from finallyse.models import models_registry
    from finallyse.training import trainers_registry

    defs = {
        "augmentations": {
            "type": "array",
            "items": {
                **object_schema(
                    name={"enum": sorted(augmentations_registry)},
                    probability={"type": "number", "minimum": 0, "maximum": 1, "default": 1.0},
                    args={"type": "object", "default": {}},
                ),
                "allOf": _arguments_by_name(augmentations_registry),
            },
        }
    }

    experiment = dataclass_schema(options.Experiment)
    of = experiment["properties"]
    of["trainer"] = {"enum": [*sorted(trainers_registry), None], "description": of["trainer"]["description"]}
    _choose_from(of["generator"], models_registry)
    _choose_from(of["data"]["properties"]["train"], datasets_registry)
    _choose_from(of["data"]["properties"]["validation"], datasets_registry)
    of["discriminators"]["properties"]["parts"].update(_parts(models_registry))
    weight = {"weight": {"type": "number", "default": 1.0}}
    for kind in ("generator", "discriminator"):
        of["losses"]["properties"][kind].update(_parts(losses_registry, **weight))
    of["metrics"]["items"] = {"enum": sorted(metrics_registry)}

    of["extends"] = EXTENDS

    pipeline = dataclass_schema(options.Pipeline)
    of = pipeline["properties"]
    network = dataclass_schema(options.Network)
    network["properties"]["override"] = {"$ref": "#/$defs/experiment"}
    columns = sorted(column for metric in metrics_registry.values() for column in metric.columns)
    network["properties"]["improves"]["items"] = {"enum": columns}
    goals = {column: {"type": ["number", "null"]} for column in columns}
    network["properties"]["reaches"].update(object_schema(**goals))
    of["networks"] |= {"propertyNames": _named(options.NAME), "additionalProperties": {"anyOf": [NULLABLE, network]}}
    sweep = dataclass_schema(options.Sweep)
    sweep["properties"]["grid"]["additionalProperties"] = {"type": ["array", "null"]}
    of["sweep"]["additionalProperties"] = {"anyOf": [NULLABLE, sweep]}
    of["corpora"]["additionalProperties"] = {"anyOf": [NULLABLE, dataclass_schema(options.Corpus)]}
    of["compare"] |= {
        "propertyNames": _named(options.TITLE),
        "additionalProperties": {"anyOf": [NULLABLE, dataclass_schema(options.Compared)]},
    }
    of["common"] = {"$ref": "#/$defs/experiment"}
    of["metrics"]["items"] = {"enum": sorted(metrics_registry)}
    of["extends"] = EXTENDS

    return {
        "$schema": DIALECT,
        "$ref": "#/$defs/pipeline",
        "$defs": {**defs, "experiment": experiment, "pipeline": pipeline},
    }


def _named(pattern: dict) -> dict:
    return {"type": "string", **pattern}


def _arguments_by_name(registry: Mapping[str, type]) -> list[dict]:
    return [
        {
            "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
            "then": {"properties": {"args": argument_schema(registry[name])}},
        }
        for name in sorted(registry)
    ]


def _choose_from(part: dict, registry: Mapping[str, type]) -> None:
    part["properties"]["name"] = {"enum": [*sorted(registry), None], "description": "name in the registry"}
    part["allOf"] = _arguments_by_name(registry)


def _parts(registry: Mapping[str, type], **extra: dict) -> dict:
    def schema(cls: type) -> dict:
        part = object_schema(**extra, args={**argument_schema(cls), "default": {}})
        return {**part, "type": ["object", "null"]}

    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: schema(registry[name]) for name in sorted(registry)},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Using it


def current_schema(schema: dict) -> dict:
    """`schema`, which is that of the package, or the one that knows the parts of plugins, too."""
    return _schema_with(plugins.loaded()) if plugins.loaded() else schema


@functools.lru_cache(maxsize=4)
def _schema_with(_plugins: tuple[str, ...]) -> dict:
    return build_schema()


def read_schema(path: str | Path) -> dict:
    """The generated schema file."""
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); regenerate it with `make schema`") from error


def check_config(
    config: dict, kind: Literal["pipeline", "experiment"], schema: dict, source: str, open_mark: str | None = None
) -> None:
    """Raise a UserError for the first thing in `config` that `schema` does not allow; as `validate`."""
    validate(config, {**schema["$defs"][kind], "$defs": schema["$defs"]}, source, open_mark)


def argument_defaults(schema: dict) -> Callable[[str, str], dict[str, Any]]:
    """For `finallyse.recipe`: (kind of part, name) -> argument -> default, from the schema instead of the code."""
    experiment = schema["$defs"]["experiment"]["properties"]

    def by_name(part: dict) -> dict[str, dict]:
        return {c["if"]["properties"]["name"]["const"]: c["then"]["properties"]["args"] for c in part["allOf"]}

    losses = experiment["losses"]["properties"]["generator"]["properties"]
    arguments = {
        "model": by_name(experiment["generator"]),
        "dataset": by_name(experiment["data"]["properties"]["train"]),
        "augmentation": by_name(schema["$defs"]["augmentations"]["items"]),
        "loss": {name: part["properties"]["args"] for name, part in losses.items()},
    }

    def defaults(kind: str, name: str) -> dict[str, Any]:
        known = arguments[kind].get(name, {}).get("properties", {})
        return {argument: of["default"] for argument, of in known.items() if "default" in of}

    return defaults


MISSING = "???"  # as OmegaConf writes a value that is yet to be given


def fill_arguments(value: Any, schema: dict, root: dict, required: bool = False) -> None:
    """Fill in, in place, the defaults of the arguments of every part in `value`; if `required`, MISSING elsewhere."""
    for args, arguments in _arguments(value, schema, root):
        for name, argument in arguments["properties"].items():
            if name not in args and ("default" in argument or required):
                args[name] = json.loads(json.dumps(argument.get("default", MISSING)))


def check_required(value: Any, schema: dict, root: dict, source: str) -> None:
    """Raise a UserError for the first argument without a default that a part was not given."""
    for args, arguments in _arguments(value, schema, root):
        for name in arguments.get("x-required", ()):
            if args.get(name, MISSING) == MISSING:
                beside = ", ".join(repr(a) for a in args if args[a] != MISSING) or "no other"
                raise UserError(f"{source}: argument {name!r} is required (beside {beside})")


def _arguments(value: Any, schema: dict, root: dict) -> Iterator[tuple[dict, dict]]:
    """Every `args` in `value` with the schema of its arguments, outermost first."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if isinstance(value, list) and "items" in schema:
        for item in value:
            yield from _arguments(item, schema["items"], root)
    if not isinstance(value, dict):
        return
    properties = dict(schema.get("properties", {}))
    for choice in schema.get("allOf", ()):
        if choice["if"]["properties"]["name"]["const"] == value.get("name"):
            properties["args"] = choice["then"]["properties"]["args"]
            if isinstance(value.setdefault("args", {}), dict):  # otherwise an interpolation, or a mistake
                yield value["args"], properties["args"]
    if properties.get("args", {}).get("properties") is not None and "name" not in properties:
        if isinstance(value.setdefault("args", {}), dict):
            yield value["args"], properties["args"]
        if "weight" in properties:
            value.setdefault("weight", properties["weight"]["default"])
    for key, inner in value.items():
        if key in properties:
            yield from _arguments(inner, properties[key], root)


def check_keys(config: dict, dotted: str, source: str) -> None:
    """Raise a UserError if no key `dotted` exists in `config`."""
    inside: Any = config
    for depth, key in enumerate(dotted.split(".")):
        if not isinstance(inside, dict) or key not in inside:
            known = inside if isinstance(inside, dict) else {}
            at = ".".join(dotted.split(".")[: depth + 1])
            raise UserError(f"{source}: {at}: unknown key; {nearest(key, known)}")
        inside = inside[key]


# ---------------------------------------------------------------------------------------------------------------------
# Writing it


def schema_text() -> str:
    """The text of config/schema.json."""
    return json.dumps(build_schema(), indent=1, sort_keys=False) + "\n"


def option_tables() -> str:
    """Markdown tables of every option: key, type, default, meaning; of an experiment's, whether a change retrains."""
    lines = []
    for title, cls, prefix in (
        ("Pipeline", options.Pipeline, ""),
        ("Pipeline: `networks.<name>`", options.Network, "networks.<name>."),
        ("Pipeline: `sweep.<name>`", options.Sweep, "sweep.<name>."),
        ("Pipeline: `corpora.<name>`", options.Corpus, "corpora.<name>."),
        ("Pipeline: `compare.<name>`", options.Compared, "compare.<name>."),
        ("Experiment", options.Experiment, ""),
    ):
        extra = " change |" if cls is options.Experiment else ""
        lines += [
            f"### {title}",
            "",
            f"| option | values | default | meaning |{extra}",
            "|---|---|---|---|" + "---|" * bool(extra),
        ]
        for key, kind, default, help in _rows(cls):
            change = f" {'retrains' if options.defines_run(key) else 'continues'} |" if extra else ""
            lines.append(f"| `{prefix}{key}` | {kind} | {default} | {help} |{change}")
        lines.append("")
    return "\n".join(lines)


def part_tables() -> str:
    """Markdown tables of every argument of every registered part that has any."""
    lines = []
    for title, registry in registries().items():
        lines += [f"### {title}", ""]
        for name, cls in registry.items():
            table = argument_table(cls)
            if table:
                summary = inspect.cleandoc(cls.__doc__).split("\n\n")[0].replace("\n", " ")
                lines += [f"**`{name}`** {summary}", "", *table, ""]
    return "\n".join(lines)


def argument_table(cls: type) -> list[str]:
    """Lines of a Markdown table of the arguments of a part; none for a part without."""
    lines = []
    for argument, schema in argument_schema(cls)["properties"].items():
        default = f"`{json.dumps(schema['default'])}`" if "default" in schema else "required"
        meaning = schema["description"].replace("|", "\\|")
        lines.append(f"| `{argument}` | {_values(schema)} | {default} | {meaning} |")
    return lines and ["| argument | values | default | meaning |", "|---|---|---|---|", *lines]


def _values(schema: dict) -> str:
    """The values of an option, in words."""
    if "$ref" in schema:
        return "array"
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return ", ".join(map(_values, schema["anyOf"]))
    return schema["type"] if isinstance(schema["type"], str) else ", ".join(schema["type"])


def _rows(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _rows(hints[field.name], f"{prefix}{field.name}.")
            continue
        kind = _values(type_schema(hints[field.name]))
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield f"{prefix}{field.name}", kind, f"`{json.dumps(default)}`", field.metadata["help"]


BEGIN, END = "<!-- generated by `make schema` -->\n", "<!-- end of the generated part -->\n"


def main(folder: str = "config") -> None:
    """Write config/schema.json and the generated part of config/README.md."""
    Path(folder, "schema.json").write_text(schema_text())
    readme = Path(folder, "README.md")
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(before + BEGIN + "\n" + option_tables() + "\n" + part_tables() + "\n" + END + after)


if __name__ == "__main__":
    main(*sys.argv[1:])
