"""The command and the script: they show the page, and a mistake is one clear line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from trainers.hegraph.demo.__main__ import main, parse_arguments
from trainers.hegraph.demo.server import GRADIO

ROOT = Path(__file__).parents[2]


def the_error(capsys, *arguments: object) -> str:
    """The one line that the command ends with, with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_it_listens_on_this_machine_alone_unless_told_otherwise():
    assert parse_arguments(["MODEL"]).host == "127.0.0.1"


def test_a_port_in_use_is_one_clear_line(model_folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = the_error(capsys, model_folder, "--port", port)
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose another --port" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--port", "0"), "--port must lie in 1 ... 65535, got 0"),
        (("--port", "65536"), "--port must lie in 1 ... 65535, got 65536"),
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1, port 7860"),  # an address for documentation
        (("--host", "no host"), "cannot listen on no host, port 7860"),
    ],
)
def test_a_wrong_address_is_one_clear_line(flags, said, model_folder, capsys):
    assert said in the_error(capsys, model_folder, *flags)


def test_a_folder_without_a_model_is_one_clear_line(tmp_path, capsys):
    pytest.importorskip("gradio", reason="gradio is not installed, which is asked for first")
    assert "holds no config.json; give the model folder of a run" in the_error(capsys, tmp_path, "--port", "7999")


def test_without_gradio_the_line_that_installs_it_is_named(model_folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    line = the_error(capsys, model_folder, "--port", "7998")
    assert f"the page needs Gradio; run: {sys.executable} -m pip install '{GRADIO}'" in line


def test_the_version_of_gradio_is_that_of_the_extra():
    assert f'demo = ["{GRADIO}"]' in (ROOT / "pyproject.toml").read_text()


def test_what_gradio_counts_is_switched_off_before_it_is_imported():
    code = (
        "import os; from trainers.hegraph.demo.server import require_gradio; require_gradio();"
        "import gradio.analytics as a; assert not a.analytics_enabled();"
        "assert os.environ['HF_HUB_DISABLE_TELEMETRY'] == '1'"
    )
    pytest.importorskip("gradio", reason="gradio is not installed")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_answers_without_torch_and_gradio():
    code = (
        "import sys; from trainers.hegraph.demo.__main__ import parse_arguments; parse_arguments(['MODEL']);"
        "assert not {'torch', 'gradio', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# The page over HTTP


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with OPENER.open(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def post(url: str, value: dict) -> int:
    """The status of the answer to a value sent as JSON."""
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with OPENER.open(request, timeout=30) as answer:
        return answer.status


def test_the_page_is_served_without_statistics_and_with_limits(address):
    assert get(f"{address}/")[0] == 200
    config = get(f"{address}/config")[1].replace(" ", "")
    assert '"analytics_enabled":false' in config
    assert f'"max_file_size":{20 * 2**20}' in config


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "thumbnails/00000.jpg"])
def test_no_file_of_this_machine_is_served(name, address, model_folder):
    assert get(f"{address}/gradio_api/file={model_folder / name}")[0] in (403, 404)
    assert get(f"{address}/gradio_api/file=/etc/hostname")[0] in (403, 404)


def test_a_client_cannot_have_a_file_of_this_machine_opened(address, tmp_path):
    (tmp_path / "image.png").write_bytes(b"")
    file = {"path": str(tmp_path / "image.png"), "meta": {"_type": "gradio.FileData"}}
    config = json.loads(get(f"{address}/config")[1])
    [image] = [part["id"] for part in config["components"] if part["type"] == "image"]
    [number] = [dependency["id"] for dependency in config["dependencies"] if dependency["inputs"] == [image]]
    asked = {"data": [file], "fn_index": number, "session_hash": "session"}
    assert post(f"{address}/gradio_api/queue/join", asked) == 200
    said = get(f"{address}/gradio_api/queue/data?session_hash=session")[1]
    assert '"success":false' in said.replace(" ", "")
    assert "no image that can be read" not in said  # what `open_picture` would say


# scripts/hegraph/demo.sh


def test_the_script_shows_a_model_and_leaves_no_uploads(model_folder, serving, tmp_path):
    command = ["bash", "scripts/hegraph/demo.sh", str(model_folder.parent)]
    with serving(command, PYTHON=sys.executable, TMPDIR=str(tmp_path)) as address:
        assert "HeGraphAdapter on Digits" in get(f"{address}/")[1]
        assert list(tmp_path.glob("hegraph-demo-*"))
    assert not list(tmp_path.glob("hegraph-demo-*"))


def test_the_script_without_a_model_trains_the_digits_or_takes_those_that_are_there(tmp_path, serving):
    run = tmp_path / "digits" / "HeGraphAdapter" / "mini_16shots" / "seed1"
    environment = {"PYTHON": sys.executable, "OUTPUT": str(tmp_path)}
    with serving(["bash", "scripts/hegraph/demo.sh"], **environment) as address:
        assert get(f"{address}/")[0] == 200
    assert len(list((run / "model" / "thumbnails").iterdir())) == 160
    written = (run / "result.json").stat().st_mtime_ns
    ran = bash("--space", str(tmp_path / "space"), **environment)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "space" / "model" / "thumbnails" / "00159.jpg").is_file()
    assert (run / "result.json").stat().st_mtime_ns == written


def test_a_training_that_fails_ends_the_script(tmp_path):
    (tmp_path / "output").write_text("no folder")
    ran = bash(PYTHON=sys.executable, OUTPUT=str(tmp_path / "output"))
    assert ran.returncode == 2
    [line] = ran.stderr.splitlines()
    assert line.startswith("error: cannot write")


def bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", "scripts/hegraph/demo.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=240)
