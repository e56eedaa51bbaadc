"""A Hugging Face Hub on loopback: as much of its HTTP API as creating, uploading and downloading a model needs.

What it keeps is in memory: repository -> branch -> file name -> bytes. `requests` lists what was asked for.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_SecretOfTheTests"  # the one token that may write, and read what is private

Files = dict[str, bytes]


class Repository:
    """A model on the hub."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.branches: dict[str, Files] = {"main": {}}
        self.messages: list[str] = []

    def sha(self, revision: str) -> str:
        """A name of 40 hex digits for the content of a branch."""
        content = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in self.branches[revision].items())
        return hashlib.sha1(json.dumps([revision, content]).encode()).hexdigest()

    def find(self, revision: str) -> Files | None:
        """The files of a branch, by its name or its commit."""
        by_commit = {self.sha(branch): files for branch, files in self.branches.items()}
        return self.branches.get(revision, by_commit.get(revision))


class FakeHub(http.server.ThreadingHTTPServer):
    """The server. Use it as a context; `address` is what HF_ENDPOINT must be."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def may_write(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, code: int, reason: str, message: str) -> None:
        self.answer(code, json.dumps({"error": message}).encode(), X_Error_Code=reason, X_Error_Message=message)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def repository(self, name: str) -> Repository | None:
        """The repository, if there is one that the request may see; else the request is refused."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.may_write):
            self.refuse(401, "RepoNotFound", "Repository not found")
            return None
        return found

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.requests.append((self.command, path))
        if path == "/":
            self.answer(200)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.say_what_is_there(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self.list_files(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(*match.groups())
        else:
            self.answer(404)

    def find(self, name: str, revision: str) -> tuple[Repository, Files, str] | None:
        """The repository, the files and the commit of a revision; None if the request was refused."""
        if (repository := self.repository(name)) is None:
            return None
        files = repository.find(revision)
        if files is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, files, repository.sha(revision) if revision in repository.branches else revision

    def list_files(self, name: str, revision: str) -> None:
        if found := self.find(name, revision):
            rows = [(file, len(data), hashlib.sha1(data).hexdigest()) for file, data in found[1].items()]
            self.answer_json([{"type": "file", "path": file, "size": size, "oid": oid} for file, size, oid in rows])

    def say_what_is_there(self, name: str, revision: str) -> None:
        if (found := self.find(name, revision)) is None:
            return
        repository, files, sha = found
        siblings = [{"rfilename": file} for file in sorted(files)]
        self.answer_json({"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": siblings})

    def send_file(self, name: str, revision: str, file: str) -> None:
        if (found := self.find(name, revision)) is None:
            return
        _, files, sha = found
        if file not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
        self.answer(200, files[file], X_Repo_Commit=sha, ETag=etag, Accept_Ranges="bytes")

    def do_POST(self) -> None:
        path, body = unquote(self.path.partition("?")[0]), self.body()
        self.server.requests.append(("POST", path))
        if path == "/api/validate-yaml":
            return self.answer_json({"errors": [], "warnings": []})
        if not self.may_write:
            return self.refuse(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path):
            repository = self.repository(match[1])
            return repository and getattr(self, match[2])(match[1], repository, match[3], body)
        self.answer(404)

    def create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"user/{asked['name']}"
        url = f"{self.server.address}/{name}"
        if name in self.server.repositories:
            return self.answer(409, json.dumps({"error": "You already created this model repo", "url": url}).encode())
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories[name] = Repository(bool(private))
        self.answer_json({"url": url, "name": name})

    def branch(self, _: str, repository: Repository, branch: str, body: bytes) -> None:
        if branch in repository.branches:
            return self.refuse(409, "", "Reference already exists")
        repository.branches[branch] = dict(repository.branches["main"])
        self.answer(200)

    def preupload(self, _: str, repository: Repository, branch: str, body: bytes) -> None:
        paths = [file["path"] for file in json.loads(body)["files"]]
        self.answer_json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})

    def commit(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                repository.messages.append(entry["value"]["summary"])
            elif entry["key"] == "file":
                repository.branches[branch][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        sha = repository.sha(branch)
        self.answer_json({"success": True, "commitUrl": f"{self.server.address}/{name}/commit/{sha}", "commitOid": sha})
