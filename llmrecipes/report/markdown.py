"""The report as Markdown, for terminals and pull requests; figures stay on the page, their numbers are here.

Model outputs are put in code fences without control characters, so that they neither become markup nor move a cursor.
"""

import re

from llmrecipes.report.blocks import Figure, Flow, Heading, Points, Said, Section, Table, Text

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def render_markdown(title: str, opening: str | list[Text], sections: list[Section]) -> str:
    """The whole text; `opening` comes below the title."""
    texts = [Text(opening)] if isinstance(opening, str) else opening
    parts = [f"# {_inline(title)}", *map(_block, texts)]
    for section in sections:
        parts += [f"## {_inline(section.title)}", *filter(None, map(_block, section.blocks))]
    return "\n\n".join(parts) + "\n"


def _block(block) -> str:
    match block:
        case Heading(text, level, mark):
            return f"{'#' * level} {_inline(text)}{': ' + _inline(mark) if mark else ''}"
        case Text(text, lead):
            return f"**{_inline(lead)}** {_inline(text)}" if lead else _inline(text)
        case Points(items):
            return "\n".join(f"- {_inline(item)}" for item in items)
        case Figure() | Flow():
            return ""
        case Table(short=short):
            return _table(short or block)
        case Said():
            return _said(block)
    raise TypeError(f"{block!r} is not a block")


def _table(block: Table) -> str:
    """Columns padded to equal width, so that the source reads as a table in a terminal."""
    rows = [[_inline(str(cell)) for cell in row] for row in [block.head, *block.rows]]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(block.head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _said(block: Said) -> str:
    width = max(len(_clean(who)) for who, _, _ in block.answers)
    lines = [_clean(block.question) + (f"   ({_clean(block.kind)})" if block.kind else "")]
    for who, text, note in block.answers:
        words = (_clean(text).strip() or "(nothing)") + (f"   ({_clean(note)})" if note else "")
        first, *more = words.splitlines()
        lines += [f"  {_clean(who):<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in more)]
    text = "\n".join(line.rstrip() for line in lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _clean(text: str) -> str:
    return CONTROL.sub("", str(text))


def _inline(text: str) -> str:
    """`text` on one line, escaping what Markdown or HTML would read as markup, a link or a mention."""
    text = re.sub(r"([\\`*<>|~&]|\](?=[(\[:]))", r"\\\1", " ".join(_clean(text).split()))
    return re.sub(r"(?<!\w)@(?=\w)", "&#64;", text)
