"""A Hub on 127.0.0.1 that holds data sets and files of models, for the real `datasets` and `huggingface_hub`."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import unquote

import datasets
import pytest
from huggingface_hub import constants
from huggingface_hub.hf_file_system import HfFileSystem


class DataHub(ThreadingHTTPServer):
    """commits: (data set, commit) -> name -> contents; heads: data set -> commit of main. reads: (commit, file) asked for.

    broken: how many more requests for contents are cut off after their first bytes.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.commits, self.heads, self.reads, self.broken = {}, {}, [], 0

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{name} {len(self.commits)}".encode()).hexdigest()
        self.commits[name, oid], self.heads[name] = files, oid
        return oid


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True

    def log_message(self, *args):
        pass

    def answer(self, body: bytes, status=200, headers=(), cut=None):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), "Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    def do(self):
        hub, path = self.server, unquote(self.path.split("?")[0])
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = re.fullmatch(
            r"(?:/api)?(?:/datasets|/models)?/([^/]+/[^/]+)(?:/(revision|tree|paths-info|resolve)/([^/]+)/?(.*))?", path
        )
        name, what, revision, rest = found.groups() if found else ("", "", "", "")
        commit = hub.heads.get(name) if revision in (None, "main") else revision
        files = hub.commits.get((name, commit))
        if files is None:
            return self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound" if name in hub.heads else "RepoNotFound"})
        folders = {str(folder) for name in files for folder in PurePosixPath(name).parents} - {"."}
        entry = lambda name: {
            "type": "file" if name in files else "directory",
            "path": name,
            "oid": "0",
            "size": len(files.get(name, b"")),
        }
        if what in (None, "revision"):
            known = {"id": name, "sha": commit, "private": False, "tags": [], "siblings": [{"rfilename": n} for n in files]}
            return self.answer(json.dumps(known).encode())
        if what == "tree":
            below = [n for n in [*folders, *files] if PurePosixPath(n).is_relative_to(rest) and n != rest]
            if "recursive=true" not in self.path.lower():
                below = [n for n in below if str(PurePosixPath(n).parent) == (rest or ".")]
            return self.answer(json.dumps(list(map(entry, below))).encode())
        if what == "paths-info":
            wanted = [unquote(part.partition("=")[2]) for part in asked.decode().split("&") if part.startswith("paths=")]
            wanted = wanted or json.loads(asked or b"{}").get("paths", [])
            return self.answer(json.dumps([entry(n) for n in wanted if n in files or n in folders]).encode())
        if rest not in files:
            return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
        self.contents(files[rest], commit, rest)

    def contents(self, data: bytes, commit: str, name: str):
        hub, etag = self.server, hashlib.sha1(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status, asked = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            status, data = 206, data[first : last + 1]
        cut = None
        if self.command == "GET":
            hub.reads.append((commit, name))
            if hub.broken:
                hub.broken -= 1
                cut = len(data) // 2
        self.answer(data, status, headers, cut)

    do_GET = do_HEAD = do_POST = do


@pytest.fixture
def data_hub(monkeypatch, tmp_path):
    """An empty hub that is the one the libraries know."""
    server = DataHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for key, value in {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_CACHE": tmp_path / "sets",
        "STREAMING_READ_MAX_RETRIES": 1,
        "STREAMING_READ_RETRY_INTERVAL": 0,
    }.items():
        monkeypatch.setattr(datasets.config, key, value)
    HfFileSystem.clear_instance_cache()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    HfFileSystem.clear_instance_cache()
