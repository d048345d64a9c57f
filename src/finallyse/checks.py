"""Plain values, as in YAML, JSON and checkpoints: the JSON schemas of types, and the check of values against them."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from jsonschema import Draft202012Validator, ValidationError, validators

from finallyse.errors import UserError, nearest

SCALARS = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    list: "array",
    tuple: "array",
    dict: "object",
}
NULLABLE = {"type": "null"}
LIMITS = {"exclusiveMinimum": "more than", "exclusiveMaximum": "less than"}

# ---------------------------------------------------------------------------------------------------------------------
# Building schemas


def object_schema(**properties: dict) -> dict:
    """JSON schema of a mapping with these keys at most."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def dataclass_schema(cls: type) -> dict:
    """JSON schema of a dataclass of :mod:`finallyse.options`."""
    hints = typing.get_type_hints(cls)
    properties = {}
    for field in dataclasses.fields(cls):
        schema = type_schema(hints[field.name])
        schema.update(field.metadata.get("constraints", {}))
        schema["description"] = field.metadata["help"]
        if not dataclasses.is_dataclass(hints[field.name]):
            factory = field.default_factory
            schema["default"] = field.default if factory is dataclasses.MISSING else factory()
        properties[field.name] = schema
    return object_schema(**properties)


def type_schema(hint: Any) -> dict:
    """JSON schema of a type annotation; an annotation that YAML cannot express is a defect of the code."""
    if dataclasses.is_dataclass(hint):
        return dataclass_schema(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        simple = [SCALARS[a] for a in arguments if a in SCALARS]
        if len(simple) + (type(None) in arguments) == len(arguments):
            return {"type": [*simple, *(["null"] if type(None) in arguments else [])]}
        return {"anyOf": [NULLABLE if a is type(None) else type_schema(a) for a in arguments]}
    if origin in (list, tuple, dict) or hint in SCALARS:
        schema: dict = {"type": SCALARS[origin or hint]}
        element = [a for a in arguments if a is not Ellipsis]
        if origin is list and element and element[0] is not Any:
            schema["items"] = type_schema(element[0])
        if origin is dict and len(element) == 2 and element[1] is not Any:
            schema["additionalProperties"] = type_schema(element[1])
        return schema
    if origin in (typing.get_origin(typing.Sequence[int]),):
        return {"type": "array", "items": type_schema(arguments[0])}
    raise TypeError(f"{hint!r} cannot be written in YAML: annotate registered constructors with plain types")


def argument_schema(cls: type) -> dict:
    """JSON schema of the arguments of a constructor."""
    hints = typing.get_type_hints(inspect.unwrap(cls.__init__))
    documented = descriptions(cls)
    properties, required = {}, []
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue  # torch.nn.Module's own constructor, of a class that takes no arguments
        if name == "augmentations":
            schema: dict = {"$ref": "#/$defs/augmentations"}
        else:
            schema = type_schema(hints[name])
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
        else:
            schema["default"] = json.loads(json.dumps(parameter.default))  # YAML knows no tuples
        if name in documented:
            schema["description"] = documented[name]
        properties[name] = schema
    schema = object_schema(**properties)
    if required:
        schema["x-required"] = (
            required  # JSON schema's `required` would refuse overlays, which say only what they change
        )
    return schema


def descriptions(cls: type) -> dict[str, str]:
    """Argument -> its description in the `Args:` of the class's docstring, or of its bases' docstrings."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, after = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("\nArgs:\n")
        block = "\n".join(itertools.takewhile(lambda line: line.startswith("    "), after.splitlines()))
        for entry in re.split(r"\n(?=    \S)", block) if block else []:
            names, _, text = " ".join(entry.split()).partition(": ")
            found |= dict.fromkeys(names.split(", "), text)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Checking values


def _is_number(_checker: Any, value: Any) -> bool:
    """Neither NaN nor infinite, nor too large for a float."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -sys.float_info.max <= value <= sys.float_info.max


def _is_integer(_checker: Any, value: Any) -> bool:
    """At most 64 bits; 4.0 is none, since it cannot count anything in Python."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


_Validator = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_integer}),
)


def validate(value: Any, schema: dict, source: str, open_mark: str | None = None) -> None:
    """Raise a UserError for the first thing in `value` that `schema` does not allow.

    open_mark: texts with it are interpolations whose values are not known yet, so that they are not checked.
    """
    errors = sorted(_Validator(schema).iter_errors(value), key=lambda e: [str(p) for p in e.absolute_path])
    for error in errors:
        for leaf in _leaves(error):
            if open_mark is None or not (isinstance(leaf.instance, str) and open_mark in leaf.instance):
                raise UserError(_message(leaf, source))


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """What is wrong inside the one alternative of an `anyOf` that is not null, or the error itself."""
    inside = [e for e in error.context or () if e.validator_value != "null"]
    alternatives = {e.relative_schema_path[0] for e in inside}
    if error.validator == "anyOf" and len(alternatives) == 1:
        for leaf in inside:
            yield from _leaves(leaf)
    else:
        yield error


def _message(error: ValidationError, source: str) -> str:
    key = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(k for k in error.instance if k not in known)
        dotted = f"{key}.{unknown}" if key else str(unknown)
        return f"{source}: {dotted}: unknown key; {nearest(unknown, known)}"
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{source}: {key and key + ': '}without {', '.join(missing)}"
    if error.validator == "enum":
        known = [v for v in error.validator_value if v is not None]
        return f"{source}: {key}: unknown value {_short(error.instance)}; {nearest(error.instance, known)}"
    if error.validator == "type":
        wanted = error.validator_value
        wanted = wanted if isinstance(wanted, str) else " or ".join(wanted)
        return f"{source}: {key}: must be {wanted}, got {_short(error.instance)}"
    if error.validator in LIMITS:
        limit = f"{LIMITS[error.validator]} {error.validator_value}"
        return f"{source}: {key}: must be {limit}, got {_short(error.instance)}"
    if error.validator == "pattern":
        return f"{source}: {key}: {_short(error.instance)} {error.schema['x-pattern']}"
    return f"{source}: {key}: {error.message}"


def _short(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]} ..."
