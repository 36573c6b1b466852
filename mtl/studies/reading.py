"""Read the file of a study, and check every field of it."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from mtl.run.options import nearest
from mtl.studies.data_needed import check_names
from mtl.studies.definition import Definition, Published, Quick, StudyColumn, StudyRow, Then
from mtl.studies.stated import Stated, parse_stated

KEYS: tuple[str, ...] = (
    "title",
    "hours",
    "data",
    "words",
    "seeds",
    "sources",
    "rows",
    "columns",
    "baseline",
    "compare",
    "figure",
    "published",
)
KEYS += ("then", "quick", "notes")
BETTER = ("higher", "lower", "none")
SHOWN = ("mean", "minimum", "maximum")


def read_definition(path: Path) -> Definition:
    """Read the file of a study.

    Raises:
        ValueError: it is no YAML mapping, or a field is unknown, missing or wrong; the message names the file and the field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML: {error}") from error
    try:
        return _definition(path, _mapping(content, "the file"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _definition(path: Path, content: Mapping[str, Any]) -> Definition:
    _known(content, KEYS, ("title", "hours", "rows", "columns", "quick"), "the study")
    columns = tuple(_column(title, value) for title, value in _mapping(content["columns"], "columns").items())
    words, seeds = _words(content.get("words", []), "words"), _seeds(content.get("seeds", [0]), "seeds")
    rows = tuple(_row(entry, columns, words, seeds) for entry in _list(content["rows"], "rows"))
    names, titles = [row.name for row in rows], [column.title for column in columns]
    if len(set(names)) < len(names):
        raise ValueError(f"rows must have different names, got {', '.join(names)}")
    baseline = content.get("baseline")
    _among([baseline] if baseline is not None else [], names, "baseline")
    _among([column.against for column in columns if column.against is not None], names, "against")
    chosen = {key: tuple(map(str, _list(content.get(key, titles[:1]), key))) for key in ("compare", "figure")}
    for key, value in chosen.items():
        _among(value, titles, key)
    if not float(content["hours"]) > 0:
        raise ValueError(f"hours must be > 0, got {content['hours']}")
    sources = _mapping(content.get("sources", {}), "sources").items()
    check_names(_list(content.get("data", []), "data"))
    return Definition(
        name=path.stem,
        path=path,
        title=str(content["title"]),
        hours=float(content["hours"]),
        data=tuple(map(str, _list(content.get("data", []), "data"))),
        sources={name: _words(value, f"sources.{name}") for name, value in sources},
        rows=rows,
        columns=columns,
        baseline=baseline,
        compare=chosen["compare"],
        figure=chosen["figure"],
        published=tuple(_published(entry, columns) for entry in _list(content.get("published", []), "published")),
        quick=_quick(_mapping(content["quick"], "quick")),
        then=_then(_mapping(content["then"], "then")) if "then" in content else None,
        notes=tuple(map(str, _list(content.get("notes", []), "notes"))),
    )


def _column(title: str, content: Any) -> StudyColumn:
    where = f"columns.{title}"
    options = _mapping(content, where)
    _known(options, [part.name for part in fields(StudyColumn) if part.name != "title"], ("metric",), where)
    column = StudyColumn(str(title), **options)
    if column.better not in BETTER:
        raise ValueError(f"{where}.better must be one of {', '.join(BETTER)}, got {column.better}")
    if column.show not in SHOWN:
        raise ValueError(f"{where}.show must be one of {', '.join(SHOWN)}, got {column.show}")
    if column.metric.startswith("delta_m/") != (column.against is not None):
        raise ValueError(f"{where}.against names the row of single-task runs and belongs to metric=delta_m/METRIC")
    return column


def _row(content: Any, columns: Sequence[StudyColumn], words: tuple[str, ...], seeds: tuple[int, ...]) -> StudyRow:
    entry = _mapping(content, "rows")
    name = str(entry.get("name", ""))
    where = f"rows.{name}"
    _known(entry, ("name", "words", "seeds", "stated", "values", "only"), ("name",), where)
    only = tuple(map(str, _list(entry["only"], f"{where}.only"))) if "only" in entry else None
    _among(only or (), [column.title for column in columns], f"{where}.only")
    return StudyRow(
        name,
        (*words, *_words(entry.get("words", []), f"{where}.words")),
        _seeds(entry["seeds"], f"{where}.seeds") if "seeds" in entry else seeds,
        _cells(entry.get("stated", []), columns, f"{where}.stated"),
        {key: str(value) for key, value in _mapping(entry.get("values", {}), f"{where}.values").items()},
        only,
    )


def _published(content: Any, columns: Sequence[StudyColumn]) -> Published:
    entry = _mapping(content, "published")
    _known(entry, ("name", "source", "cells"), ("name", "source", "cells"), "published")
    return Published(
        str(entry["name"]), str(entry["source"]), _cells(entry["cells"], columns, f"published.{entry['name']}.cells")
    )


def _cells(content: Any, columns: Sequence[StudyColumn], where: str) -> dict[str, Stated]:
    entries = _list(content, where)
    if len(entries) > len(columns):
        raise ValueError(f"{where} must have at most {len(columns)} entries, one a column, got {len(entries)}")
    return {
        column.title: parse_stated(entry, scale=1.0 if column.unit else column.scale, where=f"{where}, {column.title},")
        for column, entry in zip(columns, entries, strict=False)
        if entry is not None
    }


def _quick(content: Mapping[str, Any]) -> Quick:
    _known(content, ("words", "seeds"), ("words",), "quick")
    seeds = content.get("seeds", 1)
    if not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"quick.seeds must be a number of seeds >= 1, got {seeds}")
    return Quick(_words(content["words"], "quick.words"), seeds)


def _then(content: Mapping[str, Any]) -> Then:
    _known(content, ("words", "makes"), ("words", "makes"), "then")
    return Then(tuple(map(str, _list(content["words"], "then.words"))), str(content["makes"]))


def _words(content: Any, where: str) -> tuple[str, ...]:
    words = tuple(map(str, _list(content, where)))
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or name in ("seed", "output_dir", "resume", "name"):
            raise ValueError(
                f"{where} must be NAME=VALUE as after mtl train, and not seed, output_dir, resume or name, got {word!r}"
            )
    return words


def _seeds(content: Any, where: str) -> tuple[int, ...]:
    seeds = _list(content, where)
    if not seeds or any(not isinstance(seed, int) or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"{where} must be different whole numbers >= 0, at least one, got {seeds}")
    return tuple(seeds)


def _mapping(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be a mapping, got {type(content).__name__}")
    return content


def _list(content: Any, where: str) -> list[Any]:
    if not isinstance(content, list):
        raise ValueError(f"{where} must be a list, got {type(content).__name__}")
    return content


def _known(content: Mapping[str, Any], allowed: Sequence[str], required: Sequence[str], where: str) -> None:
    for key in content:
        if key not in allowed:
            raise ValueError(f"{where} has no field {key!r}{nearest(str(key), allowed)}; fields: {', '.join(allowed)}")
    missing = [key for key in required if key not in content]
    if missing:
        raise ValueError(f"{where} must have {', '.join(missing)}")


def _among(names: Sequence[str], known: Sequence[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where} must be among {', '.join(known)}, got {name}{nearest(name, known)}")
