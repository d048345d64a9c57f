"""The page as a file: self-contained, its graph and its program whole; errors. tests/test_page_browser.py opens it."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finallyse.cli import main
from finallyse.errors import UserError
from finallyse.inference.windows import FADE_S
from finallyse.page.graph import parse, read_graph
from finallyse.page.write import LIBRARY, RUNTIME, WASM, classic, write
from finallyse.pretrained import FOLDER


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("page")).read_text()


def embedded(page: str, name: str) -> bytes:
    content = re.search(f'<script type="text/plain" id="{name}">([^<]*)</script>', page)[1]
    return gzip.decompress(base64.b64decode(content, validate=True))


def source_of(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def test_contains_everything_and_loads_nothing(page):
    assert "{{" not in page.replace("={{", "")  # no place of the template is left
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; ") and "connect-src 'none'" in policy
    assert "unsafe-inline" not in policy
    (style,) = re.findall("<style>(.*?)</style>", page, re.S)
    (script,) = re.findall("<script>(.*?)</script>", page, re.S)
    assert source_of(style) in policy and source_of(script) in policy
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert not re.search(r"https?://\w|@import|url\(", style + script)
    assert not re.search(r' (?:style|on\w+)="', page)  # which the policy would ignore


def test_embeds_the_network_and_the_program_unchanged(page):
    assert embedded(page, "graph") == (FOLDER / "small.onnx").read_bytes()
    assert embedded(page, "runtime") == gzip.decompress(WASM.read_bytes())
    library = embedded(page, "library").decode()
    assert "InferenceSession:" in library and "import.meta" not in library and "ONNX Runtime Web v1.30.0" in library


def test_the_program_is_the_published_one():
    stated = dict(re.findall(r"\| dist/([\w.-]+).* \| (\w{64}) \|", (RUNTIME / "VERSION.md").read_text()))
    assert stated == {
        LIBRARY.name: hashlib.sha256(LIBRARY.read_bytes()).hexdigest(),
        WASM.stem: hashlib.sha256(gzip.decompress(WASM.read_bytes())).hexdigest(),
    }
    assert "MIT License" in (RUNTIME / "LICENSE").read_text()


def test_a_bundle_that_is_put_together_otherwise_is_noticed():
    with pytest.raises(ValueError, match="list of exports"):
        classic("export default 1;")


def test_describes_the_network_as_the_enhancer_runs_it(page):
    import finallyse

    enhancer = finallyse.load()
    settings = json.loads(re.search('id="config">([^<]*)<', page)[1])["network"]
    assert settings == {
        "input_rate": enhancer.input_rate,
        "output_rate": enhancer.output_rate,
        "alignment": enhancer.generator.alignment,
        "context": enhancer.context,
        "grid": enhancer.grid,
        "window": enhancer.window,
        "fade_s": FADE_S,
        "peak": enhancer.peak,
    }


def test_writes_what_is_asked_for_and_replaces_nothing_unasked(tmp_path, capsys):
    folder = tmp_path / "new" / "page"
    with pytest.raises(SystemExit) as exit:
        main(["page", str(folder)])
    assert exit.value.code in (0, None)
    assert re.search(r"index\.html written \(\d\.\d MB\)", capsys.readouterr().out)
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSES.txt", "index.html"]
    assert "Microsoft Corporation" in (folder / "LICENSES.txt").read_text()
    with pytest.raises(UserError, match=r"index\.html: exists; give --force"):
        write(folder)
    assert write(folder, force=True).is_file()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        write(tmp_path / "file")


def test_a_checkpoint_is_exported(tmp_path):
    pytest.importorskip("onnxscript")
    shutil.copy(FOLDER / "small.ckpt", tmp_path / "mine.ckpt")
    graph = read_graph(tmp_path / "mine.ckpt")
    assert graph.name == "mine" and graph.settings() == read_graph().settings() and "small" in graph.card


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not written by `finallyse export`"),
        (b"\x72\x05\x0a", "damaged, or no ONNX file"),
        (b"\x0f\xff" * 40, "damaged, or no ONNX file"),
        (b"\xff" * 40, "damaged, or no ONNX file"),
        (b"\x72\x0e\x0a\x09finallyse\x12\x01{", "damaged, or no ONNX file"),
        (b"\x72\x0f\x0a\x09finallyse\x12\x02[]", "not written by `finallyse export`"),
        (b"\x72\x0f\x0a\x09finallyse\x12\x02{}", "not written by `finallyse export`"),
    ],
)
def test_other_files_are_no_graph(tmp_path, content, told):
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        parse(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_damaged_graph_never_fails_otherwise(tmp_path):
    whole = bytearray((FOLDER / "small.onnx").read_bytes())
    path = tmp_path / "graph.onnx"
    for at in range(0, 200, 3):
        for value in (0, 127, 128, 255):
            damaged = whole.copy()
            damaged[at] = value
            path.write_bytes(damaged)
            with contextlib.suppress(UserError):
                parse(path).settings()
    for size in (1, 10, 1000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=re.escape(str(path))):
            parse(path)


def test_networks_that_are_no_use_for_a_page(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(FOLDER / "small.onnx")
    (entry,) = [entry for entry in model.metadata_props if entry.key == "finallyse"]
    described = json.loads(entry.value)
    entry.value = json.dumps({**described, "ssl": {"file": "x.wavlm.onnx"}})
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(UserError, match="needs WavLM as well"):
        read_graph(tmp_path / "large.onnx")
    with pytest.raises(UserError, match="no such file"):
        read_graph(tmp_path / "absent.onnx")
    with pytest.raises(UserError, match="no such checkpoint"):
        read_graph("smal")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(UserError, match="too large for a page"):
        read_graph(tmp_path / "huge.onnx")


def test_writing_needs_neither_pytorch_nor_onnx(tmp_path):
    missing = ("torch", "onnx", "onnxruntime", "jinja2", "starlette")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\nimport finallyse.cli as c; c.main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, "page", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / "index.html").is_file()
