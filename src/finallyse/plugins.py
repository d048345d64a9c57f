"""Parts of one's own: Python files that `plugins` of a config names, which register classes beside the package's.

    # my_parts.py
    from finallyse.losses import losses_registry

    @losses_registry.register("my_loss")
    class MyLoss(nn.Module): ...

A file is executed once per process, in processes that this one starts as well. What a class lacks of the contract of
its kind is an error when it is registered. `finallyse new` writes such files.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from finallyse.errors import UserError, nearest
from finallyse.registry import REGISTRIES

GROUP = "finallyse.plugins"  # of the entry points of installed packages
INHERITED = "FINALLYSE_PLUGINS"  # environment variable: what this process has loaded, for those that it starts

_loaded: dict[str, dict[str, list[str]]] = {}  # plugin -> kind of part -> names registered by it


def load(plugins: Iterable[str]) -> None:
    """Execute plugins, each a Python file or the name of an entry point in `finallyse.plugins`, once.

    Raises:
        UserError: for one that does not exist or fails; with its line.
    """
    for plugin in map(_in_full, plugins):
        if plugin in _loaded:
            continue
        before = {kind: set(registry) for kind, registry in REGISTRIES.items()}
        _execute(plugin)
        _loaded[plugin] = {
            kind: [name for name in registry if name not in before.get(kind, ()) and not _is_ours(registry[name])]
            for kind, registry in REGISTRIES.items()
        }
        os.environ[INHERITED] = os.pathsep.join(_loaded)


def load_inherited() -> None:
    """Load what the process that started this one had loaded."""
    load(filter(None, os.environ.get(INHERITED, "").split(os.pathsep)))


def loaded() -> tuple[str, ...]:
    """The plugins whose parts are in the registries."""
    return tuple(_loaded)


def needed(plugins: Sequence[str], parts: Mapping[str, Iterable[str]]) -> list[str]:
    """Those of `plugins` that register one of the parts: kind -> names."""
    return [
        plugin
        for plugin in plugins
        if any(set(parts.get(kind, ())) & set(names) for kind, names in _loaded.get(_in_full(plugin), {}).items())
    ]


def _in_full(plugin: str) -> str:
    """The absolute path of a file, which is found in other folders, too."""
    return str(Path(plugin).resolve()) if plugin.endswith(".py") else plugin


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "finallyse"


def _execute(plugin: str) -> None:
    if not plugin.endswith(".py"):
        _import(plugin)
        return
    path = Path(plugin)
    if not path.is_file():
        raise UserError(f"plugins: {plugin}: no such file; paths are relative to the folder where the command runs")
    name = f"finallyse_plugin_{path.stem}"
    if name in sys.modules:
        raise UserError(f"plugins: {plugin}: another plugin has that name ({sys.modules[name].__file__}); rename one")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else 1
        text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
        raise UserError(f"{plugin}, line {line}: {type(error).__name__}: {text}") from error


def _import(plugin: str) -> None:
    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if plugin not in points:
        known = nearest(plugin, points) if points else "no package is installed that has any"
        raise UserError(f"plugins: {plugin!r} is neither a .py file nor an entry point in {GROUP}; {known}")
    try:
        points[plugin].load()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"plugins: {plugin}: {type(error).__name__}: {' '.join(str(error).split())}") from error
