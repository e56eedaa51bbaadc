"""HTTP server: answers equal `predict`, limits, tokens, damaged requests, and the command in a process."""

import asyncio
import base64
import io
import json
import re
import threading
import time

import pytest
from PIL import Image
from serving import client_of, encoded, form, serving

from tools.free_ports import free_port
from trainers.hegraph.__main__ import main
from trainers.hegraph.apps.launch import page_address
from trainers.hegraph.apps.serve import settings
from trainers.hegraph.apps.serve.batches import Batcher
from trainers.hegraph.commands.serve import read_token

JSON = {"content-type": "application/json"}
TOKEN = "a-long-secret-of-the-tests"


@pytest.fixture(scope="module")
def client(finished_digits_once):
    with client_of(finished_digits_once / "model") as client:
        yield client


# Answers


@pytest.mark.parametrize("several", [False, True])
def test_answers_equal_predict(own_model, files, capsys, several):
    folder = own_model(several)
    assert main(["predict", str(folder), *map(str, files), "--top", "3", "--format", "jsonl"]) == 0
    expected = [json.loads(line)["top"] for line in capsys.readouterr().out.splitlines()]
    with client_of(folder) as client:
        answers = client.post("/v1/predict/files?top=3", files=form(*files)).json()["predictions"]
        assert client.get("/v1/model").json()["several_labels"] == several
    assert [answer["path"] for answer in answers] == [file.name for file in files]
    assert several or {len(top) for top in expected} == {3}
    for answer, top in zip(answers, expected):
        assert [each["class"] for each in answer["top"]] == [each["class"] for each in top]
        probabilities = pytest.approx([each["probability"] for each in top], abs=1e-5)
        assert [each["probability"] for each in answer["top"]] == probabilities


def test_base64_equals_files(client, files):
    by_form = client.post("/v1/predict/files", files=form(*files[:3])).json()["predictions"]
    request = encoded(*(file.read_bytes() for file in files[:3]))
    request["images"][1]["data"] = f"data:image/png;base64,{request['images'][1]['data']}"
    by_json = client.post("/v1/predict", json=request).json()["predictions"]
    assert [answer["top"] for answer in by_json] == [answer["top"] for answer in by_form]


def test_unreadable_image_has_an_error_beside_others(client, files):
    request = encoded(files[0].read_bytes(), b"no image", b"")
    good, damaged, empty = client.post("/v1/predict", json=request).json()["predictions"]
    assert good["error"] is None and good["top"]
    assert damaged["error"] and empty["error"] and not damaged["top"]


def test_open_set_flag_is_part_of_the_answer(client, files):
    [answer] = client.post("/v1/predict/files?open_set=0.95", files=form(files[0])).json()["predictions"]
    assert answer["none_of_these"] in (True, False)


def test_coverage_adds_the_prediction_set(client, files):
    [answer] = client.post("/v1/predict/files?coverage=0.9", files=form(files[0])).json()["predictions"]
    assert answer["top"][0]["class"] == answer["classes"][0]
    refused = client.post("/v1/predict/files?coverage=0.999", files=form(files[0]))
    assert refused.status_code == 422 and "needs at least 999 held-out images" in refused.json()["error"]


def test_model_is_described(client):
    answer = client.get("/v1/model").json()
    assert len(answer["classes"]) == 10
    assert answer["backbone"] == "hegraph-mini/hegraph-mini"
    assert answer["method"] == "HeGraphAdapter"
    assert not answer["several_labels"]


def test_page_of_the_interface_needs_no_other_host(client):
    page = client.get("/docs").text
    assert re.findall(r"(?:src|href)=\"(\w+:)?//", page) == []
    [script] = re.findall(r'src="(/[^"]+bundle.js)"', page)
    assert client.get(script).status_code == 200


def test_metrics_count_requests(client, files):
    client.post("/v1/predict/files", files=form(files[0]))
    answer = client.get("/metrics")
    assert 'handler="/v1/predict/files"' in answer.text
    assert answer.headers["content-type"].startswith("text/plain")


def test_clients_add_no_metrics(client):
    names = [*map("invented{}".format, range(20))]
    statuses = {client.request(name, "/v1/model").status_code for name in names}
    statuses |= {client.get(f"/{name}").status_code for name in names}
    assert statuses == {404, 405}
    assert "invented" not in client.get("/metrics").text.lower()


# Damaged requests and limits


@pytest.mark.parametrize(
    ("path", "content", "status", "word"),
    [
        ("/v1/predict", {"json": {"images": []}}, 422, "at least 1"),
        ("/v1/predict", {"json": {"images": [{"data": "%%%"}]}}, 422, "base64"),
        ("/v1/predict", {"json": {"images": [{"data": "", "path": "/etc/passwd"}]}}, 422, "Extra inputs"),
        ("/v1/predict", {"json": {"images": [{"data": ""}] * 65}}, 422, "at most 64"),
        ("/v1/predict", {"content": b"{" * 5000, "headers": JSON}, 422, "json"),
        ("/v1/predict", {"content": b"[" * 200_000, "headers": JSON}, 400, "parsing"),
        ("/v1/predict", {"content": json.dumps(encoded(b""))}, 422, "Content-Type: application/json"),
        ("/v1/predict", {"content": rb'{"images": [{"data": "", "name": "\ud800"}]}', "headers": JSON}, 422, "unicode"),
        ("/v1/predict/files", {"data": {"files": "text"}}, 422, "files"),
        ("/v1/predict/files", {"files": [("files", b"x"), ("top", (None, "1"))]}, 422, "top"),
        ("/v1/predict/files", {"files": [("files", b"x")] * 65}, 422, "at most 64"),
        ("/v1/predict/files", {"files": [("files", b"x"), ("top", (None, "1" * 2**20 + "1"))]}, 400, "size"),
        ("/v1/predict/files", {"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ("/v1/predict?top=0", {"json": encoded(b"")}, 422, "top"),
        ("/v1/predict?open_set=2", {"json": encoded(b"")}, 422, "open_set"),
        ("/v1/predict?coverage=1", {"json": encoded(b"")}, 422, "coverage"),
        ("/v1/predict?open-set=0.95", {"json": encoded(b"")}, 422, "open-set"),
        ("/v1/nothing", {"json": {}}, 404, "Not Found"),
    ],
)
def test_damaged_requests_have_one_json_error(client, path, content, status, word):
    answer = client.post(path, **content)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert word.lower() in answer.json()["error"].lower()
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(("blocks", "has_length"), [(4, True), (4, False), (1000, False)])
def test_large_requests_are_refused(client, blocks, has_length):
    block = b"x" * (settings.MAX_BODY // blocks + 1)
    answer = client.post("/v1/predict", content=blocks * block if has_length else (block for _ in range(blocks)))
    assert (answer.status_code, list(answer.json())) == (413, ["error"])


def test_images_with_many_pixels_are_refused(client):
    file = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(file, "PNG")
    [answer] = client.post("/v1/predict", json=encoded(file.getvalue())).json()["predictions"]
    assert "million pixels" in answer["error"]


def test_busy_server_refuses_requests(finished_digits_once, files):
    with client_of(finished_digits_once / "model", max_requests=0) as client:
        answer = client.post("/v1/predict/files", files=form(files[0]))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert client.get("/health").status_code == 200


def test_answered_requests_free_their_places(finished_digits_once, files):
    with client_of(finished_digits_once / "model", max_requests=2) as client:
        statuses = [client.post("/v1/predict/files", files=form(files[0])).status_code for _ in range(4)]
    assert statuses == [200] * 4


def test_health_answers_head(client):
    answer = client.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")


def test_title_names_the_output_folder(client, finished_digits_once):
    assert client.get("/openapi.json").json()["info"]["title"] == f"HeGraphAdapter: {finished_digits_once.name}"


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:80", 200), ("[::1]:80", 200), ("evil.example", 403), ("[", 403), ("", 403)],
)
def test_server_of_this_machine_has_its_names_only(client, host, status):
    answer = client.get("/v1/model", headers={"host": host})
    assert (answer.status_code, "error" in answer.json()) == (status, status == 403)


def test_pages_of_other_sites_are_not_allowed(client):
    answer = client.options("/v1/predict", headers={"origin": "http://x", "access-control-request-method": "POST"})
    assert "access-control-allow-origin" not in answer.headers


# Token


@pytest.fixture(scope="module")
def guarded(finished_digits_once):
    with client_of(finished_digits_once / "model", "http://server", host="0.0.0.0", token=TOKEN) as client:
        yield client


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer other"}, {"authorization": f"Basic {TOKEN}"}])
@pytest.mark.parametrize("path", ["/v1/model", "/v1/nothing", "/metrics"])
def test_requests_without_the_token_are_refused(guarded, path, header):
    answer = guarded.get(path, headers=header)
    assert (answer.status_code, list(answer.json())) == (401, ["error"])


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_token_opens_the_server(guarded, scheme):
    assert guarded.get("/v1/model", headers={"authorization": f"{scheme} {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("scheme", ["Basic", "BASIC"])
def test_password_opens_the_server(guarded, scheme):
    password = base64.b64encode(f"any:{TOKEN}".encode()).decode()
    assert guarded.get("/v1/model", headers={"authorization": f"{scheme} {password}"}).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"])
def test_page_needs_no_token(guarded, path):
    assert guarded.get(path).status_code == 200


def test_schema_declares_the_token_if_there_is_one(guarded, client):
    operations = guarded.get("/openapi.json").json()["paths"]
    assert operations["/v1/predict"]["post"]["security"] == [{"token": []}, {"password": []}]
    assert "security" not in operations["/health"]["get"]
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("origin", ["https://other.example", "null"])
def test_pages_of_other_sites_need_the_token(own_model, origin, token):
    with client_of(own_model(), learn=True, token=token) as client:
        headers = {"authorization": f"Bearer {TOKEN}", "origin": origin}
        status = client.get("/v1/examples", headers=headers).status_code
    assert status == (200 if token else 403)


@pytest.mark.parametrize("token", ["fifteen-letters", "two-lines-of-a\nlong-secret", "ein-langes-schlüsselwort"])
def test_unusable_token_is_refused(tmp_path, refused, token):
    (tmp_path / "token").write_text(token, "utf-8")
    with refused("serve.token"):
        read_token(tmp_path / "token")


def test_network_needs_a_token(finished_digits_once, capsys):
    assert main(["serve", str(finished_digits_once), "--host", "0.0.0.0", "--port", str(free_port())]) == 2
    assert "--token-file FILE, or --no-token" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "address"), [("::1", "http://[::1]:8000"), ("127.0.0.1", "http://127.0.0.1:8000")])
def test_ipv6_address_has_brackets(host, address):
    assert page_address(host, 8000) == address


# Batches


def test_waiting_items_share_a_batch():
    sizes = []

    def double(items):
        sizes.append(len(items))
        time.sleep(0.02)
        return [2 * item for item in items]

    async def run():
        batcher = Batcher(double, 4)
        task = asyncio.create_task(batcher.run())
        results = await asyncio.gather(*(batcher([number, number]) for number in range(6)))
        task.cancel()
        return results

    assert asyncio.run(run()) == [[2 * number, 2 * number] for number in range(6)]
    assert max(sizes) == 4
    assert sum(sizes) == 12


def test_error_of_a_batch_does_not_stop_the_next():
    def inverse(items):
        return [1 / item for item in items]

    async def run():
        batcher = Batcher(inverse, 4)
        task = asyncio.create_task(batcher.run())
        with pytest.raises(ZeroDivisionError):
            await batcher([0])
        results = await batcher([2])
        task.cancel()
        return results

    assert asyncio.run(run()) == [0.5]


def test_cancelled_call_does_not_stop_the_next():
    begun, cancelled = threading.Event(), threading.Event()

    def double(items):
        begun.set()
        assert cancelled.wait(60)
        return [2 * item for item in items]

    async def run():
        batcher = Batcher(double, 4)
        task = asyncio.create_task(batcher.run())
        first = asyncio.create_task(batcher([1]))
        await asyncio.to_thread(begun.wait)
        first.cancel()
        cancelled.set()
        results = await batcher([2])
        task.cancel()
        return results

    assert asyncio.run(run()) == [4]


# The command


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_command_serves_until_it_is_interrupted(finished_digits_once, files, workers):
    with serving(finished_digits_once, "--workers", workers) as server:
        answer = server.client.post("/v1/predict/files", files=form(*files))
        assert len(answer.json()["predictions"]) == len(files)
    assert server.process.returncode in (0, 130)
