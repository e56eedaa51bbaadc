"""docs/guides/python.md and docs/guides/digits.ipynb: what they show runs, and gives the numbers that they say."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE, NOTEBOOK = ROOT / "docs" / "guides" / "python.md", ROOT / "docs" / "guides" / "digits.ipynb"
TOLERANCE = 0.005  # another processor may round in another way; one of another recipe differed by more

# In a checkout the package has its other name
CHECKOUT = "import sys, trainers.hegraph\nsys.modules['hegraph'] = trainers.hegraph\n"


def snippets() -> list[str]:
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [snippet for snippet in found if not snippet.startswith("# needs ")]


def checked(snippet: str) -> str:
    """A snippet in which every line that ends with a number, `expression  # 0.94`, asserts that number."""
    asserted = rf"assert abs((\1) - \2) <= {TOLERANCE}, (\1)"
    return re.sub(r"^(\S.*)  # (0\.\d+)$", asserted, snippet, flags=re.MULTILINE)


@pytest.mark.slow
def test_snippets_of_the_page_give_its_numbers(tmp_path):
    program = CHECKOUT + "\n".join(map(checked, snippets()))
    assert program.count("assert abs") == 3
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "my-model")) == ["README.md", "config.json", "model.safetensors"]


def shown(notebook: Any) -> tuple[list[float], int]:
    """The numbers before a percent sign in what the cells of a notebook show, and the number of pictures."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    text = " ".join(str(data.get("text/plain")) for data in outputs)
    return list(map(float, re.findall(r"([\d.]+) %", text))), sum("image/png" in data for data in outputs)


@pytest.mark.slow
def test_notebook_gives_its_stored_numbers(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before, _ = shown(notebook)
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute()  # raises the error of a cell
    percents, pictures = shown(notebook)
    assert (len(before), pictures, percents) == (2, 3, pytest.approx(before, abs=100 * TOLERANCE))


def test_notebook_contains_no_machine_paths():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert [word for word in ("/work/", "/home/", "/tmp/", "site-packages") if word in text] == []
