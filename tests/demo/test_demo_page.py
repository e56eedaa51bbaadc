"""Demo page: requests of visitors, and the command that serves the page."""

import os
import socket
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import HTTP
from PIL import Image

from trainers.hegraph.datasets.digits import CLASSNAMES, open_digit
from trainers.hegraph.demo import __main__ as command
from trainers.hegraph.demo.__main__ import GRADIO, check_address, parse_arguments
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page():
    """Module of the page, which imports Gradio."""
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")
    from trainers.hegraph.demo import page

    return page


@pytest.fixture
def uploads(tmp_path) -> Path:
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def answers(page, digits, model_folder, uploads):
    return page.Answers(digits, model_folder, uploads)


def test_only_files_in_the_upload_folder_are_opened(page, uploads, tmp_path):
    for folder in (uploads, tmp_path):
        Image.new("RGB", (20, 10)).save(folder / "photo.jpg")
    os.mkfifo(uploads / "pipe.png")
    (uploads / "link.png").symlink_to(tmp_path / "photo.jpg")
    (uploads / "loop.png").symlink_to(uploads / "loop.png")
    assert page.uploaded_file({"path": str(uploads / "photo.jpg")}, uploads) == uploads / "photo.jpg"
    names = ("pipe.png", "link.png", "loop.png", "missing.png", "..", "../photo.jpg", "a\0b", "x" * 5000)
    paths = [*(str(uploads / name) for name in names), "/dev/stdin", None, 3, ["x"]]
    for sent in (*({"path": path} for path in paths), 3, "photo.jpg", [1], {}):
        with pytest.raises(UserError, match="no picture arrived"):
            page.uploaded_file(sent, uploads)


def test_unusable_upload_gives_an_error(answers, uploads):
    (uploads / "notes.png").write_bytes(b"no <image>")
    Image.new("1", (10_000, 5_001)).save(uploads / "huge.png")
    for name, text in (("notes", "This file is not an image"), ("huge", "50 million pixels; take a smaller one.")):
        html, *rest = answers({"path": str(uploads / f"{name}.png")})
        assert 'role="alert"' in html and text in html and rest == [None] * 3


def test_photo_gets_classes_explanation_and_pictures(answers, uploads):
    open_digit("digits/0902").resize((200, 200)).save(uploads / "0.jpg")
    html, adapted, zero_shot, pictures = answers({"path": str(uploads / "0.jpg")})
    assert next(iter(adapted)) == "zero" and len(adapted) == len(zero_shot) == 5
    assert "Input of the model" in html
    assert len(pictures) == 4  # of 4 shots
    assert all(image.size == (8, 8) and caption.startswith("no. ") for image, caption in pictures)
    answers.converts_uploads, answers.folder = False, uploads  # a model of other classes, without thumbnails
    html, adapted, _, pictures = answers({"path": str(uploads / "0.jpg")})
    assert "Input of the model" not in html and (len(adapted), pictures) == (5, None)


def test_hint_without_image_and_escaped_errors(page, answers):
    for nothing in ("", None):
        assert answers(nothing) == (page.HINT, None, None, None)
    assert "The drawing arrived damaged" in answers("7")[0]
    assert "&lt;b&gt;no&lt;/b&gt;." in page.error_html(UserError("<b>no</b>"))


# The command


def test_unusable_address_is_refused(cli_error):
    args = parse_arguments(["MODEL"])
    assert (args.host, args.port) == ("127.0.0.1", 7860)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
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


def asked(address: str, kind: str, value: object, session: str) -> str:
    """Response to a value that a program sends for a component."""
    config = HTTP.get(f"{address}/config", timeout=30).json()
    [part] = [each["id"] for each in config["components"] if kind in (each["type"], each["props"].get("elem_id"))]
    [number] = [each["id"] for each in config["dependencies"] if each["inputs"] == [part]]
    sent = {"data": [value], "fn_index": number, "session_hash": session}
    HTTP.post(f"{address}/gradio_api/queue/join", json=sent, timeout=30).raise_for_status()
    return HTTP.get(f"{address}/gradio_api/queue/data?session_hash={session}", timeout=30).text


def test_server_limits_uploads_and_serves_no_local_file(page, digits, model_folder, monkeypatch, tmp_path, capfd):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, uploads = f"http://127.0.0.1:{port}", tmp_path / "uploads"

    def visit() -> None:  # while the page is served
        config = HTTP.get(f"{address}/config", timeout=30).text.replace(" ", "")
        assert '"analytics_enabled":false' in config and f'"max_file_size":{20 * 2**20}' in config
        assert all(name in config for name in CLASSNAMES)
        for file in (model_folder / "config.json", model_folder / "thumbnails" / "00000.jpg", Path("/etc/hostname")):
            assert HTTP.get(f"{address}/gradio_api/file={file}", timeout=30).status_code in (403, 404)
        open_digit("digits/0900").save(tmp_path / "image.png")
        meta = {"meta": {"_type": "gradio.FileData"}}
        paths = [str(tmp_path / "image.png"), "/dev/stdin", None]
        values = [*({"path": path} | more for path in paths for more in ({}, meta)), 7, [1], "x", meta]
        for number, value in enumerate(values):
            text = asked(address, "image", value, f"upload{number}").lower()
            assert "arrived" in text or "this request cannot be used" in text, (value, text[-3000:])
        for number, value in enumerate((7, {"a": 1}, "data:image/png;base64,x")):
            assert "again" in asked(address, "drawing", value, f"draw{number}")
        assert list(uploads.iterdir())

    uploads.mkdir()
    monkeypatch.setattr(command.tempfile, "tempdir", str(uploads))
    for name in ("GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(command, "threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=visit)))
    command.serve(partial(page.build_page, digits, model_folder), "127.0.0.1", port)
    assert not list(uploads.iterdir()), "uploads are deleted at the end"
    text = capfd.readouterr()
    assert text.out == f"{address} shows the page; Ctrl+C ends it\n" and "Traceback" not in text.err
