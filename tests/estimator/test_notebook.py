"""docs/guides/digits.ipynb runs and gives its stored numbers."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "guides" / "digits.ipynb"
TOLERANCE = 0.005  # another processor may round in another way; one of another recipe differed by more


def shown(notebook: Any) -> tuple[list[float], int]:
    """Percentages in the outputs of a notebook, and its number of pictures."""
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


def test_notebook_and_guide_give_the_same_accuracy():
    stored = re.search(r"'([\d.]+) % of 899 test images are right'", NOTEBOOK.read_text(encoding="utf-8"))
    guide = re.search(r"^accuracy (0\.\d+)$", (NOTEBOOK.parent / "python.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert stored and guide
    assert float(stored[1]) / 100 == pytest.approx(float(guide[1]), abs=0.00051)  # the guide has three decimals


def test_notebook_contains_no_machine_paths():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert [word for word in ("/work/", "/home/", "/tmp/", "site-packages") if word in text] == []
