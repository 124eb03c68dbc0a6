"""A stand-in for the Hub that the tests of pushing talk to, and a finished run to push."""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi, constants

from llmrecipes.hub import plan_push, push_run

TOKEN = "hf_" + "aB3d" * 8


class Hub(ThreadingHTTPServer):
    """Speaks what a push needs. faults: (method, part of the path, what happens), each used once.

    repos: repository -> files of its last commit, name -> (data, is large); tags: (repository, tag) -> commit.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.tags, self.objects, self.faults, self.puts, self.private = {}, {}, {}, [], 0, {}
        self.commits, self.heads = {}, {}  # commit -> files; repository -> commit

    def commit(self, key, files):
        oid = hashlib.sha1(f"{key} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.heads[key], self.repos[key] = files, oid, files
        return oid


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # else each answer waits 40 ms for an ACK

    def log_message(self, *args):
        pass

    def answer(self, value, status=200, headers=()):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("Content-Length", str(len(body))), ("Content-Type", "application/json"), *headers):
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read_body(self, length):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def create(self, hub, name):
        key = f"{name['organization']}/{name['name']}" if name.get("organization") else name["name"]
        known = key in hub.repos
        hub.private.setdefault(key, name.get("visibility") == "private")
        if not known:
            hub.commit(key, {".gitattributes": (b"*.safetensors filter=lfs", False)})
        return self.answer({"url": f"{hub.url}/{key}"}, 409 if known else 200)

    def preupload(self, known, files):
        modes = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": file_id(known.get(f["path"])),
            }
            for f in files
        ]
        return self.answer({"files": modes})

    def commit(self, hub, key, body, fault):
        files = dict(hub.repos[key])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
                files[value["path"]] = (data[:-1] if fault and fault[2] == "corrupt" else data, False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = (hub.objects[value["oid"]], True)
            elif line["key"] == "deletedFile" and not (fault and fault[2] == "keep"):
                del files[value["path"]]
        oid = hub.commit(key, files)
        if fault and fault[2] == "cut after":  # the commit is there, its answer is not
            self.close_connection = True
            return self.connection.close()
        return self.answer({"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{key}/commit/{oid}"})

    def tree(self, files):
        rows = []
        for name, (data, is_lfs) in files.items():
            row = {"type": "file", "path": name, "size": len(data), "oid": file_id((data, False))}
            lfs = {"oid": file_id((data, True)), "size": len(data), "pointerSize": 134}
            rows.append(row | ({"lfs": lfs} if is_lfs else {}))
        return self.answer(rows)

    def handle_one(self):
        hub, length = self.server, int(self.headers.get("Content-Length", 0))
        fault = next((f for f in hub.faults if f[0] == self.command and f[1] in self.path), None)
        if fault:
            hub.faults.remove(fault)
        if fault and fault[2] == "cut":
            self.rfile.read(min(length, 100))
            self.close_connection = True
            return self.connection.close()
        body = self.read_body(length)
        if fault and isinstance(fault[2], int):
            said = {"error": "no", "errors": [{"message": '"license" must be one of apache-2.0, mit'}]}
            return self.answer(said, fault[2], [("Retry-After", "3")] if fault[2] == 429 else [])
        if fault and fault[2] == "broken page":
            self.send_response(502)
            self.send_header("Content-Length", "4")
            self.end_headers()
            return self.wfile.write(b"<h1>")
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            return self.create(hub, json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.startswith("/upload/"):
            hub.puts += 1
            hub.objects[path.split("/")[-1]] = b"changed" if fault else body
            return self.answer({})
        if match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            todo = json.loads(body)["objects"]
            upload = lambda o: {"upload": {"href": f"{hub.url}/upload/{o['oid']}"}}
            objects = [o if o["oid"] in hub.objects else o | {"actions": upload(o)} for o in todo]
            return self.answer({"transfer": "basic", "objects": objects})
        match = re.fullmatch(
            r"/api/(?:models|datasets)/([^/]+/[^/]+?)(?:/(preupload|commit|tree|tag|revision|refs)(?:/([^/]+).*)?)?", path
        )
        key, what, revision = match.groups() if match else ("what the client asks a hub about itself", None, None)
        if what == "preupload":
            return self.preupload(hub.repos[key], json.loads(body)["files"])
        if what == "commit":
            return self.commit(hub, key, body, fault)
        if what == "tree":
            return self.tree(hub.commits.get(revision, hub.repos[key]))
        if what == "tag" and self.command == "DELETE":
            return self.answer({}, 200 if hub.tags.pop((key, revision), None) else 404)
        if what == "tag":
            tag = (key, json.loads(body)["tag"])
            known = tag in hub.tags
            hub.tags.setdefault(tag, revision)  # the Hub moves no tag
            return self.answer({"error": "Tag reference exists already"} if known else {}, 409 if known else 200)
        if what == "refs":
            tags = [
                {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": commit}
                for (of, tag), commit in hub.tags.items()
                if of == key
            ]
            return self.answer({"branches": [], "converts": [], "tags": tags})
        if key not in hub.repos:
            return self.answer({"error": "no"}, 404, [("X-Error-Code", "RepoNotFound")])
        return self.answer({"id": key, "sha": hub.heads[key], "siblings": [], "private": hub.private.get(key)})

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_one


def file_id(file):
    """As the Hub names a file (data, is large), or None."""
    if not file:
        return None
    data, is_large = file
    return hashlib.sha256(data).hexdigest() if is_large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the client's own patience
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "mine" / "sft"
    (folder / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoint-1" / "optimizer.pt").write_bytes(b"x")
    inputs = {
        "outputs/mine/pretrain": "beef",
        str(tmp_path / "mine" / "rank"): "cafe",
        "org/data": "hub:org/data",
        "gpt2": "hub:gpt2",
    }
    manifest = {
        "status": "finished",
        "fingerprint": "f00d",
        "command": f"python {tmp_path}/recipes/sft.py",
        "inputs": inputs,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights(300_000))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# sft\n")
    return folder


def weights(size: int) -> bytes:
    """A safetensors file of random numbers, `size` bytes long."""
    left = size - 8 - 80
    header = json.dumps({"w": {"dtype": "U8", "shape": [left], "data_offsets": [0, left]}}).ljust(80)
    return len(header).to_bytes(8, "little") + header.encode() + os.urandom(left)


def push(run, hub, waits=None):
    api = HfApi(endpoint=hub.url, token=TOKEN)
    [planned] = plan_push(str(run), "me")
    return push_run(planned, True, api, (waits if waits is not None else []).append)


def tagged(hub):
    """The tags of a hub that holds one run: on its last commit."""
    return {("me/mine-sft", "run-f00d"): hub.heads["me/mine-sft"]}
