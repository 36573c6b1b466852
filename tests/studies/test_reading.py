"""The file of a study: stated numbers, and errors that name the field."""

from pathlib import Path

import pytest

from mtl.studies.files import study_file
from mtl.studies.reading import read_definition
from mtl.studies.stated import parse_stated

FILE = """\
title: A study
hours: 1
rows:
  - {name: one, words: [mode=local], stated: [90 ± 2]}
columns:
  rank-1 %: {metric: test/rank1, scale: 100, digits: 1}
quick: {words: [rounds=1]}
"""


def test_stated_numbers_are_in_the_unit_of_the_metric() -> None:
    rank1 = parse_stated("98.4 ± 1.2", scale=100, where="x")
    assert (rank1.mean, rank1.deviation, rank1.rounding) == pytest.approx((0.984, 0.012, 0.0005))
    sent = parse_stated("376.4 MB", scale=1, where="x")
    assert (sent.mean, sent.deviation, sent.rounding) == (pytest.approx(376.4e6), None, pytest.approx(5e4))
    assert parse_stated("-0.61", scale=1, where="x").mean == -0.61
    assert parse_stated("786.3 k", scale=1, where="x").mean == pytest.approx(786300)
    assert parse_stated(0.864, scale=1, where="x").mean == 0.864
    with pytest.raises(ValueError, match=r"rows.one must be a number such as 98.4 or 98.4 ± 1.2, got 'about 3'"):
        parse_stated("about 3", scale=1, where="rows.one")


def test_a_value_is_inside_to_the_last_digit() -> None:
    stated = parse_stated("98.4 ± 1.2", scale=100, where="x")
    assert [stated.verdict(value) for value in (0.984, 0.9965, 0.9966, 0.9715, 0.9714)] == [
        "inside",
        "inside",
        "outside",
        "inside",
        "outside",
    ]
    assert parse_stated("98.4", scale=100, where="x").verdict(0.2) == "no spread"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hours: 1", "hour: 1", "the study has no field 'hour'; did you mean hours?"),
        ("title: A study\n", "", "the study must have title"),
        ("hours: 1", "hours: 0", "hours must be > 0, got 0"),
        ("mode=local", "seed=3", "rows.one.words must be NAME=VALUE .*, got 'seed=3'"),
        ("[90 ± 2]", "[90, 3]", "rows.one.stated must have at most 1 entries, one a column, got 2"),
        ("metric: test", "metrik: test", "columns.rank-1 % has no field 'metrik'; did you mean metric?"),
        ("digits: 1", "better: more", "columns.rank-1 %.better must be one of higher, lower, none, got more"),
        ("digits: 1", "show: median", "columns.rank-1 %.show must be one of mean, minimum, maximum, got median"),
        ("words: [rounds=1]", "seeds: 2", "quick must have words"),
        ("quick:", "seeds: [1, 1]\nquick:", "seeds must be different whole numbers >= 0"),
        ("quick:", "baseline: two\nquick:", "baseline must be among one, got two"),
        ("quick:", "compare: [rank]\nquick:", "compare must be among rank-1 %, got rank"),
        ("quick:", "data: [lfv]\nquick:", "data must be among celeba, lfw, .* got lfv; did you mean lfw?"),
        ("  - {name", "  - {name: one}\n  - {name", "rows must have different names, got one, one"),
        ("columns:", "columns: [", "must be YAML"),
    ],
)
def test_an_error_names_the_file_and_the_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(FILE.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        read_definition(file)
    assert str(file) in str(caught.value)


def test_a_users_own_study_replaces_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "studies"
    folder.mkdir(parents=True)
    for name in ("mine", "orl"):
        (folder / f"{name}.yaml").write_text(FILE)
    assert read_definition(study_file("mine")).title == "A study"
    assert study_file("orl") == folder / "orl.yaml"
    assert read_definition(study_file("detect")).hours < 1
    with pytest.raises(ValueError, match=r"no study 'orll'; did you mean orl\?"):
        study_file("orll")
