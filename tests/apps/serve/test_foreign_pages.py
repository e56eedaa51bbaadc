"""Pages of another origin, and of a host name that resolves to this machine, against each server in a real browser."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import HTTP, Browser, serving
from recorded import TOKEN, setup_request

pytestmark = pytest.mark.slow

SEND = """
    const [address, path, body, done] = arguments;
    const form = new FormData();
    for (const [name, value] of Object.entries(body.form ?? {})) form.append(name, value);
    if (body.file) form.append("files", new File([Uint8Array.from(body.file)], "image.png"));
    const content = body.file ? form : body.json && JSON.stringify(body.json);
    const own = location.origin === address;
    const type = own && body.json ? {"Content-Type": "application/json"} : {};
    const options = content ? {method: "POST", body: content, mode: own ? "cors" : "no-cors", headers: type} : {};
    fetch(address + path, options).then(answer => answer.text()).then(done, () => done(""));
"""
FRAME = """
    const frame = document.createElement("iframe");
    frame.src = arguments[0];
    frame.onload = () => arguments[1]();
    document.body.append(frame);
"""


@contextmanager
def other_site(folder: Path) -> Iterator[int]:
    """Serve an empty page; the context is the port."""
    (folder / "index.html").write_text("<!doctype html><title>other</title><body></body>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"), "")
    yield browser
    browser.driver.quit()


def logged(browser: Browser) -> list[dict]:
    """Events of the network since the last call."""
    return [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]


def statuses(events: list[dict], port: int) -> dict[str, set[int]]:
    """Statuses of the answers of a port, by path. The events of a request may be in any order."""
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = {each["requestId"]: urlsplit(each["request"]["url"]) for each in sent}
    found = dict[str, set[int]]()
    for event in events:
        url = urls.get(event["params"].get("requestId"))
        if event["method"] == "Network.responseReceivedExtraInfo" and url is not None and url.port == port:
            found.setdefault(url.path, set()).add(event["params"]["statusCode"])
    return found


def contents(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file() and ".hegraph" not in file.parts]
    of_files = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return of_files | {str(each): "" for each in folder.rglob("*") if each.is_dir() and each.name != ".hegraph"}


def component(address: str, name: str, function: str, value: object) -> tuple[str, dict]:
    """Path and JSON body of a request to a component of a page."""
    parts = HTTP.get(f"{address}/config", timeout=240).json()["components"]
    [part] = [each["id"] for each in parts if each["props"].get("elem_id") == name]
    sent = {"data": value, "component_id": part, "fn_name": function, "session_hash": "a"}
    return "/gradio_api/component_server", {"json": sent}


@pytest.mark.parametrize("server", ["teach", "demo", "serve", "label-studio"])
def test_foreign_pages_change_and_read_nothing(
    server, browser, tmp_path, python, own_model, recorded, scans, finished_digits_once
):
    folder = tmp_path / "project"
    words = ["teach", folder, "--create", "--backbone", "hegraph-mini"]
    if server == "demo":
        folder = finished_digits_once / "model"
        words = ["demo", folder]
    if server in ("serve", "label-studio"):
        folder = own_model()
        words = ["serve", folder, "--learn"]
    if server == "label-studio":
        (tmp_path / "token").write_text(TOKEN)
        words += ["--label-studio", recorded.url, "--label-studio-token", tmp_path / "token"]
    (tmp_path / "other").mkdir()
    command = [str(python), "-m", "trainers.hegraph", *map(str, words)]
    with other_site(tmp_path / "other") as port, serving(command) as shown:
        own = urlsplit(shown)
        address = f"http://{own.netloc}"
        if server == "teach":
            path, body = component(address, "teach", "teach_act", {"do": "add-class", "name": "foreign"})
            readable = "/config"
        elif server == "demo":
            path, body = component(address, "try", "answer", {"path": ""})
            readable = "/config"
        else:
            path, body = "/v1/examples/files", {"form": {"labels": "zero"}, "file": [*scans.files[30].read_bytes()]}
            readable = "/v1/examples"
        if server == "label-studio":
            path, body = "/setup", {"json": setup_request(recorded)}
        expected = {readable, path, "/docs"}
        before = contents(folder)
        rebound = f"http://evil.example:{own.port}"
        pages = {f"http://127.0.0.1:{port}": address, f"http://other.example:{port}": address, rebound: rebound}
        for page, target in pages.items():
            browser.driver.get(page)
            events = logged(browser)[:0]
            read = [browser.driver.execute_async_script(SEND, target, *each) for each in ((readable, {}), (path, body))]
            assert all(not text or list(json.loads(text)) == ["error"] for text in read), (page, read)
            browser.driver.execute_async_script(FRAME, f"{target}/docs")
            browser.wait(lambda of=events: of.extend(logged(browser)) or expected <= {*statuses(of, own.port)}, 20)
            found = statuses(events, own.port)
            assert {status for of_path in found.values() for status in of_path} == {403}, (page, found)
        assert contents(folder) == before
        browser.driver.get(shown)
        assert browser.driver.execute_async_script(SEND, address, readable, {})
        assert browser.driver.execute_async_script(SEND, address, path, body)
        found = statuses(logged(browser), own.port)
        assert {*found[path], *found[readable]} == {200}
        assert server in ("demo", "label-studio") or contents(folder) != before, "the page of the server itself works"


def test_space_works_in_a_frame(browser, tmp_path, python, scans, finished_digits_once):
    model = finished_digits_once / "model"
    command = [str(python), "-m", "trainers.hegraph", "demo", str(model), "--host", "0.0.0.0"]
    space = {"SPACE_ID": "user/name", "SPACE_HOST": "user-name.example", "SYSTEM": "spaces"}
    with other_site(tmp_path) as port, serving(command, **space) as shown:
        for host in ("127.0.0.1", "user-name.example"):  # with and without Sec-Fetch-Site, which needs a safe address
            browser.driver.get(f"http://huggingface.example:{port}")
            browser.driver.execute_async_script(FRAME, f"http://{host}:{urlsplit(shown).port}")
            browser.driver.switch_to.frame(0)
            browser.upload(scans.files[0])
            browser.wait(browser.winner)
