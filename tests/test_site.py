"""The site has every page and every public name, and works without a network."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Browser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

TOCTREE = re.compile(r"^```\{toctree\}\n(?P<body>.*?)^```$", flags=re.MULTILINE | re.DOTALL)
DOCUMENTED = re.compile(r"^\.\. auto\w+:: (?P<name>[\w.]+)$", flags=re.MULTILINE)

#: Attributes by which a page of HTML loads something.
LOADED = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"")


def listed_pages() -> Iterator[str]:
    """The pages that the lists of the first page name."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for tree in TOCTREE.finditer(index):
        for line in tree["body"].splitlines():
            if line and not line.startswith(":"):
                yield line


def test_each_page_is_listed_once_on_the_first_page() -> None:
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")}
    listed = Counter(listed_pages())

    assert set(listed) == pages - {"index"}, "add the page to a toctree of docs/index.md"
    assert max(listed.values()) == 1


@pytest.mark.parametrize("module", ["procbus", "procbus.testing"])
def test_each_public_name_is_in_the_reference_once(module: str) -> None:
    documented = [
        name
        for page in sorted((DOCS / "api").glob("*.md"))
        for name in DOCUMENTED.findall(page.read_text(encoding="utf-8"))
    ]
    names = [f"{module}.{name}" for name in importlib.import_module(module).__all__]

    assert [name for name in names if documented.count(name) != 1] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, made as `make docs` makes it."""
    for needed in ("furo", "myst_parser", "sphinx", "prometheus_client", "opentelemetry"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("site")
    options = ["--nitpicky", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html"]
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "-d", f"{folder}/doctrees", DOCS, folder],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
    )
    assert made.returncode == 0, made.stdout
    return folder


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    styles = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.css")}
    loaded = {
        (page.name, address)
        for page in site.rglob("*.html")
        for address in LOADED.findall(page.read_text(encoding="utf-8"))
    }
    imported = {
        (page.name, text) for page, text in styles.items() if re.search(r"url\(.?http", text)
    }

    assert len(loaded) > 100
    assert [each for each in sorted(loaded) if "//" in each[1]] == []
    assert not imported


@pytest.mark.slow
def test_the_site_has_an_index_for_language_models(site: Path) -> None:
    text = (site / "llms.txt").read_text(encoding="utf-8")
    pages = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): .+", text, flags=re.MULTILINE)

    assert set(pages) == {f"{page}.html" for page in listed_pages()}
    assert [page for page in pages if not (site / page).exists()] == []


@pytest.mark.slow
def test_the_search_index_knows_the_words_of_pages_and_docstrings(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")

    for word in ("timeout", "procbus.EventBus", "journal"):
        assert word in index


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.mark.slow
@needs_chromium
def test_the_search_works_on_files(site: Path, tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        browser.open(f"{(site / 'search.html').as_uri()}?q=timeout")
        browser.shows("pages matching the search query", "procbus.HandlerTimeout", "All options")

        assert browser.errors == []


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_page_is_wider_than_the_screen(site: Path, tmp_path: Path, dark: bool) -> None:
    wider = []
    with Browser(tmp_path, dark=dark) as browser:
        for page in listed_pages():
            browser.open((site / f"{page}.html").as_uri())
            browser.shows("Made with Furo")
            for width in (1280, 390):
                browser.resize(width, 900)
                if browser.run("document.documentElement.scrollWidth > window.innerWidth"):
                    wider.append((page, width))

        assert wider == []
        assert browser.errors == []
