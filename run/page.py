"""The HTML of a report: one page that needs nothing but itself (no script, no font, no picture from elsewhere)."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that is markup already."""


def text(value: object) -> str:
    """Anything as text that HTML shows as it is."""
    return html.escape(str(value))


def cell(value: object, tag: str = "td") -> str:
    """A cell of a table; `Html` goes in as markup."""
    return f"<{tag}>{value if isinstance(value, Html) else text(value)}</{tag}>"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "figures") -> str:
    """A table that scrolls sideways on a narrow screen; `kind` is its style: figures, shapes or facts."""
    head = f"<thead><tr>{''.join(cell(h, 'th') for h in heads)}</tr></thead>" if any(heads) else ""
    lines = [f"<tr>{''.join(map(cell, row))}</tr>" for row in rows]
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>{"".join(lines)}</tbody></table></div>'


def section(title: str, body: str) -> str:
    """A part of the page under its heading."""
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def gallery(pictures: Iterable[str]) -> str:
    """Pictures beside each other where there is room."""
    return f'<div class="gallery">{"".join(pictures)}</div>'


def whole(title: str, sections: Iterable[str]) -> str:
    """The page of these sections; empty ones are left out."""
    return _PAGE.format(title=text(title), style=_STYLE, body="\n".join(filter(None, sections)))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1e293b; --soft: #64748b; --line: #e2e8f0; --card: #f8fafc; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0f172a; --ink: #e2e8f0; --soft: #94a3b8; --line: #334155; --card: #1e293b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 16px; }
h1 { margin: 0 0 12px; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 32px 0 8px; font-size: 1.15rem; border-bottom: 1px solid var(--line); padding-bottom: 4px; }
p { margin: 8px 0; overflow-wrap: anywhere; }
header { border-left: 6px solid #94a3b8; padding-left: 14px; }
header.finished { border-color: #16a34a; }
header.stopped, header.running { border-color: #eab308; }
header.diverged, header.failed { border-color: #dc2626; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 8px; margin: 0 0 8px; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 10px; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: .9rem; margin: 4px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
th:first-child, td:first-child, .shapes :last-child, .facts td { text-align: left; }
.shapes td:last-child { min-width: 13rem; }
.shapes tbody tr:first-child { font-weight: 600; }
.facts td { overflow-wrap: anywhere; }
.facts td:first-child { color: var(--soft); overflow-wrap: normal; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 16px; }
figure { margin: 0; max-width: 640px; }
figcaption { color: var(--soft); font-size: .85rem; }
svg, img { width: 100%; max-width: 100%; height: auto; display: block; }
.bar { display: flex; height: 28px; border-radius: 6px; overflow: hidden; margin: 8px 0; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .5em; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: .85rem; }
blockquote { margin: 8px 0; padding: 8px 12px; background: var(--card); border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
pre { background: var(--card); padding: 12px; border-radius: 8px; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
small { color: var(--soft); font-weight: 400; font-size: .8rem; white-space: nowrap; }
@media (max-width: 600px) {
  table { font-size: .9rem; }
  th, td { padding-right: 10px; }
}
"""
