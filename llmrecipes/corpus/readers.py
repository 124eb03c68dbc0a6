"""Local files to rows, in bounded memory: JSON Lines, text, HTML, web archives, Parquet and Arrow, compressed or not.

Each reader yields (number from 1, row); a row is a dictionary, or `Bad` with what is wrong with it.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.corpus.extras import need
from llmrecipes.corpus.parts import LINES, PAGES, TEXT, kind_of
from llmrecipes.formats import has_lone_surrogate, rows_of_batch

BATCH = 256  # rows of a table at a time
MOST_LISTED = 512 << 20  # most bytes of a file that is one JSON list
MANY_RETURNS = 10  # more carriage returns in a line are not an accident


class Bad(str):
    """Why a row cannot be read."""


def read_file(
    file: str, whole_files: bool, limit: int, columns: tuple[str, ...] | None = None
) -> Iterator[tuple[int, dict | Bad]]:
    """Rows of one file.

    limit: most bytes in a line or page. columns: the columns of a table that are needed.

    Raises:
        InputError: the file as a whole is damaged or truncated.
    """
    kind = kind_of(file)
    try:
        if kind == ".parquet":
            yield from _parquet_rows(file, columns)
        elif kind == ".arrow":
            yield from _arrow_rows(file)
        elif kind == ".warc":
            yield from _archived_pages(file, limit)
        elif kind in PAGES or kind in TEXT and whole_files:
            with _open(file) as stream:
                content = stream.read(limit + 1)
            yield 1, _page(content, kind in PAGES) if len(content) <= limit else _too_long(limit)
        elif kind == ".json" and _is_list(file):
            yield from _listed_rows(file)
        else:
            yield from _line_rows(file, kind in LINES, limit)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{file}: is truncated or damaged ({error}); download it again") from None
    except OSError as error:  # raised by bz2 and fastwarc, or by the disk
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None


def _open(file: str):
    suffix = Path(file).suffix.lower()
    if suffix in (".zst", ".zstd"):
        return io.BufferedReader(_Zstd(file), 1 << 20)
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(suffix, open)
    return opener(file, "rb")


class _Zstd(io.RawIOBase):
    """Reads Zstandard frames one after the other. The package's own reader does not notice a truncated file."""

    def __init__(self, file: str):
        self.zstandard, self.raw, self.ready = need("zstandard", f"{file}: .zst"), open(file, "rb"), b""
        self.frame = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready:
            block = self.raw.read(1 << 18)
            if not block:
                if self.frame is not None:
                    raise EOFError("a frame has no end")
                return 0
            while block:
                self.frame = self.frame or self.zstandard.ZstdDecompressor().decompressobj()
                try:
                    self.ready += self.frame.decompress(block)
                except self.zstandard.ZstdError as error:
                    raise EOFError(error) from None
                block = self.frame.unused_data if self.frame.eof else b""
                self.frame = None if self.frame.eof else self.frame
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


def _line_rows(file: str, is_json: bool, limit: int) -> Iterator[tuple[int, dict | Bad]]:
    """One row per line. A line beyond `limit` is skipped in pieces, so that it is never in memory as a whole."""
    with _open(file) as stream:
        number = 0
        while line := stream.readline(limit + 1):
            number += 1
            if len(line) > limit and not line.endswith(b"\n"):
                while (more := stream.readline(1 << 20)) and not more.endswith(b"\n"):
                    pass
                yield number, _too_long(limit)
            elif line.strip():
                yield number, _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, is_json)


def _parse(line: bytes, is_json: bool) -> dict | Bad:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Bad(f"is not UTF-8 at byte {error.start + 1} of the line")
    if not is_json:
        text = text.rstrip("\r\n")
        if text.count("\r") > MANY_RETURNS:
            return Bad("ends its lines by CR alone, as old Macs did; give them LF (`tr '\\r' '\\n'`)")
        return {"text": text}
    try:
        return _checked(json.loads(text), may_have_surrogates="\\u" in text)
    except (ValueError, RecursionError) as error:
        return Bad(f"is not valid JSON ({error})")


def _checked(row, may_have_surrogates: bool) -> dict | Bad:
    if not isinstance(row, dict):
        return Bad("is no JSON object {...}; write one a line")
    if may_have_surrogates and has_lone_surrogate(row):
        return Bad("holds half of a character (a lone surrogate, \\ud800 to \\udfff)")
    return row


def _is_list(file: str) -> bool:
    """Whether the file begins as one JSON list of all rows, not with one row per line."""
    with _open(file) as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _listed_rows(file: str) -> Iterator[tuple[int, dict | Bad]]:
    """Rows of a file that is one JSON list, which must be read as a whole."""
    with _open(file) as stream:
        content = stream.read(MOST_LISTED + 1)
    if len(content) > MOST_LISTED:
        raise InputError(f"{file}: one JSON list of over {MOST_LISTED >> 20} MiB; write one row per line (`jq -c '.[]'`)")
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not valid JSON ({error})") from None
    may = b"\\u" in content
    del content
    for number, row in enumerate(rows, start=1):
        yield number, _checked(row, may)


def _too_long(limit: int) -> Bad:
    return Bad(f"is longer than max_document_bytes ({limit:,})")


def _page(content: bytes, is_html: bool) -> dict | Bad:
    if is_html:
        return {"text": page_text(content)}
    try:
        return {"text": content.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return Bad(f"is not UTF-8 at byte {error.start + 1}")


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


def _archived_pages(file: str, limit: int) -> Iterator[tuple[int, dict | Bad]]:
    """HTML responses of a web archive (WARC); the id of a row is its URL."""
    warc = need("fastwarc.warc", "web archives")
    packed = file.lower().endswith((".bz2", ".xz"))  # fastwarc unpacks the others, record by record
    with _open(file) if packed else open(file, "rb") as stream:
        number = 0
        for record in warc.ArchiveIterator(stream, record_types=warc.WarcRecordType.any_type, parse_http=False):
            kind, address = record.record_type, record.headers.get("WARC-Target-URI", "")
            if kind not in (warc.WarcRecordType.response, warc.WarcRecordType.no_type):
                continue
            number += 1
            if kind == warc.WarcRecordType.no_type:
                yield number, Bad("is damaged: it has no WARC-Type")
                continue
            record.parse_http()
            if record.headers.get("Content-Length") is None:
                raise EOFError(f"record {number}, {address}, has no end")
            if "html" not in (record.http_content_type or "html"):
                continue
            content = record.reader.read(limit + 1)
            if len(content) < min(record.content_length, limit):  # fastwarc does not notice a truncated file
                raise EOFError(f"record {number}, {address}, has no end")
            content = _unpacked(warc, record.http_headers, content, limit) if len(content) <= limit else content
            if content is None:
                yield number, Bad("is packed in a way that cannot be undone")
            elif len(content) > limit:
                yield number, _too_long(limit)
            else:
                yield number, {"text": page_text(content, record.http_charset), "url": address}
        if number == 0:
            raise InputError(f"{file}: holds no WARC response; it is damaged or not a web archive")


def _unpacked(warc, headers, content: bytes, limit: int) -> bytes | None:
    """What a server sent in chunks or compressed, as it was before, up to limit + 1 bytes; None if that is out of reach.

    Some crawlers unpack pages and leave the header that says they are packed: these stay as they are.
    """
    said = {name: (headers or {}).get(name) for name in ("Transfer-Encoding", "Content-Encoding")}
    if set(said.values()) <= {None, "", "identity"}:
        return content
    head = "".join(f"{name}: {value}\r\n" for name, value in said.items() if value)
    record = warc.WarcRecord()
    record.is_http = True
    record.set_bytes_content(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + content)
    try:
        record.parse_http(auto_decode="all")
        return record.reader.read(limit + 1)
    except OSError:
        return content if content.lstrip()[:1] == b"<" else None


def _parquet_rows(file: str, columns: tuple[str, ...] | None) -> Iterator[tuple[int, dict]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        wanted = columns and [name for name in table.schema_arrow.names if name in columns]
        for batch in table.iter_batches(BATCH, columns=wanted or None):
            for row in _rows_of(batch):
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read after row {number} ({' '.join(str(error).split())[:200]})") from None


def _rows_of(batch) -> Iterator[dict | Bad]:
    for row in rows_of_batch(batch):
        yield Bad(f"is not UTF-8 at byte {row.start + 1} of a text") if isinstance(row, UnicodeDecodeError) else row


def _arrow_rows(file: str) -> Iterator[tuple[int, dict]]:
    import pyarrow

    number = 0
    try:
        with pyarrow.memory_map(file) as source:
            try:
                batches = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                opened = pyarrow.ipc.open_file(source)
                batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
            for batch in batches:
                for first in range(0, batch.num_rows, BATCH):
                    for row in _rows_of(batch.slice(first, BATCH)):
                        number += 1
                        yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read after row {number} ({' '.join(str(error).split())[:200]})") from None
