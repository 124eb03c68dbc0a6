"""The report as one HTML page. Everything that comes from a file or a model is escaped here.

The page holds no script, and its Content-Security-Policy forbids any, as well as every request.
"""

import re
from html import escape

from llmrecipes.report.blocks import Figure, Heading, Points, Said, Section, Table, Text

NUMBER = re.compile(r"(–|\d+–\d+|-?[\d.,]+(e[+-]?\d+)?( (%|s|min|h|[kMG]B))?( ± [\d.]+)?( ?\[.*\])?( \*)?)$")
MARKS = {"met": "met", "healthy": "met", "missed": "missed", "unhealthy": "missed"}
STYLE = """
:root{color-scheme:light dark;--line:#8885;--soft:#8881;--good:light-dark(#1d7a3a,#5cc97f);--bad:light-dark(#b3261e,#ff8a80)}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:auto;padding:1rem;background:Canvas;color:CanvasText}
h1{font-size:1.6rem;overflow-wrap:anywhere}h2{margin-top:2.2rem;border-bottom:1px solid var(--line)}
h2,h3,h4{break-after:avoid;overflow-wrap:anywhere}h4{margin:1.2rem 0 .3rem}
svg{width:100%;height:auto;max-width:40rem;display:block}figure{margin:0}
figure.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:.3rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.25rem .6rem;text-align:left;vertical-align:top}th{white-space:nowrap}
td.n{text-align:right;white-space:nowrap}nav{display:flex;flex-wrap:wrap;gap:.1rem .8rem}
summary{cursor:pointer;opacity:.75;font-size:.9rem}.met{color:var(--good)}.missed{color:var(--bad)}
.said{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .8rem;margin:.8rem 0;background:var(--soft)}
.said p{margin:.2rem 0;overflow-wrap:anywhere;white-space:pre-wrap}.said dl{display:grid;margin:0;gap:.4rem .8rem}
.said dl.columns{grid-template-columns:repeat(auto-fit,minmax(10rem,1fr))}.said dl.lines>div{display:grid;gap:0 .8rem;
grid-template-columns:6rem 1fr}.said dt{font-weight:600}.said dd{margin:0;overflow-wrap:anywhere;white-space:pre-wrap}
.kind{opacity:.7;font-size:.8rem}
@media(max-width:480px){body{padding:.6rem;font-size:15px}.said dl.columns{grid-template-columns:1fr}}
@media print{:root{color-scheme:light}body{max-width:none;padding:0;font-size:11pt}nav,summary{display:none}
figure:not(.small),svg,.said,tr{break-inside:avoid}svg{max-height:23cm}figure.small{grid-template-columns:repeat(3,1fr)}details::details-content{content-visibility:visible;height:auto}
.scroll{overflow:visible}table{font-size:8pt}th{white-space:normal}td{overflow-wrap:break-word}}
"""


def render_page(title: str, summary: str, sections: list[Section]) -> str:
    """The whole page."""
    links = "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in sections)
    body = "".join(
        f'<section><h2 id="{section.key}">{escape(section.title)}</h2>{"".join(map(_block, section.blocks))}</section>'
        for section in sections
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{escape(summary)}</p><nav>{links}</nav>{body}</body></html>\n"
    )


def _block(block) -> str:
    match block:
        case Heading(text, level, mark):
            verdict = f': <span class="{MARKS.get(mark, "")}">{escape(mark)}</span>' if mark else ""
            return f"<h{level}>{escape(text)}{verdict}</h{level}>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Points(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Figure(svg, label):
            plots, layout = (svg, ' class="small"') if isinstance(svg, list) else ([svg], "")
            return f'<figure{layout} role="img" aria-label="{escape(label)}">{"".join(plots)}</figure>'
        case Table(folded=True):
            return f"<details><summary>the numbers</summary>{_table(block)}</details>"
        case Table():
            return _table(block)
        case Said():
            return _said(block)
    raise TypeError(f"{block!r} is no block")


def _table(block: Table) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in block.head)
    cells = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in block.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'


def _cell(text: str) -> str:
    text = str(text)
    mark = "n" if NUMBER.match(text) else MARKS.get(text, "")
    return f'<td class="{mark}">{escape(text)}</td>' if mark else f"<td>{escape(text)}</td>"


def _said(block: Said) -> str:
    note = lambda text: f' <span class="kind">{escape(text)}</span>' if text else ""
    answers = "".join(
        f"<div><dt>{escape(who)}</dt><dd>{escape(text.strip()) or '<i>(nothing)</i>'}{note(about)}</dd></div>"
        for who, text, about in block.answers
    )
    layout = "columns" if block.columns else "lines"
    question = f"<p><b>{escape(block.question)}</b>{note(block.kind)}</p>"
    return f'<div class="said">{question}<dl class="{layout}">{answers}</dl></div>'
