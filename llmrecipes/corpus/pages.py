"""Pages: the main text of HTML, and the pages of web archives (WARC), whose records are checked against their digests."""

import base64
import codecs
import contextlib
import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from llmrecipes.config import InputError
from llmrecipes.corpus.extras import need

MOST_HEADER = 32 << 10  # most bytes of what a server says before a page, as in fastwarc
DIGESTS = ("md5", "sha1", "sha256", "sha384", "sha512")


class Bad(str):
    """Why a row cannot be read."""


class LeftOut(Bad):
    """Why a record is no document, although nothing is wrong with it: it is only counted."""


def too_long(limit: int) -> Bad:
    """What is wrong with a row of more than `limit` bytes."""
    return Bad(f"is longer than max_document_bytes ({limit:,})")


def page_text(content: bytes, charset: str | None = None) -> str:
    """The main text of an HTML page, without menus and footers; empty if there is none. charset: as its server named it."""
    trafilatura = need("trafilatura", "HTML pages")
    return trafilatura.extract(_decode(content, charset), include_comments=False) or ""


def _decode(content: bytes, charset: str | None) -> str:
    """Valid UTF-8 beyond ASCII is hardly ever anything else; otherwise the server, then the page's <meta>, then its bytes
    say what it is."""
    encoding = need("resiliparse.parse.encoding", "HTML pages")
    if not content.isascii():
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode("utf-8-sig")
    with contextlib.suppress(LookupError, ValueError):  # there is none of that name, or it is no name
        codecs.lookup(charset or "")
        return encoding.bytes_to_str(content, encoding.map_encoding_to_html5(charset))
    return encoding.bytes_to_str(content, encoding.detect_encoding(content, from_html_meta=True))


def archived_pages(stream: BinaryIO, file: str, limit: int) -> Iterator[tuple[int, dict | Bad]]:
    """HTML responses of a web archive, or the texts that were made of them (as in WET); the id of a row is its URL.

    Raises:
        EOFError: a record has no end. OSError: no record begins where one must. InputError: there is none of either.
    """
    warc = need("fastwarc.warc", "web archives")
    number = 0
    for record in warc.ArchiveIterator(stream, record_types=warc.WarcRecordType.any_type, parse_http=False):
        kind, address = record.record_type, record.headers.get("WARC-Target-URI", "")
        if kind == warc.WarcRecordType.unknown and _is_response(record.headers.get("Content-Type", "")):
            kind = warc.WarcRecordType.no_type
        if kind not in (warc.WarcRecordType.response, warc.WarcRecordType.conversion, warc.WarcRecordType.no_type):
            continue
        number += 1
        if kind == warc.WarcRecordType.no_type:
            name = record.headers.get("WARC-Type")
            yield number, Bad(f"is damaged: {name[:40]!r} is no WARC-Type" if name else "is damaged: it has no WARC-Type")
            continue
        if record.headers.get("Content-Length") is None:
            raise EOFError(f"record {number}, {address}, has no end")
        block = record.reader.read(limit + MOST_HEADER + 1)
        if len(block) < min(record.content_length, limit + MOST_HEADER + 1):  # fastwarc does not notice a truncated file
            raise EOFError(f"record {number}, {address}, has no end")
        is_text = kind == warc.WarcRecordType.conversion
        yield number, _text_of(record, block, limit) if is_text else _page_of(warc, record, block, limit)
    if number == 0:
        raise InputError(f"{file}: holds no WARC response and no text of one; it is damaged or not a web archive")


def _is_response(content_type: str) -> bool:
    """Whether a record may be what a server sent. Those of types that the standard does not know are to be skipped, but one
    that does not say it holds something else is a page with a damaged header."""
    return not content_type or content_type.startswith("application/http") and "request" not in content_type


def _text_of(record, block: bytes, limit: int) -> dict | Bad:
    """The row of a record that holds a page's text."""
    said = record.headers
    if len(block) > limit:
        return too_long(limit)
    if _differs(said.get("WARC-Block-Digest"), block):
        return Bad("is damaged: its bytes are not those of its WARC-Block-Digest")
    if (kind := said.get("Content-Type") or "text/plain").partition(";")[0].strip() != "text/plain":
        return LeftOut(f"is no text ({kind[:80]})")
    try:
        return {"text": block.decode(), "url": said.get("WARC-Target-URI", "")}
    except UnicodeDecodeError as error:
        return Bad(f"is not UTF-8 at byte {error.start + 1}")


def _page_of(warc, record, block: bytes, limit: int) -> dict | Bad:
    """The row of a response of which these bytes are stored, without what is over the limit."""
    said, is_whole = record.headers, len(block) == record.content_length
    if is_whole and _differs(said.get("WARC-Block-Digest"), block):
        return Bad("is damaged: its bytes are not those of its WARC-Block-Digest")
    response = warc.WarcRecord()
    response.is_http = record.is_http or block.startswith(b"HTTP/")  # whatever a damaged header says
    response.set_bytes_content(block)
    response.parse_http()
    payload = response.reader.read()
    digest = None if said.get("WARC-Truncated") else said.get("WARC-Payload-Digest")
    if is_whole and _differs(digest, payload) and not _is_of_unpacked(digest, warc, response.http_headers, payload, limit):
        return Bad("is damaged: its page is not that of its WARC-Payload-Digest")
    if "html" not in (kind := response.http_content_type or "html"):
        return LeftOut(f"is no HTML page ({kind[:80]})")
    status = response.http_headers.status_code if response.http_headers else None
    if status and not 200 <= status < 300:
        return LeftOut(f"is an error page or a redirection (status {status})")
    content = _unpacked(warc, response.http_headers, payload, limit) if len(payload) <= limit else payload
    if content is None:
        return Bad("is packed in a way that cannot be undone")
    if len(content) > limit:
        return too_long(limit)
    return {"text": page_text(content, response.http_charset), "url": said.get("WARC-Target-URI", "")}


def _is_of_unpacked(digest: str, warc, headers, payload: bytes, limit: int) -> bool:
    """Whether a digest is that of a page as it was before its server cut or packed it, which some crawlers note; True if it
    is too long to tell."""
    for how in ("transfer", "all") if _packing(headers) else ():
        with contextlib.suppress(OSError):
            page = _decoded(warc, headers, payload, how, limit)
            if len(page) > limit or not _differs(digest, page):
                return True
    return False


def _differs(digest: str | None, content: bytes) -> bool:
    """Whether `content` has another digest than this "sha1:BASE32" (or in hexadecimal); False if that is none we know."""
    name, _, given = (digest or "").strip().partition(":")
    name = name.lower().replace("-", "")
    if name not in DIGESTS:
        return False
    own = hashlib.new(name, content, usedforsecurity=False).digest()
    written = (own.hex(), base64.b32encode(own).decode().rstrip("=").lower())
    return given.rstrip("=").lower() not in written


def _unpacked(warc, headers, content: bytes, limit: int) -> bytes | None:
    """What a server sent in chunks or compressed, as it was before, up to limit + 1 bytes; None if that is out of reach.

    Some crawlers unpack pages and leave the header that says they are packed: these stay as they are.
    """
    if not _packing(headers):
        return content
    try:
        return _decoded(warc, headers, content, "all", limit)
    except OSError:
        return content if content.lstrip()[:1] == b"<" else None


def _packing(headers) -> dict[str, str]:
    """The headers that say how a page is packed."""
    said = {name: (headers or {}).get(name) for name in ("Transfer-Encoding", "Content-Encoding")}
    return {name: value for name, value in said.items() if value not in (None, "", "identity")}


def _decoded(warc, headers, content: bytes, how: str, limit: int) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in _packing(headers).items())
    record = warc.WarcRecord()
    record.is_http = True
    record.set_bytes_content(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + content)
    record.parse_http(auto_decode=how)
    return record.reader.read(limit + 1)
