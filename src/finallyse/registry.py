"""Registries: published name of a part -> its class.

    models_registry = Registry("network")

    @models_registry.register("mpd")
    class MultiPeriodDiscriminator(nn.Module): ...

    models_registry["mpd"](**args)

Constructors of registered classes take plain YAML values only, each with a type annotation: the schema of the
configuration is generated from their signatures.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from finallyse.errors import UserError, nearest

T = TypeVar("T", bound=type)


class Registry(Mapping[str, type]):
    """Maps published names to classes; errors for unknown names and wrong arguments list the accepted ones."""

    def __init__(self, kind: str):
        self.kind = kind
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that registers the class as `name`."""

        def decorate(cls: T) -> T:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._classes[name] = cls
            _check_arguments(cls, f"{self.kind} {name!r}")
            return cls

        return decorate

    def __getitem__(self, name: str) -> type:
        if name not in self._classes:
            raise UserError(f"unknown {self.kind} {name!r}; {nearest(name, self._classes)}")
        return self._classes[name]

    def defaults(self, name: str) -> dict[str, Any]:
        """Argument -> default of the constructor of the class `name`, as in YAML; none for an unknown class."""
        if name not in self._classes:
            return {}
        parameters = inspect.signature(self._classes[name]).parameters.values()
        given = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        return json.loads(json.dumps(given))

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __contains__(self, name: object) -> bool:
        return name in self._classes


def _check_arguments(cls: type, label: str) -> None:
    """Make a wrong argument of `cls(...)` a UserError that lists the accepted ones."""
    init = cls.__init__
    signature = inspect.signature(init)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    accepted = [n for n, p in signature.parameters.items() if n != "self" and p.kind not in variadic]

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        if type(self) is cls:  # a subclass has other arguments
            unknown = [k for k in kwargs if k not in accepted]
            if unknown:
                raise UserError(
                    f"{label} has no argument {unknown[0]!r}; {nearest(unknown[0], accepted)} "
                    f"(accepted: {', '.join(accepted) or 'none'})"
                )
            try:
                signature.bind(self, *args, **kwargs)
            except TypeError as error:
                raise UserError(f"{label}: {error} (accepted: {', '.join(accepted)})") from None
        init(self, *args, **kwargs)

    cls.__init__ = checked
