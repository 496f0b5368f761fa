"""distill import edm NAME: the file comes from a server of this process, once, whole, and with the hash asked for."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from distill.teachers import read_origin
from distill.teachers.published.names import PUBLISHED_FILES
from tests.distill.teachers.test_edm import SONG, build
from tests.launch.conftest import Command
from tests.published import checkpoint, write
from tests.tiny import ROOT

NAME = "edm-cifar10-32x32-cond-vp"


class Server(ThreadingHTTPServer):
    """One file, whose connections break after `breaks` bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.data, self.tag, self.breaks, self.missing = data, '"one"', len(data), False
        self.length: int | None = None  # a false Content-Length
        self.asked: list[str | None] = []


class Answer(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, range = self.server, self.headers.get("Range")
        server.asked.append(range)
        if server.missing:
            return self.send_error(404)
        start = int(re.findall(r"\d+", range)[0]) if range and self.headers["If-Range"] == server.tag else 0
        if start >= len(server.data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        self.send_header("Content-Length", str(server.length or len(server.data) - start))
        self.end_headers()
        self.wfile.write(server.data[start : start + server.breaks])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server of a tiny EDM checkpoint, at the address of NAME."""
    data = write(checkpoint(build(SONG).network), tmp_path / "other.pkl").read_bytes()  # type: ignore[arg-type]
    with Server(data) as server:
        monkeypatch.setitem(PUBLISHED_FILES["edm"], NAME, f"http://127.0.0.1:{server.server_port}/{NAME}.pkl")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def mistake(result: Any) -> str:
    """The one line on stderr."""
    assert (result.code, result.err.count("\n")) == (2, 1)
    return str(result.err).removeprefix("distill: ").strip()


@pytest.mark.parametrize("given", [NAME, f"{NAME}.pkl"])
def test_a_name_is_downloaded_once(given: str, server: Server, distill: Command) -> None:
    digest = hashlib.sha256(server.data).hexdigest()
    result = distill("import", "edm", given, "teacher")
    assert result.code == 0, result.err
    assert f"download    {PUBLISHED_FILES['edm'][NAME]}\n" in result.out and f"sha256      {digest}\n" in result.out
    assert "nobody has pinned its SHA-256" in result.out
    assert Path(f"{NAME}.pkl").read_bytes() == server.data and names() == [f"{NAME}.pkl", "teacher"]
    assert read_origin(Path("teacher")) == NAME
    again = distill("import", "edm", given, "again", "--sha256", digest.upper())
    assert again.code == 0 and "download" not in again.out and server.asked == [None]


def test_a_download_goes_on(server: Server, distill: Command) -> None:
    server.breaks = 1_000
    url, size = PUBLISHED_FILES["edm"][NAME], len(server.data)
    kept = f"it ended after 1,000 of {size:,} bytes, which are kept: the same command goes on"
    line = f"import: cannot download the file: {kept}; to fetch it elsewhere: `curl -LO {url}`"
    assert mistake(distill("import", "edm", NAME, "teacher")) == line
    assert names() == [f".{NAME}.pkl.mark", f".{NAME}.pkl.part"]
    server.breaks = size
    assert distill("import", "edm", NAME, "teacher").code == 0
    assert server.asked == [None, "bytes=1000-"] and Path(f"{NAME}.pkl").read_bytes() == server.data
    assert names() == [f"{NAME}.pkl", "teacher"]


@pytest.mark.parametrize("held", ["part of another file", "more than all"])
def test_another_file_on_the_server_is_taken_whole(held: str, server: Server, distill: Command) -> None:
    Path(f".{NAME}.pkl.part").write_bytes(b"x" * (10 if held == "part of another file" else len(server.data)))
    Path(f".{NAME}.pkl.mark").write_text('"old"' if held == "part of another file" else server.tag)
    assert distill("import", "edm", NAME, "teacher").code == 0
    assert Path(f"{NAME}.pkl").read_bytes() == server.data and names() == [f"{NAME}.pkl", "teacher"]


def test_another_hash_is_refused(server: Server, distill: Command) -> None:
    digest, other = hashlib.sha256(server.data).hexdigest(), "0" * 64
    url = PUBLISHED_FILES["edm"][NAME]
    line = f"--sha256: '{url}' has {digest}, not {other}; nothing was kept"
    assert mistake(distill("import", "edm", NAME, "teacher", "--sha256", other)) == line
    assert names() == []
    Path("mine.pkl").write_bytes(server.data)
    line = f"--sha256: 'mine.pkl' has {digest}, not {other}"
    assert mistake(distill("import", "edm", "mine.pkl", "teacher", "--sha256", other)) == line
    line = "--sha256: must be 64 hexadecimal digits, got 'abc'"
    assert mistake(distill("import", "edm", "mine.pkl", "teacher", "--sha256", "abc")) == line
    assert names() == ["mine.pkl"]
    assert distill("import", "edm", "mine.pkl", "teacher", "--sha256", digest).code == 0
    assert read_origin(Path("teacher")) is None


def test_what_cannot_be_downloaded(server: Server, distill: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    curl = f"; to fetch it elsewhere: `curl -LO {PUBLISHED_FILES['edm'][NAME]}`"
    server.missing = True
    line = mistake(distill("import", "edm", NAME, "teacher"))
    assert line == f"import: cannot download the file: HTTP Error 404: Not Found{curl}"
    server.missing = False
    monkeypatch.setattr("trainers.runs.published_file.MOST_BYTES", 100)
    line = mistake(distill("import", "edm", NAME, "teacher"))
    assert line == f"import: cannot download the file: it has {len(server.data):,} bytes, more than 100{curl}"
    server.length = 100  # a false one, so that fewer bytes come than are there
    monkeypatch.setattr("trainers.runs.published_file.MOST_BYTES", 2**34)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 99}))
    line = mistake(distill("import", "edm", NAME, "teacher"))
    assert line == f"import: cannot download the file: it needs 100 bytes, and the disk has 99{curl}"
    server.server_close()
    line = mistake(distill("import", "edm", NAME, "teacher"))
    assert line.startswith("import: cannot download the file: ") and line.endswith(curl)
    assert names() == []


def test_what_is_no_name(distill: Command) -> None:
    line = mistake(distill("import", "edm", "edm-cifar10", "teacher"))
    assert line.startswith("import: 'edm-cifar10' is no file, nor the name of one to download: ") and NAME in line
    s = "edm2-img512-s-2147483-0.130"
    assert mistake(distill("import", "edm", s, "teacher")) == f"import: '{s}' is for `distill import edm2`"
    line = mistake(distill("import", "edm", f"no/{NAME}", "teacher"))
    assert line == "import: 'no' is no folder to download to"


def test_the_names_are_those_of_the_recipes() -> None:
    texts = [file.read_text() for file in sorted((ROOT / "configs/edm").glob("*.yaml"))]
    stated = {url for text in texts for url in re.findall(r"# Fetch: (https\S+\.pkl)", text)}
    every = {url for urls in PUBLISHED_FILES.values() for url in urls.values()}
    assert len(stated) == 6 and stated <= every
    edm2 = {name for text in texts for name in re.findall(r"edm2-img512-\w+-\d{7}-0\.\d{3}", text)}
    assert edm2 == PUBLISHED_FILES["edm2"].keys() and len(every) == 11
    assert {url.rpartition("/")[0] for url in every} == {url.rpartition("/")[0] for url in stated}
    page = (ROOT / "docs/teachers.md").read_text()
    assert all(f"`{name}`" in page for names in PUBLISHED_FILES.values() for name in names)
