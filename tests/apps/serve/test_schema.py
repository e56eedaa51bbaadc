"""The OpenAPI schema is true: schemathesis sends valid and invalid requests to all operations of a real server."""

import subprocess
import sys
from pathlib import Path

import pytest
from serving import client_of, serving

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
TOKEN = "a-long-secret-of-the-tests"
ERRORS = {"400", "401", "403", "422", "429"}


def check(address: str, folder: Path, *words: str) -> None:
    """Compare a server with its schema; an error shows the deviations. Schemathesis stores its cache in a folder."""
    command = [SCHEMATHESIS, "run", f"{address}/openapi.json", "--checks", "all", "--max-examples", "5", "--seed", "1"]
    # The schema cannot say that bytes must be an image, or that a model has one label per image
    command += ["--exclude-checks", "positive_data_acceptance", "--continue-on-failure", *words]
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("learn", [False, True])
def test_schemathesis_finds_no_deviation(own_model, learn, tmp_path, python):
    if not SCHEMATHESIS.exists():
        pytest.skip("schemathesis is not installed: pip install '.[dev]'")
    with serving(own_model(), *(["--learn"] if learn else []), python=python) as server:
        check(str(server.client.base_url).rstrip("/"), tmp_path)


@pytest.mark.slow
def test_schemathesis_finds_no_deviation_with_a_token(own_model, tmp_path, python):
    if not SCHEMATHESIS.exists():
        pytest.skip("schemathesis is not installed: pip install '.[dev]'")
    (tmp_path / "token").write_text(TOKEN)
    with serving(own_model(), "--token-file", tmp_path / "token", python=python) as server:
        check(str(server.client.base_url).rstrip("/"), tmp_path, "--header", f"Authorization: Bearer {TOKEN}")


@pytest.fixture(scope="module")
def schema(own_model) -> dict:
    with client_of(own_model(), learn=True) as client:
        return client.get("/openapi.json").json()


def test_all_answers_are_typed(schema):
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            [(kind, content)] = operation["responses"]["200"]["content"].items()
            assert kind == ("text/plain" if path == "/metrics" else "application/json")
            assert "$ref" in content["schema"] or path == "/metrics"


def test_all_errors_have_one_form(schema):
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_errors_are_declared(schema):
    for path in ("/v1/predict", "/v1/predict/files", "/v1/suggest", "/v1/suggest/files"):
        assert schema["paths"][path]["post"]["responses"].keys() >= ERRORS | {"408", "413"}
    for path in ("/v1/model", "/v1/examples", "/v1/issues"):
        assert schema["paths"][path]["get"]["responses"].keys() >= ERRORS
    for operation in (schema["paths"]["/v1/examples"]["post"], schema["paths"]["/v1/examples"]["delete"]):
        assert operation["responses"].keys() >= ERRORS | {"404", "408", "409", "413"}


def test_other_methods_are_listed(own_model):
    with client_of(own_model(), learn=True) as client:
        answer = client.put("/v1/examples")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, POST")


@pytest.mark.parametrize("above", ["nan", "inf"])
def test_scores_to_list_are_numbers(own_model, above):
    with client_of(own_model(), learn=True) as client:
        answer = client.get("/v1/issues", params={"above": above})
    assert (answer.status_code, list(answer.json())) == (422, ["error"])
