"""The pieces of a report's page: its frame with the style, tables, and embedded pictures."""

import base64
import struct
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from mtl.base.files import atomic_write
from mtl.report import style

LONG_TITLE = 12  # letters
MISSING = "the run directories hold no data for this figure"
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark;
  --text: #1c1e21; --soft: #5c636b; --line: #dfe3e8; --back: #fff; --card: #f6f7f9; --mark: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6e9; --soft: #a2a9b1; --line: #383d43; --back: #16181b; --card: #1f2226; --mark: #ff9d57; }
  figure img { padding: .5rem; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2rem 0 .25rem; }
h1, h2, pre, .notes { overflow-wrap: anywhere; }
p, figcaption { max-width: 46rem; margin: .5rem 0; }
figure { margin: 1rem 0 1.5rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, .soft { color: var(--soft); font-size: .875rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; max-width: 8rem; }
th.long { min-width: 6.5rem; }
th:first-child, td:first-child, table.text td, table.text th { text-align: left; }
td:first-child { min-width: 8rem; }
table.facts-of-run td:last-child { overflow-wrap: anywhere; }
@media (max-width: 45rem) { table.facts-of-run td:first-child { min-width: 5.5rem; } }
td:first-child, table.text td { white-space: normal; overflow-wrap: break-word; vertical-align: top; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: .6rem; margin: 1.25rem 0; }
.facts div, .notes, pre { background: var(--card); border-radius: 6px; padding: .6rem .9rem; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.notes { border-left: 3px solid var(--mark); margin: 1.25rem 0; font-size: .875rem; }
.notes ul { margin: .25rem 0; padding-left: 1.1rem; }
pre { font-size: .8rem; line-height: 1.45; white-space: pre-wrap; }
figure { overflow-x: auto; }
@media (max-width: 45rem) { .facts { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); } .facts dd { font-size: 1.1rem; } }
details { margin: .75rem 0; }
summary { cursor: pointer; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def write_page(path: Path, title: str, body: str) -> None:
    """Write the whole page, or leave the old one; bytes of a file name that are not UTF-8 are shown as escapes."""
    with atomic_write(path) as file:
        file.write(PAGE.substitute(title=escape(title), body=body).encode(errors="backslashreplace"))


def write_figure(path: Path, figure: style.Drawing, alt: str, caption: str, *, missing: str = MISSING) -> str:
    """Write a figure as a PNG, and make the HTML that embeds it.

    Args:
        path: of the PNG; an older one is deleted where there is no figure.
        figure: None where there is none.
        alt: text in place of the picture.
        caption: below the picture.
        missing: why there is no figure.

    Returns:
        HTML of the picture with its caption, or of a line with the reason.
    """
    if figure is None:
        path.unlink(missing_ok=True)  # an older report's figure must not pass for this one's
        return f"<p class=soft>Not shown: {escape(missing)}.</p>"
    style.save_figure(figure, path)
    data = path.read_bytes()
    width, height = (size * 96 // style.DPI for size in struct.unpack(">II", data[16:24]))  # of the PNG's header
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    # On a narrow screen a picture shrinks while its letters can be read, and is then scrolled.
    image = f'<img src="{source}" width="{width}" height="{height}" style="min-width:{width * 3 // 5}px" alt="{escape(alt)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "numbers") -> str:
    """Make the HTML of a table.

    Args:
        header: titles of the columns; none for a table without a header.
        rows: cells, as text.
        kind: class of the table in the style sheet.
    """
    # A long title in a narrow column would have a line for each word.
    titles = "".join(f"<th{' class=long' if len(cell) > LONG_TITLE else ''}>{escape(cell)}</th>" for cell in header)
    head = f"<thead><tr>{titles}</tr></thead>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'
