"""The report as one HTML page. Everything that comes from a file or a model is escaped here.

The page contains no script, and its Content-Security-Policy forbids scripts and all requests.
"""

import re
from html import escape

from llmrecipes.report.blocks import Figure, Flow, Heading, Points, Said, Section, Table, Text

NUMBER = re.compile(r"(–|\d+–\d+|-?[\d.,]+(e[+-]?\d+)?( (%|s|min|h|[kMG]B))?( ± [\d.]+)?( ?\[.*\])?( \*)?)$")
MARKS = {"met": "met", "healthy": "met", "won": "met", "missed": "missed", "unhealthy": "missed", "lost": "missed"}
STYLE = """
:root{color-scheme:light dark;--line:#8885;--soft:#8881;--good:light-dark(#1d7a3a,#5cc97f);--bad:light-dark(#b3261e,#ff8a80)}
body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:auto;padding:1rem;background:Canvas;color:CanvasText}
h1{font-size:1.6rem;overflow-wrap:anywhere}h1~p{max-width:56rem}h2{margin:2rem 0 .8rem;border-bottom:1px solid var(--line)}
.section{border-top:1px solid var(--line)}.section>summary{opacity:1}
summary h2{display:inline-block;margin:.6rem 0;border:0;font-size:1.2rem}
h2,h3,h4{break-after:avoid;overflow-wrap:anywhere}h4{margin:1.2rem 0 .3rem}
svg{width:100%;height:auto;max-width:40rem;display:block}figure{margin:0}
figure.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:.3rem}
.flow{display:flex;flex-wrap:wrap;gap:.6rem 1.3rem;padding:0;margin:0;list-style:none}
.flow li{flex:1 0 6.2rem;max-width:10rem;display:grid;gap:.4rem;align-content:center;position:relative}
.flow li+li::before{content:"→";position:absolute;left:-1.15rem;top:50%;translate:0 -50%;opacity:.7}
.flow div{border:1px solid #3b82c4;background:#3b82c422;border-radius:.4rem;padding:.3rem .5rem}
.flow small{display:block;font-size:.78rem;line-height:1.35}
/* A shadow on the side where a table goes on; sheets that move with the table cover it at the ends. */
.scroll{overflow-x:auto;background-repeat:no-repeat;background-attachment:local,local,scroll,scroll;scrollbar-width:thin;
background-size:3rem 100%,3rem 100%,1rem 100%,1rem 100%;background-position:0 0,100% 0,0 0,100% 0;
background-image:linear-gradient(90deg,Canvas 40%,#0000),linear-gradient(270deg,Canvas 40%,#0000),
linear-gradient(90deg,#8889,#0000),linear-gradient(270deg,#8889,#0000)}
table{border-collapse:collapse;font-size:.86rem;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.25rem .6rem;text-align:left;vertical-align:top}th{white-space:nowrap}
td.n{text-align:right;white-space:nowrap}nav{display:flex;flex-wrap:wrap;gap:.1rem .8rem}
summary{cursor:pointer;opacity:.75;font-size:.9rem}.met{color:var(--good)}.missed{color:var(--bad)}
.said{border:1px solid var(--line);border-radius:.5rem;padding:.5rem .8rem;margin:.8rem 0;background:var(--soft)}
.said p{margin:.2rem 0;overflow-wrap:anywhere;white-space:pre-wrap}.said dl{display:grid;margin:0;gap:.4rem .8rem}
.said dl.columns{grid-template-columns:repeat(auto-fit,minmax(10rem,1fr))}.said dl.lines>div{display:grid;gap:0 .8rem;
grid-template-columns:fit-content(12rem) 1fr}.said dt{font-weight:600;min-width:6rem;
overflow-wrap:anywhere}.said dd{margin:0;overflow-wrap:anywhere;white-space:pre-wrap}
.kind{opacity:.7;font-size:.8rem}
@media(max-width:480px){body{padding:.6rem;font-size:15px}.said dl.columns{grid-template-columns:1fr}
table{font-size:.76rem}th,td{padding:.25rem .2rem}th,td.n{white-space:normal}}
@media print{:root{color-scheme:light}nav,details:not(.section)>summary{display:none}
body{max-width:none;padding:0;font-size:11pt}
figure:not(.small),svg,.said,.flow,tr{break-inside:avoid}svg{max-height:23cm}figure.small{grid-template-columns:repeat(3,1fr)}
details::details-content{content-visibility:visible;height:auto}
.scroll{overflow:visible}table{font-size:8pt}th{white-space:normal}td{overflow-wrap:break-word}}
"""


def render_page(title: str, opening: str | list[Text], sections: list[Section]) -> str:
    """The whole page; `opening` comes below the title."""
    texts = [Text(opening)] if isinstance(opening, str) else opening
    links = "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in sections)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{''.join(map(_block, texts))}<nav>{links}</nav>"
        f"{''.join(map(_section, sections))}</body></html>\n"
    )


def _section(section: Section) -> str:
    # A folded section's anchor is inside it: browsers open the section when a link there is followed.
    anchor, title = f'<a id="{section.key}"></a>', f"<h2>{escape(section.title)}</h2>"
    body = "".join(map(_block, section.blocks))
    if section.folded:
        return f"<details class=section><summary>{title}</summary>{anchor}{body}</details>"
    return f"<section>{anchor}{title}{body}</section>"


def _block(block) -> str:
    match block:
        case Heading(text, level, mark):
            verdict = f': <span class="{MARKS.get(mark, "")}">{escape(mark)}</span>' if mark else ""
            return f"<h{level}>{escape(text)}{verdict}</h{level}>"
        case Text(text, lead):
            return f"<p>{f'<b>{escape(lead)}</b> ' if lead else ''}{escape(text)}</p>"
        case Flow(steps):
            return f'<ol class="flow">{"".join(map(_step, steps))}</ol>'
        case Points(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Figure(svg, label):
            plots, layout = (svg, ' class="small"') if isinstance(svg, list) else ([svg], "")
            return f'<figure{layout} role="img" aria-label="{escape(label)}">{"".join(plots)}</figure>'
        case Table(folded=True):
            return f"<details><summary>as a table</summary>{_table(block)}</details>"
        case Table():
            return _table(block)
        case Said():
            return _said(block)
    raise TypeError(f"{block!r} is not a block")


def _table(block: Table) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in block.head)
    cells = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in block.rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'


def _step(boxes: list[tuple[str, list[str]]]) -> str:
    below = lambda lines: "".join(f"<small>{escape(line)}</small>" for line in lines)
    return f"<li>{''.join(f'<div><b>{escape(title)}</b>{below(lines)}</div>' for title, lines in boxes)}</li>"


def _cell(text: str) -> str:
    text = str(text)
    mark = "n" if NUMBER.match(text) else MARKS.get(text, "")
    if mark == "n":  # breaks before an interval, never inside it or before a unit
        text = re.sub(r"(?<=[,±]) | (?=[%s*±]|min|h$|[kMG]B)", "\xa0", text)
    html = escape(text)
    if re.fullmatch(r"[\w/]+( [↑↓])?", text):  # a name may break at its joints where the screen is narrow
        html = re.sub(r"(?<=\w)([_/])(?=\w)", r"\1<wbr>", html.replace(" ", "\xa0"))
    return f'<td class="{mark}">{html}</td>' if mark else f"<td>{html}</td>"


def _said(block: Said) -> str:
    note = lambda text: f' <span class="kind">{escape(text)}</span>' if text else ""
    answers = "".join(
        f"<div><dt>{escape(who)}</dt><dd>{escape(text.strip()) or '<i>(nothing)</i>'}{note(about)}</dd></div>"
        for who, text, about in block.answers
    )
    layout = "columns" if block.columns else "lines"
    question = f"<p><b>{escape(block.question)}</b>{note(block.kind)}</p>"
    return f'<div class="said">{question}<dl class="{layout}">{answers}</dl></div>'
