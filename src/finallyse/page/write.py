"""Writes the page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

from finallyse import __version__, atomic
from finallyse.errors import UserError
from finallyse.page.graph import Graph, read_graph

FOLDER = Path(__file__).parent
REPORT = FOLDER.parent / "report"  # whose colours and player the page shares
RUNTIME = FOLDER / "onnxruntime"
RUNTIME_VERSION = "1.30.0"
LIBRARY, WASM = RUNTIME / "ort.wasm.bundle.min.mjs", RUNTIME / "ort-wasm-simd-threaded.wasm.gz"
PRIVACY = "Nothing leaves this device: the network runs in your browser."


def write(output: str | Path, checkpoint: str | None = None, force: bool = False) -> Path:
    """Write index.html and LICENSES.txt into the folder `output`; returns the path of the page.

    Args:
        checkpoint: built-in network, checkpoint, or ONNX file of `finallyse export`; None: the default network.
        force: replace an existing page.

    Raises UserError for a network that is no use for a page, and for a page that exists, unless `force`.
    """
    folder = Path(output)
    page = folder / "index.html"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder for the page")
    if page.exists() and not force:
        raise UserError(f"{page}: exists; give --force to replace it")
    content = render(read_graph(checkpoint)).encode()
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(folder / "LICENSES.txt", licences().encode())
    atomic.write_bytes(page, content)
    return page


def render(graph: Graph, server: dict[str, Any] | None = None) -> str:
    """The page.

    server: the network that `finallyse serve` offers beside the page's own, {"name", "summary"}; None: there is none.
    """
    styles = [(REPORT / "style.css").read_text(), (FOLDER / "page.css").read_text()]
    scripts = [FOLDER / "signal.js", REPORT / "player.js", FOLDER / "app.js"]
    style = "\n".join(styles)
    script = "\n".join(path.read_text().replace('"use strict";\n', "", i) for i, path in enumerate(scripts))
    rate, out = (graph.described[key] / 1000 for key in ("input_rate", "output_rate"))
    policy = {
        "default-src": "'none'",
        "script-src": f"'{_hash(script)}' blob: 'wasm-unsafe-eval'",  # blob: the worker, put together from this page
        "worker-src": "blob:",
        "style-src": f"'{_hash(style)}'",
        "img-src": "data:",
        "media-src": "blob:",
        "connect-src": "'self'" if server else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    config = {"network": graph.settings(), "server": server, "privacy": PRIVACY}
    content = {
        "version": __version__,
        "policy": "; ".join(f"{name} {sources}" for name, sources in policy.items()),
        "style": style,
        "summary": "Removes noise and reverberation from recordings of speech. Choose a file, or speak.",
        "limits": "Any format that your browser plays, every channel, up to about 20 minutes of mono at 48 kHz.",
        "privacy": PRIVACY,
        "network": html.escape(f"{graph.name}, {rate:g} kHz" + (f" to {out:g} kHz" if out != rate else "")),
        "server": html.escape(server["summary"]) if server else "",
        "card": html.escape(graph.card or "This network has no model card."),
        "runtime": RUNTIME_VERSION,
        "licence": html.escape((RUNTIME / "LICENSE").read_text()),
        "config": json.dumps(config).replace("<", "\\u003c"),
        "signal": (FOLDER / "signal.js").read_text(),
        "worker": (FOLDER / "worker.js").read_text().replace('"use strict";\n', ""),
        "recorder": (FOLDER / "recorder.js").read_text(),
        "library": _embedded(classic(LIBRARY.read_text()).encode()),
        "graph": _embedded(graph.content),
        "wasm": base64.b64encode(WASM.read_bytes()).decode(),
        "script": script,
    }
    template = (FOLDER / "index.html").read_text()
    return re.sub(r"\{\{(\w+)\}\}", lambda match: content[match[1]], template)


def classic(module: str) -> str:
    """The bundle of ONNX Runtime Web as a script that sets `ortReady`, a promise of what the module exports.

    Browsers load no modules from a page that is opened from a disk, and only there, so it is a script everywhere.
    """
    body, found = re.subn(r"export\{([^{}]*)\};\s*(//# sourceMappingURL=\S+\s*)?$", "", module)
    if found != 1:
        raise ValueError("the bundle of ONNX Runtime Web has no list of exports at its end")
    names = re.findall(r"([\w$]+) as (\w+)", re.search(r"export\{([^{}]*)\};\s*(//.*\s*)?$", module)[1])
    body = body.replace("import.meta.url", "self.location.href")
    exported = ",".join(f"{name}:{local}" for local, name in names)
    return f"self.ortReady=(async()=>{{{body}\nreturn{{{exported}}}}})();\n"


def licences() -> str:
    """The licences of what a page contains."""
    parts = [f"ONNX Runtime Web {RUNTIME_VERSION}", (RUNTIME / "LICENSE").read_text()]
    return "\n\n".join([*parts, "Notices of what it contains", (RUNTIME / "ThirdPartyNotices.txt").read_text()])


def _embedded(content: bytes) -> str:
    """Compressed, with a checksum, as text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _hash(text: str) -> str:
    """The source of an inline script or style in a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
