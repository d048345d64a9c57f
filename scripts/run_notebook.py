"""Execute a notebook and write it, with its outputs, as one HTML file.

python scripts/run_notebook.py notebooks/augmentations.ipynb --output results/augmentations.html --set seed=1
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from finallyse import atomic
from finallyse.errors import UserError, one_line_errors

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
main {{ padding-top: 8px; padding-bottom: 40px }}
h2 {{ margin: 2em 0 .4em }}
details {{ margin: .4em 0 }}
details pre {{ margin: .2em 0 .8em }}
.anchor-link {{ display: none }}
svg, img {{ display: block; max-width: 100%; height: auto }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
SHOWN = ("text/html", "image/svg+xml", "image/png", "text/plain")  # of an output's forms, the first that it has


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path, help="the .ipynb file (not modified)")
    parser.add_argument("--output", type=Path, required=True, help="HTML file to write")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=TEXT", help="strings for the cell tagged `parameters`"
    )
    parser.add_argument("--timeout", type=int, default=600, help="time limit of a cell in seconds (default: 600)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # By default, Jupyter stores its connection files, history and settings in the home folder.
        for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            os.environ[variable] = str(Path(folder, variable))
        page = execute(arguments.notebook, arguments.set, arguments.timeout, Path(folder, "kernel"))
    atomic.write_bytes(arguments.output, page.encode())


def execute(path: Path, values: list[str], timeout: int, sockets: Path) -> str:
    """Return the executed notebook as self-contained HTML. sockets: path prefix of the kernel's sockets."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError
    from traitlets.config import Config

    try:
        notebook = nbformat.read(path, as_version=4)
    except nbformat.reader.NotJSONError as error:
        raise UserError(f"{path}: cannot be read as a notebook ({error})") from error
    position = next((i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])), None)
    if values and position is None:
        raise UserError(f"{path}: has no cell tagged `parameters` to take --set after")
    if values:
        # `root` of the cell is the folder that relative paths begin in: the one that the script was called in.
        root = os.path.relpath(Path.cwd(), path.parent.resolve())
        pairs = [value.partition("=") for value in (f"root={root}", *values)]
        if wrong := [name for name, equals, _ in pairs if not equals or not name.isidentifier()]:
            raise UserError(f"--set {wrong[0]}: must be NAME=TEXT")
        lines = [f"{name} = {text!r}" for name, _, text in pairs]
        notebook.cells.insert(position + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    # The kernel runs in the notebook's folder, as when it is opened in Jupyter.
    # Sockets in a private folder: other users of this machine could connect to TCP ports.
    client = NotebookClient(
        notebook,
        timeout=timeout,
        startup_timeout=180,
        resources={"metadata": {"path": str(path.parent)}},
        config=Config({"KernelManager": {"transport": "ipc", "ip": str(sockets)}}),
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise UserError(f"{path}: a cell failed: {error.ename}: {error.evalue}") from error
    except CellTimeoutError as error:
        raise UserError(f"{path}: a cell took more than {timeout} s; allow more with --timeout") from error
    heading = re.search(r"^# (.+)", notebook.cells[0].source, re.MULTILINE)
    body = "\n".join(part for cell in notebook.cells for part in parts(cell))
    return PAGE.format(title=escape(heading[1] if heading else path.stem), style=style(), body=body)


def style() -> str:
    """The style of the report: text, colours of both schemes, code."""
    return importlib.resources.files("finallyse.report").joinpath("style.css").read_text()


def parts(cell: Mapping[str, Any]) -> Iterator[str]:
    """HTML of a cell: text as it is, code folded, and what it has printed and drawn."""
    from nbconvert.filters import ansi2html, markdown2html

    if cell.cell_type == "markdown":
        yield markdown2html(cell.source)
        return
    yield f"<details><summary>Code</summary><pre>{escape(cell.source)}</pre></details>"
    for output in cell.outputs:
        if output.output_type == "stream":
            yield f"<pre>{ansi2html(output.text)}</pre>"
            continue
        form = next(form for form in SHOWN if form in output.data)
        content = output.data[form]
        if form == "image/png":
            content = f'<img alt="" src="data:image/png;base64,{content}">'
        yield f"<pre>{escape(content)}</pre>" if form == "text/plain" else content


if __name__ == "__main__":
    with one_line_errors():
        main()
