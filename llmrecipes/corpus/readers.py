"""Local files to rows, in bounded memory: JSON Lines, text, HTML, web archives, Parquet and Arrow, compressed or not.

Each reader yields (number from 1, row); a row is a dictionary, or `Bad` with what is wrong with it.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from llmrecipes.config import InputError
from llmrecipes.corpus.extras import need
from llmrecipes.corpus.pages import Bad, archived_pages, page_text, too_long
from llmrecipes.corpus.parts import ARCHIVES, LINES, PAGES, TEXT, TYPES, kind_of
from llmrecipes.formats import JSON, has_lone_surrogate, rows_of_batch
from llmrecipes.preflight.folders import no_text

BATCH = 256  # rows of a table at a time
MOST_LISTED = 512 << 20  # most bytes of a file that is one JSON list
MANY_RETURNS = 10  # more carriage returns in a line are not an accident


def read_file(
    file: str, whole_files: bool, limit: int, columns: tuple[str, ...] | None = None, file_type: str | None = None
) -> Iterator[tuple[int, dict | Bad]]:
    """Rows of one file.

    limit: most bytes in a line or page. columns: the columns of a table that are needed. file_type: what it is, if its name
    does not say that.

    Raises:
        InputError: the file as a whole is damaged or truncated.
    """
    kind = TYPES[file_type] if file_type else kind_of(file)
    try:
        if kind in (*LINES, *TEXT, *PAGES) and (problem := _foreign(file)):
            yield 1, problem
        elif kind == ".parquet":
            yield from _parquet_rows(file, columns)
        elif kind == ".arrow":
            yield from _arrow_rows(file)
        elif kind in ARCHIVES:
            # fastwarc unpacks other archives itself, record by record
            with _open(file) if file.lower().endswith((".bz2", ".xz")) else open(file, "rb") as stream:
                yield from archived_pages(stream, file, limit)
        elif kind in PAGES or kind in TEXT and whole_files:
            with _open(file) as stream:
                content = stream.read(limit + 1)
            yield 1, _page(content, kind in PAGES) if len(content) <= limit else too_long(limit)
        elif kind == ".json" and _is_list(file):
            yield from _listed_rows(file)
        else:
            yield from _line_rows(file, kind in LINES, limit)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{file}: is truncated or damaged ({error}); download it again") from None
    except OSError as error:  # raised by bz2 and fastwarc, or by the disk
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None


def _foreign(file: str) -> Bad | None:
    """What is wrong with a file that begins as no text does; its lines would pass for bad rows and short texts."""
    with _open(file) as stream:
        begin = stream.read(16)
    found = no_text(begin)
    return (
        Bad(f"is {found}, as the file's first bytes say; leave the file out, or give its text in UTF-8") if found else None
    )


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
                yield number, too_long(limit)
            elif is_json and number == 1 and line.strip() in (b"{", b"["):
                yield number, Bad("begins a JSON value that goes over several lines; write one row a line (`jq -c .`)")
                return
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
        return _checked(JSON.decode(text), may_have_surrogates="\\u" in text)
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
        rows = JSON.decode(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not valid JSON ({error})") from None
    may = b"\\u" in content
    del content
    for number, row in enumerate(rows, start=1):
        yield number, _checked(row, may)


def _page(content: bytes, is_html: bool) -> dict | Bad:
    if is_html:
        return {"text": page_text(content)}
    try:
        return {"text": content.decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return Bad(f"is not UTF-8 at byte {error.start + 1}")


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
