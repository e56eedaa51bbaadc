"""Demo page: requests of visitors, and the command that serves the page."""

import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import HTTP
from PIL import Image

from tools.free_ports import free_port
from trainers.hegraph.apps import launch
from trainers.hegraph.apps.demo.drawing import data_url
from trainers.hegraph.apps.launch import GRADIO, check_address
from trainers.hegraph.commands import demo as command
from trainers.hegraph.commands.demo import parse_arguments
from trainers.hegraph.datasets.digits import CLASSNAMES, open_digit
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def page():
    """Module of the page, which imports Gradio."""
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")
    from trainers.hegraph.apps.demo import page

    return page


@pytest.fixture
def uploads(tmp_path) -> Path:
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def answers(page, digits, model_folder, uploads):
    return page.Answers(lambda: (digits.model, digits.backbone), str, uploads, True, True)


def test_only_files_in_the_upload_folder_are_opened(page, uploads, tmp_path):
    for folder in (uploads, tmp_path):
        Image.new("RGB", (20, 10)).save(folder / "photo.jpg")
    os.mkfifo(uploads / "pipe.png")
    (uploads / "link.png").symlink_to(tmp_path / "photo.jpg")
    (uploads / "loop.png").symlink_to(uploads / "loop.png")
    assert page.uploaded_file(str(uploads / "photo.jpg"), uploads) == uploads / "photo.jpg"
    names = ("pipe.png", "link.png", "loop.png", "missing.png", "..", "../photo.jpg", "a\0b", "x" * 5000)
    for path in (*(str(uploads / name) for name in names), "/dev/stdin", "photo.jpg", ""):
        with pytest.raises(UserError, match="no picture arrived"):
            page.uploaded_file(path, uploads)


def test_unusable_image_gives_an_error(answers, uploads):
    (uploads / "notes.png").write_bytes(b"no <image>")
    Image.new("1", (10_000, 5_001)).save(uploads / "huge.png")
    notes, huge = ({"path": str(uploads / f"{name}.png")} for name in ("notes", "huge"))
    for request, text in (
        (notes, "This file is not an image"),
        (huge, "50 million pixels; take a smaller one."),
        ({"picture": "data:image/png;base64,x"}, "arrived damaged"),
        ({"picture": "x" * (4 * 2**20 + 1)}, "arrived damaged"),
        ({"picture": "data:image/png;base64,AAAA"}, "This file is not an image"),
        ({"picture": data_url(Image.new("L", (100, 100)))}, "No digit found"),
        ({"drawing": "7"}, "The drawing arrived damaged"),
        (7, "The request: "),
    ):
        html = answers(request)
        assert 'role="alert"' in html and text in html, request


def test_image_gets_chart_and_neighbours(answers, uploads):
    image = open_digit("digits/0902").resize((200, 200))
    image.save(uploads / "0.jpg")
    for request in ({"path": str(uploads / "0.jpg")}, {"picture": data_url(image)}):
        html = answers(request)
        assert '<h2 class="winner">zero</h2>' in html and html.count("<tr data-name=") == 5
        assert "Input of the model" in html
        assert html.count('<span class="number">') == 2 * 5 + 4  # of 4 shots
    answers.converts, answers.thumbnail = False, lambda position: ""  # a model of other classes, without thumbnails
    html = answers({"path": str(uploads / "0.jpg")})
    assert "Input of the model" not in html and "--keep-thumbnails" in html


def test_hint_without_drawing_and_escaped_errors(page, answers):
    assert "The prediction appears here" in answers({"drawing": ""})
    assert "&lt;b&gt;no&lt;/b&gt;." in page.error_html(UserError("<b>no</b>"))


# The command


def test_unusable_address_is_refused(cli_error):
    args = parse_arguments(["MODEL"])
    assert (args.host, args.port) == ("127.0.0.1", 7860)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert f"port {port}: Address already in use" in cli_error("demo", "MODEL", "--port", port)
    check_address("127.0.0.1", port)


@pytest.mark.parametrize(("flag", "value"), [
    ("--port", "0"), ("--port", "65536"), ("--host", "192.0.2.1"), ("--host", "no host"),
])  # fmt: skip
def test_impossible_address_is_refused(cli_error, flag, value):
    assert value in cli_error("demo", "MODEL", flag, value)


def test_missing_model_and_missing_gradio_are_refused(page, tmp_path, cli_error, monkeypatch):
    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    assert "config.json" in cli_error("demo", tmp_path)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert f"{sys.executable} -m pip install '{GRADIO}'" in cli_error("demo", tmp_path)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert f'demo = ["{GRADIO}"]' in (ROOT / "pyproject.toml").read_text()


# The page over HTTP


def asked(address: str, value: object) -> str:
    """Answer to a value that a program sends to the component."""
    config = HTTP.get(f"{address}/config", timeout=240).json()
    [part] = [each["id"] for each in config["components"] if each["props"].get("elem_id") == "try"]
    sent = {"data": value, "component_id": part, "fn_name": "answer", "session_hash": "a"}
    return HTTP.post(f"{address}/gradio_api/component_server", json=sent, timeout=240).json()


@pytest.fixture
def serve(page, digits, model_folder, monkeypatch):
    """Function that serves the page of the digits at a host and calls `visit` with its address meanwhile."""

    def serve_at(host: str, visit: Callable[[str], object]) -> None:
        port = free_port()
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        event = SimpleNamespace(wait=lambda: visit(address))
        monkeypatch.setattr(launch, "threading", SimpleNamespace(Event=lambda: event))
        launch.launch_page(partial(page.build_page, digits, model_folder), host, port)

    for name in ("GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    return serve_at


def test_page_has_an_address_of_ipv6(serve, capsys):
    visited = []
    try:
        serve("::1", lambda address: visited.append((address, HTTP.get(address, timeout=240).status_code)))
    except OSError:
        pytest.skip("this machine has no IPv6")
    [(address, status)] = visited
    assert status == 200 and capsys.readouterr().out.startswith(f"{address} shows the page")


def test_server_limits_uploads_and_serves_no_local_file(serve, model_folder, monkeypatch, tmp_path, capfd):
    uploads, addresses = tmp_path / "uploads", list[str]()

    def visit(address: str) -> None:
        addresses.append(address)
        config = HTTP.get(f"{address}/config", timeout=240).text.replace(" ", "")
        assert '"analytics_enabled":false' in config and f'"max_file_size":{20 * 2**20}' in config
        assert all(name in config for name in CLASSNAMES)
        for file in (model_folder / "config.json", model_folder / "thumbnails" / "00000.jpg", Path("/etc/hostname")):
            assert HTTP.get(f"{address}/gradio_api/file={file}", timeout=240).status_code in (403, 404)
        open_digit("digits/0900").save(tmp_path / "image.png")
        for value in ({"path": str(tmp_path / "image.png")}, {"path": "/dev/stdin"}, {"path": None}, 7, [1], "x", None):
            text = asked(address, value)
            assert "no picture arrived" in text or "The request: " in text, (value, text)
        assert "zero" in asked(address, {"picture": data_url(open_digit("digits/0902"))})

    uploads.mkdir()
    monkeypatch.setattr(launch.tempfile, "tempdir", str(uploads))
    serve("127.0.0.1", visit)
    assert not list(uploads.iterdir()), "uploads are deleted at the end"
    text = capfd.readouterr()
    assert text.out == f"{addresses[0]} shows the page; Ctrl+C ends it\n" and "Traceback" not in text.err
