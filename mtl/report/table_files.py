"""A table of text as Markdown, LaTeX (booktabs) and for the terminal, and tables of numbers as CSV."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from mtl.base.files import atomic_write

# How each kind of file shows an entry that stands out.
STRONG, WEAK = "strong", "weak"
RICH = {STRONG: "bold", WEAK: "underline"}
MARKDOWN = {STRONG: "**{}**", WEAK: "*{}*"}
LATEX = {STRONG: r"\textbf{{{}}}", WEAK: r"\underline{{{}}}"}
LATEX_LETTERS = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "Δ": r"$\Delta$",
}


@dataclass(frozen=True)
class Entry:
    """The text of a cell, and how much it stands out: strong, weak or not at all."""

    text: str
    emphasis: str = ""


@dataclass(frozen=True)
class TextTable:
    """A table: title, heads of the columns, rows of as many entries, and notes below. The first column is text, others are numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()


def rich_table(table: TextTable) -> Table:
    """The table for the terminal. Texts are no markup there."""
    caption = Text("\n".join(table.notes)) if table.notes else None
    made = Table(title=Text(table.title), title_justify="left", caption=caption, caption_justify="left")
    for place, head in enumerate(table.header):
        made.add_column(Text(head), justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(entry.text, style=RICH.get(entry.emphasis, "")) for entry in row))
    return made


def markdown(table: TextTable) -> str:
    """The table in Markdown."""
    lines = [f"**{escape_markdown(table.title)}**", "", _line(map(escape_markdown, table.header))]
    lines.append("|---|" + "---:|" * (len(table.header) - 1))
    lines += [
        _line(MARKDOWN.get(entry.emphasis, "{}").format(escape_markdown(entry.text)) if entry.text else "" for entry in row)
        for row in table.rows
    ]
    notes = [f"- {escape_markdown(note)}" for note in table.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def escape_markdown(text: str) -> str:
    """A text as a cell of a table, on one line."""
    return " ".join(re.sub(r"([\\|*`])", r"\\\1", text).replace("<", "&lt;").split())


def latex(table: TextTable, label: str) -> str:
    """The table in LaTeX, with the rules of booktabs; names are escaped.

    Args:
        table: the table.
        label: its name for references.
    """
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\label{{{re.sub(r'[^A-Za-z0-9:-]+', '-', label)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\toprule",
        _row(map(escape_latex, table.header)),
        r"\midrule",
        *(_row(LATEX.get(entry.emphasis, "{}").format(escape_latex(entry.text)) for entry in row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {escape_latex(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """A text for LaTeX, on one line, in which no letter is a command."""
    return " ".join("".join(LATEX_LETTERS.get(letter, letter) for letter in text).split())


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV with one line of heads; None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()


def save_text(path: Path, text: str) -> None:
    """Write a whole file, in UTF-8; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
