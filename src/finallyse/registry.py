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
Contract = Callable[[type], Iterator[str]]

REGISTRIES: dict[str, Registry] = {}  # kind -> its registry, as they are imported


class Registry(Mapping[str, type]):
    """Maps published names to classes; errors for unknown names and wrong arguments list the accepted ones.

    Args:
        kind: what the classes are, for messages.
        contract: yields what a class lacks of what all of them must have.
    """

    def __init__(self, kind: str, contract: Contract = lambda cls: iter(())):
        self.kind, self._contract = kind, contract
        self._classes: dict[str, type] = {}
        REGISTRIES[kind] = self

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that registers the class as `name`."""

        def decorate(cls: T) -> T:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            lacking = next(self._contract(cls), None)
            if lacking:
                raise TypeError(f"{self.kind} {name!r}: class {cls.__name__} {lacking}")
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


def attributes(cls: type, **kinds: type | tuple[type, ...]) -> Iterator[str]:
    """For contracts: what is missing of the class's attributes, name -> type."""
    for name, kind in kinds.items():
        if not isinstance(getattr(cls, name, None), kind):
            known = kind if isinstance(kind, tuple) else (kind,)
            yield f"needs the attribute {name} ({' or '.join(k.__name__ for k in known)})"


def methods(cls: type, base: type, *names: str) -> Iterator[str]:
    """For contracts: that the class derives from `base` and has methods of its own."""
    if not issubclass(cls, base):
        yield f"must derive from {base.__module__}.{base.__name__}"
    for name in names:
        if getattr(cls, name, None) is getattr(base, name, None):
            yield f"must implement {name}()"
