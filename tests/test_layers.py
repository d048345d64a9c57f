"""Packages import only from those below them, also inside functions, so that there are no import circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

LAYERS = (
    ("errors", "hashes"),
    ("checks",),
    ("atomic", "compare", "hardware", "onnx_format", "options", "precision", "progress", "project", "registry"),
    ("plugins",),
    ("journal", "processes", "recipe", "sweep"),
    ("finished",),
    ("audio",),
    ("corpora",),
    ("augmentations", "pretrained"),
    ("datasets",),
    ("models",),
    ("losses", "metrics"),
    ("inference",),
    ("export",),
    ("training",),
    ("schema",),
    ("config",),
    # commands, each beside the package that it is about
    ("corpora.plan", "corpora.prepare", "demo", "models.convert", "new", "provenance", "report", "status"),
    ("page",),
    ("preflight", "serve"),
    ("cli",),
    ("__main__",),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}


def part_of(module: str) -> str:
    """The package or module of LAYERS that `module` belongs to."""
    names = module.split(".")
    dotted = [".".join(names[:count]) for count in range(len(names), 0, -1)]
    return next(name for name in dotted if name in LEVELS)


def imports(path: Path, modules: set[str]) -> Iterator[str]:
    """Every module of the package that a file imports, anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for name in names:
            full = f"{base}{name}".removeprefix("finallyse.")
            found = full if full in modules else base.removeprefix("finallyse.").rstrip(".")
            if found in modules:
                yield found


def test_packages_import_from_those_below(root):
    source = root / "src" / "finallyse"
    paths = {".".join(path.relative_to(source).with_suffix("").parts): path for path in source.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items() if name != "__init__"}
    wrong = [
        f"{module} imports {other}"
        for module, path in modules.items()
        for other in imports(path, set(modules))
        if part_of(other) != part_of(module) and LEVELS[part_of(other)] >= LEVELS[part_of(module)]
    ]
    assert wrong == []
