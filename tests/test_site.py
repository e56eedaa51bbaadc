"""The documentation site: it builds without a warning, shows every public name and command, and fits a phone."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PHONE, Browser

import trainers.hegraph
from trainers.hegraph.__main__ import SUBCOMMANDS

pytest.importorskip("material", reason="mkdocs-material is not installed, which builds the site")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCKS = ("li", "ol", "ul", "table", "tr", "pre", "h2", "h3", "img")  # elements with the same count on GitHub
MADE = ("api.md", "command-line.md")  # pages that the build completes


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "SITE_PRIVACY": "false"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def window(site, tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"), (site / "index.html").as_uri())
    yield browser
    browser.driver.quit()


def pages(site: Path) -> list[Path]:
    """Pages of docs/, without copies of files outside."""
    return [page for page in sorted(site.rglob("*.html")) if "repository" not in page.parts]


def article(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]


def test_api_page_documents_every_public_name(site):
    text = article(site / "reference" / "api.html")
    for name in set(trainers.hegraph.__all__) - {"__version__"}:
        assert f'id="hegraph.{name}"' in text, name


def test_command_line_page_shows_every_help(site):
    text = article(site / "reference" / "command-line.html")
    shown = re.findall(r'<h[23] id="([\w-]+)"', text)
    inner = "hegraph-results-compare", "hegraph-datasets-check", "hegraph-features-extract", "hegraph-label-check"
    assert {"hegraph", *(f"hegraph-{name}" for name in SUBCOMMANDS), *inner} <= set(shown)
    assert text.count("usage: hegraph") == len(shown)


def test_pages_load_nothing_from_other_hosts(site):
    loading = re.compile(r'<(?:script|img|iframe|source|link rel="(?:stylesheet|preconnect)")[^>]*https?:')
    assert [page for page in pages(site) if loading.search(page.read_text(encoding="utf-8"))] == []


def test_links_to_repository_files_have_copies(site):
    link = re.compile(r'"([./]*repository/[^"#]+)')
    copies = [page.parent / target for page in pages(site) for target in link.findall(article(page))]
    assert copies and all(copy.is_file() for copy in copies)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_page_has_the_blocks_that_github_shows(site, page):
    """Python-Markdown and GitHub differ in nested lists, and in lists and tables without a blank line before them."""
    markdown = pytest.importorskip(
        "markdown_it", reason="markdown-it-py is not installed, which renders as GitHub does"
    )
    github = markdown.MarkdownIt("gfm-like", {"linkify": False}).render(page.read_text(encoding="utf-8"))
    built = article((site / page.relative_to(DOCS)).with_suffix(".html"))
    counts = [{name: len(re.findall(f"<{name}[ >]", text)) for name in BLOCKS} for text in (github, built)]
    assert page.name in MADE or counts[0] == counts[1]


def test_pages_fit_a_phone_and_show_their_images(site, window):
    metrics = {"width": PHONE[0], "height": PHONE[1], "deviceScaleFactor": 1, "mobile": True}
    window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for page in pages(site):
        window.driver.get(page.as_uri())
        broken = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
        measured = window.driver.execute_script(f"return [document.documentElement.scrollWidth, {broken}]")
        assert measured == [PHONE[0], []], page
