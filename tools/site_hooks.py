"""The hooks of mkdocs.yml: the page of the notebook, and links to files outside docs/.

A page links to a file of the repository with a relative path, which works on GitHub. The site has a copy of each such
file below `repository/`: a page for a Markdown file, and a text file for any other.
"""

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
COPIES = "repository/"  # folder of the site for files outside docs/
LINK = re.compile(r'(\]\(|(?:src|srcset|href)=")([^)"\s:#]+)(?=[)"#])')  # relative links of Markdown and HTML
# Weight of a page in the search: the reference has every word, and the first pages have the answers
BOOST = {
    "index.md": 2,
    "getting-started.md": 4,
    "reference/command-line.md": 1.5,
    "reference/": 0.3,
    "development/": 0.3,
    "results/": 0.3,
    "repository/": 0.2,
}
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebook as a page, and copies of the files outside docs/ that pages link to."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            for name, content in notebook_files(json.loads(file.content_string), file.src_uri):
                files.append(File.generated(config, name, content=content))
    pending = [file for file in files if file.is_documentation_page()]
    while pending:
        page = pending.pop()
        for path in links(page.content_string, source_of(page.src_uri)):
            copy = address_of(path)
            if copy.startswith(COPIES) and not files.get_file_from_path(copy) and (ROOT / path).is_file():
                added = File.generated(config, copy, content=(ROOT / path).read_text(encoding="utf-8"))
                files.append(added)
                if added.is_documentation_page():
                    pending.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links lead to the files of the site."""
    boosts = [boost for start, boost in BOOST.items() if page.file.src_uri.startswith(start)]
    page.meta["search"] = {"boost": boosts[0]} if boosts else {}
    source = source_of(page.file.src_uri)
    folder = posixpath.dirname(page.file.src_uri)

    def on_site(match: re.Match[str]) -> str:
        return match[1] + posixpath.relpath(address_of(resolve(match[2], source)), folder or ".")

    parts = re.split(f"({FENCED.pattern})", markdown, flags=FENCED.flags)
    return "".join(part if part.startswith("```") else LINK.sub(on_site, part) for part in parts)


def source_of(address: str) -> str:
    """Path in the repository of a page of the site."""
    return address.removeprefix(COPIES) if address.startswith(COPIES) else f"docs/{address}"


def address_of(path: str) -> str:
    """Path in the site of a file of the repository."""
    if path.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))
    return COPIES + (path if path.endswith(".md") else f"{path}.txt")


def resolve(target: str, source: str) -> str:
    """Path in the repository of the target of a relative link in a page."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def links(markdown: str, source: str) -> Iterator[str]:
    """Paths in the repository of the files that a page links to."""
    for _, target in LINK.findall(FENCED.sub("", markdown)):
        yield resolve(target, source)


def notebook_files(notebook: dict[str, Any], name: str) -> Iterator[tuple[str, str | bytes]]:
    """Markdown page of a notebook with its stored outputs, and the images among them."""
    page, stem = [], name.removesuffix(".ipynb")
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        page.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield f"{stem}_{number}.png", base64.b64decode(output["data"]["image/png"])
                page.append(f"![Output of the cell above]({posixpath.basename(stem)}_{number}.png)")
            elif text := "".join(output.get("text") or output.get("data", {}).get("text/plain", [])):
                page.append(f"```text\n{text.rstrip()}\n```")
    yield f"{stem}.md", "\n\n".join(page)
