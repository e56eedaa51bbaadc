"""The real Label Studio in a process, and its API as a person in the browser uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from tools.free_ports import free_port

PACKAGE = "label-studio==1.23.2"
USER, PASSWORD = "me@example.com", "password-of-the-tests"
SHOWN = ("predictions_score", "predictions_results", "data", "scan")  # columns of the Data Manager
ENVIRONMENT = {
    "ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false",  # a backend on this machine
    "COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "",
}  # fmt: skip


def configuration(*choices: str, choice: str = "single") -> str:
    """Labeling configuration with choices of an image."""
    values = "".join(f'<Choice value="{name}"/>' for name in choices)
    image = '<Image name="photo" value="$scan" width="160px"/>'
    control = f'name="digit" toName="photo" choice="{choice}" showInline="true"'
    return f"<View>{image}<Choices {control}>{values}</Choices></View>"


def result(*labels: str) -> list[dict]:
    """Result of an annotation."""
    return [{"from_name": "digit", "to_name": "photo", "type": "choices", "value": {"choices": [*labels]}}]


def executable(folder: Path) -> Path:
    """Path of the program, which is installed into a folder once, unless $HEGRAPH_LABEL_STUDIO names it."""
    program = Path(os.environ.get("HEGRAPH_LABEL_STUDIO", folder / "bin/label-studio"))
    if program.exists():
        return program
    install = [folder / "bin/python", "-m", "pip", "install", "--no-compile", PACKAGE]  # compiles what it imports
    for command in ([sys.executable, "-m", "venv", folder], install):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{PACKAGE} cannot be installed: {done.stderr.strip()[-200:]}")
    return program


@contextmanager
def running(folder: Path, environment: Path | None = None) -> Iterator[Studio]:
    """Context with Label Studio, whose data are in a folder, from a virtual environment or a new one."""
    port = free_port()
    words = ["start", "--no-browser", "--internal-host", "127.0.0.1", "--port", port, "--data-dir", folder / "data"]
    command = [executable(environment or folder / "venv"), *words, "--username", USER, "--password", PASSWORD]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [*map(str, command)], env=os.environ | ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield Studio(f"http://127.0.0.1:{port}", process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(240)
        log.close()


class Prediction(NamedTuple):
    """Latest prediction of a task: its number, the name of its file, the choices and the score."""

    id: int
    name: str
    choices: list[str]
    score: float


class Studio:
    """Label Studio at an address, with a session of its user and a personal access token."""

    def __init__(self, url: str, process: subprocess.Popen) -> None:
        self.url, self.session = url, requests.Session()
        self.session.trust_env = False
        for _ in range(600):
            try:
                self.session.get(f"{url}/health").raise_for_status()
                break
            except requests.RequestException:
                assert process.poll() is None, "Label Studio ended"
                time.sleep(0.5)
        self.session.get(f"{url}/user/login/")
        form = {"csrfmiddlewaretoken": self.session.cookies["csrftoken"], "email": USER, "password": PASSWORD}
        self.session.post(f"{url}/user/login/", data=form).raise_for_status()
        self.token = self.json("POST", "/api/token/", json={})["token"]

    def json(self, method: str, path: str, **arguments: Any) -> Any:
        """Answer of the API; SQLite may be locked for a moment."""
        for _ in range(5):
            headers = {"X-CSRFToken": self.session.cookies["csrftoken"]}
            answer = self.session.request(method, self.url + path, headers=headers, **arguments)
            if answer.status_code != 500:
                break
            time.sleep(1)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def create_project(self, title: str, config: str, files: Sequence[Path]) -> int:
        """Create a project with images."""
        project = self.json("POST", "/api/projects", json={"title": title, "label_config": config})["id"]
        form = [(file.name, (file.name, file.read_bytes(), "image/png")) for file in files]
        self.json("POST", f"/api/projects/{project}/import", files=form)
        return project

    def connect(self, project: int, address: str, password: str = "") -> None:
        """Connect a machine learning backend."""
        access = {"auth_method": "BASIC_AUTH", "basic_auth_user": "hegraph", "basic_auth_pass": password}
        backend = {"url": address.rstrip("/"), "project": project, "title": "HeGraphAdapter"}
        self.json("POST", "/api/ml", json=backend | (access if password else {}))

    def configure(self, project: int, config: str) -> None:
        """Change the labeling configuration."""
        self.json("PATCH", f"/api/projects/{project}/", json={"label_config": config})

    def annotate(self, task: int, *labels: str) -> int:
        """Submit an annotation; returns its number."""
        return self.json("POST", f"/api/tasks/{task}/annotations/", json={"result": result(*labels)})["id"]

    def change(self, annotation: int, *labels: str) -> None:
        self.json("PATCH", f"/api/annotations/{annotation}/", json={"result": result(*labels)})

    def delete(self, annotation: int) -> None:
        self.json("DELETE", f"/api/annotations/{annotation}/")

    def create_tab(self, project: int) -> int:
        """Create a tab of the Data Manager with the tasks in the order of their scores; returns its number."""
        columns = [column["id"] for column in self.json("GET", f"/api/dm/columns?project={project}")["columns"]]
        hidden = [f"tasks:{name}" for name in columns if name not in SHOWN]
        data = {
            "title": "Order", "type": "list", "target": "tasks", "ordering": ["tasks:predictions_score"],
            "hiddenColumns": {"explore": hidden, "labeling": hidden},
            "columnsWidth": {"tasks:predictions_results": 560},
        }  # fmt: skip
        return self.json("POST", "/api/dm/views", json={"project": project, "data": data})["id"]

    def retrieve(self, project: int) -> list[Prediction]:
        """Retrieve predictions of all tasks; returns them in the Data Manager's order by prediction score."""
        before = self.json("GET", f"/api/projects/{project}/")["model_version"]
        everything = {"selectedItems": {"all": True, "excluded": []}}
        self.json("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", json=everything)
        for _ in range(300):  # the backend selects the new version
            version = self.json("GET", f"/api/projects/{project}/")["model_version"]
            if version != before:
                break
            time.sleep(0.2)
        query = {"project": project, "fields": "all", "query": json.dumps({"ordering": ["tasks:predictions_score"]})}
        rows = self.json("GET", "/api/tasks", params=query)["tasks"]
        return [self._prediction(task, version) for task in rows]

    def _prediction(self, task: dict, version: str) -> Prediction:
        [prediction] = [each for each in task["predictions"] if each["model_version"] == version]
        choices = [name for item in prediction["result"] for name in item["value"]["choices"]]
        return Prediction(task["id"], task["data"]["scan"].rpartition("-")[2], choices, prediction["score"])
