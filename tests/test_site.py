"""The documentation as a site: it builds offline, is complete, leads nowhere wrong, and fits every width."""

from __future__ import annotations

import functools
import html
import html.parser
import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import yaml

import finallyse
from finallyse.cli import COMMANDS
from finallyse.metrics import metrics_registry
from finallyse.schema import registries
from finallyse.training import trainers_registry
from support import ROOT
from support.browser import Browser

SIZES = {"phone": (390, 844), "tablet": (820, 1180), "desk": (1200, 900)}
LOADS = {
    "script": "src", "img": "src", "audio": "src", "video": "src", "source": "src", "iframe": "src", "link": "href"
}  # fmt: skip


def build(project: Path, folder: Path) -> subprocess.CompletedProcess:
    """Build the site of `project` in `folder`, without a network."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing: pip install -r requirements-docs.txt")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=project,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_a_link_to_nothing_fails_the_build(tmp_path):
    for path in ROOT.iterdir():
        if path.name not in ("docs", "site", ".git"):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs/faq.md").open("a") as page:
        page.write("\n[a](../src/finallyse/nothing.py), [b](training.md#nowhere), [c](../src/finallyse/cli.py)\n")
    built = build(tmp_path, tmp_path / "site")
    said = built.stdout + built.stderr
    assert built.returncode != 0 and "nothing.py" in said and "nowhere" in said and "cli.py" not in said, said


class Document(html.parser.HTMLParser):
    """What a page loads, what it links to, and what can be linked to in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = {""}
        self.without_alt: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "img" and not given.get("alt"):
            self.without_alt.append(given.get("src", ""))
        if (address := given.get(LOADS.get(tag, ""))) and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(address)
        self.loads += re.findall(r"url\(([^)]+)\)", given.get("style", ""))


@pytest.fixture(scope="module")
def documents(site) -> dict[Path, Document]:
    return {path: Document(path) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(site, documents):
    assert len(documents) > 40
    for path, document in documents.items():
        outside = [address for address in document.loads if re.match(r"(https?:)?//", address)]
        assert outside == [], path
    sheets = list(site.rglob("*.css"))
    assert sheets
    for path in sheets:
        assert not re.search(r"(url\(|@import\s*)[\"']?(https?:)?//", path.read_text()), path


def test_links_lead_to_pages_and_anchors_that_are_there(site, documents):
    followed = 0
    for path, document in documents.items():
        if path.name == "404.html":  # its links are relative to the root of a server
            continue
        for link in document.links:
            address, anchor = urldefrag(unquote(link))
            if re.match(r"(https?:|mailto:|data:)", address) or path.suffix != ".html":
                continue
            target = (path.parent / address).resolve() if address else path
            if target.is_dir():
                target /= "index.html"
            assert target.is_file(), f"{path}: {link}"
            if anchor and target.suffix == ".html":
                assert anchor in documents[target].anchors, f"{path}: {link}"
            followed += 1
    assert followed > 1000


def test_links_lead_to_files_of_the_repository_where_it_is_browsed():
    """So that pages can be read without the site, too."""
    pages = [*ROOT.glob("*.md"), ROOT / "config/README.md", ROOT / "results/README.md", *(ROOT / "docs").rglob("*.md")]
    assert len(pages) > 25
    for page in pages:
        text = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            assert re.match(r"https?:", target) or (page.parent / target).exists(), f"{page}: {target}"


def test_every_page_is_in_the_navigation():
    def named(nav: object) -> Iterator[str]:
        if isinstance(nav, str):
            yield nav
        for inner in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
            yield from named(inner)

    nav = set(named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} <= nav


def headings(page: Path) -> list[str]:
    """The texts of the headings of the second and third level."""
    found = re.findall(r"<h[23] .*?>(.*?)<a [^>]*class=\"headerlink\"", page.read_text(), re.DOTALL)
    return [re.sub("<.*?>", "", heading).strip() for heading in found]


def test_the_reference_has_every_part_name_and_command(site):
    parts = {name for registry in registries().values() for name in registry}
    parts |= {*metrics_registry, *trainers_registry}
    assert parts <= set(headings(site / "reference/parts.html"))
    names = [heading for heading in headings(site / "reference/python.html") if heading.startswith("finallyse.")]
    assert names == [f"finallyse.{name}" for name in sorted(finallyse.__all__)]
    assert headings(site / "reference/commands.html") == [f"finallyse {name}" for name in COMMANDS]
    described = re.sub(r"\s+", " ", html.unescape((site / "reference/parts.html").read_text()))
    for registry in (*registries().values(), metrics_registry, trainers_registry):
        for cls in registry.values():
            beginning = re.split(r"[`<>*]", " ".join(cls.__doc__.split("\n\n")[0].split()))[0]
            assert beginning[:60] in described, cls


def test_pictures_are_described(documents):
    assert {path.name: document.without_alt for path, document in documents.items() if document.without_alt} == {}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *message: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


PICTURES = """[...document.querySelectorAll("article img")].map((i) => [i.alt, i.complete && i.naturalWidth,
    i.getBoundingClientRect().right])"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_pages_fit_every_width(browser, address, size, dark):
    """Nothing wider than the window, pictures drawn, the scheme of the system, nothing from elsewhere, no complaint."""
    pages = ["index", "ru", "first-hour", "how/finally", "cluster", "reference/configuration", "reference/commands"]
    for page in pages:
        browser.console.clear()
        browser.requests.clear()
        browser.open(f"{address}/{page}.html", *size, dark=dark, phone=size == SIZES["phone"])
        width, inner = browser.run("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width == inner == size[0], page
        scheme = browser.run("document.body.getAttribute('data-md-color-scheme')")
        assert scheme == ("slate" if dark else "default")
        for alt, drawn, right in browser.run(PICTURES):
            assert drawn and right <= size[0], f"{page}: {alt}"
        assert all(url.startswith((address, "blob:")) for url in browser.requests), browser.requests
        assert browser.console == [], page
    browser.open(f"{address}/how/finally.html", *size, dark=dark)
    assert len(browser.run(PICTURES)) == 1


def test_the_search_finds_pages_in_both_languages(browser, address):
    for word, page in (("walltime", "cluster.html"), ("дообучать", "ru.html")):
        browser.open(f"{address}/index.html", *SIZES["desk"])
        browser.run(
            "(() => { const q = document.querySelector('[data-md-component=search-query]'); q.focus(); "
            f"q.value = '{word}'; q.dispatchEvent(new Event('keyup', {{bubbles: true}})); "
            "q.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
        found = browser.run(
            "new Promise((done) => { let left = 100; const look = () => { "
            "const links = [...document.querySelectorAll('.md-search-result__link')].map((a) => a.href); "
            "links.length || !left-- ? done(links) : setTimeout(look, 100); }; look(); })"
        )
        assert any(page in link for link in found), found
