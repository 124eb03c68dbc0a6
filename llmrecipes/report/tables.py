"""Tables and numbers of the report as HTML; everything that comes from a file or a model is escaped."""

import re
from html import escape

from llmrecipes.metrics import Estimate

NUMBER = re.compile(r"-?[\d.,]+(e[+-]?\d+)?( (%|s|min|h|[kMG]B)\b)?( ?\[.*\])?$")


def table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{"".join(f"<th>{escape(h)}</th>" for h in head)}</tr>{cells}</table></div>'


def _cell(text: str) -> str:
    text = str(text)
    mark = "n" if NUMBER.match(text) else text if text in ("met", "missed") else ""
    return f'<td class="{mark}">{escape(text)}</td>' if mark else f"<td>{escape(text)}</td>"


def details(html: str) -> str:
    return f"<details><summary>the numbers</summary>{html}</details>"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    )


def size(size: int) -> str:
    return f"{size / 1e3:.0f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def estimate(value: dict | None, percent: bool) -> str:
    if not value:
        return "–"
    e = Estimate(**value)
    if percent:
        return f"{100 * e.value:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]"
    return f"{number(e.value)} [{number(e.low)}, {number(e.high)}]"
