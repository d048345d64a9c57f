"""Hooks of MkDocs: pages of the repository's other files, the links between them, and the generated reference.

Pages link to files of the repository by relative paths. Where the repository is browsed, these lead to the files; on
the site, each of them has a page: README.md is the home page, others with a place in the navigation are in `PLACES`,
and what else is linked, sources for example, is under files/. A link to nothing fails the build.
"""

from __future__ import annotations

import contextlib
import io
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

PLACES = {
    "README.md": "index.md",
    "README.ru.md": "ru.md",
    "config/README.md": "reference/configuration.md",
    "results/README.md": "reference/results.md",
    "resources/README.md": "reference/resources.md",
    "MODEL_CARD.md": "model-card.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""File of the repository -> its page."""

AS_IT_IS = {".flac", ".html", ".png", ".svg", ".wav"}
LANGUAGES = {".json": "json", ".py": "python", ".sh": "bash", ".smk": "python", ".yaml": "yaml", ".yml": "yaml"}
FENCE = "`" * 8
CODE_OR_LINK = re.compile(r"(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)|(?<=\]\()(?P<target>[^)\s]+)(?=\))", re.DOTALL)

pages: dict[str, str] = {}
"""File or folder of the repository -> its page, of the build that is running."""


# --- Pages of files ---------------------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PLACES`, of everything that a page links to, and of the reference."""
    pages.clear()
    pages.update({f"docs/{file.src_uri}": file.src_uri for file in files})
    waiting = [path for path in pages if path.endswith(".md")]

    def add(path: str, uri: str) -> None:
        if Path(path).suffix in AS_IT_IS:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
        else:
            files.append(File.generated(config, uri, content=text_of(path)))
            waiting.append(path)
        pages[path] = uri

    for path, uri in PLACES.items():
        add(path, uri)
    while waiting:
        path = waiting.pop()
        for target in targets(text_of(path)):
            linked = in_repository(target, path)
            if linked not in pages and not linked.startswith("..") and (ROOT / linked).exists():
                add(linked, uri_of(linked))
    for uri, write in REFERENCE.items():
        files.append(File.generated(config, uri, content=write()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files of the repository to their pages."""
    page.meta.setdefault("search", {"exclude": page.file.src_uri.startswith("files/")})
    path = next((path for path, uri in pages.items() if uri == page.file.src_uri), None)
    if path is None:  # of the reference
        return markdown
    folder = posixpath.dirname(page.file.src_uri)

    def led(match: re.Match) -> str:
        if not match["target"]:
            return match[0]
        target, mark, anchor = match["target"].partition("#")
        uri = target and pages.get(in_repository(target, path))
        return posixpath.relpath(uri, folder or ".") + mark + anchor if uri else match[0]

    return CODE_OR_LINK.sub(led, markdown)


def targets(text: str) -> Iterator[str]:
    """The relative paths that a text links to, outside of code."""
    for match in CODE_OR_LINK.finditer(text):
        target = (match["target"] or "").partition("#")[0]
        if target and not re.match(r"\w+:", target):
            yield target


def in_repository(target: str, path: str) -> str:
    """The path in the repository of a link's target in the file `path`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def uri_of(path: str) -> str:
    """The page of a file without a place in the navigation, or of a folder."""
    if (ROOT / path).is_dir():
        return f"files/{path}/index.md"
    return f"files/{path}" if Path(path).suffix in {".md", *AS_IT_IS} else f"files/{path}.md"


def text_of(path: str) -> str:
    """Markdown of a file, of code in it, or of a folder's list."""
    file = ROOT / path
    if file.suffix == ".md":
        return file.read_text()
    if file.is_dir():
        names = sorted(inner.name for inner in file.iterdir() if not inner.name.startswith((".", "__")))
        return f"# {path}\n\n" + "\n".join(f"- [{name}]({file.name}/{name})" for name in names) + "\n"
    return f"# {path}\n\n{FENCE}{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text()}\n{FENCE}\n"


# --- The reference ----------------------------------------------------------------------------------------------------


def python_names() -> str:
    """Everything that `import finallyse` offers."""
    import finallyse

    lines = [
        "# Python",
        "",
        "`import finallyse` offers these names; other modules are the project's own and may change. How to use them:",
        "[Embed in Python](../howto/embed.md).",
        "",
    ]
    for name in sorted(finallyse.__all__):
        options = {"heading": f"finallyse.{name}", "show_root_heading": True, "heading_level": 2}
        lines += _described(getattr(finallyse, name), options)
    return "\n".join(lines)


def parts() -> str:
    """Every registered part with its arguments, by kind."""
    from finallyse.metrics import metrics_registry
    from finallyse.schema import argument_table, registries
    from finallyse.training import trainers_registry

    configured = registries()
    lines = [
        "# Parts",
        "",
        "What configurations select by name; arguments are options (`args`).",
        "`finallyse new` writes [parts of your own](configuration.md#parts-of-your-own).",
        "",
    ]
    for kind, registry in {**configured, "Metrics": metrics_registry, "Trainers": trainers_registry}.items():
        lines += [f"## {kind}", ""]
        for name in sorted(registry):
            lines += [f"### `{name}`", ""]
            lines += _described(registry[name], {"members": False, "show_docstring_parameters": False})
            lines += [*(argument_table(registry[name]) if kind in configured else ()), ""]
    return "\n".join(lines)


def _described(thing: Callable, options: dict[str, object]) -> list[str]:
    """Lines for mkdocstrings."""
    return [f"::: {thing.__module__}.{thing.__qualname__}", f"    options: {json.dumps(options)}", ""]


def commands() -> str:
    """What `finallyse COMMAND --help` prints."""
    from finallyse.cli import COMMANDS, main

    lines = ["# Commands", "", "What `finallyse COMMAND --help` prints.", ""]
    for name in COMMANDS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([name, "--help"])
        lines += [f"## `finallyse {name}`", "", "```text", printed.getvalue().rstrip(), "```", ""]
    return "\n".join(lines)


REFERENCE = {
    "reference/python.md": python_names,
    "reference/commands.md": commands,
    "reference/parts.md": parts,
}
"""Page -> what writes it."""
