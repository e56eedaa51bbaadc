"""The documentation site: it builds without a warning, fits a phone, is accessible, and its search finds flags."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, Browser

pytest.importorskip("material", reason="mkdocs-material is not installed, which builds the site")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# The theme's light and dark scheme, with the rules of axe-core that are tried: all, and those that depend on colours
SCHEMES = {"default": (), "slate": ("color-contrast", "link-in-text-block")}
SHOW_SCHEME = """
document.head.insertAdjacentHTML("beforeend", "<style>* { transition: none !important }</style>")
document.body.dataset.mdColorScheme = arguments[0]
"""
BLOCKS = ("li", "ol", "ul", "table", "tr", "pre", "h2", "h3", "img")  # elements with the same count on GitHub


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stderr
    return folder


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """Address of a server of the site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SilentHandler, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def window(address, tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"), f"{address}/index.html")
    browser.driver.set_script_timeout(300)  # of axe-core, for the longest page on a busy machine
    yield browser
    browser.driver.quit()


def pages(site: Path) -> list[Path]:
    """Pages of docs/, without copies of files outside."""
    return [page for page in sorted(site.rglob("*.html")) if "repository" not in page.parts]


def article(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]


def test_pages_without_a_setting_need_no_mermaid(site):
    assert [page for page in pages(site) if 'class="mermaid"' in page.read_text(encoding="utf-8")] == []


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
    assert counts[0] == counts[1]


def test_pages_fit_a_phone_and_show_their_images(site, address, window):
    metrics = {"width": PHONE[0], "height": PHONE[1], "deviceScaleFactor": 1, "mobile": True}
    window.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for page in pages(site):
        window.driver.get(f"{address}/{page.relative_to(site).as_posix()}")
        broken = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
        measured = window.driver.execute_script(f"return [document.documentElement.scrollWidth, {broken}]")
        assert measured == [PHONE[0], []], page
    window.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_page_has_a_serious_violation(site, address, window, size):
    found = []
    with window.emulating(size):
        for page in pages(site):
            window.driver.get(f"{address}/{page.relative_to(site).as_posix()}")
            window.wait(lambda: window.driver.execute_script("return document.readyState") == "complete")
            for scheme, rules in SCHEMES.items():
                window.driver.execute_script(SHOW_SCHEME, scheme)
                found += [f"{page.stem}, {scheme}: {violation}" for violation in window.violations(*rules)]
    assert found == []


def test_links_in_the_text_are_underlined(address, window):
    window.driver.get(f"{address}/index.html")
    lines = "[...document.querySelectorAll('article p > a:not(.headerlink)')]"
    styles = window.driver.execute_script(f"return {lines}.map(a => getComputedStyle(a).textDecorationLine)")
    assert styles and set(styles) == {"underline"}


@pytest.mark.parametrize(("query", "page"), [
    ("--shots", "reference/configuration.html"), ("--open-set", "guides/confidence.html"),
    ("train my own photos", "getting-started.html"), ("CSV file", "guides/data.html"),
    ("accuracy is low", "index.html"), ("memory per worker", "guides/serve.html"),
])  # fmt: skip
def test_search_finds_the_page(address, window, query, page):
    window.driver.get(f"{address}/index.html")
    window.driver.execute_script("document.querySelector('#__search').click()")
    window.wait(lambda: window.find("[data-md-component=search-query]"))
    window.find("[data-md-component=search-query]")[0].send_keys(query)
    links = (
        "[...document.querySelectorAll('.md-search-result__link')].map(link => new URL(link.href).pathname.slice(1))"
    )
    window.wait(lambda: window.driver.execute_script(f"return {links}"))
    assert page in window.driver.execute_script(f"return {links}")
