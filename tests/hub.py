"""A Hugging Face hub of one process: the routes by which a model is made, uploaded to and downloaded from."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_me"


class Hub(ThreadingHTTPServer):
    """The server: `models` is id -> {"private": bool, "files": {path: bytes}}. TOKEN may write under "me"."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.models: dict[str, dict[str, Any]] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def do_POST(self) -> None:
        data, path = self.body(), unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self.send({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send({"error": "Invalid credentials in Authorization header"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(data)
            model = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "me":
                return self.send({"error": "You don't have the rights to create a model under this namespace"}, 403)
            status = 409 if model in self.server.models else 200
            private = asked.get("visibility") == "private" or asked.get("private", False)
            self.server.models.setdefault(model, {"private": private, "files": {}})
            return self.send({"url": f"{self.server.url}/{model}", "id": model}, status)
        _, _, _, user, name, verb, _ = path.split("/")
        model = self.server.models[f"{user}/{name}"]
        if verb == "preupload":
            files = json.loads(data)["files"]
            return self.send(
                {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
            )
        for line in data.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                model["files"][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = {"commitUrl": f"{self.server.url}/{user}/{name}/commit/{sha(model)}", "commitOid": sha(model)}
        return self.send({"success": True, **commit})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        api = path.startswith("api/models/")
        user, name, *rest = path.removeprefix("api/models/").split("/")
        model = self.server.models.get(f"{user}/{name}")
        if model is None:
            return self.send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if api and rest[:1] == ["tree"]:
            return self.send(
                [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in model["files"].items()
                ]
            )
        if api:
            siblings = [{"rfilename": file} for file in model["files"]]
            about = {"id": f"{user}/{name}", "sha": sha(model), "private": model["private"], "siblings": siblings}
            return self.send({**about, "tags": [], "downloads": 0, "likes": 0})
        data = model["files"].get("/".join(rest[2:]))
        if data is None:
            return self.send({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        return self.send(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=sha(model))

    do_HEAD = do_GET


def sha(model: dict[str, Any]) -> str:
    return hashlib.sha1(repr(sorted(model["files"].items())).encode()).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
