"""Pages and web archives as sources of a corpus: their main text, their characters, records that are damaged or no pages."""

import base64
import bz2
import gzip
import hashlib
import io
import lzma

import pytest
from corpora import PLAIN, run_build, texts_of

from llmrecipes.config import InputError
from llmrecipes.corpus.arguments import to_source
from llmrecipes.corpus.documents import read_documents
from llmrecipes.corpus.parts import Part
from llmrecipes.corpus.readers import read_file

PAGE = "<html><body><nav><a href='/'>Home</a></nav><article><h1>Rivers</h1>{}</article></body></html>"


BODY = "".join(
    f"<p>The river number {i} is long, and many boats go up and down on it every day of the year.</p>" for i in range(6)
)


def test_pages_and_web_archives_give_their_main_text(tmp_path):
    pytest.importorskip("trafilatura")
    warcio = pytest.importorskip("warcio")
    (tmp_path / "a.html").write_text(PAGE.format(BODY))
    (page,) = texts_of(tmp_path / "a.html")
    assert "The river number 5 is long" in page and "Home" not in page and "<p>" not in page

    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with (tmp_path / "b.warc.gz").open("wb") as out:
        writer = WARCWriter(out, gzip=True)
        for address, kind in (("http://x.org/1", "text/html; charset=latin-1"), ("http://x.org/2.png", "image/png")):
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.0")
            body = PAGE.format(BODY.replace("boats", "bo\u00e2ts")).encode("latin-1")
            writer.write_record(
                writer.create_warc_record(address, "response", payload=io.BytesIO(body), http_headers=headers)
            )
    source = to_source(str(tmp_path / "b.warc.gz"), "s")
    found, image = read_documents(source, Part(0, 0, (source.path,)), 1 << 20)
    assert image.problem == "is no HTML page (image/png)", "counted, and no mistake"
    assert found.id == "http://x.org/1" and "many bo\u00e2ts go up" in found.text
    assert warcio


def test_a_page_of_a_web_archive_that_is_cut_off_is_no_document(tmp_path):
    pytest.importorskip("fastwarc")
    pytest.importorskip("trafilatura")
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + PAGE.format(BODY).encode()
    head = "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://x.org/1\r\nContent-Type: application/http\r\n"
    whole = f"{head}Content-Length: {len(page)}\r\n\r\n".encode() + page + b"\r\n\r\n"
    (tmp_path / "a.warc").write_bytes(whole)
    assert len(texts_of(tmp_path / "a.warc")) == 1
    (tmp_path / "a.warc").write_bytes(whole[: -len(page) // 2])
    with pytest.raises(InputError, match=r"a\.warc: is truncated or damaged \(record 1, http://x.org/1, has no end\)"):
        texts_of(tmp_path / "a.warc")
    (tmp_path / "a.warc").write_bytes(whole + whole[:60])
    with pytest.raises(InputError, match=r"a\.warc: is truncated or damaged \(record 2, .*, has no end\)"):
        texts_of(tmp_path / "a.warc")
    later = whole.replace(b"response", b"of-tomorrow", 1).replace(b"application/http", b"application/x")
    (tmp_path / "a.warc").write_bytes(whole + later + whole.replace(b"WARC-Type", b"WARC-T\x00pe") + whole)
    rows = dict(read_file(str(tmp_path / "a.warc"), False, 1_000_000))
    assert [*rows] == [1, 2, 3] and rows[2] == "is damaged: it has no WARC-Type" and rows[1] == rows[3]
    (tmp_path / "a.warc").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"a\.warc: cannot be read \(Invalid WARC header\)"):
        texts_of(tmp_path / "a.warc")


def response(body: bytes, kind: str = "text/html", *headers: str) -> bytes:
    """A WARC record of what a server sent."""
    page = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {kind}", *headers, "", ""]).encode() + body
    head = "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://x.org/1\r\nContent-Type: application/http\r\n"
    return f"{head}Content-Length: {len(page)}\r\n\r\n".encode() + page + b"\r\n\r\n"


def digests(block: bytes, payload: bytes, form=lambda kind, content: f"{kind}:{hashlib.new(kind, content).hexdigest()}"):
    """Headers with the digests of a record's block and of its payload."""
    return f"WARC-Block-Digest: {form('sha1', block)}\r\nWARC-Payload-Digest: {form('sha256', payload)}\r\n"


def with_digests(record: bytes, payload: bytes | None = None, **how) -> bytes:
    head, _, block = record.removesuffix(b"\r\n\r\n").partition(b"\r\n\r\n")
    own = digests(block, block.partition(b"\r\n\r\n")[2] if payload is None else payload, **how)
    return head + b"\r\n" + own.encode() + b"\r\n" + block + b"\r\n\r\n"


def in_base32(kind: str, content: bytes) -> str:
    return f"{kind.replace('sha', 'SHA-')}:{base64.b32encode(hashlib.new(kind, content).digest()).decode()}"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_record_that_is_not_as_its_digests_say_is_a_bad_row_and_counted(tmp_path, pack):
    pytest.importorskip("fastwarc")
    pytest.importorskip("trafilatura")
    page = PAGE.format(BODY).encode()
    good = [with_digests(response(page)), with_digests(response(page), form=in_base32)]
    good += [with_digests(response(in_chunks(gzip.compress(page)), "text/html", CHUNKED, PACKED), page)]
    good += [with_digests(response(page), form=lambda kind, content: "crc7:0")]
    cut = with_digests(response(page), b"the page as a whole").replace(b"WARC-Type", b"WARC-Truncated: length\r\nWARC-Type")
    file = tmp_path / f"a.warc{'.gz' if pack is gzip.compress else ''}"
    file.write_bytes(b"".join(map(pack, [*good, cut])))
    assert len({*texts_of(file)}) == 1 and len(texts_of(file)) == 5
    image = with_digests(response(b"PNG", "image/png"))
    wrong = (
        (good[0].replace(b"many boats", b"many goats"), "its bytes are not those of its WARC-Block-Digest"),
        (good[1].replace(b"text/html", b"text/xtml"), "its bytes are not those of its WARC-Block-Digest"),
        (image.replace(b"PNG", b"PNX"), "its bytes are not those of its WARC-Block-Digest"),
        (with_digests(response(page), page + b" "), "its page is not that of its WARC-Payload-Digest"),
        (
            with_digests(response(in_chunks(page), "text/html", CHUNKED), page[1:]),
            "its page is not that of its WARC-Payload-Digest",
        ),
        (good[0].replace(b"Type: response", b"Type: xesponse"), "'xesponse' is no WARC-Type"),
    )
    for number, (altered, message) in enumerate(wrong):
        file.write_bytes(b"".join(map(pack, [good[0], altered, good[1], image])))
        with pytest.raises(InputError, match=rf"{file.name}, row 2: is damaged: {message}.*drop_bad_rows"):
            texts_of(file)
        source = [{"path": str(file), "drop_bad_rows": True}]
        found = run_build(tmp_path / str(number), source, exact_duplicates=False, **PLAIN)
        assert found["total"]["kept"][0] == 2 and [
            n for why, (n, _) in found["total"]["dropped"]["read"].items() if "HTML" not in why
        ] == [1]
        assert message in str(found), "the report says why"


def test_records_that_are_no_pages_are_counted_and_texts_of_pages_read(tmp_path):
    pytest.importorskip("fastwarc")
    pytest.importorskip("trafilatura")
    page, file = PAGE.format(BODY).encode(), tmp_path / "a.warc"
    lost = response(page).replace(b"200 OK", b"404 No", 1)
    file.write_bytes(response(page) + response(b"%PDF-1.4", "application/pdf") + lost)
    found = run_build(tmp_path / "out", [str(file)], **PLAIN)["total"]
    assert (found["read"][0], found["kept"][0]) == (3, 1)
    why = {"is no HTML page": [1, 0], "is an error page or a redirection": [1, 0]}
    assert found["dropped"] == {"read": why} and "application/pdf" in str(found["samples"])
    text = "Home\nWhat the pages say, ü.".encode()
    wet = response(page).replace(b"WARC-Type: response", b"WARC-Type: conversion").partition(b"Content-Length")[0]
    wet = (
        wet.replace(b"application/http", b"text/plain")
        + f"Content-Length: {len(text)}\r\n\r\n".encode()
        + text
        + b"\r\n\r\n"
    )
    (tmp_path / "b.warc.wet.gz").write_bytes(gzip.compress(wet))
    assert texts_of(tmp_path / "b.warc.wet.gz") == [text.decode()]


def test_a_servers_header_is_no_text_of_a_page_when_its_records_header_is_damaged(tmp_path):
    pytest.importorskip("fastwarc")
    pytest.importorskip("trafilatura")
    record = response(PAGE.format(BODY).encode())
    (tmp_path / "a.warc").write_bytes(
        record + record.replace(b"Content-Type: application/http", b"Content-Tipe: application", 1)
    )
    plain, damaged = texts_of(tmp_path / "a.warc")
    assert plain == damaged and "HTTP" not in plain


def in_chunks(body: bytes, size: int = 100) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in [*parts, b""])


CHUNKED, PACKED = "Transfer-Encoding: chunked", "Content-Encoding: gzip"


@pytest.mark.parametrize(
    ("pack", "headers"),
    [
        (in_chunks, [CHUNKED]),
        (gzip.compress, [PACKED]),
        (lambda body: in_chunks(gzip.compress(body)), [CHUNKED, PACKED]),
        (bytes, [PACKED]),
        (bytes, [CHUNKED]),
    ],
    ids=["chunks", "gzip", "gzip in chunks", "unpacked by the crawler", "joined by the crawler"],
)
def test_a_page_is_read_as_it_was_before_its_server_packed_it(tmp_path, pack, headers):
    pytest.importorskip("fastwarc")
    pytest.importorskip("trafilatura")
    page = PAGE.format(BODY).encode()
    (tmp_path / "a.warc").write_bytes(response(page) + response(pack(page), "text/html", *headers))
    plain, other = texts_of(tmp_path / "a.warc")
    assert "The river number 5 is long" in plain and other == plain


def test_a_page_that_cannot_be_unpacked_or_unpacks_to_too_much_is_no_document(tmp_path):
    pytest.importorskip("fastwarc")
    for body, headers, message in (
        (b"\0\1\2", ["Content-Encoding: br"], "row 1: is packed in a way that cannot be undone"),
        (gzip.compress(b"<p>" + b"a " * 10**6), [PACKED], "row 1: is longer than max_document_bytes"),
    ):
        (tmp_path / "a.warc").write_bytes(response(body, "text/html", *headers))
        with pytest.raises(InputError, match=message):
            texts_of(tmp_path / "a.warc")


def test_web_archives_may_be_compressed_in_any_way(tmp_path):
    pytest.importorskip("fastwarc")
    pytest.importorskip("trafilatura")
    record = response(PAGE.format(BODY).encode())
    for end, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        (tmp_path / f"a.warc{end}").write_bytes(pack(record))
        assert len(texts_of(tmp_path / f"a.warc{end}")) == 1


def test_a_page_has_the_characters_that_its_server_or_itself_names(tmp_path):
    """Few bytes outside ASCII do not tell one code page from another. What is valid UTF-8 is UTF-8."""
    pytest.importorskip("trafilatura")
    page = PAGE.format(BODY.replace("boats", "łodzi"))
    (tmp_path / "a.warc").write_bytes(
        response(page.encode("cp1250"), "text/html; charset=windows-1250")
        + response(page.encode(), "text/html; charset=iso-8859-1")
        + response(page.encode("cp1250"), "text/html; charset=no-such-one")
        + response(page.encode("cp1250"), "text/html; charset=no\0name")
    )
    server, utf8, *_ = texts_of(tmp_path / "a.warc")
    assert "many łodzi go up" in server and utf8 == server
    (tmp_path / "b.html").write_bytes(page.replace("<html>", '<html><meta charset="windows-1250">').encode("cp1250"))
    assert texts_of(tmp_path / "b.html") == [server]
