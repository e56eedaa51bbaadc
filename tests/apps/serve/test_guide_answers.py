"""The answers in docs/guides/serve.md are those of the requests above them."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import client_of

from trainers.hegraph.__main__ import main

DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "guides" / "serve.md").read_text(encoding="utf-8")
START = (DOCS / "getting-started.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str, page: str) -> list[str]:
    """Fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def commands(block: str) -> Iterator[list[str]]:
    """Words of the commands of a block, without comments."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def answers(block: str) -> Iterator[Any]:
    """JSON values that follow each other in a block."""
    while block := block.strip():
        value, end = json.JSONDecoder().raw_decode(block)
        yield value
        block = block[end:]


def answer_of(client: Any, words: list[str], folder: Path) -> Any:
    """Answer to a request that is written as a call of curl."""
    fields = [words[position + 1].split("=", 1) for position, word in enumerate(words) if word == "-F"]
    files = [
        ("files", (Path(value).name, (folder / value[1:]).read_bytes())) for name, value in fields if name == "files"
    ]
    labels = [value for name, value in fields if name == "labels"]
    method = "DELETE" if "DELETE" in words else "POST" if files else "GET"
    [url] = [word for word in words if word.startswith(ADDRESS)]
    form = {"files": files, "data": {"labels": labels}} if files else {}
    answer = client.request(method, url.removeprefix(ADDRESS), **form)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rounded(value: Any) -> Any:
    """JSON value with numbers as accurate as on every processor."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return pytest.approx(value, abs=0.05) if isinstance(value, float) else value


@pytest.mark.slow
def test_guide_shows_the_answers_of_its_requests(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(blocks("python", START)[0], {})
    assert main(["train", "pictures", "--backbone", "mini", "--shots", "8"]) == 0
    [training] = [block for block in blocks("bash", GUIDE) if "hegraph train" in block]
    train, copy, serve = commands(training)
    assert train[0] == "hegraph" and main(train[1:]) == 0
    shutil.copytree(copy[2], copy[3])
    assert serve == ["hegraph", "serve", copy[3], "--learn"]
    requests = [words for block in blocks("bash", GUIDE) for words in commands(block) if words[0] == "curl"]
    expected = [value for block in blocks("text", GUIDE) if block.startswith("{") for value in answers(block)]
    with client_of(Path("output/pictures/model")) as client:
        found = [answer_of(client, requests[0], tmp_path)]
    with client_of(Path(copy[3]), learn=True) as client:
        found += [answer_of(client, words, tmp_path) for words in requests[1:]]
    assert found == [rounded(value) for value in expected]
